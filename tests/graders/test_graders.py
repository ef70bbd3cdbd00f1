"""Graders against the tables of cases in golden/grading: each row says why it is there."""

import json

import pytest
from conftest import GOLDEN, strongest_sandbox

from tinyr1.graders.choice import choice_letter
from tinyr1.graders.code import _equal_values
from tinyr1.graders.grading import grade

CASES = GOLDEN / "grading"


def rows(name):
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def verdict(kind, response, answer, **options):
    row = {"task": "t", "id": "1", "kind": kind, "prompt": "?", "answer": answer}
    return grade(row, response, **options)


def test_math_cases_core_all_right_and_no_false_accept():
    wrong, missed = [], []
    for row in rows("math_cases.jsonl"):
        got = verdict("math", row["response"], row["gold"]).correct
        if got != row["expected"]:
            if row["level"] == "extended" and row["expected"]:
                missed.append(row["id"])
            else:
                wrong.append((row["id"], row["gold"], row["response"][-60:]))
    assert not wrong
    assert len(missed) <= 14, missed  # symbolic work that the exact rules leave out


def test_choice_cases_all_right():
    wrong = []
    for row in rows("choice_cases.jsonl"):
        for letter in "ABCD":
            got = verdict("choice", row["response"], letter)
            if got.correct != (letter == row["expected"]):
                wrong.append((row["id"], letter, got))
    assert not wrong


def test_code_cases_core_all_right():
    """LiveCodeBench rows with submissions; private tests decoded without running any pickle."""
    import base64
    import io
    import pickle
    import zlib

    class OnlyText(pickle.Unpickler):
        def find_class(self, module, name):
            raise pickle.UnpicklingError(f"{module}.{name}")

    wrong, sandbox = [], strongest_sandbox()
    for problem in rows("code_cases.jsonl"):
        packed = zlib.decompress(base64.b64decode(problem["private_test_cases"]))
        private = json.loads(OnlyText(io.BytesIO(packed)).load())
        tests = json.loads(problem["public_test_cases"]) + private
        row = {
            "task": "lcb",
            "id": problem["question_id"],
            "kind": "code",
            "prompt": problem["question_content"],
            "tests": {
                "inputs": [t["input"] for t in tests],
                "outputs": [t["output"] for t in tests],
                "fn_name": json.loads(problem["metadata"]).get("func_name"),
            },
            "timeout_s": 3,
        }
        for submission in problem["submissions"]:
            text = f"thought</think>\n```python\n{submission['code']}\n```"
            got = grade(row, text, sandbox=sandbox)
            if got.correct != (submission["expected"] == "pass"):
                name = f"{problem['question_id']}/{submission['name']}"
                wrong.append((name, submission["expected"], got.reason))
    assert not wrong


@pytest.mark.parametrize(
    ("answer", "response", "options", "correct", "reason"),
    [
        ("5", r"<think>a</think>\boxed{5}", {}, True, ""),
        ("5", r"a</think>\boxed{6}", {}, False, "wrong_answer"),
        ("5", r"a</think>five", {}, False, "no_answer"),
        ("5", r"<think>\boxed{5}", {}, False, "unfinished_thinking"),
        ("5", r"<think>\boxed{5}", {"finish_reason": "length"}, False, "truncated"),
        ("5", r"\boxed{5}", {}, True, ""),
        ("5", r"\boxed{5}", {"think_open": True}, False, "unfinished_thinking"),
        ("5", r"\boxed{5}", {"finish_reason": "length"}, False, "truncated"),
        ("5", r"a</think>\boxed{5} and", {"finish_reason": "length"}, True, ""),
        ("5", r"a</think>so \boxed{", {"finish_reason": "length"}, False, "truncated"),
        ("5", "", {}, False, "no_answer"),
    ],
)
def test_thinking_rule(answer, response, options, correct, reason):
    got = verdict("math", response, answer, **options)
    assert (got.correct, got.reason) == (correct, reason)


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("1{,}234", "1234", True),
        ("10 cm", "10 m", False),
        (r"10\text{ cm}", "10", True),
        (r"\frac{1}{3}", "0.333333333333", False),
        ("0.1", "0.1000", True),
        ("5", "500", False),
        ("0.28", "28", False),
        ("2*3", "23", False),
        ("100 ft", "100 feet", True),
        ("5 hours", "5 hr", True),
        ("5", "5 millions", False),
        ("5", r"5\text{ thousands}", False),
        ("2", "2 tenths", False),
        ("2", "2 alpha", False),
        ("7", "7 below zero", False),
        ("101", "101 base four", False),
        ("5", "|x|=5", False),
        ("5", r"\sin x=5", False),
        ("5", "ln x = 5", False),
        ("5", r"x \ne y = 5", False),
        ("5", r"x \mod y = 5", False),
        ("5", "second = 5", True),
        ("5", "cost = 5", True),
        ("5", "tank = 5", True),
        ("5", "|S| = 5", True),
        ("5", r"|A \cap B| = 5", True),
        ("5", r"\lvert S\rvert = 5", True),
        (r"\frac{4}{5}", r"\sin A = \frac{4}{5}", True),
        (r"\frac{4}{5}", r"\cos\angle ABC = 4/5", True),
        (r"\frac{4}{5}", r"\sin\theta = 4/5", False),
        ("12", r"\operatorname{lcm}(a, b) = 12", True),
        ("5", r"\operatorname{sin} x = 5", False),
        ("5", "sqrt(x) = 5", False),
        ("5", "tan theta = 5", False),
        ("5", "|x - S| = 5", False),
        ("5", r"\sqrt{N} = 5", False),
        ("5", r"\log N = 5", False),
        ("5", "sin t = 5", False),
        ("5", "log n = 5", False),
        ("5", "sin θ = 5", False),
        ("5", "θ = 5", True),
        ("5", "x² = 5", False),
        ("5", "√x = 5", False),
        ("5", "±x = 5", False),
        ("5", "twice x = 5", False),
        ("5", "square root of x = 5", False),
        ("5", "floor(x) = 5", False),
        ("5", r"\binom{n}{k}=5", False),
        ("5", r"\mid x\mid = 5", False),
        ("5", "e**x = 5", False),
        ("6", "x(x+1) = 6", False),
        ("5", r"\lVert x\rVert = 5", True),
        ("5", r"\|\mathbf v\| = 5", True),
        ("5", r"f(\frac{1}{2}) = 5", True),
        ("5", r"f(|x|) = 5", True),
        ("5", r"P(|X|<1) = 5", True),
        ("5", r"f^{-1}(3) = 5", True),
        ("5", r"\text{Area of } \triangle ABC = 5", True),
        ("5", r"\overline{AB} = 5", True),
        ("5", r"\alpha + \beta = 5", True),
        ("5", "x'= 5", True),
        ("5", "a_{n+1} = 5", True),
        ("[-2,7]", r"x \in [-2, 7]", True),
        (r"x \in [-2,7]", "[-2,7]", True),
        ("5", "5 sixteenths", False),
        ("3", "3 thirtieths", False),
        ("5", "5 googol", False),
        ("3", "3 fives", False),
        ("3", "3 square", False),
        ("3", "3 doubled", False),
        ("3", "3 sine", False),
        ("0.3", "0.3 repeating", False),
        ("101", "101 in binary", False),
        ("3", r"3\text{k}", False),
        ("3", r"3\text{ M}", False),
        (r"5.4 \text{ cents}", r"\$5.4", False),
        (r"32348", r"\$32,\! 348", True),
        ("11,\\! 111,\\! 111,\\! 100", "11111111100", True),
        ("11,\\! 111,\\! 111,\\! 100", "11,111,111,100", True),
        ("1234", r"1,234\text{ cm}", True),
        ("1250", r"\$1,250.00", True),
        ("1,250", "1, 250", False),
        ("10", "10 m/s", True),
        ("10", r"10\,\mathrm{m/s^2}", True),
        ("3", "3 n/m", False),
        ("30", "30°C", True),
        (r"864 \mbox{ inches}^2", r"864\text{ square inches}", True),
        (r"12\text{ cm}^2", "12 sq cm", True),
        (r"12\text{ cm}^2", "12 cm²", True),
        (r"12\text{ cm}^2", r"12\,\mathrm{cm^2}", True),
        (r"15\text{ square units}", r"15\text{ units}^2", True),
        ("15", "15 units squared", True),
        (r"12\text{ cm}^2", r"12\text{ cm}^3", False),
        ("3", "3 tens", False),
        ("3", "3 scores", False),
        ("3", "3 lakh", False),
        ("3", "3 crores", False),
        ("3", "3 quadrillion", False),
        ("3", "3 zillion", False),
        ("3", "3 twenties", False),
        ("3", "3 gross", False),
        ("3", "3 pairs", True),
        ("3 km", "3 kilometres", True),
        ("3 lb", "3 lbs", True),
        ("3 pounds", "3 lbs", True),
        (r"3\text{ h}", "3 hours", True),
        ("3 litres", r"3\text{ l}", True),
        ("60 mph", "60 miles per hour", True),
        ("60 km/h", r"60\text{ kilometers per hour}", True),
        ("60 km/h", "60 mph", False),
        ("6 square feet", r"6\text{ sq. ft}", True),
        ("6 inches", "6 in", True),
        ("6 gallons", "6 litres", False),
        (r"5\pi", r".5\pi", False),
        ("25x", ".25x", False),
        ("6-5i", r"6\cdot -5i", False),
        ("2x", "2**x", False),
        (r"\{1,2\}", r"\left\{1,2\right\}", True),
        (r"\{1,2\}", r"\bigl\{2, 1\bigr\}", True),
        (r"\frac{3\pi}{4}", r"\frac{3\pi}{4}\text{ degrees}", False),
        (r"3\sqrt{2}\text{ cm}", r"3\sqrt{2} cm", True),
        ("10", r"\$10\text{ per hour}", True),
        ("12{,}000", r"\$12\,000", True),
        ("5", r"\text{\$5}", True),
        ("1", r"1\%", False),
        ("2,3", "x_1=2, x_2=3", True),
        ("2,1", "a_1=1, a_2=2", False),
        ("5", "[ABC] = 5", True),
        ("5", r"\mathbb{E}[X] = 5", True),
        ("5", r"\angle{ABC} = 5", True),
        ("5", r"\lim_{n\to\infty} a_n = 5", True),
        ("5", r"a\cdot b = 5", True),
        ("5", r"2\cdot b = 5", False),
        ("5", "y(2) = 5", True),
        ("5", "d(A,B) = 5", True),
        ("5t^2", "x(t)=5t^2", True),
        (r"\text{Yes}", "YES", True),
        (r"\text{(B)}", r"\text{(A)}\text{(B)}", False),
        ("2,-2,0", r"0,\pm 2", True),
        ("31/2", r"3\ 1/2", False),
        ("7/2", r"3\ 1/2", True),
        ("12", r"1\quad2", False),
        ("10000", r"10\,000", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        (
            r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}",
            r"\begin{bmatrix}-\frac13\\[4pt]2\end{bmatrix}",
            True,
        ),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\left(\begin{array}{cc}1&2\end{array}\right)", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", False),
        (r"5\text{ MW}", r"5\text{ mW}", False),
        (r"5\text{ MHz}", r"5\text{ MHz}", True),
        ("5", "5 undefined", False),
        ("5", "5 more than", False),
        ("5", "5 basis points", False),
        ("5", "5 factorials", False),
        ("5", r"5 \text{cosx}", False),
        ("5", r"5 \{x\}", False),
        ("101", "101 ternary", False),
        ("2", "2 sixtyfourths", False),
        ("0.5", r"0.5\%", False),
        ("50", r"50\%", True),
        ("12.5", r"12.5\%", True),
        ("6", "N(N+1) = 6", False),
        ("6", r"a\cdot N(N+1) = 6", False),
        ("2x", r"2\!x", True),
        ("(1,2)", r"\left(1,2\right)", True),
        ("6", r"\ell(\ell+1)=6", False),
        ("5", r"\pi r = 5", False),
        ("5", "sinθ = 5", False),
        ("5", "cosine of x = 5", False),
        ("5", "n factorial = 5", False),
        ("5", "x ~= 5", False),
        ("17/2", r"2^3\frac12", False),
        ("5/2", r"(1+1)\frac12", False),
        ("5/2", r"3\frac{-1}{2}", False),
        ("RT", "rt", False),
        (r"\text{Even}", "even", True),
        ("x=1,y=2", "2,1", False),
        ("x=1,y=2", "y=2, x=1", True),
        ("1,2", r"x = 1 \text{ or } x = 2", True),
        (r"[0,\infty)", r"[0,+\infty)", True),
        ("(1,2)", "(x, y) = (1, 2)", True),
        (r"\sqrt{51}", r"\sqrt{51}\text{ units}", True),
        (r"3\pi", r"3\pi\text{ cm}^2", True),
        (r"3\pi\text{ m}", r"3\pi\text{ cm}", False),
        ("4", r"\boldsymbol{4}", True),
        ("4", r"{\bf 4}", True),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", True),
        ("5 pm", "5 p.m.", True),
        ("1,-2", "1; -2", False),
        ("113", r"\textbf{(C)}\ 113", True),
        (r"\text{(C)}", r"\text{(C)}", True),
        ("8", r"8 \text{ people}", True),
        (r"50\%", "50 percent", True),
        (r"30^\circ", "30 degrees", True),
        ("5", r"S_5 = 5", True),
        ("23", "2*3", False),
        ("6", "2*3", True),
        (r"3\frac{1}{2}", "3.5", True),
        (r"-3\frac12", "-3.5", True),
        ("(1,2)", "[1,2]", False),
        ("(1,2)", "1,2", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\{1,2\}", "(1,2)", False),
        ("x=5", "5", True),
        ("x+y=1", "1", False),
        ("2^{10}", "1024", True),
        ("9^{9^{9^9}}", "5", False),
        ("3^{-999999999}", "1", False),
        ("3^{9999}, 1", "1, 3^{9999}", True),
        ("2^{900}, 1", "1, 2^{900}", True),
        ("1e400", "1", False),
        ("((((((((((1))))))))))", "1", True),
        ("", "", False),
        ("3", "3xy", False),
        ("2ab", "2", False),
        ("12", "12pi", False),
        ("5", "5 million", False),
        ("5", r"5\text{ thousand}", False),
        ("5", "5 squared", False),
        ("2", "2ln", False),
        ("5", "2x=5", False),
        ("5", "-x=5", False),
        ("25", "x^2=25", False),
        ("5", "x != 5", False),
        ("5", r"\frac{x}{2}=5", False),
        ("2", "2sinx", False),
        ("45", r"45\ degrees", True),
        ("70", "m+n=70", True),
        ("7", "x_1 + x_2 = 7", True),
        ("5", "f(2)=5", True),
        ("10", "10 apples", True),
        ("5", "5 feet per second", True),
        ("30", r"\angle ABC = 30^\circ", True),
    ],
)
def test_math_rules(gold, answer, equal):
    from tinyr1.graders.math import equal_answers

    assert equal_answers(gold, answer) == equal


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch /tmp/pwned')",
        "9**9**9**9**9",
        r"\frac{1}{0}",
        "(" * 5000,
        "{" * 20000,
        r"\frac" * 3000,
        "1" * 100_000,
        "\\" * 10_001,
        ",".join("1" * 1 for _ in range(20_000)),
        "= = = =",
        "(" * 600 + ")" * 600,
        r"\pm" * 1200,
        "answer" + " " * 5000 + "?",
        "answer is " * 3000,
        "2^{9000}*" * 40 + "2",
        "\x00\ud800",
    ],
)
def test_hostile_math_ends_quickly_and_never_raises(hostile):
    import time

    started = time.monotonic()
    for text in (hostile, rf"x</think>\boxed{{{hostile}}}", rf"\boxed{{{hostile}"):
        verdict("math", text, "5")
        verdict("choice", text, "A")
    assert not verdict("math", rf"\boxed{{{hostile}}}", "5").correct
    assert time.monotonic() - started < 60  # seconds, where a hang would be for ever


def test_the_article_a_is_no_answer():
    for text in ("It is a metal.", "A metal is needed here.", "This is a good answer"):
        assert verdict("choice", text, "A").reason == "no_answer"
    for two in ("Answer: B or C", r"\boxed{(A) and (C)}", r"\boxed{A. B}", r"\boxed{A, B}"):
        assert verdict("choice", two, "A").reason == "no_answer"
        assert verdict("choice", two, "B").reason == "no_answer"
    for text in (
        "The correct answer is C. Option A fails because of it.",
        "The answer is C, because option A is incorrect.",
    ):
        assert verdict("choice", text, "C").correct, text
    assert verdict("choice", "Answer: (B)", "B").correct


def code(program, tests, **extra):
    row = {"task": "t", "id": "1", "kind": "code", "prompt": "?", "tests": tests, **extra}
    return grade(row, f"x</think>\n```python\n{program}\n```", sandbox="rlimits")


@pytest.mark.parametrize(
    ("produced", "expected", "equal"),
    [
        ("1 2\n", "1 2", True),
        ("2.50", "2.5", True),
        ("1e3", "1000", True),
        ("0.30000000000000004", "0.3", False),
        ("Yes", "YES", False),
        ("1\n2", "1\n2\n3", False),
        ("1\n\n2", "1\n2", False),
        (" a \n b ", "a\nb", True),
    ],
)
def test_output_comparison(produced, expected, equal):
    from tinyr1.graders.code import equal_output

    assert equal_output(produced, expected) == equal


def test_code_grading_by_function_and_reasons():
    tests = {"inputs": ["1\n2", "[3]\n4"], "outputs": ["3", "[3, 4]"], "fn_name": "f"}
    good = "def f(a, b): return a + b if isinstance(a, int) else a + [b]"
    assert code(good, tests).correct
    assert code("def f(a, b): return 3", tests).reason == "wrong_answer"
    assert code("def f(a): return 3", tests).reason == "runtime_error"
    assert code("def f(:", tests).reason == "compile_error"
    slow = code("import time\ntime.sleep(9)", tests, timeout_s=0.5)
    assert slow.reason == "timeout"
    true = {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}
    assert code("def f(a): return True", true).reason == "wrong_answer"  # True is not 1
    assert code("def f(a): return 1.0", true).correct


def test_a_result_too_long_to_read_is_wrong_not_an_error():
    tests = {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}
    program = "import sys\nsys.set_int_max_str_digits(0)\ndef f(a): return 10**5000"
    assert code(program, tests).reason == "wrong_answer"
    assert code("def f(a): return [[[[a]]]]", tests).reason == "wrong_answer"


def test_numbers_of_thousands_of_digits_may_be_printed():
    """As under LiveCodeBench's evaluator, beyond Python's own limit of 4,300."""
    tests = {"inputs": [""], "outputs": ["1" + "0" * 5000], "fn_name": None}
    assert code("print(10**5000)", tests).correct


def test_total_time_limit():
    tests = {"inputs": [""] * 5, "outputs": ["1"] * 5, "fn_name": None}
    program = "import time\ntime.sleep(0.4)\nprint(1)"
    assert code(program, tests, timeout_s=2).correct
    assert code(program, tests, timeout_s=2, timeout_total_s=1).reason == "timeout"


def test_the_last_complete_block_counts():
    tests = {"inputs": [""], "outputs": ["2"], "fn_name": None}
    row = {"task": "t", "id": "1", "kind": "code", "prompt": "?", "tests": tests}
    two = "```\nprint(1)\n```\ntext\n```python\nprint(2)\n```\n"
    assert grade(row, two, sandbox="rlimits").correct
    assert grade(row, two + "```python\nprint(3)", sandbox="rlimits").correct  # unclosed
    assert (
        grade(row, "```python\nprint(2)\n```</think>no code", sandbox="rlimits").reason
        == "no_answer"
    )


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B12", None),
        ("Answer: D-glucose", None),
        ("The answer is (A) or maybe (B)", None),
        ("Answer: C & D", None),
        ("The answer is _C_.", "C"),
        ("The answer is C; D would violate it.", "C"),
        ("The correct answer is A based on data", "A"),
        ("the answer is B. However, the correct answer is A given that it rises.", "A"),
        ("Answer: C or option D", None),
        ("Answer: A because it is", "A"),
        ("Answer: B - it is", "B"),
        ("The answer is A.", "A"),
        ("The answer is: A vitamin deficiency", None),
        ("The answer is **A** vitamin C", "A"),
        ("The answer is Option (C).", "C"),
        ("The answer is C, D is too large", "C"),
        ("The answer is C, D are both right", None),
        ("The answer is C, D or B", None),
        ("The answer is C, or D", None),
        ("The answer is C, and D is too large", "C"),
        ("The answer is C and D is incorrect.", "C"),
        ("The answer is C and D.", None),
        ("Answer: A, C both hold", None),
        ("Answer: B, C can both be right", None),
        ("Answer: **A** and **C**", None),
        ("Answer: B (or C)", None),
        ("Answer: B; C", None),
        ("The answer is A here.", "A"),
        ("The answer is A among these", "A"),
        ("Answer: A\n\nthe metal is harder", "A"),
        ("The answer is: A Lewis acid", None),
        ("The answer is: A 5-membered ring", None),
        ("The answer is $C_{3h}$.", None),
        ("The answer is D₃h", None),
        ("The answer is $C_6H_{12}$", None),
        ("The answer is C=O stretch", None),
        ("The answer is D–glucose", None),
        ("The answer is most likely C.", "C"),
        ("Answer: (c)", "C"),
        ("Answer - C", "C"),
        ("the answer is “C”", "C"),
        ("Answer:\n- C", "C"),
        ("The energies differ.\n\n**C) 12.4 eV**", "C"),
        ("A) is wrong.\nB) is wrong, too.", None),
        ("They differ.\nB) is wrong.", None),
        ("A) 1 eV\nB) 2 eV", None),
        ("Option (C) is the answer.", "C"),
        ("Option C is the correct choice.", "C"),
        ("Option C is not the correct choice.", None),
        ("The correct answer is: C", "C"),
        ("The correct answer is: (C)", "C"),
        ("Final answer is: **C**", "C"),
        ("The correct answer is: **C. 4-methyl**", "C"),
        ("so $\\boxed{10^{-4}}$\n\n**Answer: C**", "C"),
        ("Hence, option (C) is correct.", "C"),
        ("Answer：C", "C"),
        ("**Answer: C**\n\nNote: the most common incorrect answer is A.", "C"),
        ("Answer: C\n\nThe trap answer is B.", "C"),
        ("Answer: C. Were the mass zero, the answer would be D.", "C"),
        ("Then the answer would be D.", "D"),
        ("The answer is C; one may think the answer is B, but that neglects recoil.", "C"),
        ("We eliminate option: D. The rest remain.", None),
        ("The incorrect answer is A.", None),
        ("The answer is B cells.", None),
        ("The correct choice is C NMR", None),
        ("Answer: B → D → A → C", None),
        ("The answer is A > B > C > D.", None),
        ("Answer: A + C", None),
        ("Answer: A as well as C", None),
        ("Answer: A through C", None),
        ("Answer: B is wrong.", None),
        ("Answer: C(=O)O", None),
        ("The answer is $A\\cos(x)$", None),
        ("The answer is $B = \\mu_0 I$", None),
        ("The answer is \\(C\\).", "C"),
        ("The answer is $\\text{C}$.", "C"),
        ("ANSWER: C", "C"),
        ("Neither A nor B is correct. So D.", None),
        ("Suppose A is correct. Then x<0, impossible.", None),
        ("It seems A is correct but D fits better.", None),
        ("Vitamin C is the answer.", None),
        ("So C is correct.", "C"),
        ("The most likely answer is **B**.", "B"),
        ("I think the answer is B.", "B"),
        ("I would say the answer is B", "B"),
        ("The answer is B. The naive answer is A.", "B"),
        ("Answer: B\n\nEliminated option: A", "B"),
        ("Answer: B. The incorrect answer choice is A.", "B"),
        ("The answer is B; A and C are wrong.", "B"),
        ("The answer is D; A, B and C fail.", "D"),
        (r"\boxed{B(0)=5}", None),
        (r"\boxed{A(1+r)}", None),
        (r"\boxed{\text{D) Both A and B}}", "D"),
        ("$\\boxed{C_2H_6}$\n\n**Answer: B**", "B"),
        ("\\boxed{5 A}\n\nAnswer: B", "B"),
        ("The answer is $\\mathsf{B}$", "B"),
        ("The answer is B according to this", "B"),
        ("Answer: B The enzyme binds", "B"),
        ("**Final Answer**\n\nThe best choice is **(C)** since it holds.", "C"),
        ("(C) is the correct answer.", "C"),
        ("So **C** is the best choice.", "C"),
        ("(C) is the correct answer. (D) is the correct answer.", None),
        ("We ask if C is the answer.", None),
        (r"\boxed{\mathsf{C}}", "C"),
        (r"\boxed{\boldsymbol{C}}", "C"),
        (r"\boxed{C, 12.4}", "C"),
        (r"\boxed{C - 12.4}", "C"),
        (r"\boxed{C \text{ (12 eV)}}", "C"),
        (r"\boxed{\text{Option C: foo}}", "C"),
        (r"\boxed{\Large C}", "C"),
        (r"\boxed{C, D}", None),
        (r"\boxed{C - D}", None),
        (r"\boxed{C = 5}", None),
    ],
)
def test_only_a_letter_that_is_marked_as_one_counts(text, letter):
    assert choice_letter(text) == letter


def test_numbers_of_any_length_are_compared():
    digits = "1" + "0" * 5000
    assert _equal_values(digits, digits)
    assert not _equal_values(digits, digits[:-1] + "1")
    assert not _equal_values("1", "true")
    assert _equal_values("3.0", "3")
    assert _equal_values("[1e400]", "[1.0e400]")
    assert not _equal_values("1e400", "1e500")
