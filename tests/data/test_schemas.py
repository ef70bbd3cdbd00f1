"""Rows of other people's sets and of your own: which schema reads them, and what comes out."""

import json

import pytest
from conftest import call, write_rows

from tinyr1.common.errors import UserError
from tinyr1.data.coding import BOXED
from tinyr1.data.draft import Dropped, Selection
from tinyr1.data.schemas import SCHEMAS, columns_of, drafts_by_columns, drafts_of, schema_of
from tinyr1.data.sources import Place

THINK = "<think>\nI add.\n</think>\n\nIt is \\boxed{2}."
MARKED = (
    "<|begin_of_thought|>\n\nI add.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    "It is \\boxed{2}.\n\n<|end_of_solution|>"
)
SKY = "Answer as <|begin_of_thought|> ... <|end_of_thought|> <|begin_of_solution|> ..."
FUNCTION = "Generate an executable Python function generated from the given prompt."
USER = {"role": "user", "content": "What is 1 + 1?"}
TURNS = [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": THINK}]
MESSAGES = [USER, {"role": "assistant", "content": THINK}]


def draft(row, domain="math", **want):
    return drafts_of(Place("file", 1, row, "origin"), Selection(domain, **want))[0]


def dropped(row, domain="math", **want):
    with pytest.raises(Dropped) as error:
        draft(row, domain, **want)
    return error.value.reason


SETS = {
    "OpenR1-Math": {
        "problem": "What is 1 + 1?", "solution": "2", "answer": "2", "problem_type": "Algebra",
        "question_type": "math-word-problem", "source": "olympiads", "uuid": "u1",
        "is_reasoning_complete": [True], "generations": [THINK], "correctness_count": 1,
        "correctness_math_verify": [True], "correctness_llama": None, "finish_reasons": None,
        "messages": MESSAGES,
    },
    "OpenThoughts-114k metadata": {
        "problem": "What is 1 + 1?", "deepseek_reasoning": "I add.", "domain": "math",
        "deepseek_solution": "It is \\boxed{2}.", "ground_truth_solution": "2",
        "source": "numina_math", "test_cases": None, "starter_code": None,
    },
    "OpenThoughts-114k-math": {
        "source": "olympiads", "problem": "p", "solution": "So \\boxed{2}.", "messages": [],
        "system": SKY, "generated_token_count": 9, "correct": True,
        "conversations": [
            {"from": "user", "value": BOXED + " What is 1 + 1?"},
            {"from": "assistant", "value": MARKED},
        ],
    },
    "OpenThoughts2": {"conversations": TURNS, "question": "q", "source": "math", "id": 3},
    "OpenThoughts3": {"difficulty": 8, "source": "s", "domain": "math", "conversations": TURNS},
    "s1, s1K, s1K-1.1": {
        "solution": "2", "question": "What is 1 + 1?", "cot_type": "math", "source_type": "x/y",
        "metadata": "{}", "gemini_thinking_trajectory": "g", "gemini_attempt": "g",
        "deepseek_thinking_trajectory": "I add.", "deepseek_attempt": "It is \\boxed{2}.",
        "deepseek_grade": "Yes",
    },
    "Mixture-of-Thoughts": {
        "messages": MESSAGES, "num_tokens": 9, "source": "open-r1/OpenR1-Math-220k",
    },
    "conversations": {"conversations": TURNS},
    "messages": {"messages": MESSAGES},
    "training file of this program": {
        "id": "a", "domain": "math", "messages": MESSAGES, "source": "there", "answer": "2",
    },
    "Alpaca": {"instruction": "What is 1 + 1?", "input": "", "output": THINK},
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_sets_are_known_by_their_columns(name):
    row = SETS[name]
    assert schema_of(row, "here").name.startswith(name)
    want = {"sources": ("math",)} if name == "OpenThoughts2" else {}
    found = draft(row, **want)
    assert (found.thought, found.solution) == ("I add.", "It is \\boxed{2}.")
    assert found.question.endswith("What is 1 + 1?")
    for domain in ("coding", "science"):  # where a column says what it is, no other branch takes it
        if name not in ("conversations", "messages", "Alpaca", "OpenThoughts2"):
            assert dropped(row, domain) == "domain"


def test_known_sets_without_trajectories_are_questions():
    numina = {"problem": "p", "solution": "s", "answer": "2", "source": "aops"}
    numina |= {"problem_type": "Algebra", "question_type": "math-word-problem"}
    limo = {"question": "p", "solution": "Long prose.", "answer": 2}
    for row in (numina, limo):
        found = draft(row)
        assert (found.thought, found.question, found.answer) == (None, "p", "2")
    assert draft(limo | {"solution": THINK}).thought == "I add."
    question = {"id": "7", "domain": "math", "question": "p", "source": "s", "answer": "2"}
    assert (draft(question).thought, draft(question).id, draft(question).origin) == (None, "7", "")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"row": "a:1", "reason": "domain", "messages": MESSAGES}, "rejected rows of this program"),
        ({"task": "t", "id": 1, "kind": "math", "prompt": "p", "answer": "1"}, "a task file"),
        ({"task": "t", "id": 1, "trial": 0, "text": "x"}, "samples of a model"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "no schema has the columns chosen, prom"),
        (SETS["OpenThoughts2"], "OpenThoughts2 has all domains"),
    ],
)
def test_others_are_refused_by_name(row, said):
    with pytest.raises(UserError, match=said):
        draft(row)


def test_no_schema_hides_another():
    """Each set's row is read by its own schema, not by an earlier one with fewer columns."""
    for i, schema in enumerate(SCHEMAS):
        row = dict.fromkeys(schema.columns)
        assert next(s for s in SCHEMAS if s.fits(row)) is schema, (i, schema.name)


def test_bespoke_stratos_is_told_apart_by_how_questions_begin():
    turns = [{"from": "user", "value": FUNCTION + " Print 1."}, {"from": "assistant", "value":
             MARKED.replace("It is \\boxed{2}.", "```python\nprint(1)\n```")}]  # fmt: skip
    row = {"system": SKY, "conversations": turns}
    assert draft(row, "coding").cut == ("system message on the form of answers",)
    assert dropped(row, "math") == dropped(row, "science") == "domain"


def reply(**fields):
    return {"messages": [USER, {"role": "assistant", **fields}]}


@pytest.mark.parametrize(
    "row",
    [
        reply(content="It is \\boxed{2}.", reasoning_content="I add."),
        reply(content="It is \\boxed{2}.", reasoning="I add.\n"),
        reply(content="I add.\n</think>\n\nIt is \\boxed{2}."),
        reply(content=[{"type": "text", "text": THINK}]),
        reply(content=THINK, reasoning_content=None),
        reply(content=THINK, reasoning_content="I add."),  # said twice, and the same
        reply(
            content=[
                {"type": "thinking", "thinking": "I add."},
                {"type": "text", "text": "It is \\boxed{2}."},
            ]
        ),
        {"messages": json.dumps(MESSAGES)},  # as a CSV has it
        {"messages": [{"role": None, "content": None, **turn} for turn in TURNS]},
        {"messages": [{**USER, "role": "User"}, MESSAGES[1]], "conversations": []},
        {
            "messages": [USER, {"role": "assistant", "content": "It is \\boxed{2}."}],
            "reasoning": "I add.",
        },
        {"id": 1, "domain": "algebra", "question": USER["content"], "answer": THINK},
        {"question": USER["content"], "solution": "Old.", "answer": THINK},
        {"question": USER["content"], "response": THINK, "answer": "2"},
        {
            "question": USER["content"],
            "thinking": "I add.",
            "answer": "2",
            "solution": "It is \\boxed{2}.",
        },
        {"question": USER["content"], "answer": None, "output": THINK},
        {"question": USER["content"], "answer": THINK, "source": ["s"], "domain": {"a": 1}},
        {"conversations": [{"role": "user", "content": USER["content"]}, MESSAGES[1]]},
        {"conversations": {"from": ["user", "assistant"], "value": [USER["content"], THINK]}},
        {"question": USER["content"], "answer": THINK},
        {"question": USER["content"], "thinking": "I add.", "answer": "It is \\boxed{2}."},
        {"prompt": USER["content"], "reasoning": "I add.", "response": "It is \\boxed{2}."},
        {"problem": USER["content"], "thought": "<think>I add.", "solution": "It is \\boxed{2}."},
    ],
)
def test_conversations_of_your_own(row):
    found = draft(row)
    assert found.question == "What is 1 + 1?"
    assert (found.thought, found.solution) == ("I add.", "It is \\boxed{2}.")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": MESSAGES * 2}, "not_one_turn"),
        ({"messages": [MESSAGES[1], USER]}, "not_one_turn"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, MESSAGES[1]]}, "not_one_turn"),
        ({"messages": "text"}, "malformed"),
        ({"conversations": None}, "malformed"),
        ({"id": 1, "question": "q", "answer": THINK, "domain": "Physics"}, "domain"),
        ({"messages": [USER, {"role": "assistant", "content": {"a": 1}}]}, "malformed"),
        (reply(content=THINK, reasoning_content="Another."), "several_thoughts"),
        (reply(content="It is 2."), "no_think"),
        (reply(content="<|begin_of_thought|> only"), "broken_markers"),
        (SETS["OpenThoughts-114k-math"] | {"correct": 0.0}, "not_verified"),
        ({"instruction": "a", "output": THINK, "history": [["a", "b"]]}, "not_one_turn"),
        (SETS["Mixture-of-Thoughts"] | {"source": "elsewhere"}, "domain"),
    ],
)
def test_what_is_no_conversation_is_dropped_with_its_reason(row, why):
    assert dropped(row) == why


def test_what_verified_an_answer_is_true():
    row = SETS["OpenThoughts-114k-math"]
    for correct, verifier in ((1.0, "math_verify"), ("True", "math_verify"), (False, None)):
        found = draft(row | {"correct": correct}, require_verified=False)
        assert found.meta["verified_by"] == verifier
        assert found.answer == "2"


def test_the_right_answer_beside_a_whole_one():
    row = {"question": "q", "reasoning": "r", "response": "Because. Answer: C", "answer": "C"}
    found = draft(row, "science")
    assert (found.solution, found.answer) == ("Because. Answer: C", "C")
    # Of a row without a thought it is what the teacher's answer is compared with, if it is short.
    for answer, expected in (("C", "C"), ("Long. " * 99, None)):
        asked = draft({"question": "q", "answer": answer}, "science", questions_only=True)
        assert asked.answer == expected


def test_systems_messages_are_kept_unless_they_ask_for_another_form():
    system = {"role": "system", "content": "You are terse."}
    assert draft({"messages": [system, *MESSAGES]}).system == "You are terse."
    system["content"] = "Think in <think> tags."
    found = draft({"messages": [system, *MESSAGES]})
    assert (found.system, found.cut) == ("", ("system message on the form of answers",))
    spread = MARKED.replace("<|begin_of_solution|>", "So: <|begin_of_solution|>")
    row = {"question": "q", "answer": spread}
    assert draft(row).cut == ("text outside of the markers",)


def test_columns_of_any_name():
    row = {"q": "What is 1 + 1?", "cot": "I add.", "final": "It is \\boxed{2}.", "gold": 2, "n": 7}
    names = ("question=q", "thinking=cot", "answer=final", "reference=gold", "id=n")
    (found,) = drafts_by_columns(Place("a", 1, row), Selection("math"), columns_of(names))
    assert (found.id, found.answer, found.thought) == ("7", "2", "I add.")
    assert found.solution == "It is \\boxed{2}."
    for wrong in (("q=question",), ("question",), ("answer=final",)):
        with pytest.raises(UserError, match="--columns"):
            columns_of(wrong)


def make(tmp_path, *arguments):
    done = call("tinyr1.data.__main__", *arguments, "--out", tmp_path / "out.jsonl", "--quiet")
    rows = []
    if (tmp_path / "out.jsonl").exists():
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    return done, rows


def test_provenance_is_what_was_read(tmp_path):
    named = dict(SETS["OpenR1-Math"])
    file = write_rows(tmp_path / "mine.jsonl", [named])
    done, rows = make(tmp_path, "math", "--source", file)
    assert done.returncode == 0, done.stderr
    assert rows[0]["source"] == "mine.jsonl/olympiads"
    # What this program wrote keeps the provenance that it has.
    again = write_rows(tmp_path / "again.jsonl", rows)
    done, rows = make(tmp_path, "math", "--source", again)
    assert (rows[0]["source"], rows[0]["id"]) == ("mine.jsonl/olympiads", "u1")


def test_a_column_that_is_missing_is_named(tmp_path):
    file = write_rows(tmp_path / "mine.jsonl", [{"q": "a", "a": THINK}])
    done, _ = make(tmp_path, "math", "--source", file, "--columns", "question=q", "answer=reply")
    assert done.returncode == 2
    assert "--columns: mine.jsonl: row 1 has no column reply; it has a, q" in done.stderr
    for columns in (("question=q", "answer=a", "reference=r"), ("question=q", "answer=q")):
        done, _ = make(tmp_path, "math", "--source", file, "--columns", *columns)
        assert done.returncode == 2
    sparse = write_rows(tmp_path / "sparse.jsonl", [{"q": "a", "a": THINK}, {"q": "b"}])
    done, rows = make(tmp_path, "math", "--source", sparse, "--columns", "question=q", "answer=a")
    assert (done.returncode, len(rows)) == (0, 1)  # a later row may leave out what it has not


def test_what_json_does_not_know_is_written_as_it_can_be(tmp_path):
    pytest.importorskip("pyarrow")
    import datetime

    import pyarrow
    import pyarrow.parquet as parquet

    meta = {"when": datetime.datetime(2025, 1, 2), "raw": b"x", "score": float("nan"), "n": [1]}
    row = {"id": b"1", "messages": MESSAGES, "meta": meta}
    rows = [row, row | {"messages": MESSAGES[:1]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    done, rows = make(tmp_path, "math", "--source", tmp_path / "a.parquet")
    assert done.returncode == 0, done.stderr
    assert rows[0]["meta"] == {"when": "2025-01-02 00:00:00", "n": [1]}
    verified = [
        {"messages": [{**USER, "content": str(i)}, MESSAGES[1]], "meta": {"verified_by": by}}
        for i, by in enumerate((1, "x", ["a"]))
    ]
    done, _ = make(tmp_path, "math", "--source", write_rows(tmp_path / "b.jsonl", verified))
    assert done.returncode == 0, done.stderr
    half = SETS["messages"] | {"id": "a\ud800"}
    done, _ = make(tmp_path, "math", "--source", write_rows(tmp_path / "c.jsonl", [half]))
    assert "- malformed" in done.stdout


def test_other_whole_sources_begin_anew(tmp_path):
    """What is read as a whole is a part of what a run is known by."""
    rows = [{"question": f"Q{i}?", "cot_type": "math", "solution": None} for i in range(3)]
    file = write_rows(tmp_path / "s.jsonl", rows)
    about = []
    for option in ("--source", "--whole"):
        _, made = make(tmp_path, "science", option, file, "--questions-only")
        assert len(made) == (3 if option == "--whole" else 0)
        if made:
            about.append(json.loads((tmp_path / "out.meta.json").read_text())["sources"])
    assert about[0][0]["whole"] is True


def test_many_records_of_one_question(tmp_path):
    rows = [{"question": "Q?", "answer": THINK.replace("add", f"add {i}")} for i in range(40)]
    rows.insert(1, {"question": "Q?", "answer": THINK, "id": "x"})
    file = write_rows(tmp_path / "a.jsonl", rows)
    done, made = make(tmp_path, "math", "--source", file, "--no-deduplicate")
    assert len({row["id"] for row in made}) == len(made) == 41
    done, made = make(tmp_path, "math", "--source", file, "--no-deduplicate", "--generations", 2)
    assert done.returncode == 0
    assert len({row["id"] for row in made}) == len(made) == 41
    # Two rows of one id of their own, which stands with a number behind it.
    rows = [{"id": "x", "question": f"Q{i}?", "answer": THINK, "source": "s"} for i in range(2)]
    file = write_rows(tmp_path / "b.jsonl", rows)
    _, made = make(tmp_path, "math", "--source", file, "--generations", 2)
    assert made[0]["id"] == "x/0"
    assert made[1]["id"] not in ("x/0", "x/1")


def test_ids_are_unique_and_the_same_from_any_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"question": f"What is 1 + {i}?", "answer": THINK, "id": None} for i in range(4)]
    rows += [row | {"question": row["question"] + " Why?", "id": 7.0} for row in rows[:3]]
    texts = set()
    for name in ("a.jsonl", "b.parquet", "c.json"):
        file = tmp_path / name
        if file.suffix == ".jsonl":
            write_rows(file, rows)
        elif file.suffix == ".json":
            file.write_text(json.dumps(rows))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        done, made = make(tmp_path, "math", "--source", file)
        assert done.returncode == 0, done.stderr
        ids = [row["id"] for row in made]
        texts.add(tuple(ids))
        assert len(set(ids)) == 7
        assert ids.count("7") == 1  # the first that has it
    assert len(texts) == 1


def test_all_generations(tmp_path):
    wrong = THINK.replace("\\boxed{2}", "2")
    row = SETS["OpenR1-Math"] | {
        "generations": [THINK, wrong, THINK.replace("add", "sum"), THINK.replace("add", "count")],
        "is_reasoning_complete": [True] * 4,
        "correctness_math_verify": [True] * 4,
    }
    file = write_rows(tmp_path / "a.jsonl", [row, row | {"problem": "Other?", "answer": "proof"}])
    for options, numbers in (
        ((), [0]),
        (("--all-generations",), [0, 2, 3]),
        (("--generations", 2), [0, 2]),
    ):
        done, rows = make(tmp_path, "math", "--source", file, *options)
        assert done.returncode == 0, done.stderr
        assert [row["meta"]["generation"] for row in rows] == numbers
        ids = [f"u1/{i}" for i in range(len(numbers))] if options else ["u1"]
        assert [row["id"] for row in rows] == ids
        meta = json.loads((tmp_path / "out.meta.json").read_text())
        assert (meta["rows_in"], meta["rows_used"], meta["rows_out"]) == (2, 1, len(numbers))
    assert "from 1 rows: several generations" in done.stdout


def test_tests_of_programs_lie_under_meta(tmp_path):
    row = {
        "problem": "Print 1.", "deepseek_reasoning": "I print.", "domain": "code", "source": "X",
        "deepseek_solution": "```python\nprint(1)\n```",
        "test_cases": json.dumps({"inputs": [""], "outputs": ["1"]}),
    }  # fmt: skip
    file = write_rows(tmp_path / "a.jsonl", [row])
    _, rows = make(tmp_path, "coding", "--source", file)
    assert "tests" not in rows[0]
    assert rows[0]["meta"]["tests"]["outputs"] == ["1"]
    _, rows = make(tmp_path, "coding", "--source", file, "--questions-only")
    assert rows[0]["tests"]["outputs"] == ["1"]  # of a question the teacher needs them
    questions = write_rows(tmp_path / "q.jsonl", rows)
    _, rows = make(tmp_path, "coding", "--source", questions, "--questions-only")
    assert rows[0]["tests"]["outputs"] == ["1"]


def test_answers_without_thoughts(tmp_path):
    """What train.py advises for conversations in other forms, for those who train without."""
    rows = [{"conversations": [TURNS[0], {"from": "gpt", "value": "It is 2."}]},
            {"instruction": "Why?", "input": "", "output": "So."},
            {"question": "Who?", "answer": THINK}]  # fmt: skip
    file = write_rows(tmp_path / "a.jsonl", rows)
    _, made = make(tmp_path, "science", "--source", file, "--no-require-think")
    answers = [row["messages"][1]["content"] for row in made]
    assert answers == ["It is 2.", "So.", THINK]
    done, made = make(tmp_path, "science", "--source", file)
    assert "- no_think                       2" in done.stdout


def test_the_science_branch_is_one_command(tmp_path):
    base = {"solution": None, "source_type": "x"}
    full = [base | {"question": f"Q{i}?", "cot_type": t} for i, t in
            enumerate(("science", "math", "health science"))]  # fmt: skip
    s1k = [base | {"question": f"K{i}?", "cot_type": t} for i, t in enumerate(("math", "science"))]
    thoughts = [
        {"problem": f"T{i}?", "domain": d, "deepseek_reasoning": "r", "deepseek_solution": "s"}
        for i, d in enumerate(("code", "math", "biology", "puzzle"))
    ]
    files = [
        write_rows(tmp_path / f"{name}.jsonl", rows)
        for name, rows in {"full": full, "s1k": s1k, "thoughts": thoughts}.items()
    ]
    done, rows = make(
        tmp_path, "science", "--source", files[0], files[2], "--whole", files[1], "--questions-only"
    )
    assert done.returncode == 0, done.stderr
    assert [row["question"] for row in rows] == ["Q0?", "Q2?", "T2?", "T3?", "K0?", "K1?"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sandbox", "rlimits"), "--sandbox=rlimits: needs --verify"),
        (("--ngram", 8), "--ngram=8: needs --decontaminate"),
        (("--overlap", 0), "--overlap=0.0: needs --decontaminate"),
        (("--questions-only", "--verify"), "--verify: of answers, and --questions-only"),
        (("--questions-only", "--generations", 2), "--generations: of answers"),
        (("--verify", "--sandbox", "rlimits"), "--sandbox=rlimits: of programs"),
        (("--keep", "letter"), "--keep=letter: a step of another branch"),
        (("--columns", "question=a", "--question-types", "MCQ"), "--question-types: of OpenR1"),
        (("--split", "test"), "--split: of a folder or a set on the hub"),
        (("--keep", "loop"), "--keep=loop: is unknown; expected some of loops, language"),
        (("--keep", "no_think"), "--keep=no_think: is the file's contract"),
        (("--all-generations", "--generations", 2), "--generations is given, too"),
        (("--question-types", "MCQ"), "has no column question_type"),
        (("--sources", "aops"), "has no column source"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, options, said):
    file = write_rows(tmp_path / "a.jsonl", [SETS["messages"]])
    done, _ = make(tmp_path, "math", "--source", file, *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_steps_are_left_out_by_name(tmp_path):
    loop = f"<think>\nI add. {'But wait, no. ' * 99}\n</think>\n\nIt is 2, {'一个苹果' * 30}."
    file = write_rows(tmp_path / "a.jsonl", [{"question": "What is 1 + 1?", "answer": loop}])
    for keep, reason in (
        ((), "no_boxed_answer"),
        (("--keep", "box"), "repetition_loop"),
        (("--keep", "box,loops"), "language_mixing"),
        (("--keep", "no_boxed_answer", "loops,language"), None),
    ):
        done, _ = make(tmp_path, "math", "--source", file, *keep)
        assert (done.returncode == 0) == (reason is None)
        if reason:
            rejected = json.loads((tmp_path / "out.rejected.jsonl").read_text())
            assert rejected["reason"] == reason
