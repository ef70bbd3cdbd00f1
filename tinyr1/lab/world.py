"""A world small enough for one CPU: three domains, a teacher that can solve them, a tokenizer.

  math      Compute 85+3-5-2.                        one line a step, then \\boxed{81}
  coding    Write f(xs): each x square, halve.       a numbered plan, then a function, executed
  science   Which one can swim? Options: (A) ...     the options judged in order, then a letter

The teacher writes the careful chain, or a rough one as a weaker distillation would hold it: with a
bad habit (a carry forgotten, min and max swapped, a hasty yes), or with an empty thought. So the
initial model knows the domains but fails by habit, as R1-Distill-Qwen fails the paper's
benchmarks, and the branches polish.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tinyr1 import thinking
from tinyr1.common.files import write_json
from tinyr1.model import chat
from tinyr1.record import LETTERS

DOMAINS = ("math", "coding", "science")
KINDS = {"math": "math", "coding": "code", "science": "choice"}
CODE_INPUTS = [-7, -2, 0, 1, 3, 8, 15]


class Operation(NamedTuple):
    """One step of a coding problem: its words, its statement, its effect, its slip."""

    words: str
    statement: str
    apply: Callable[[int, int], int]
    slip: str | None = None


# `N` is a digit. The first five are common from the start, the last five rare before the branch.
OPERATIONS = (
    Operation("double", "x=x*2", lambda x, n: x * 2),
    Operation("add N", "x=x+N", lambda x, n: x + n),
    Operation("cap at N", "x=min(x,N)", lambda x, n: min(x, n), "x=max(x,N)"),
    Operation("halve", "x=x//2", lambda x, n: x // 2, "x=x/2"),
    Operation("negate", "x=-x", lambda x, n: -x),
    Operation("square", "x=x*x", lambda x, n: x * x),
    Operation("take N", "x=x-N", lambda x, n: x - n),
    Operation("raise to N", "x=max(x,N)", lambda x, n: max(x, n), "x=min(x,N)"),
    Operation("drop sign", "x=abs(x)", lambda x, n: abs(x)),
    Operation("rest by N", "x=x%N", lambda x, n: x % n),
)
PROPERTIES = ("can swim", "can fly", "lays eggs", "eats plants", "lives long", "has fur")
SYLLABLES = ("ba", "do", "fi", "gu", "ka", "lo", "mi", "nu", "po", "ra", "se", "ti")


class Problem(NamedTuple):
    """A question with what is needed to answer and to grade it. `facts` belongs to the domain."""

    domain: str
    prompt: str
    answer: str
    facts: Any


class World:
    """Facts and problem generators, all functions of the seed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"world:{seed}")
        names = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES if a != b]
        self.creatures = rng.sample(names, 48)
        self.common = self.creatures[:24]
        self.facts = {
            p: set(rng.sample(self.creatures[:24], 12) + rng.sample(self.creatures[24:], 12))
            for p in PROPERTIES
        }

    def problem(self, domain: str, rng: random.Random, easy: bool = False) -> Problem:
        """Draw a problem: of the test's difficulty, or of the easier range of pre-training."""
        return {"math": self._math, "coding": self._coding, "science": self._science}[domain](
            rng, easy
        )

    def _math(self, rng: random.Random, easy: bool) -> Problem:
        while True:
            terms = rng.randint(2, 5) if easy else rng.randint(4, 6)
            values = [rng.randint(10, 99)]
            values += [rng.choice((-1, 1)) * rng.randint(2, 5) for _ in range(terms - 1)]
            partial = [sum(values[: i + 1]) for i in range(terms)]
            if all(10 <= value <= 99 for value in partial):
                text = str(values[0]) + "".join(f"{v:+d}" for v in values[1:])
                return Problem("math", f"Compute {text}.", str(partial[-1]), values)

    def _coding(self, rng: random.Random, easy: bool) -> Problem:
        count = rng.choices((1, 2, 3, 4, 5), (6, 6, 6, 6, 1))[0] if easy else rng.randint(3, 5)
        weights = [16] * 5 + [4] * 5 if easy else [1] * 10
        picked: list[int] = []
        while len(picked) < count:
            pick = rng.choices(range(10), weights)[0]
            if pick not in picked:
                picked.append(pick)
        steps = [(pick, rng.randint(2, 9)) for pick in picked]
        words = ", ".join(OPERATIONS[i].words.replace("N", str(n)) for i, n in steps)
        return Problem("coding", f"Write f(xs): each x {words}.", "", steps)

    def _science(self, rng: random.Random, easy: bool) -> Problem:
        rare_allowed = not easy or rng.random() < 0.2
        creatures = self.creatures if rare_allowed else self.common
        name = rng.choice(PROPERTIES)
        holders = [c for c in creatures if c in self.facts[name]]
        others = [c for c in creatures if c not in self.facts[name]]
        options = [rng.choice(holders), *rng.sample(others, 3)]
        rng.shuffle(options)
        right = next(i for i, c in enumerate(options) if c in self.facts[name])
        listed = ", ".join(f"({LETTERS[i]}) {c}" for i, c in enumerate(options))
        prompt = f"Which one {name}? Options: {listed}."
        return Problem("science", prompt, LETTERS[right], (name, options))

    # ------------------------------------------------------------ the teacher

    def answer(self, problem: Problem, rng: random.Random, habit: bool = False) -> str:
        """The teacher's assistant message; with `habit`, with its slips."""
        solve = {"math": _solve_math, "coding": _solve_coding, "science": self._solve_science}
        thought, answer = solve[problem.domain](problem, rng, habit)
        return thinking.join(thought, answer)

    def hasty_answer(self, problem: Problem, rng: random.Random) -> str:
        """The right answer after an empty thought."""
        _, answer = thinking.split(self.answer(problem, rng))
        return thinking.join("", answer)

    def _solve_science(self, problem: Problem, rng: random.Random, habit: bool) -> tuple[str, str]:
        name, options = problem.facts
        lines: list[str] = []
        for letter, creature in zip(LETTERS, options, strict=True):
            yes = creature in self.facts[name] or (habit and rng.random() < 0.27)
            lines.append(f"({letter}) {creature}: {'yes' if yes else 'no'}")
            if yes:
                break
        return "\n".join(lines), f"Answer: {lines[-1][:3]}"


def _solve_math(problem: Problem, rng: random.Random, habit: bool) -> tuple[str, str]:
    total = problem.facts[0]
    lines = []
    for value in problem.facts[1:]:
        result = total + value
        if habit and result // 10 != total // 10 and rng.random() < 0.8:
            result = total // 10 * 10 + result % 10  # the carry (or borrow) is forgotten
        lines.append(f"{total}{value:+d}={result}")
        total = result
    return "\n".join(lines), f"\\boxed{{{total}}}"


def _solve_coding(problem: Problem, rng: random.Random, habit: bool) -> tuple[str, str]:
    plan: list[str] = []
    body: list[str] = []
    for number, (pick, digit) in enumerate(problem.facts, 1):
        operation = OPERATIONS[pick]
        slips = habit and operation.slip is not None and rng.random() < 0.8
        statement = (operation.slip or "") if slips else operation.statement
        plan.append(f"{number}. {operation.words.replace('N', str(digit))}")
        body.append("  " + statement.replace("N", str(digit)))
    lines = ["def f(xs):", " out=[]", " for x in xs:", *body, "  out.append(x)", " return out"]
    return "\n".join(plan), "```python\n" + "\n".join(lines) + "\n```"


# ---------------------------------------------------------------- rows of the file contracts


def training_row(problem: Problem, text: str, row_id: str) -> dict[str, Any]:
    """One line of a training file."""
    return {
        "id": row_id,
        "domain": problem.domain,
        "messages": [
            {"role": "user", "content": problem.prompt},
            {"role": "assistant", "content": text},
        ],
        "source": "laboratory",
    }


def task_row(problem: Problem, row_id: str) -> dict[str, Any]:
    """One line of a task file, with what the grader needs. Tests of code share one process."""
    row: dict[str, Any] = {
        "task": problem.domain,
        "id": row_id,
        "kind": KINDS[problem.domain],
        "prompt": problem.prompt,
    }
    if problem.domain != "coding":
        return row | {"answer": problem.answer}
    results = []
    for x in CODE_INPUTS:
        for pick, digit in problem.facts:
            x = OPERATIONS[pick].apply(x, digit)
        results.append(x)
    tests = {"inputs": [str(CODE_INPUTS)], "outputs": [str(results)], "fn_name": "f"}
    return row | {"tests": tests, "timeout_s": 4}


# ---------------------------------------------------------------- the tokenizer


# `deepseek_r1` as other programs read it; unlike the published one it keeps every thought.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ message.content }}{% elif message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% else %}<｜Assistant｜>{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_tokenizer(world: World, folder: Path) -> None:
    """A closed-vocabulary tokenizer.json: the world's words, single characters, R1's specials."""
    words = {"Compute ", "Write f(xs): each x ", "Which one ", "? Options: ", "Answer: "}
    words |= {": yes", ": no", "\\boxed{", "```python\n", "```", ", "}
    words |= {f"({letter})" for letter in LETTERS} | {". "}
    words |= {"def f(xs):", " out=[]", " for x in xs:", "  out.append(x)", " return out"}
    for operation in OPERATIONS:
        words.add(operation.words.removesuffix("N"))
        for statement in (operation.statement, operation.slip or operation.statement):
            words.add("  " + statement.partition("N")[0])
    words |= set(PROPERTIES) | {f" {creature}" for creature in world.creatures}
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    special = [chat.EOS, chat.BOS, chat.USER, chat.ASSISTANT, "<unk>"]
    tags = [thinking.OPEN, thinking.CLOSE]
    vocab = {w: i for i, w in enumerate(special + tags + characters + sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    longest_first = sorted(words, key=lambda w: (-len(w), w))
    escaped = "|".join("".join(_escape(c) for c in word) for word in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{escaped}|[\\s\\S]"), "isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in tags])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": chat.BOS, "eos_token": chat.EOS, "pad_token": chat.EOS}
    config["chat_template"] = CHAT_TEMPLATE
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": vocab[chat.EOS]})


def _escape(character: str) -> str:
    return character if character.isalnum() or character in " \n`=_" else "\\" + character
