"""What is wrong with a JSON value, for whoever wrote it: which field, what it is to be, what was found. Pure."""

from __future__ import annotations

import re

import msgspec

_KINDS = {
    "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null",
    "array": "a list", "object": "an object",
}  # fmt: skip

_AT = re.compile(r" - at `\$([^`]*)`$")
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([^.\[\]]+)")
_MISSING = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_EXPECTED = re.compile(r"Expected `([a-z |]+)`, got `(\w+)`$")
_MALFORMED = re.compile(r"JSON is malformed: (.*) \(byte (\d+)\)$")


def why(error: msgspec.DecodeError | RecursionError) -> str:
    """What the JSON library says, about fields: "ttl is to be a whole number, not a string". Octets and items count
    from 1."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text, place = str(error), ""
    if at := _AT.search(text):
        text, place = text[: at.start()], _place(at[1])
    where = f" in {place}" if place else ""
    if found := _MISSING.match(text):
        return f"the field {found[1]} is missing{where}"
    if found := _UNKNOWN.match(text):
        return f"there is no field {found[1]}{where}"
    if found := _EXPECTED.match(text):
        return _expected(place, found[1].split(" | "), found[2])
    if found := _MALFORMED.match(text):
        return f"no JSON at octet {int(found[2]) + 1}: {found[1]}"
    return "the JSON ends too early" if text == "Input data was truncated" else text + where


def _place(path: str) -> str:
    """ "data[0].weight" -> "weight of item 1 of data"."""
    steps = [
        field or ("a value" if number == "..." else f"item {int(number) + 1}") for number, field in _STEP.findall(path)
    ]
    return " of ".join(reversed(steps))


def _expected(place: str, kinds: list[str], found: str) -> str:
    wanted = [_KINDS.get(kind, kind) for kind in kinds if kind != "null" and not (kind == "int" and "float" in kinds)]
    what = wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} or {wanted[-1]}"
    got = "a fraction" if (found, "int" in kinds) == ("float", True) else _KINDS.get(found, found)
    return f"{place or 'it'} is to be {what}, not {got}"
