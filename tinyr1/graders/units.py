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
    mi/h: mph | km/h: kmh kmph kph | rpm | hz khz mhz ghz | /: per | sq: square | cu: cubic
    N: newton | J: joule | kj | W: watt | kw mw kwh | V: volt | A: amp ampere | pa kpa atm bar
    \\deg: degree | rad: radian | \\pct: percent | dollar: usd | cent | eur: euro | yen | ev mev
    unit men way
"""
_UNITS = {
    word: symbol or word
    for entry in re.split(r"[|\n]", _SPELLINGS)
    for symbol, _, words in [entry.strip().rpartition(": ")]
    for word in (*words.split(), *symbol.split())
}
_POWERS = {"squared": "2", "cubed": "3"}
# Any other noun of some length is a unit, too, where a space stands before it, but not what makes
# another number of the number: `5 million`, `3 tens`, `2 squared`, `45 sin`, `3 theta`.
_NO_NOUN = re.compile(
    "(hundred|thousand|[a-z]*illion|lakh|crore|googol|myriad|grand)(th)?s?|dozens?|scores?|gross|"
    "half|halves|doubled?|tripled?|(zero|one|two|three|four|five|six|seven|eight|nine|twelve)e?s?|"
    "(third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth)s?|tens|elevens?|"
    "(thir|four|fif|six|seven|eigh|nine)teen(th)?s?|(twen|thir|for|fif|six|seven|eigh|nine)tie(s|ths?)|"
    "(twen|thir|for|fif|six|seven|eigh|nine)ty|repeating|recurring|(hexa)?decimal|binary|octal|base|"
    "squared?|cubed?|cubic|factorial|times|plus|minus|negative|positive|imaginary|modulo|choose|"
    "over|below|above|under|sqrt|root|(arc)?(sin|cos|tan)h?|(co)?(sine|tangent|secant)|infinity|"
    "alpha|beta|gamma|delta|epsilon|zeta|theta|iota|kappa|lambda|sigma|upsilon|omega"
)


def unit_symbol(words: list[str], attached: bool) -> str:
    """What the words after a number are compared as if they are a unit; "" if they are none."""
    symbols: list[str] = []
    power = ""
    for word in words:
        name, _, own_power = word.partition("^")
        if symbols and name in _POWERS:
            symbols[-1] += _POWERS[name]
            continue
        symbol = "/" if word == "/" else _symbol(name, attached)
        if symbol in ("sq", "cu"):  # of the next
            power = "2" if symbol == "sq" else "3"
        elif symbol:
            symbols.append(symbol + power + own_power)
            power = ""
        else:
            return ""
    return re.sub(" ?/ ?", "/", " ".join(symbols)) if not power else ""


def _symbol(word: str, attached: bool) -> str:
    """A unit's symbol, or a noun in the singular; "" for a word that is neither."""
    for spelling in (word, *((word.lower(),) if len(word) > 1 else ())):  # `M` is not `m`
        for form in (spelling, spelling.removesuffix("s")):
            if form in _UNITS:
                return _UNITS[form]
    noun = word.lower()
    is_noun = len(noun) > 3 and not attached and not _NO_NOUN.fullmatch(noun)
    return noun.removesuffix("s") if is_noun else ""
