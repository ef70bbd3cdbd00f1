"""Words after a number: which of them are its unit, and what they are compared as.

unit_symbol(["square", "feet"], False) -> "ft2"         (for "square feet")
"""

from __future__ import annotations

import re

# A unit's spellings, each with or without an s at its end, and what they are compared as.
_SPELLINGS = """
    m: meter metre | cm: centimeter centimetre | mm: millimeter millimetre | km: kilometer kilometre
    in: inch inche | ft: foot feet | yd: yard | mi: mile | nm dm
    g: gram | kg: kilogram | mg: milligram | lb: pound | oz: ounce | ton | mol: mole
    l: L liter litre | ml: mL milliliter millilitre | gal: gallon | qt: quart | pt: pint | cup cc
    s: sec second | ms: millisecond | min: minute | h: hr hour | day week month year am pm
    mi/h: mph MPH | km/h: kmh kmph kph | rpm | hz khz MHz ghz | /: per | sq: square | cu: cubic
    N: newton | J: joule | kj | W: watt | kw mW MW kwh | V: volt | A: amp ampere | pa kpa MPa atm
    \\deg: degree | rad: radian | \\pct: percent | dollar: usd | cent | eur: euro | yen | ev keV MeV
    unit way | men women children people mice | celsius fahrenheit kelvin
"""
_UNITS = {
    word: symbol or word
    for entry in re.split(r"[|\n]", _SPELLINGS)
    for symbol, _, words in [entry.strip().rpartition(": ")]
    for word in (*words.split(), *symbol.split())
}
_POWERS = {"squared": "2", "cubed": "3"}
# Any other noun in the plural is a unit, too, where a space stands before it, but not what makes
# another number of the number: `3 tens`, `5 millions`, `2 sixteenths`, `3 factorials`.
_NO_NOUN = re.compile(  # in the singular, that is without the s
    "hundred(th)?|thousand(th)?|[a-z]*(illion|illiard)(th)?|lakh|crore|googol|myriad|grand|dozen|"
    "score|gros|halve|double|triple|zero|one|two|three|four|five|sixe|seven|eight|nine|ten|eleven|"
    "twelve|(thir|four|fif|six|seven|eigh|nine)teen(th)?|"
    "(twen|thir|for|fif|six|seven|eigh|nine)tie(th)?|"
    "[a-z]*(third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth)|"
    "square|cube|factorial|time|plu|minu|les|base|basi|root|modulu|versu|infinitie|kilo|mega|giga|"
    "(co)?(sine|tangent|secant)|alpha|beta|gamma|delta|epsilon|zeta|theta|iota|kappa|lambda|sigma|"
    "omega|tau|reciprocal|negative|radical|log|power|logarithm"
)


def unit_symbol(words: list[str], known_only: bool) -> str:
    """The symbol that stands for the words after a number in a comparison; "" if they are no unit.

    With `known_only`, no noun is one that the table does not have.
    """
    symbols: list[str] = []
    power = ""
    for word in words:
        name, _, own_power = word.partition("^")
        if symbols and name in _POWERS:
            symbols[-1] += _POWERS[name]
            continue
        symbol = "/" if word == "/" else _symbol(name, known_only)
        if symbol in ("sq", "cu"):  # of the next
            power = "2" if symbol == "sq" else "3"
        elif symbol:
            symbols.append(symbol + power + own_power)
            power = ""
        else:
            return ""
    return re.sub(" ?/ ?", "/", " ".join(symbols)) if not power else ""


def _symbol(word: str, known_only: bool) -> str:
    """A unit's symbol, or a noun in the singular; "" for a word that is neither."""
    # `MW` is not `mW`, nor `M` `m`; longer words and others are as good in capitals.
    exact = len(word) == 1 or (word[0] == "M" and len(word) < 4)
    for spelling in (word,) if exact else (word, word.lower()):
        for form in (spelling, spelling.removesuffix("s")):
            if form in _UNITS:
                return _UNITS[form]
    singular = word.lower().removesuffix("s")
    is_noun = len(singular) > 2 and word.endswith("s") and not known_only
    return singular if is_noun and not _NO_NOUN.fullmatch(singular) else ""
