"""What the parts of the loader hand each other: sources give Listing and Changes, schemas give Record or Reject."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

#: Record.ttl of a source that gave none: the zone model puts its own default there.
DEFAULT_TTL = -1

#: Ends the text of a key that is not UTF-8 (loader/etcd.py): no schema takes it.
NO_UTF8 = "\ufffd"

#: RFC 2181 section 8: a TTL is 31 bits wide.
MAX_TTL = 2**31 - 1


class Put(msgspec.Struct, frozen=True, gc=False):  # a fifth of a dataclass's time: a million are made at the start
    """A key has this value as of mod_revision; lease is 0 or the id of the lease that will delete the key."""

    key: str
    value: bytes
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A key is gone as of mod_revision: deleted by a client or expired with its lease (etcd does not tell which)."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The whole content at one revision: the first list, or a re-list. What it does not name does not exist.

    why: another history begins with it, for people; empty if it goes on from what was told before, or is the first.
    """

    entries: list[Put]
    revision: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened after the last Listing or Changes, in the order of the store.

    revision is that of the last event contained. A key may occur several times: the last one counts.
    """

    events: list[Put | Delete]
    revision: int


@dataclass(frozen=True, slots=True)
class Record:
    """One RR that a key gives.

    zone   apex of its zone if the source says it (records schema); None: the longest known zone that encloses owner
    owner  wire form, lower case, root label included, as is zone
    type   RR type number, 1..65535
    ttl    seconds, 0..MAX_TTL, or DEFAULT_TTL
    rdata  wire form, uncompressed; names inside it keep their case
    """

    zone: bytes | None
    owner: bytes
    type: int
    ttl: int
    rdata: bytes


class Reject(ValueError):
    """Why the value of one key gives no records. The message is one line, for people."""
