"""Zone files (RFC 1035 section 5, RFC 2308 section 4 for $TTL) by dnspython's reader.

$INCLUDE is relative to the file that it stands in, up to MAX_NESTING deep. The zone is where the SOA stands; of several
(exports have them) each is a zone. A file without a SOA adds to whatever configured zone encloses its origin, or is a
zone at its origin. The origin is what the file's name says until $ORIGIN says otherwise: example.test.zone,
example.test and db.example.test start in example.test.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes
from typing import Any, TextIO

import dns.exception
import dns.name
import dns.rdataclass
import dns.tokenizer
import dns.transaction
import dns.zonefile

from loader import names, rdata
from loader.model import MAX_TTL, Record, Reject
from loader.rdata import SOA

#: A file that includes itself ends here.
MAX_NESTING = 16
#: Ends of the names of zone files, and how Debian's begin. Any other end is the zone's.
_ENDS = (".zone", ".db", ".hosts", ".txt", ".dns")
_BEGIN = "db."
_TEXT_TYPES = ("TXT", "SPF")
#: What messages call it, and the tokenizer.
STANDARD_INPUT = "standard input"


@dataclass(slots=True)
class ZoneFile:
    """What a zone file has given.

    records   NAME/TYPE -> records
    problems  NAME/TYPE -> why these were left out
    included  every file that was included, also when reading has failed
    """

    records: dict[str, list[Record]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    included: list[Path] = field(default_factory=list)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Octets that are no UTF-8 as zone files write octets: `\\233`. Name servers take them as they stand."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"\\{octet:03d}" for octet in error.object[error.start : error.end]), error.end


#: How zone files are opened.
ENCODING, ERRORS = "utf-8-sig", "standoff.zonefile"
codecs.register_error(ERRORS, _escaped)


def origin_of(path: Path) -> bytes:
    """The origin that a file's name says. Raises Reject."""
    name = Path(path.name.removesuffix(".signed"))
    stem = name.stem if name.suffix in _ENDS else name.name.removeprefix(_BEGIN)
    try:
        return names.from_text(stem + "." if stem != "root" else ".")
    except names.BadName as error:
        raise Reject(f"{path}: the file's name without suffix is its origin, but {error}") from None


def read(path: Path, zones: Collection[bytes], result: ZoneFile, within: bytes | None = None) -> None:
    """Reads a file into `result`, whose `included` counts even if this fails. `zones` are the configured apexes.
    within: the origin, if the file's name says one outside of it.

    Raises Reject with FILE:LINE, and OSError if the file itself cannot be read.
    """
    try:
        origin = origin_of(path)
    except Reject:
        if within is None:
            raise
        origin = within
    if within is not None and not names.is_under(origin, within):
        origin = within
    with open(path, encoding=ENCODING, errors=ERRORS) as file:
        _read(file, str(path), origin, zones, result)


def read_stream(stream: TextIO, origin: bytes | None, zones: Collection[bytes], result: ZoneFile) -> None:
    """As `read`, of standard input. origin: None: relative names before the first $ORIGIN are a mistake. Raises Reject
    with the line."""
    _read(stream, STANDARD_INPUT, origin, zones, result)


def _read(stream: TextIO, title: str, origin: bytes | None, zones: Collection[bytes], result: ZoneFile) -> None:
    # A top-level domain that nobody has, in the place of an origin: relative names are known by it.
    nowhere = [] if origin is not None else [token_bytes(16).lower()]
    collector = _Collector(names.from_labels(nowhere) if nowhere else None)
    labels = nowhere or names.labels(origin or names.ROOT)
    reader = _Reader(dns.tokenizer.Tokenizer(stream, title), collector, result.included)
    reader.current_origin = reader.last_name = dns.name.Name([*labels, b""])
    try:
        reader.read()
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise Reject(_explained(error, reader)) from error
    finally:
        reader.close()
    _sort(collector, origin, zones, result)


def _explained(error: Exception, reader: _Reader) -> str:
    file, line = reader.tok.where()
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason.removeprefix(f"{file}:{line}: ")  # the reader has put it before what it says itself
    where = f"{file}, line {line}" if file == STANDARD_INPUT else f"{file}:{line}"
    return f"{where}: {reason} (near {names.shown(reader.tok.near)})"


def _sort(collector: _Collector, origin: bytes | None, zones: Collection[bytes], result: ZoneFile) -> None:
    own = dict.fromkeys(owner for owner, type_, _, _ in collector.rrs if type_ == SOA)
    if not own and origin is not None and not any(up in zones for up in names.ancestors(origin)):
        own = {origin: None}
    for owner, type_, ttl, data in collector.rrs:
        key = f"{names.to_text(owner)}/{rdata.type_name(type_)}"
        zone = next((up for up in names.ancestors(owner) if up in own), None) if own else None
        if own and zone is None:
            result.problems[key] = f"{names.to_text(owner)} is outside {_told(own)}"
        elif not rdata.storable(type_):
            result.problems[key] = f"{rdata.type_name(type_)} is not a type that a zone can hold"
        else:
            result.records.setdefault(key, []).append(Record(zone, owner, type_, min(ttl, MAX_TTL), data))


def _told(own: Collection[bytes]) -> str:
    first = names.to_text(next(iter(own)))
    return f"the file's zone {first}" if len(own) == 1 else f"the file's {len(own)} zones, {first} and others"


class _Manager(dns.transaction.TransactionManager):
    """Tells the reader that nothing is relative, and that all names are welcome: we sort them ourselves."""

    def origin_information(self) -> tuple[dns.name.Name, bool, dns.name.Name]:
        return dns.name.root, False, dns.name.root

    def get_class(self) -> dns.rdataclass.RdataClass:
        return dns.rdataclass.IN


class _Collector(dns.transaction.Transaction):
    """Takes RRs one by one. dnspython's own transactions refuse a whole file for one CNAME beside other data.
    nowhere: in wire form, a name that no other may be under."""

    def __init__(self, nowhere: bytes | None) -> None:
        super().__init__(_Manager())
        self._nowhere = nowhere
        self.rrs: list[tuple[bytes, int, int, bytes]] = []

    def add(self, *args: Any) -> None:
        name, ttl, data = args
        owner, wire = name.to_digestable(), data.to_wire()
        if self._nowhere is not None and (self._nowhere in owner or self._nowhere in wire):
            raise ValueError("a relative name, and no $ORIGIN before it: put one there, or give one --zone")
        self.rrs.append((owner, int(data.rdtype), ttl, wire))

    def _set_origin(self, origin: dns.name.Name | None) -> None:
        pass


class _Reader(dns.zonefile.Reader):
    """dnspython's reader opens what $INCLUDE names as it stands, relative to the process's directory. Its tokenizers
    are exchanged for ones that rewrite the name, and every file that it opens can be closed."""

    tok: _Tokenizer

    def __init__(self, tokenizer: dns.tokenizer.Tokenizer, collector: _Collector, included: list[Path]) -> None:
        self.included = included
        self.opened: list[Any] = []
        super().__init__(tokenizer, dns.rdataclass.IN, collector, allow_include=True)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tok" and not isinstance(value, _Tokenizer):
            value = _Tokenizer(value.file, value.filename, self)
        elif name == "current_file" and value is not None:
            self.opened.append(value)
        super().__setattr__(name, value)

    def close(self) -> None:
        """Closes the included files, which an error leaves open."""
        for file in self.opened:
            file.close()


class _Tokenizer(dns.tokenizer.Tokenizer):
    def __init__(self, file: Any, filename: str, reader: _Reader) -> None:
        super().__init__(file, filename)
        self._reader = reader
        self._names_file = self._generates = self._texts = False
        self._pieces: list[dns.tokenizer.Token] = []
        self._line = 1
        self.near = ""

    def where(self) -> tuple[str, int]:
        """The file, and the line where the current entry begins: dnspython tells the next one once it has seen the end
        of this one, and the last one of several in parentheses."""
        return self.filename, self._line

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        # The reader asks for leading white space only where a line begins.
        if want_leading:
            self._line, self._texts = self.line_number, False
        elif self._pieces and self.ungotten_token is None:
            return self._pieces.pop()
        token = super().get(want_leading, want_comment)
        if token.is_identifier() or token.is_quoted_string():
            self.near = token.value
        if self._names_file and (token.is_identifier() or token.is_quoted_string()):
            if len(self._reader.saved_state) >= MAX_NESTING:
                raise dns.exception.SyntaxError(f"$INCLUDE nests deeper than {MAX_NESTING}")  # type: ignore[no-untyped-call]
            target = Path(self.filename).parent / token.value
            self._reader.included.append(target)
            token.value = str(target)
        if want_leading:
            directive = token.value.upper() if token.is_identifier() else ""
            self._generates, self._names_file = directive == "$GENERATE", directive == "$INCLUDE"
        else:
            self._names_file = False
        if self._generates and token.is_quoted_string():
            # Data of several words: BIND wants it quoted, dnspython takes it as a word only.
            token.ttype = dns.tokenizer.IDENTIFIER
        if self._texts and len(token.value) > rdata.MAX_STRING and token.is_quoted_string():
            # CoreDNS takes strings of any length, and cuts them.
            pieces = [dns.tokenizer.Token(token.ttype, piece, True) for piece in rdata.cut(token.value)]
            token, *rest = pieces
            self._pieces = rest[::-1]
        elif not want_leading and not self._texts and token.is_identifier():
            self._texts = token.value.upper() in _TEXT_TYPES
        return token
