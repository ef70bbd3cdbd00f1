"""Command lines from frozen dataclasses (tyro), recipes from TOML.

A config class is a frozen dataclass with a doc line under each field and its checks in
`__post_init__`. A recipe is a TOML file whose keys are fields of the class; it replaces the
class's defaults, and the command line replaces the recipe's values.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tomllib
import types
import typing
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyr1.common.by_name import ByName, from_words, words_of
from tinyr1.common.command_line import (
    flag,
    help_text,
    kind_in_words,
    options_of,
    ordered,
    wants_help,
)
from tinyr1.common.errors import UserError

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")


def parse(
    cls: Any,
    args: list[str],
    prog: str = "",
    default: Any = None,
    description: str | None = None,
) -> Any:
    """Make a `cls` from command-line arguments; UserError for what it does not take.

    `default` has the values of options that are not given, `description` stands at the top of
    --help instead of the class's own words.
    """
    options = options_of(cls, default)
    if wants_help(args, options):
        print(help_text(cls, prog, description or cls.__doc__ or "", default), end="")
        sys.exit(0)
    words = ordered(args, options, prog)
    import tyro  # as late as in options_of

    values = {} if default is None else {"default": default}
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_by_name)
    config = tyro.cli(cls, args=words, prog=prog, registry=registry, **values)
    _check_text(config)
    return config


def parse_command(commands: Mapping[str, Any], args: list[str], prog: str, description: str) -> Any:
    """`parse` for programs whose first word chooses a class: its config."""
    if args and args[0] in commands:
        name, cls = args[0], commands[args[0]]
        lines = [line for line in description.splitlines() if f"{prog} {name} " in line]
        return parse(cls, args[1:], f"{prog} {name}", None, "\n".join([cls.__doc__, "", *lines]))
    if "-h" in args or "--help" in args:
        width = max(map(len, commands))
        lines = [f"  {name:<{width}}  {cls.__doc__}" for name, cls in commands.items()]
        print(f"usage: {prog} COMMAND [options]", description.strip(), "commands", sep="\n\n")
        print(*lines, f"\n{prog} COMMAND --help shows the options of one.", sep="\n")
        sys.exit(0)
    found = f"{args[0]}: no such command" if args else "COMMAND: required"
    raise UserError(f"{found}; expected one of {', '.join(commands)}; {prog} --help says of what")


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


def parse_recipe(
    cls: Any, args: list[str], recipes: Traversable, prog: str, description: str | None = None
) -> Any:
    """`parse` for a class whose field `recipe` names the file that the defaults come from."""
    options = options_of(cls)
    names = recipe_names(recipes)
    if wants_help(args, options):  # of a recipe's values, wherever its name stands
        named = [word for word in args if word in names or word.endswith(".toml")]
        default = load_recipe(cls, named[0], recipes) if named else None
        return parse(cls, args, prog, default, description)
    words = ordered(args, options, prog)
    if words and not words[0].startswith("--"):
        return parse(cls, args, prog, load_recipe(cls, words[0], recipes), description)
    flags = {word.partition("=")[0] for word in words}
    missing = ", ".join(flag(f) for f in cls.required.split() if flag(f) not in flags)
    taken = next((word for word in words if word in names), "")
    raise UserError(
        f"RECIPE: required, one of {', '.join(names)}, or a path to a .toml"
        + (f" ({taken} follows a list, which takes all words: put it first)" if taken else "")
        + (f"; also required: {missing}" if missing else "")
        + f"; {prog} --help shows all options"
    )


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
    raise UserError(f"{where}={value!r}: expected {kind_in_words(hint)}")


def to_json(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values (paths as strings, tuples as lists, inf as text)."""
    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    infinite = {name: str(value) for name, value in values.items() if value == math.inf}
    return values | infinite


def given(value: T | None, option: str) -> T:
    """`value`; UserError where the option was not given."""
    if value in (None, (), ""):
        raise UserError(f"{option}: required; --help shows all options")
    return value


def check_given(config: Any, *fields: str) -> None:
    """UserError that names all of these options that were not given."""
    missing = [flag(f) for f in fields if getattr(config, f) in (None, (), "")]
    if missing:
        raise UserError(f"{', '.join(missing)}: required; --help shows all options")


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
