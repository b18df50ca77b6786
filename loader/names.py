"""DNS names as bytes: wire form, uncompressed, root label included, and in lower case unless said otherwise.

Text is presentation format (RFC 1035 section 5.1): labels joined with dots, `\\X` for a literal character, `\\DDD` for
an octet in decimal. A name without a dot at its end is relative to an origin. `@` is the origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

#: RFC 1035 section 2.3.4, in octets; a name's length counts the length octets and the root label.
MAX_LABEL = 63
MAX_NAME = 255

ROOT = b"\0"
STAR = b"\x01*"

_PLAIN = re.compile(r"[!-\[\]-~]+")
_LENGTH = [bytes((n,)) for n in range(MAX_LABEL + 1)]

#: Characters that a zone file needs escaped inside a label.
_SPECIAL = frozenset(b'."\\;()@$')


class BadName(ValueError):
    """Text or labels that are not a DNS name. The message is one line and starts with the text."""


def counted(number: int) -> str:
    """ "1 name", "2 names": for messages."""
    return "1 name" if number == 1 else f"{number} names"


def from_text(text: str, origin: bytes = ROOT, *, fold: bool = True) -> bytes:
    """The wire form of `text`; `fold` makes it lower case. Raises BadName."""
    if not _PLAIN.fullmatch(text):
        return _from_escaped(text, origin, fold)
    head, dot, rest = text.partition(".")
    if not 1 <= len(head) <= MAX_LABEL or (not rest and dot) or text == "@":
        return _unusual(text, origin, fold)
    # Names that come together share what is behind their first label.
    try:
        wire = _LENGTH[len(head)] + (head.lower() if fold else head).encode() + _behind(rest, origin, fold)
    except BadName as error:
        raise BadName(f"{shown(text)}: {error}") from None
    if len(wire) > MAX_NAME:
        raise _too_long(text)
    return wire


def _unusual(text: str, origin: bytes, fold: bool) -> bytes:
    """from_text of `@`, `.`, one label with a dot, and what has no usable first label."""
    if text == "@":
        return origin
    if text == ".":
        return ROOT
    if not text.startswith(".") and len(text) <= MAX_LABEL + 1 and text.endswith("."):
        return from_labels([(text.lower() if fold else text)[:-1].encode()])
    return _from_escaped(text, origin, fold)


@lru_cache(maxsize=4096)
def _behind(text: str, origin: bytes, fold: bool) -> bytes:
    """What follows the first label and its dot; empty if that was the only one."""
    if not text:
        return origin
    raw = (text.lower() if fold else text).encode()
    if raw.endswith(b"."):
        raw, origin = raw[:-1], ROOT
    try:
        wire = b"".join([_LENGTH[len(label)] + label for label in raw.split(b".")]) + origin
    except IndexError:
        raise BadName(f"a label has at most {MAX_LABEL} octets") from None
    # A zero octet before the root label is a label of no length. Plain text has no zero octets itself.
    if b"\0" in wire[: -len(origin)]:
        raise BadName("a label is empty")
    return wire


def from_labels(labels: list[bytes], origin: bytes = ROOT) -> bytes:
    """The wire form of these labels (leftmost first, case kept) under origin. Raises BadName."""
    for label in labels:
        if not 1 <= len(label) <= MAX_LABEL:
            raise BadName(f"a label has 1 to {MAX_LABEL} octets, not {len(label)}")
    wire = b"".join([_LENGTH[len(label)] + label for label in labels]) + origin
    if len(wire) > MAX_NAME:
        raise BadName(f"a name has at most {MAX_NAME} octets, not {len(wire)}")
    return wire


def _from_escaped(text: str, origin: bytes, fold: bool) -> bytes:
    labels: list[bytes] = []
    label = bytearray()
    at, absolute = 0, False
    while at < len(text):
        char = text[at]
        at += 1
        if char == ".":
            labels.append(bytes(label))
            label.clear()
            absolute = at == len(text)
            continue
        if char == "\\":
            octet, at = _unescape(text, at)
            label.append(octet)
        elif "!" <= char <= "~":
            label += char.encode()
        elif char.isascii():
            raise BadName(f"{shown(text)}: {char!r} must be written \\{ord(char):03d} in a name")
        else:
            raise BadName(f"{shown(text)}: {char!r} is not ASCII; write the label in its xn-- form")
    if not absolute:
        labels.append(bytes(label))
    try:
        return from_labels([label.lower() for label in labels] if fold else labels, ROOT if absolute else origin)
    except BadName as error:
        raise BadName(f"{shown(text)}: {error}") from None


def _unescape(text: str, at: int) -> tuple[int, int]:
    """The octet of the escape whose backslash stands before `at`, and where the text goes on."""
    digits = text[at : at + 3]
    if digits[:1].isdecimal() and digits.isascii():
        if len(digits) < 3 or not digits.isdecimal() or int(digits) > 255:
            raise BadName(f"{shown(text)}: an escape is a backslash and three digits up to 255")
        return int(digits), at + 3
    if not digits or not " " <= digits[0] <= "~":
        raise BadName(f"{shown(text)}: nothing that can be escaped follows a backslash")
    return ord(digits[0]), at + 1


def _too_long(text: str) -> BadName:
    return BadName(f"{shown(text)}: a label has at most {MAX_LABEL} octets and a name {MAX_NAME}")


def shown(text: str, limit: int = 80) -> str:
    """`text` for a message of one line: quoted, escaped, shortened."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def to_text(name: bytes) -> str:
    """Presentation format with the dot at its end; the inverse of from_text."""
    if name == ROOT:
        return "."
    return "".join([_label_text(label) + "." for label in labels(name)])


def _label_text(label: bytes) -> str:
    parts = []
    for octet in label:
        if octet in _SPECIAL:
            parts.append("\\" + chr(octet))
        elif 0x21 <= octet <= 0x7E:
            parts.append(chr(octet))
        else:
            parts.append(f"\\{octet:03d}")
    return "".join(parts)


def labels(name: bytes) -> Iterator[bytes]:
    """The labels from left to right, without lengths, without the root label."""
    at = 0
    while length := name[at]:
        yield name[at + 1 : at + 1 + length]
        at += 1 + length


def parent(name: bytes) -> bytes:
    """The name without its leftmost label; the root's is the root."""
    length = name[0]
    return name[length + 1 :] if length else name


def ancestors(name: bytes) -> Iterator[bytes]:
    """The name itself, its parent, and so on up to the root."""
    yield name
    while length := name[0]:
        name = name[length + 1 :]
        yield name


def is_under(name: bytes, zone: bytes) -> bool:
    """True if `name` is `zone` or beneath it. Ends alike is not enough: the end must fall between two labels."""
    if not name.endswith(zone):
        return False
    extra = len(name) - len(zone)
    at = 0
    while at < extra:
        at += name[at] + 1
    return at == extra
