"""Options that may have another value for some names: `--lam 1.5 mlp=1.0 norm=0`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ByName:
    """A value for most names, and those of others: the first pattern found in a name rules."""

    default: Any
    rules: tuple[tuple[str, Any], ...]  # a regular expression, and the value of what it finds

    def at(self, name: str) -> Any:
        """The value for `name`."""
        return next((v for pattern, v in self.rules if re.search(pattern, name)), self.default)


def each(value: Any) -> list[Any]:
    """The values of an option: the one, or the default and that of each rule."""
    return [value.default, *(v for _, v in value.rules)] if isinstance(value, ByName) else [value]


def plain(value: T | ByName | None) -> T:
    """The value of an option that depends on no name any more and has its default filled in."""
    assert value is not None
    assert not isinstance(value, ByName)
    return value


def from_words(words: list[str], is_list: bool) -> Any:
    """Numbers and PATTERN=NUMBERS, in any order, as a value or a ByName; ValueError for others.

    `is_list`: a value has any number of numbers, behind a pattern with commas between; else one.
    """
    plain_words = [word for word in words if "=" not in word]
    rules: list[tuple[str, Any]] = []
    for word in words:
        pattern, found, text = word.rpartition("=")
        if found:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern}: no regular expression ({error})") from None
            rules.append((pattern, _numbers(text.split(","), is_list)))
    if not words:
        raise ValueError("a number is missing")
    default = _numbers(plain_words, is_list) if plain_words or is_list else None
    return ByName(default, tuple(rules)) if rules else default


def _numbers(words: list[str], is_list: bool) -> Any:
    if not is_list and len(words) != 1:
        raise ValueError("expected one number")
    try:
        numbers = tuple(map(float, words))
    except ValueError:
        raise ValueError("expected numbers" if is_list else "expected a number") from None
    return numbers if is_list else numbers[0]


def words_of(value: Any) -> list[str]:
    """The words that `from_words` makes `value` of."""
    rules = value.rules if isinstance(value, ByName) else ()
    default = value.default if isinstance(value, ByName) else value
    words = [] if default is None else _shown(default)
    return words + [f"{pattern}={','.join(_shown(numbers))}" for pattern, numbers in rules]


def _shown(value: Any) -> list[str]:
    return [str(number) for number in (value if isinstance(value, tuple) else (value,))]
