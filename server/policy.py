"""What the answerers are told from outside: an operator's choices, who asks, and at which moment. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from server.access import NOBODY, Access
from server.tsig import NO_KEYS, Keys

LOOPBACK = b"\x7f\0\0\1"
#: Of cookies (RFC 9018): bytes of a secret, and how many there may be.
SECRET_SIZE = 16
MOST_SECRETS = 8


@dataclass(frozen=True, slots=True)
class Policy:
    """An operator's choices, the same for all queries of a worker.

    max_udp_size    bytes of the largest UDP reply, 512 to 4096, and what our OPT says
    rotate          start every address RRset at another RR (Moment.turn says which)
    max_answers     of an address RRset, 0 = all; with `rotate` every address has its turn
    chaos           answer id.server and its like in class CHAOS
    identity        NSID and id.server without the generation: `host/worker`
    version         what version.server says
    cookie_secrets  MOST_SECRETS at most; the first signs, all verify (RFC 9018). None: no cookies
    keepalive_s     idle time-out told to TCP clients that ask (RFC 7828)
    keys            of signed messages (TSIG, RFC 8945)
    transfers       who may have whole zones
    """

    max_udp_size: int = 1232
    rotate: bool = False
    max_answers: int = 0
    chaos: bool = True
    identity: str = "standoff"
    version: str = "standoff"
    cookie_secrets: tuple[bytes, ...] = ()
    keepalive_s: float = 10.0
    keys: Keys = NO_KEYS
    transfers: Access = NOBODY


@dataclass(frozen=True, slots=True)
class Moment:
    """What differs from query to query and is not in the packet.

    address     the client's, 4 or 16 bytes
    stream      the query came by TCP or TLS; encrypted: by TLS
    now_s       CLOCK_REALTIME, for cookies
    turn        where rotation starts
    generation  of the table, for NSID and generation.server; revision: of the source
    stale       the source has been away for longer than the operator's limit: told as EDE 3
    prohibited  the operator refuses this client
    key         name of the key that the query is signed with, wire form; empty: none
    """

    address: bytes = LOOPBACK
    stream: bool = False
    encrypted: bool = False
    now_s: int = 0
    turn: int = 0
    generation: int = 0
    revision: int = 0
    stale: bool = False
    prohibited: bool = False
    key: bytes = b""


DEFAULT_POLICY = Policy()
DEFAULT_MOMENT = Moment()


def nsid(policy: Policy, moment: Moment) -> bytes:
    """What this server calls itself (RFC 5001): host/worker/generation."""
    return f"{policy.identity}/{moment.generation}".encode()
