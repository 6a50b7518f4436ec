"""Which words behind a number are units, and which change its meaning?"""

from __future__ import annotations

import re

_NAMES = {
    "m": "m meter meters metre metres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds £",
    "oz": "oz ounce ounces",
    "l": "l L liter liters litre litres",
    "ml": "ml mL milliliter milliliters millilitre millilitres",
    "gal": "gal gallon gallons",
    "$": "$ dollar dollars USD usd buck bucks",
    "cent": "cent cents ¢",
    "€": "€ euro euros",
    "¥": "¥ yen yuan",
    "₹": "₹ rupee rupees",
    "°": "° deg degree degrees",
    "rad": "rad radian radians",
    "mph": "mph",
    "unit": "unit units",
    "K": "K kelvin kelvins",
    "°C": "°C",
    "°F": "°F",
    "J": "J joule joules",
    "N": "N newton newtons",
    "W": "W watt watts",
    "V": "V volt volts",
    "Hz": "Hz hertz",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
MULTIPLIERS = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
"""Words behind a number that multiply it."""
_NOT_UNITS = """
    or and to not if when for but than minus plus times over by divided squared cubed factorial choose mod modulo root
    sqrt pi half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundredth hundredths
    thousandth thousandths base power through between less more fewer greater approximately about around maybe perhaps
    either instead where unless otherwise except without no none impossible undefined infinite infinity sin cos tan log
    ln exp max min gcd lcm mixed one two three four five six seven eight nine ten eleven twelve twenty fifty zero
    wrong incorrect
    """
NOT_UNITS = frozenset(_NOT_UNITS.split())
"""Words behind a number with which it is no plain number, or not the only one."""


def unit_of(text: str) -> str | None:
    """A unit in one spelling: `square centimeters`, `cm^2` and `sq cm` are all `cm^2`. None if it is not a known one."""
    words = text.replace("° ", "°").split()
    power = _POWERS.get(words[0].lower(), 0) if len(words) > 1 else 0
    name = " ".join(words[1:]) if power else " ".join(words)
    if found := re.fullmatch(r"(\S+?) ?\^ ?\{?([23])\}?", name):
        if power:
            return None
        name, power = found[1], int(found[2])
    if found := re.fullmatch(r"(\S+) ?(?:/| per ) ?(\S+)", name):
        parts = [_one(part) for part in found.groups()]
        unit = None if None in parts else f"{parts[0]}/{parts[1]}"
        unit = "mph" if unit == "mi/h" else unit
    else:
        unit = _one(name)
    return unit if unit is None or not power else f"{unit}^{power}"


def _one(name: str) -> str | None:
    return _UNITS.get(name) or (_UNITS.get(name.lower()) if len(name) > 2 else None)
