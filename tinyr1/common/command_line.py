"""What a config class says of its command line: its options, their help, and faults in words.

tyro makes the config; but it wants positional words together, and its boxes would be a second style
of errors. So words are ordered and checked here first, by the fields' types. The doc line under a
field is its help, and `groups`, a class variable, says under which title it stands there:

    groups: ClassVar[Groups] = {"inputs and output": "model data out", ...}
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyr1.common.by_name import ByName, from_words, words_of
from tinyr1.common.errors import UserError

Groups = Mapping[str, str]  # title -> names of fields
MANY = -1  # an option that takes all words up to the next option
NUMBERS = -2  # one that takes all numbers, and NAME=NUMBERS
KINDS = {str: "TEXT", Path: "PATH", int: "INT", float: "FLOAT"}
WORDS = {str: "text", Path: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Option:
    """A field as an option, or as positional words."""

    field: str
    hint: Any
    doc: str
    default: Any
    flag: str
    metavar: str
    takes: int  # words; MANY, NUMBERS
    is_positional: bool
    flags: tuple[str, ...]  # --x, and where there is one, --no-x


def flag(field: str) -> str:
    """The option of a config's field."""
    return "--" + field.replace("_", "-")


def options_of(cls: Any, default: Any = None) -> list[Option]:
    """The options of a config class, those of classes inside it among them, in their order."""
    from tyro import conf  # 0.3 s that library users of this package need not pay

    docs = _docs(cls)
    found: list[Option] = []
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        if name not in fields:
            continue  # a class variable
        is_annotated = typing.get_origin(annotated) is typing.Annotated
        hint, *markers = typing.get_args(annotated) if is_annotated else (annotated,)
        value = getattr(default, name) if default is not None else _default(fields[name])
        if dataclasses.is_dataclass(hint):
            found += options_of(hint, value)
            continue
        names = [m.name for m in markers if getattr(m, "name", None)]
        metavars = [m.metavar for m in markers if getattr(m, "metavar", None)]
        option = flag(names[0] if names else name)
        is_switch = bool in (hint, *typing.get_args(hint))
        one_flag = not is_switch or conf.FlagCreatePairsOff in markers
        found.append(
            Option(
                name,
                hint,
                docs.get(name, ""),
                value,
                option,
                metavars[0] if metavars else _metavar(hint),
                1 if conf.UseAppendAction in markers else _takes(hint),
                conf.Positional in markers,
                (option,) if one_flag else (option, option.replace("--", "--no-", 1)),
            )
        )
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def _docs(cls: Any) -> dict[str, str]:
    """The doc line under each field."""
    docs: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if base is not object):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for line, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                words = str(text.value).split() if isinstance(text, ast.Constant) else []
                docs[line.target.id] = " ".join(words)
    return docs


def _lists(hint: Any) -> list[Any]:
    """The tuple types among what a field may be."""
    kinds = (hint, *typing.get_args(hint))
    return [kind for kind in kinds if typing.get_origin(kind) is tuple]


def _takes(hint: Any) -> int:
    lists = _lists(hint)
    if hint is bool or hint == bool | None:
        return 0
    if ByName in typing.get_args(hint):
        return NUMBERS
    if not lists:
        return 1
    kinds = typing.get_args(lists[0])
    if ... not in kinds:
        return len(kinds)
    return NUMBERS if kinds[0] in (int, float) else MANY


def _metavar(hint: Any) -> str:
    if ByName in typing.get_args(hint):
        return "FLOAT ... [REGEX=FLOAT,...]" if _lists(hint) else "FLOAT [REGEX=FLOAT ...]"
    if lists := _lists(hint):
        kinds = typing.get_args(lists[0])
        first = _metavar(kinds[0])
        return f"{first} [{first} ...]" if ... in kinds else " ".join(map(_metavar, kinds))
    kind = _only(hint)
    if typing.get_origin(kind) is typing.Literal:
        choices = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        return choices if len(choices) < 60 else "NAME"
    return KINDS.get(kind, "")


def _only(hint: Any) -> Any:
    """X of `X | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0]
    return hint


# ---------------------------------------------------------------- words


def ordered(args: Sequence[str], options: Sequence[Option], prog: str) -> list[str]:
    """The words of a command line, positional ones first; UserError naming what is wrong."""
    by_flag = {name: option for option in options for name in option.flags}
    positionals: list[str] = []
    given: list[tuple[str, list[str]]] = []  # each option as it was called, with its words
    is_open = False  # the next words may belong to the last option
    for word in args:
        if is_open and not word.startswith("--") and _has_room(by_flag, *given[-1], word):
            given[-1][1].append(word)
        elif not word.startswith("--"):
            is_open = False
            positionals.append(word)
        elif word != "--":
            name, has_value, value = word.partition("=")
            name = name.replace("_", "-")
            if name not in by_flag:
                raise UserError(f"{name}: {_unknown(name, by_flag, prog)}")
            given.append((name, [value] if has_value else []))
            is_open = True
    _check_positionals(positionals, options, prog)
    words: list[str] = []
    lists: dict[str, list[str]] = {}  # given twice, a list has what both say
    for name, taken in given:
        if by_flag[name].takes in (MANY, NUMBERS):
            _check_values(by_flag[name], taken)
            lists.setdefault(name, []).extend(taken)
        else:
            words += _words(by_flag[name], name, taken)
    for name, taken in lists.items():
        words += _words(by_flag[name], name, taken)
    return positionals + words


def _has_room(by_flag: Mapping[str, Option], name: str, taken: list[str], word: str) -> bool:
    """True where the word belongs to the option, and not to the positional ones."""
    option = by_flag[name]
    if option.takes == 0:
        is_word = word in ("True", "False", "None")
        return option.hint is not bool and name == option.flag and not taken and is_word
    if option.takes == NUMBERS:  # of its first word a fault is said
        return not taken or _fits(word, float) or _is_rule(word)
    return option.takes == MANY or len(taken) < option.takes


def _is_rule(word: str) -> bool:
    """True for NAME=NUMBERS, and not for a path with such a folder in it."""
    return "=" in word and "/" not in word and not Path(word).exists()


def _words(option: Option, name: str, taken: list[str]) -> list[str]:
    """An option and its words for tyro; UserError where they are not what it takes."""
    if option.takes:
        _check_values(option, taken)
        if len(taken) == 1:  # whatever it begins with
            return [f"{option.flag}={taken[0]}"]
        for word in taken:
            if word.startswith("-") and not _fits(word, float):
                raise UserError(f"{option.flag}={word}: a word of a list cannot begin with -")
        return [option.flag, *taken]
    if taken and (name != option.flag or taken[0] not in ("True", "False", "None")):
        raise UserError(f"{name}={taken[0]}: takes no value")
    if option.hint is not bool:  # `bool | None`, of which tyro makes an option with a value
        return [option.flag, taken[0] if taken else str(name == option.flag)]
    if not taken:
        return [name]
    if taken[0] == "False":
        return list(option.flags[1:])
    return [option.flag]


def wants_help(args: Sequence[str], options: Sequence[Option]) -> bool:
    """True where --help is asked, or -h that is no option's value."""
    takes = {name: option.takes for option in options for name in option.flags}
    before = ["", *args]
    return "--help" in args or any(
        word == "-h" and not takes.get(last.replace("_", "-"), 0)
        for last, word in zip(before, args, strict=False)
    )


def _unknown(name: str, known: Iterable[str], prog: str) -> str:
    near = difflib.get_close_matches(name, list(known), 3, 0.6)
    meant = f"; did you mean {' or '.join(near)}?" if near else ";"
    return f"no such option{meant} {prog} --help shows all"


def _check_values(option: Option, words: list[str]) -> None:
    """UserError for too few words, or such as the option's type is not."""
    if not words or 0 < len(words) < option.takes:
        raise UserError(f"{option.flag}: a value is missing ({option.metavar})")
    kinds = [_only(option.hint)] * len(words)
    if ByName in typing.get_args(option.hint):
        try:
            from_words(words, is_list=bool(_lists(option.hint)))
        except ValueError as error:
            raise UserError(f"{option.flag}={' '.join(words)}: {error}") from None
        return
    if lists := _lists(option.hint):
        inner = typing.get_args(lists[0])
        kinds = [inner[0]] * len(words) if ... in inner else list(inner)
    for word, kind in zip(words, kinds, strict=True):
        is_none = word == "None" and type(None) in typing.get_args(option.hint)
        if not (is_none or _fits(word, kind)):
            raise UserError(f"{option.flag}={word}: expected {kind_in_words(kind)}")


def _fits(word: str, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return word in map(str, typing.get_args(kind))
    if kind in (int, float):
        try:
            kind(word)
        except ValueError:
            return False
    return True


def kind_in_words(hint: Any) -> str:
    """Name the values that a field takes."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    if typing.get_origin(hint) is tuple:
        count = "" if options[-1] is Ellipsis else f" of {len(options)}"
        return f"a list{count}, each {kind_in_words(options[0])}"
    return WORDS.get(hint, str(hint))


def _check_positionals(words: list[str], options: Sequence[Option], prog: str) -> None:
    for word in words:
        if word.startswith("-") and word != "-":
            raise UserError(f"{word}: no such option; {prog} --help shows all")
    for option in (option for option in options if option.is_positional):
        if option.takes == MANY:
            return
        if words:
            words = words[1:]
        elif option.default is dataclasses.MISSING:
            raise UserError(f"{option.metavar}: required; {prog} --help shows all options")
    if words:
        raise UserError(f"{words[0]}: unexpected; {prog} --help shows what it takes")


# ---------------------------------------------------------------- help


def help_text(cls: Any, prog: str, description: str, default: Any = None) -> str:
    """The text of --help: what the program is for, and its options under their titles."""
    options = options_of(cls, default)
    places = [option.metavar for option in options if option.is_positional]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=" ".join([prog, *places, "[options]"]),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    by_field = {option.field: option for option in options}
    groups: Groups = getattr(cls, "groups", {"options": " ".join(by_field)})
    for title, fields in groups.items():
        group = parser.add_argument_group(title)
        for option in (by_field[field] for field in fields.split()):
            text = (option.doc + _default_text(option)).replace("%", "%%")
            if option.is_positional:
                group.add_argument(option.field, metavar=option.metavar, help=text)
            elif option.takes == 0:
                flags = option.flags[:1] if option.default is False else option.flags
                group.add_argument(*flags, action="store_true", help=text)
            else:
                group.add_argument(option.flag, metavar=option.metavar, help=text)
    return parser.format_help()


def _default_text(option: Option) -> str:
    value = option.default
    if value in (None, (), "") or value is False or value is dataclasses.MISSING:
        return ""
    return f" (default: {'on' if value is True else ' '.join(words_of(value))})"
