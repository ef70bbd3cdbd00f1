"""The page of samples: what a model wrote is text in it, whatever it wrote."""

import shutil
import subprocess

import pytest
from conftest import run, write_rows

from tinyr1.evaluate import report

HOSTILE = (
    "<think>a</think><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"></pre></details><h1 id=fake>x</h1>"
    r"\boxed{<b onclick=1>7}"
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tasks = [
        {"task": 't"><i>', "id": str(i), "kind": "math", "prompt": "?", "answer": str(i)}
        for i in range(3)
    ]
    texts = [HOSTILE, r"<think>b</think>so \boxed{1}", "<think>never ends"]
    samples = [
        {"task": task["task"], "id": task["id"], "trial": 0, "text": text, "token_count": 9,
         "finish_reason": "stop"} for task, text in zip(tasks, texts, strict=True)
    ]  # fmt: skip
    files = [write_rows(folder / f"{n}.jsonl", r) for n, r in (("t", tasks), ("s", samples))]
    out = folder / "out"
    done = run("evaluate.py", "--regrade", files[1], "--task-file", files[0], "--out", out)
    assert done.returncode == 0, done.stderr
    return out / "report.html"


def test_everything_from_the_model_is_escaped(page):
    text = page.read_text()
    assert "<img src=x" not in text
    assert "<h1 id=fake>" not in text
    assert text.count("<script>") == 1  # our own
    assert "&lt;script&gt;document.title" in text
    assert 'name="viewport"' in text
    for verdict in ("right", "wrong_answer", "unfinished_thinking"):
        assert f'data-verdict="{verdict}"' in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_no_script_of_a_sample_runs_in_a_browser(page, tmp_path):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
    ]
    command += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>Evaluation</title>" in done.stdout, done.stderr
    assert "owned</title>" not in done.stdout
    assert done.stdout.count('class="sample') == 3
    assert '<img src="x"' not in done.stdout


def test_a_bar_in_a_name_is_no_column():
    lines = report.Table(["|a|", "b"], [["c|d", "e"]]).markdown().splitlines()
    assert lines == ["| \\|a\\| | b |", "|---|---:|", "| c\\|d | e |"]


def test_comparison_has_every_task_and_differences_over_shared_questions_only():
    score = {"pass_at_1": 0.5, "question_se": 0.1}
    results = [{"math": score}, {"math": score, "code": score}, {"math": score}]
    outcomes = [
        {"math": {"1": [True], "2": [False]}},
        {"math": {"1": [False], "2": [False]}, "code": {"1": [True]}},
        {"math": {"7": [True]}},
    ]
    lines = report.comparison_table(["a", "b", "c"], results, outcomes).splitlines()
    assert lines[0] == "| evaluation | math | code |"
    assert lines[2] == "| a | 50.0 ± 10.0 | - |"
    assert lines[3] == "| b | 50.0 ± 10.0 (-50.0 ± 50.0; 0 up, 1 down) | 50.0 ± 10.0 |"
    assert lines[4] == "| c | 50.0 ± 10.0 | - |"
