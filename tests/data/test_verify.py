"""Where the sets' own judges are right, curation's verdict is theirs."""

import json

import pytest
from conftest import strongest_sandbox

from tinyr1.data.draft import Draft, program_tests
from tinyr1.data.verify import is_right


def program(code, **tests):
    read = program_tests(json.dumps(tests))
    solution = f"```python\n{code}\n```"
    draft = Draft("1", "coding", "q", "t", solution, "s", tests=read)
    return is_right(draft, strongest_sandbox())


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        ("def f(x):\n    return x + 1", {"inputs": [[1]], "outputs": [[2]]}, True),
        ("def f(x):\n    return [x + 1]", {"inputs": [[1]], "outputs": [[2]]}, True),
        ("def f(x):\n    return [x + 1]", {"inputs": [[1]], "outputs": [2]}, True),
        ("def f(x):\n    return [x, x]", {"inputs": [[1]], "outputs": [[2]]}, False),
        ("def f(d):\n    return d[1]", {"inputs": [[{"1": 5}]], "outputs": [[5]]}, True),
        ("def f(d):\n    return d['1']", {"inputs": [[{"1": 5}]], "outputs": [[5]]}, True),
        ("def f(x):\n    return {1: x}", {"inputs": [[5]], "outputs": [[{"1": 5}]]}, True),
        ("def f(x):\n    return x / 3", {"inputs": [[1]], "outputs": [[0.33333333]]}, True),
        ("def f(x):\n    return x / 3", {"inputs": [[1]], "outputs": [[0.333]]}, False),
        ("def f(x):\n    return [x / 3, 1]", {"inputs": [[1]], "outputs": [[[0.333333, 1]]]}, True),
        ("def f(x):\n    return [x / 2]", {"inputs": [[3]], "outputs": [[1.5000001]]}, True),
        ("def f(x):\n    return x", {"inputs": [[1000000]], "outputs": [[1000001]]}, False),
    ],
)  # fmt: skip
def test_results_of_functions(code, tests, expected):
    assert program(code, fn_name="f", **tests) is expected


@pytest.mark.parametrize(
    ("printed", "wanted", "expected"),
    [
        ("0.3333333", "0.33333333333", True),
        ("0.3333", "0.33333333333", False),
        ("1 2.0000001\n3", "1 2.0\n3", True),
        ("1000000", "1000001", False),  # integers are exact
        ("3", "3.0000001", True),
        ("nan", "1.0", False),
        ("yes", "yes.", False),
    ],
)
def test_printed_decimals(printed, wanted, expected):
    assert program(f"print({printed!r})", inputs=[""], outputs=[wanted]) is expected


@pytest.mark.parametrize(
    ("solution", "answer", "expected"),
    [
        ("\\boxed{2}", "2", True),
        ("So \\boxed{2} and \\boxed{3}.", "2, 3", True),
        ("So \\boxed{2}, then \\boxed{3}.", "3", True),
        ("So \\boxed{2}, then \\boxed{3}.", "2", False),  # the last one counts alone
        ("\\boxed{x = 2}, \\boxed{x = 2}", "2", True),
        ("\\boxed{4}", "2", False),
    ],
)
def test_boxes(solution, answer, expected):
    assert is_right(Draft("1", "math", "q", "t", solution, "s", answer)) is expected
