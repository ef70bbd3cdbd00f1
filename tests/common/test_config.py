"""Recipes parse, say what the paper says, and bad ones are refused by name."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import tinyr1
from tinyr1.common.config import check_range, flag, load_recipe, parse, parse_recipe, to_json
from tinyr1.common.errors import UserError
from tinyr1.merge.options import MergeConfig
from tinyr1.train.options import RECIPES, TrainConfig

NAMES = sorted(p.stem for p in (Path(tinyr1.__file__).parent / "train" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_parses(name):
    config = load_recipe(TrainConfig, name, RECIPES)
    assert config.seq_len == (8192 if name == "own" else 16384)
    assert to_json(config)["betas"] == [0.9, 0.95]


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "schedule", "packing"),
    [
        ("math", 5, 96, "constant", "none"),
        ("math_released", 5, 96, "constant", "naive"),
        ("science", 5, 32, "cosine", "neat"),
        ("coding", 15, 96, "constant", "neat"),
    ],
)
def test_recipes_are_the_papers(name, epochs, batch, schedule, packing):
    c = load_recipe(TrainConfig, name, RECIPES)
    assert (c.epochs, c.batch_size, c.schedule, c.packing) == (epochs, batch, schedule, packing)
    assert c.lr == 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown key 'learning_rate'"),
        ('lr = "fast"', "lr='fast': expected a number"),
        ("lr = " + "9" * 400, ": expected a number"),
        ("epochs = " + "9" * 5000, "not valid TOML"),
        ("epochs = " + "[" * 10_000, "not valid TOML"),
        ('packing = "tight"', "packing='tight': expected one of neat, naive, none"),
        ("epochs = true", "epochs=True: expected a whole number"),
        ("resume = 1", "resume=1: expected true or false"),
        ("data = 1", "data=1: expected a list, each text"),
        ("epochs = 0", "--epochs=0: expected at least 1"),
        ("betas = 0.9", "betas=0.9"),
        ('betas = ["a", "b"]', "betas='a'"),
        ("betas = [0.9]", "betas=[0.9]: expected a list of 2, each a number"),
        ('dtype = "fp64"', "dtype='fp64'"),
        ("epochs = ", "not valid TOML"),
        ('recipe = "math"', "unknown key 'recipe'"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(TrainConfig, str(path), RECIPES)
    assert message in str(error.value)


def test_recipes_can_set_every_kind_of_field(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'model = "m"\ndata = ["a", "b"]\ndtype = "bf16"\nactivation_checkpointing = "full"\n'
        "betas = [0, 0.5]\nquiet = true\nlr = 1"
    )
    c = load_recipe(TrainConfig, str(path), RECIPES)
    assert (c.model, c.data) == (Path("m"), (Path("a"), Path("b")))
    assert (c.dtype, c.activation_checkpointing) == ("bf16", "full")
    assert (c.betas, c.quiet, c.lr) == ((0.0, 0.5), True, 1.0)


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UserError, match="coding, math"):
        load_recipe(TrainConfig, "maths", RECIPES)
    with pytest.raises(UserError, match="no such file"):
        load_recipe(TrainConfig, "maths.toml", RECIPES)


def test_help_shows_the_recipes_defaults(capsys):
    for line, default in (("coding --help", 15), ("-h coding", 15), ("--help", TrainConfig.epochs)):
        with pytest.raises(SystemExit) as stopped:
            parse_recipe(TrainConfig, line.split(), RECIPES, "train.py")
        assert stopped.value.code == 0
        words = capsys.readouterr().out.split("--epochs INT")[1]
        assert f"default: {default})" in words[:200], line


@pytest.mark.parametrize("line", ["coding --lr 2", "--lr 2 coding", "--data a b --lr 2 coding"])
def test_the_recipe_stands_first_or_after_an_option_of_one_value(line):
    c = parse_recipe(TrainConfig, line.split(), RECIPES, "train.py")
    assert (c.recipe, c.epochs, c.lr) == ("coding", 15, 2.0)
    with pytest.raises(UserError, match=r"RECIPE: required, one of .*\(coding follows a list"):
        parse_recipe(TrainConfig, ["--lr", "2", "--data", "a", "coding"], RECIPES, "train.py")


@pytest.mark.parametrize(
    ("line", "normalize"),
    [
        ("", None),
        ("--normalize", True),
        ("--no-normalize", False),
        ("--no_normalize", False),
        ("--normalize True", True),
        ("--normalize False", False),
        ("--normalize None", None),
        ("--normalize --no-normalize", False),  # the last one counts
        ("--no-normalize --normalize True", True),
    ],
)
def test_options_that_may_be_left_open(line, normalize):
    assert parse(MergeConfig, ["a", "b", "c", *line.split()]).params.normalize is normalize


def test_check_range():
    config = SimpleNamespace(fine=1, not_given=None, too_large=3, no_number=float("nan"))
    check_range(config, 0, 2, "fine", "not_given")
    for field in ("too_large", "no_number"):
        with pytest.raises(UserError, match=f"{flag(field)}=.*: expected between 0 and 2"):
            check_range(config, 0, 2, "fine", field)
    with pytest.raises(UserError, match="at least 4"):
        check_range(config, 4, float("inf"), "too_large")


@pytest.mark.parametrize("field", ["lr", "eps", "weight_decay"])
def test_infinity_is_no_number_but_for_the_clip_norm(field):
    unclipped = TrainConfig(clip_norm=float("inf"))
    assert to_json(unclipped)["clip_norm"] == "inf"  # as text: JSON has no Infinity
    with pytest.raises(UserError, match=f"{flag(field)}=inf: expected at least 0"):
        TrainConfig(**{field: float("inf")})
    assert TrainConfig(clip_norm=float("inf")).clip_norm == float("inf")
