"""Command lines: words in any order, faults in a line each, --help that names every option once."""

import dataclasses
import importlib
import re

import pytest
from conftest import ROOT, call

from tinyr1.check import CheckConfig
from tinyr1.common.by_name import ByName, each, from_words, words_of
from tinyr1.common.command_line import options_of, ordered
from tinyr1.common.config import load_recipe, parse
from tinyr1.common.errors import UserError, install_line, run_main
from tinyr1.common.log import Log
from tinyr1.data.__main__ import COMMANDS
from tinyr1.evaluate.convert import ConvertConfig
from tinyr1.evaluate.options import EvalConfig
from tinyr1.lab.stages import LabConfig
from tinyr1.merge.options import MergeConfig
from tinyr1.teacher import TeacherConfig
from tinyr1.train.options import RECIPES, TrainConfig

CONFIGS = [TrainConfig, MergeConfig, EvalConfig, TeacherConfig, LabConfig, CheckConfig]
CONFIGS += [ConvertConfig, *COMMANDS.values()]
PROGRAMS = ["train.py", "merge.py", "evaluate.py", "tinyr1.data.__main__", "tinyr1.teacher",
            "tinyr1.lab.__main__", "tinyr1.check", "tinyr1.evaluate.convert"]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_option_has_words_and_a_title(config):
    options = options_of(config)
    assert all(option.doc for option in options)
    groups = getattr(config, "groups", None)
    if groups:
        titled = [name for names in groups.values() for name in names.split()]
        assert sorted(titled) == sorted(option.field for option in options)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_teaches(program):
    done = call(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    module = importlib.import_module(program.removesuffix(".py"))
    assert done.stdout.startswith("usage: ")
    assert module.__doc__.strip() in done.stdout
    script = program.removesuffix(".__main__")
    assert re.search(rf"^    (python|torchrun).* {re.escape(script)}", done.stdout, re.M) or (
        re.search(rf"^    python -m {re.escape(script)}", done.stdout, re.M)
    )
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_has_a_recipes_values_under_titles():
    done = call("train.py", "coding", "--help")
    options = re.findall(r"^  (--[\w-]+)", done.stdout, re.M)
    assert len(options) == len(set(options)) == len(dataclasses.fields(TrainConfig)) - 1
    assert re.search(r"--epochs INT .*\(default: 15\)", done.stdout)
    assert done.stdout.index("inputs and output:") < done.stdout.index("training:")
    done = call("tinyr1.data.__main__", "science", "--help")
    assert "--cot-types" in done.stdout
    assert "--question-types" not in done.stdout


FAULTS = {
    "merge.py": [
        ("", "LEFT RIGHT OUT: 0 paths given"),
        ("a b", "2 paths given, --method arcee_fusion takes 2 models and then OUT; OUT is missing"),
        ("--then c a b out", "--then takes all paths that follow it: put LEFT RIGHT OUT first"),
        ("a b c --then", "--then: a value is missing (PATH [PATH ...])"),
        ("a b c --only", "--only: a value is missing (REGEX)"),
        ("a b c --lam", "--lam: a value is missing"),
        ("a b c --lam 1 2", "--lam=1 2: expected one number"),
        ("a b c --lam (=2", "no regular expression"),
        ("a b c --t x", "--t=x: expected a number"),
        ("a b c --metod linear", "--metod: no such option; did you mean --method"),
        ("a b c --method linaer", "--method=linaer: expected one of arcee_fusion, linear"),
        ("a b c --seed x", "--seed=x: expected a whole number"),
        ("a b c --shard-size big", "--shard-size=big: expected a number"),
        ("a b c --dry-run=yes", "--dry-run=yes: takes no value"),
        ("a b c --lam norm=", "--lam=norm=: expected a number"),
        ("a b c --method linear --weights 1,1", "--weights=1,1: expected numbers"),
        ("a -x", "-x: no such option"),
        ("a b c --then d -c", "--then=-c: a word of a list cannot begin with -"),
        ("a b c --no-normalize=True", "--no-normalize=True: takes no value"),
        ("a b c --normalize=foo", "--normalize=foo: takes no value"),
        ("a b c --methods=yes", "--methods=yes: takes no value"),
        ("owner/name b c", "hf download owner/name --local-dir name"),
        ("README.md b c", "README.md: a file; expected the directory"),
    ],
    "train.py": [
        ("", "; also required: --model, --data, --out; train.py --help"),
        ("--data a math", "(math follows a list, which takes all words: put it first)"),
        ("coding", "--model, --data, --out: required"),
        ("coding --dry-run", "--model: required"),
        ("coding math --model x", "math: unexpected; train.py --help"),
        ("coding --betas 0.9", "--betas: a value is missing (FLOAT FLOAT)"),
        ("coding --epochs three", "--epochs=three: expected a whole number"),
        ("coding --model o/n --data README.md --out x", "hf download o/n --local-dir n"),
        ("coding --model . --data README.md --out README.md", "--out=README.md: expected a dir"),
    ],
    "evaluate.py": [
        ("", "MODEL, --tasks or --task-file, --out: required; or --ask"),
        ("a b", "b: unexpected; evaluate.py --help"),
        ("--compare", "--compare: a value is missing"),
        ("a --ask", "--ask: a value is missing (TEXT)"),
        ("o/n --ask hi", "hf download o/n --local-dir n"),
    ],
    "tinyr1.data.__main__": [
        ("", "COMMAND: required; expected one of math, coding, science, inspect"),
        ("maths", "maths: no such command"),
        ("math", "--source, --out: required"),
        ("inspect", "FILE: required"),
        ("inspect x --question-types a", "--question-types: no such option"),
    ],
    "tinyr1.teacher": [("", "--questions, --out: required")],
    "tinyr1.lab.__main__": [("", "--out: required"), ("--out x --seeds 0", "--seeds=0: expected")],
    "tinyr1.check": [("", "DIR: required"), ("o/n", "hf download o/n --local-dir n")],
    "tinyr1.evaluate.convert": [("--out x", "FILE: required")],
}


@pytest.mark.parametrize(
    ("program", "line", "said"),
    [(program, line, said) for program, cases in FAULTS.items() for line, said in cases],
)
def test_wrong_invocations_name_the_cure_in_one_line(program, line, said):
    """The other paths of a line that are nowhere may be named on lines of their own."""
    done = call(program, *line.split(), cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *others = done.stderr.splitlines()
    assert said in first
    assert first.startswith("error: ")
    assert all("no such directory" in other for other in others)


def test_a_value_may_begin_with_a_sign():
    config = parse(MergeConfig, ["a", "b", "c", "--lam", "-1.5", "norm=-2"])
    assert config.params.lam == ByName(-1.5, (("norm", -2.0),))
    words = ordered(["--ask", "-5 + 3?", "dir"], options_of(EvalConfig), "evaluate.py")
    assert words == ["dir", "--ask=-5 + 3?"]
    with pytest.raises(UserError, match="--ask: a value is missing"):
        ordered(["--ask", "--quiet"], options_of(EvalConfig), "evaluate.py")


@pytest.mark.parametrize(
    ("line", "lam"),
    [
        ("--lam 1 --lam mlp=2", ByName(1.0, (("mlp", 2.0),))),
        ("--lam=1 mlp=2", ByName(1.0, (("mlp", 2.0),))),
        ("--lam=-1", -1.0),
        ("--lam 1 runs/lr=3", 1.0),  # a path
    ],
)
def test_numbers_and_rules_of_one_option(line, lam):
    config = parse(MergeConfig, ["a", "b", *line.split()])
    assert config.params.lam == lam
    assert len(config.paths) == 2 + ("runs" in line)


def test_a_list_given_twice_has_what_both_say():
    line = "a b c --then d --seed 1 --then e f --seed 2"
    config = parse(MergeConfig, line.split())
    assert [str(path) for path in config.then] == ["d", "e", "f"]
    assert config.seed == 2  # of others the last one counts


def test_a_word_that_looks_like_a_rule_and_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step=300").mkdir()
    config = parse(MergeConfig, ["a", "--lam", "0.7", "step=300", "out"])
    assert [str(path) for path in config.paths] == ["a", "step=300", "out"]
    assert config.params.lam == 0.7


@pytest.mark.parametrize(
    ("program", "line", "is_help"),
    [
        ("train.py", "--help --bogus", True),
        ("train.py", "--data a coding --help", True),
        ("train.py", "own -h", True),
        ("train.py", "own --dry-run -h", True),
        ("merge.py", "a b -h", True),
        ("evaluate.py", "nowhere --ask -h", False),
        ("evaluate.py", "nowhere --ask --what", False),
        ("evaluate.py", "nowhere --ask=--what", False),
    ],
)
def test_help_is_help_wherever_it_stands(program, line, is_help):
    done = call(program, *line.split())
    assert done.returncode == (0 if is_help else 2)
    assert done.stdout.startswith("usage: ") == is_help
    assert "Traceback" not in done.stderr
    assert "╭" not in done.stderr


def test_a_recipe_and_a_line_make_a_config():
    line = "--data a b --lr 2 --no-resume --betas 0.5 0.6 --dtype None".split()  # noqa: SIM905
    config = parse(TrainConfig, line, default=load_recipe(TrainConfig, "coding", RECIPES))
    assert [str(path) for path in config.data] == ["a", "b"]
    assert (config.lr, config.resume, config.betas, config.dtype) == (2.0, False, (0.5, 0.6), None)
    assert config.epochs == 15


@pytest.mark.parametrize(
    ("words", "is_list"),
    [("1.5", False), ("1.5 mlp=1.0", False), ("mlp=1.0", False), ("1.0 2.0 a=3.0,4.0", True)],
)
def test_values_by_name_and_back(words, is_list):
    value = from_words(words.split(), is_list)
    assert words_of(value) == words.split()


def test_the_first_pattern_found_rules():
    value = from_words(["1", "a.*b=2", "a=3", "x=y=4"], is_list=False)
    assert [value.at(name) for name in ("zz", "ab", "ac", "x=y", "xy")] == [1, 2, 3, 4, 1]
    assert each(value) == [1, 2, 3, 4]
    assert each(5) == [5]


def test_extras_are_installed_as_the_program_was(monkeypatch, tmp_path):
    assert install_line("data") == "pip install -c constraints.txt -e '.[data]'"
    monkeypatch.setattr("tinyr1.common.errors.__file__", str(tmp_path / "a" / "b" / "errors.py"))
    assert install_line("data") == "pip install 'tinyr1[data]'"


def test_a_bar_that_an_error_interrupts_is_ended(capsys):
    bar = Log().bar(total=2, mininterval=0)
    bar.delay = 0
    bar.update()

    def fail():
        raise UserError("x=1: wrong")

    with pytest.raises(SystemExit):
        run_main(fail)
    assert bar.disable
    assert capsys.readouterr().err.endswith("\nerror: x=1: wrong\n")
