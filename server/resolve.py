"""From a question to the sections of its reply: RFC 1034 section 4.3.2, 2308, 4592, 6604, 6672, 8020, 8482. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from server.message import ADDITIONAL, ANSWER, AUTHORITY, POINTER_REACH, RR_HEAD, Reply, rr, rr_offsets
from server.policy import Moment, Policy
from server.query import AA, CLASS_IN, HEADER, Rcode
from shm.errors import TableDamaged
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import Node, RRset, unpack

A, NS, CNAME, MX, AAAA, SRV, DNAME, DS, SVCB, HTTPS, ANY = 1, 2, 5, 15, 28, 33, 39, 43, 64, 65, 255

#: A chain of aliases longer than this is cut; the resolver asks on from there. Bounds the work one query can cause.
MOST_ALIASES = 16
YXDOMAIN = 6
#: Beneath such a name no wildcard counts.
NOT_SYNTHESIZED = NodeFlag.BELOW_CUT | NodeFlag.DELEGATION | NodeFlag.DNAME
#: Where the name in a record's data begins whose addresses go into the additional section.
TARGET_AT = {NS: 0, MX: 2, SRV: 6, SVCB: 2, HTTPS: 2}


class TableView(Protocol):
    """What the answerer needs of a table."""

    def find(self, name: bytes) -> bytes | None: ...


@dataclass(slots=True)
class Resolution:
    """One question on its way through the table."""

    reply: Reply
    table: TableView
    policy: Policy
    moment: Moment
    ours: bool = False  # the question's name lies in one of our zones
    redirected: set[bytes] = field(default_factory=set)  # owners of the DNAMEs that are in the reply

    def run(self) -> None:
        """Answer, follow aliases inside our zones, refer, or deny."""
        reply, type_ = self.reply, self.reply.query.type
        name, name_at = reply.query.name, HEADER.size
        seen: set[bytes] = set()
        for hop in range(MOST_ALIASES):
            encloser, labels_up = self._closest_encloser(name)
            if encloser is None:
                if hop == 0:
                    reply.rcode = Rcode.REFUSED
                return  # an alias out of our zones: the resolver goes on
            self.ours = True
            if is_referral(encloser, labels_up, type_):
                self._refer(name, name_at)
                return
            if hop == 0:
                reply.flags |= AA
            if labels_up and encloser.flags & NodeFlag.DNAME:
                alias = self._redirect(encloser, name, name_at)
                if type_ == CNAME:
                    return  # the synthesized one is the answer
            else:
                node = encloser if not labels_up or asks_for_all(encloser, name) else self._wildcard(encloser)
                if node is None:
                    reply.rcode = Rcode.NXDOMAIN
                    self._deny(name, name_at)
                    return
                alias = self._answer_from(node, name, name_at)
            if alias is None:
                return
            seen.add(name)
            target, name_at = alias
            name = target.lower()
            if name in seen:
                return

    def apex(self) -> Node:
        """Of the zone that the question's name lies in. Raises TableDamaged."""
        return self._apex_above(self.reply.query.name)

    # ---- where a name lies

    def _find(self, name: bytes) -> Node | None:
        block = self.table.find(name)
        return None if block is None else unpack(block)

    def _closest_encloser(self, name: bytes) -> tuple[Node | None, int]:
        """The nearest existing name at or above `name`, and how many labels above."""
        for labels_up, suffix in enumerate(suffixes(name)):
            node = self._find(suffix)
            if node is not None:
                return node, labels_up
        return None, 0

    def _apex_above(self, name: bytes) -> Node:
        for suffix in suffixes(name):
            node = self._find(suffix)
            if node is not None and node.flags & NodeFlag.APEX:
                return node
        raise TableDamaged("a name without a zone")

    def _wildcard(self, encloser: Node) -> Node | None:
        """The source of synthesis, if there is one (RFC 4592 section 3.3.1)."""
        return self._find(b"\x01*" + encloser.name) if encloser.flags & NodeFlag.WILDCARD_CHILD else None

    # ---- what goes into the reply

    def _answer_from(self, node: Node, name: bytes, name_at: int) -> tuple[bytes, int] | None:
        """Add what `node` has for the question. The alias to follow: its target and where that stands in the reply."""
        type_ = self.reply.query.type
        rrset = first(node) if type_ == ANY else node.rrsets.get(type_) if type_ != NEGATIVE_SOA else None
        if rrset is not None:
            start = self.reply.add(ANSWER, self._in_turn(rrset), name_at)
            if start is None:
                self.reply.truncated = True
            elif rrset.type in TARGET_AT:
                self._add_addresses(rrset, start, name)
            return None
        alias = node.rrsets.get(CNAME)
        if alias is None:
            self._deny(name, name_at)
            return None
        start = self.reply.add(ANSWER, alias, name_at)
        if start is None:
            self.reply.truncated = True
            return None
        return alias.wire[RR_HEAD:], start + RR_HEAD

    def _in_turn(self, rrset: RRset) -> RRset:
        """An address RRset beginning at this query's turn, at most `max_answers` of it: each has the same share."""
        most = self.policy.max_answers or rrset.count
        if rrset.type not in (A, AAAA) or not (self.policy.rotate or most < rrset.count):
            return rrset
        size = len(rrset.wire) // rrset.count
        cut = self.moment.turn % rrset.count * size if self.policy.rotate else 0
        kept = min(most, rrset.count)
        return RRset(rrset.type, kept, (rrset.wire[cut:] + rrset.wire[:cut])[: kept * size])

    def _redirect(self, node: Node, name: bytes, name_at: int) -> tuple[bytes, int] | None:
        """The DNAME above `name`, and the CNAME that follows from it (RFC 6672 section 3.1)."""
        dname = node.rrsets[DNAME]
        prefix = name[: len(name) - len(node.name)]
        target = prefix + dname.wire[RR_HEAD:]
        if node.name not in self.redirected and self.reply.add(ANSWER, dname, name_at + len(prefix)) is None:
            self.reply.truncated = True
            return None
        self.redirected.add(node.name)
        if len(target) > 255:
            self.reply.rcode = YXDOMAIN
            return None
        ttl = int.from_bytes(dname.wire[6:10], "big")
        start = self.reply.add(ANSWER, RRset(CNAME, 1, rr(CNAME, CLASS_IN, ttl, target)), name_at)
        if start is None:
            self.reply.truncated = True
            return None
        if is_beneath(target, node.name):
            return None  # a DNAME into itself: every step would only make the name longer
        return target, start + RR_HEAD

    def _deny(self, name: bytes, name_at: int) -> None:
        """The zone's SOA goes with NXDOMAIN and NODATA (RFC 2308 sections 2.1, 2.2)."""
        apex = self._apex_above(name)
        if self.reply.query.type == DS and apex.name == name != b"\0":
            # What is at an apex and not there of type DS, is the parent's to deny (RFC 4035 section 3.1.4.1).
            try:
                apex = self._apex_above(name[1 + name[0] :])
            except TableDamaged:
                pass  # the parent is not ours
        if self.reply.add(AUTHORITY, apex.rrsets[NEGATIVE_SOA], name_at + len(name) - len(apex.name)) is None:
            self.reply.truncated = True

    def _refer(self, name: bytes, name_at: int) -> None:
        """The NS RRset of the cut, and the addresses that the table has for its targets, as far as they fit.

        Without the addresses of a target beneath the cut the referral leads nowhere: TC then (RFC 9471 section 3.1).
        """
        for suffix in suffixes(name):
            cut = self._find(suffix)
            if cut is not None and cut.flags & NodeFlag.DELEGATION and not cut.flags & NodeFlag.BELOW_CUT:
                break
        else:
            raise TableDamaged("a name below a cut without the cut")
        start = self.reply.add(AUTHORITY, cut.rrsets[NS], name_at + len(name) - len(cut.name))
        if start is None:
            self.reply.truncated = True
        else:
            self._add_addresses(cut.rrsets[NS], start, name, needed_beneath=cut.name)

    def _add_addresses(self, rrset: RRset, start: int, owner: bytes, needed_beneath: bytes | None = None) -> None:
        """Addresses of the names in an RRset's data that begins at `start`, each name once, as far as they fit.

        Of the names in the RRset's own zone: nobody believes us others (RFC 2181 section 5.4.1).
        """
        zone = self._apex_above(owner if needed_beneath is None else needed_beneath).name
        done: set[bytes] = {owner} if rrset.type in (SVCB, HTTPS) else set()
        for at in rr_offsets(rrset.wire):
            target_at = at + RR_HEAD + TARGET_AT[rrset.type]
            if start + target_at >= POINTER_REACH:
                return
            target = _name_at(rrset.wire, target_at).lower()
            if target in done:
                continue
            done.add(target)
            node = self._with_addresses(target, zone, glue=needed_beneath is not None)
            for type_ in (A, AAAA):
                addresses = node.rrsets.get(type_) if node is not None else None
                if addresses is None or self.reply.add(ADDITIONAL, addresses, start + target_at) is not None:
                    continue
                if needed_beneath is not None and is_beneath(target, needed_beneath):
                    self.reply.truncated = True

    def _with_addresses(self, target: bytes, zone: bytes, *, glue: bool) -> Node | None:
        """The node of a target, or the wildcard it comes from, if it lies in `zone`; as glue, in one beneath, too."""
        encloser, labels_up = self._closest_encloser(target) if is_beneath(target, zone) else (None, 0)
        if encloser is None or not (glue or self._apex_above(encloser.name).name == zone):
            return None
        if not labels_up:
            return encloser
        return None if encloser.flags & NOT_SYNTHESIZED else self._wildcard(encloser)


def suffixes(name: bytes) -> Iterator[bytes]:
    """The name, its parent, and so on to the root."""
    at = 0
    while True:
        yield name[at:]
        if name[at] == 0:
            return
        at += 1 + name[at]


def is_beneath(name: bytes, ancestor: bytes) -> bool:
    """Whether `name` is `ancestor` or a name beneath it."""
    return any(suffix == ancestor for suffix in suffixes(name))


def is_referral(encloser: Node, labels_up: int, type_: int) -> bool:
    """Whether the name lies at or beneath a zone cut. The DS at the cut is the parent's (RFC 4035 section 3.1.4.1)."""
    if encloser.flags & NodeFlag.BELOW_CUT:
        return True
    return bool(encloser.flags & NodeFlag.DELEGATION) and not (labels_up == 0 and type_ == DS)


def asks_for_all(encloser: Node, name: bytes) -> bool:
    """Whether `name` is `*` or `any` directly beneath an aggregate: SkyDNS's way to ask for all that is there."""
    return bool(encloser.flags & NodeFlag.AGGREGATE) and name in (b"\x01*" + encloser.name, b"\x03any" + encloser.name)


def first(node: Node) -> RRset | None:
    """One RRset stands for ANY (RFC 8482 section 4.1)."""
    return next((rrset for type_, rrset in node.rrsets.items() if type_ != NEGATIVE_SOA), None)


def _name_at(wire: bytes, at: int) -> bytes:
    """The uncompressed name that begins at `at`."""
    end = at
    while wire[end]:
        end += 1 + wire[end]
    return wire[at : end + 1]
