"""What the server says of itself in class CHAOS (RFC 4892): id, version, and the generation it answers from. Pure."""

from __future__ import annotations

from server.message import ANSWER, Reply, rr
from server.policy import Moment, Policy, nsid
from server.query import CLASS_CHAOS, HEADER, Rcode
from shm.node import RRset

TXT, ANY = 16, 255


def answer_chaos(reply: Reply, policy: Policy, moment: Moment) -> None:
    """The TXT record of a name that we know; REFUSED otherwise, as for a zone that is not ours: there is none here."""
    texts = {
        b"\x02id\x06server\0": nsid(policy, moment),
        b"\x08hostname\x04bind\0": nsid(policy, moment),
        b"\x07version\x06server\0": policy.version.encode(),
        b"\x07version\x04bind\0": policy.version.encode(),
        b"\x0ageneration\x06server\0": str(moment.generation).encode(),
        b"\x08revision\x06server\0": str(moment.revision).encode(),
    }
    text = texts.get(reply.query.name) if policy.chaos else None
    if text is None or reply.query.type not in (TXT, ANY):
        reply.rcode = Rcode.REFUSED
        return
    record = RRset(TXT, 1, rr(TXT, CLASS_CHAOS, 0, bytes([len(text)]) + text))
    reply.add(ANSWER, record, HEADER.size)
