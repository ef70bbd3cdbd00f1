"""Command lines from frozen dataclasses (tyro), recipes from TOML.

A config class is a frozen dataclass with a doc line under each field and its checks in
`__post_init__`. A recipe is a TOML file whose keys are fields of the class; it replaces the
class's defaults, and the command line replaces the recipe's values.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import tomllib
import types
import typing
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyr1.common.by_name import ByName, from_words, words_of
from tinyr1.common.errors import UserError

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
WORDS = {str: "text", Path: "text", int: "a whole number", float: "a number", bool: "true or false"}


def parse(
    cls: Any,
    args: list[str],
    prog: str | None = None,
    default: Any = None,
    description: str | None = None,
) -> Any:
    """Make a `cls` from command-line arguments; tyro prints usage and exits 2 on unknown ones.

    `cls` is a config class, or a union of those of subcommands. `default` has the values of options
    that are not given, `description` stands at the top of --help instead of the class's own words.
    """
    import tyro  # 0.3 s that library users of this package need not pay

    args = _spelled_out(args, _open_flags(cls))
    if counts := _word_counts(cls):
        args = _positionals_first(args, counts)
    description = description or (cls.__doc__ or "").strip()
    values = {} if default is None else {"default": default}
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_by_name)
    config = tyro.cli(
        cls, args=args, prog=prog, description=description, registry=registry, **values
    )
    _check_text(config)
    return config


def _by_name(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How tyro reads options that may differ by name."""
    from tyro.constructors import PrimitiveConstructorSpec

    kinds = typing.get_args(info.type)
    if ByName not in kinds:
        return None
    is_list = any(typing.get_origin(kind) is tuple for kind in kinds)
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT ... [REGEX=FLOAT,...]" if is_list else "FLOAT [REGEX=FLOAT ...]",
        instance_from_str=lambda words: from_words(words, is_list),
        is_instance=lambda value: not isinstance(value, str),
        str_from_instance=words_of,
    )


def _check_text(config: Any) -> None:
    """UserError for text whose bytes on the command line were no UTF-8; paths may be anything."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            _check_text(value)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise UserError(f"{flag(f.name)}={text}: expected UTF-8 text") from None


def _open_flags(cls: Any) -> set[str]:
    """Names of the fields that may be left open (`bool | None`), those of inner classes, too."""
    if not dataclasses.is_dataclass(cls):
        return set()
    names: set[str] = set()
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            names |= _open_flags(hint)
        elif hint == bool | None:
            names.add(name)
    return names


def _spelled_out(args: list[str], open_flags: set[str]) -> list[str]:
    """`--x` and `--no-x` as `--x True` and `--x False`: tyro makes flags of plain booleans only."""
    spelled = {flag(name): [flag(name), "True"] for name in open_flags}
    spelled |= {flag(f"no_{name}"): [flag(name), "False"] for name in open_flags}
    words: list[str] = []
    for word, following in itertools.zip_longest(args, args[1:]):
        is_spelled = following in ("True", "False", "None")  # as --help shows it
        words += [word] if is_spelled else spelled.get(word.replace("_", "-"), [word])
    return words


MANY, NUMBERS = -1, -2  # an option that takes all that follows; or all numbers, and NAME=NUMBER


def _word_counts(cls: Any) -> dict[str, int]:
    """The number of words that each option takes, by its flag; nothing for subcommands."""
    if not dataclasses.is_dataclass(cls):
        return {}
    counts: dict[str, int] = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        hint, *markers = typing.get_args(annotated) if _is_annotated(annotated) else (annotated,)
        option = flag(name.rstrip("_"))
        kinds = (hint, *typing.get_args(hint))
        lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        if dataclasses.is_dataclass(hint):
            counts |= _word_counts(hint)
        elif hint is bool:
            counts |= {option: 0, flag(f"no_{name}"): 0}
        elif "UseAppendAction" in str(markers) or not (lists or "ByName" in str(hint)):
            counts[option] = 1
        elif lists and ... not in typing.get_args(lists[0]):
            counts[option] = len(typing.get_args(lists[0]))
        else:
            is_text = lists and typing.get_args(lists[0])[0] not in (int, float)
            counts[option] = MANY if is_text else NUMBERS
    return counts


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _positionals_first(args: list[str], counts: dict[str, int]) -> list[str]:
    """The arguments in an order that the parser reads: it wants all positional ones together."""
    positionals: list[str] = []
    others: list[str] = []
    left = 0  # words that the last option still takes
    taken = 0  # words that it has
    for word in args:
        if word.startswith("--"):
            left, taken = counts.get(word.replace("_", "-"), 0), 0
            others.append(word)
        elif left == 0 or (left == NUMBERS and taken and not _is_number(word)):
            positionals.append(word)
        else:
            left -= left > 0
            taken += 1
            others.append(word)
    return positionals + others


def _is_number(word: str) -> bool:
    """True for a number, also of a name (NAME=NUMBER)."""
    try:
        return "=" in word or bool(float(word) or True)
    except ValueError:
        return False


def parse_recipe(cls: Any, args: list[str], recipes: Traversable, prog: str) -> Any:
    """`parse` for a class whose field `recipe` names the file that the defaults come from.

    The line is read twice: for the recipe's name, which stands first or after any option that takes
    one value (a list takes all that follows it), and then with the recipe's values as defaults.
    """
    without_help = [word for word in args if word not in ("-h", "--help")]
    recipe = parse(cls, without_help, prog).recipe
    if not recipe and without_help != args:
        return parse(cls, args, prog)  # no recipe's values to show: the class's
    if not recipe:
        raise UserError(
            f"RECIPE: required, before any option: {', '.join(recipe_names(recipes))}, or a path "
            "to a .toml; --help shows all options"
        )
    return parse(cls, args, prog, load_recipe(cls, recipe, recipes))


def recipe_names(recipes: Traversable) -> list[str]:
    """The names of the recipes that are there."""
    return sorted(f.name.removesuffix(".toml") for f in recipes.iterdir())


def load_recipe(cls: type[T], name_or_path: str, recipes: Traversable) -> T:
    """Make a `cls` from a recipe: the name of one in `recipes`, or the path of a TOML file."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"recipe={path}: no such file")
        text = path.read_bytes()
    else:
        names = recipe_names(recipes)
        if name_or_path not in names:
            raise UserError(
                f"recipe={name_or_path}: expected one of {', '.join(names)}, or a path to a .toml"
            )
        text = (recipes / f"{name_or_path}.toml").read_bytes()
    try:
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"recipe={name_or_path}: not valid TOML ({error})") from None
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        # Unknown keys are fatal: a misspelt option that is ignored costs a training run.
        if key not in hints or key == "recipe":
            raise UserError(f"recipe={name_or_path}: unknown key {key!r}")
        values[key] = _typed(f"recipe={name_or_path}: {key}", hints[key], value)
    return cls(**values | {"recipe": name_or_path})


def _typed(where: str, hint: Any, value: Any) -> Any:
    """Check a TOML value against a field's type: lists become tuples, text becomes paths."""
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None: TOML has no null
        (hint,) = (option for option in options if option is not type(None))
        return _typed(where, hint, value)
    if origin is typing.Literal and value in options:
        return value
    if origin is tuple and isinstance(value, list):
        items = typing.cast("list[Any]", value)
        kinds = options[:1] * len(items) if options[-1] is Ellipsis else options
        if len(kinds) == len(items):
            return tuple(_typed(where, k, v) for k, v in zip(kinds, items, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"{where}={value!r}: expected {_kind(hint)}")


def _kind(hint: Any) -> str:
    """Name the values that a field takes, in words."""
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is tuple:
        count = "" if options[-1] is Ellipsis else f" of {len(options)}"
        return f"a list{count}, each {_kind(options[0])}"
    return WORDS.get(hint, str(hint))


def to_json(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values (paths as strings, tuples as lists, inf as text)."""
    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    infinite = {name: str(value) for name, value in values.items() if value == math.inf}
    return values | infinite


def flag(field: str) -> str:
    """The option of a config's field."""
    return "--" + field.replace("_", "-")


def given(value: T | None, option: str) -> T:
    """`value`; UserError where the option was not given."""
    if value in (None, (), ""):
        raise UserError(f"{option}: required; --help shows all options")
    return value


def check_range(config: Any, low: float, high: float, *fields: str) -> None:
    """UserError unless low <= value <= high, and finite, for each field that has a value."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not low <= value <= min(high, sys.float_info.max):
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{flag(field)}={value}: expected {bounds}")


def check_zero_or_range(config: Any, low: float, *fields: str) -> None:
    """UserError for a value between 0 and `low`: only 0 and what is not tiny mean anything."""
    for field in fields:
        value = getattr(config, field)
        if 0 < value < low:
            raise UserError(f"{flag(field)}={value}: expected 0, or at least {low}")
