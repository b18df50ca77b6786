# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""The hot path's answers: the reference's bytes (server/answer.py), or a decline. No Python object is touched.

The reply is written over the query: header and question stay, RRsets are copied behind them, whole or not at all, with
their owners pointing to where the name stands in the message. Nothing is written before it is clear that the reply will
be given, except behind the question, which a decline does not need: the caller keeps what is there (see `resolve`).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from shm._table cimport (
    DAMAGED, FOUND, MISSING, Table, hash_label, lookup, node_ref, prefetch_index, prefetch_node, rrset_of, rrset_ref,
    table_view, tag_of,
)
from shm.layout cimport (
    FLAG_AGGREGATE, FLAG_APEX, FLAG_BELOW_CUT, FLAG_DELEGATION, FLAG_DNAME, FLAG_WILDCARD_CHILD, NEGATIVE_SOA,
)

from server import answer as reference
from server.policy import nsid

cdef extern from "_siphash.h" nogil:
    void siphash24(const uint8_t *key, const uint8_t *data, size_t length, uint8_t *out)

cdef enum:
    OPT_SIZE = 11
    RR_HEAD = 12
    POINTER_REACH = 0x4000
    MOST_ALIASES = 16
    # Targets of one RRset whose addresses are looked for; an RRset with more is the reference's.
    MOST_TARGETS = 32
    ANSWER = 6                          # offsets of the counts in the header
    AUTHORITY = 8
    ADDITIONAL = 10
    TYPE_A = 1
    TYPE_NS = 2
    TYPE_CNAME = 5
    TYPE_MX = 15
    TYPE_AAAA = 28
    TYPE_SRV = 33
    TYPE_DS = 43
    TYPE_SVCB = 64
    TYPE_HTTPS = 65
    OPTION_NSID = 3
    OPTION_COOKIE = 10
    OPTION_KEEPALIVE = 11
    OPTION_PADDING = 12
    OPTION_ZONEVERSION = 19
    ZONE_VERSION_SIZE = 10
    KEEPALIVE_SIZE = 6
    PADDING_BLOCK = 468                 # RFC 8467 section 4.1
    COOKIE_OLDEST_S = 3600
    COOKIE_AHEAD_S = 300
    COOKIE_RENEW_S = 1800
    # What `add` says.
    ADDED = 1
    FULL = 0

# A reply being written.
cdef struct reply_t:
    uint8_t *p
    int size
    int room
    int counts[3]
    uint8_t rcode
    uint8_t authoritative
    uint8_t truncated

cdef uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef uint8_t *put16(uint8_t *p, int v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v
    return p + 2


# ---------------------------------------------------------------- the question

cdef int parse(const uint8_t *p, int length, question *q) noexcept nogil:
    """One question of class IN, an OPT at most: everything else is declined (or dropped)."""
    cdef int at = HEADER_SIZE
    memset(q, 0, 64)                    # everything before the name; the cookie is behind its length
    q.type = UNCOUNTED_TYPE
    if length < HEADER_SIZE or p[2] & 0x80:
        return DROPPED
    if p[2] & 0x78 or be16(p + 4) != 1 or be16(p + 6) or be16(p + 8) or be16(p + 10) > 1:
        return DECLINED
    at += scan_name(p + HEADER_SIZE, length - HEADER_SIZE, &q.name)
    if at == HEADER_SIZE or at + 4 > length:
        return DECLINED
    q.type = be16(p + at)
    if be16(p + at + 2) != 1:
        return DECLINED
    at += 4
    if p[11]:
        if parse_opt(p + at, length - at, q) == DECLINED:
            return DECLINED
    elif at != length:
        return DECLINED
    if 250 <= q.type <= 255 or q.type == NEGATIVE_SOA:
        return DECLINED
    return at


cdef int scan_name(const uint8_t *p, int length, name_t *name) noexcept nogil:
    """Take an uncompressed name of at most `length` bytes in lower case; its length, 0 if it is none."""
    cdef int at = 0, labels = 0, i
    cdef uint8_t c
    while at < length and p[at]:
        if p[at] > 63 or labels == MOST_LABELS - 1 or at + p[at] + 1 > 254:
            return 0
        name.starts[labels] = <uint8_t>at
        labels += 1
        at += p[at] + 1
    if at >= length:
        return 0
    name.labels = labels
    name.length = <uint16_t>(at + 1)
    for i in range(at + 1):             # a label's length is below 'A': folding the case leaves it alone
        c = p[i]
        name.wire[i] = c | <uint8_t>((<uint8_t>(c - 65) < 26) << 5)
    return at + 1


cdef int parse_opt(const uint8_t *p, int length, question *q) noexcept nogil:
    """Version 0, to the end of the packet; options well-formed, and none twice that we know (RFC 6891)."""
    cdef int at = OPT_SIZE, code, size
    if length < OPT_SIZE or p[0] or be16(p + 1) != 41 or p[6] or length != OPT_SIZE + be16(p + 9):
        return DECLINED
    q.edns = 1
    q.udp_size = be16(p + 3)
    q.dnssec_ok = p[7] >> 7
    while at < length:
        if at + 4 > length:
            return DECLINED
        code = be16(p + at)
        size = be16(p + at + 2)
        at += 4
        if at + size > length:
            return DECLINED
        if code == OPTION_NSID:
            if q.nsid:
                return DECLINED
            q.nsid = 1
        elif code == OPTION_COOKIE:
            if q.cookie_length or not (size == 8 or 16 <= size <= 40):
                return DECLINED
            q.cookie_length = <uint8_t>size
            memcpy(q.cookie, p + at, size)
        elif code == OPTION_ZONEVERSION:
            if q.zone_version or size:
                return DECLINED
            q.zone_version = 1
        elif code == OPTION_KEEPALIVE:
            if q.keepalive:
                return DECLINED
            q.keepalive = 1
        elif code == OPTION_PADDING:
            q.padding = 1
        at += size
    return 0


cdef void hash_name(table_view *t, name_t *name) noexcept nogil:
    """Hashes of all suffixes, from the root on; the index entry is on its way when this returns."""
    cdef int i = name.labels
    name.hashes[i] = t.seed
    while i > 0:
        i -= 1
        name.hashes[i] = hash_label(name.hashes[i + 1], name.wire + name.starts[i])
    prefetch_index(t, tag_of(name.hashes[0]))


cdef bint look_ahead(table_view *t, name_t *name) noexcept nogil:
    """Bring in the name's node; False if there is none. Then the parent's index entry is on its way, and the one of a
    wildcard beneath it."""
    if prefetch_node(t, tag_of(name.hashes[0])) or name.labels == 0:
        return True
    prefetch_index(t, tag_of(name.hashes[1]))
    prefetch_index(t, tag_of(hash_label(name.hashes[1], b"\x01*")))
    return False


cdef void look_further(table_view *t, name_t *name) noexcept nogil:
    """After `look_ahead` found no node: bring in the parent's, and the wildcard's."""
    prefetch_node(t, tag_of(name.hashes[1]))
    prefetch_node(t, tag_of(hash_label(name.hashes[1], b"\x01*")))


cdef int suffix_at(name_t *name, int label) noexcept nogil:
    """Where the suffix from label number `label` on begins."""
    return name.starts[label] if label < name.labels else name.length - 1


cdef int find_suffix(table_view *t, name_t *name, int label, node_ref *node) noexcept nogil:
    cdef int start = suffix_at(name, label)
    return lookup(t, name.wire + start, name.length - start, tag_of(name.hashes[label]), node)


cdef int find_apex(table_view *t, name_t *name, int label, node_ref *apex) noexcept nogil:
    """The label number of the apex at or above suffix `label`, or DAMAGED (-1)."""
    cdef int found
    while label <= name.labels:
        found = find_suffix(t, name, label, apex)
        if found == DAMAGED:
            return DAMAGED
        if found == FOUND and apex.flags & FLAG_APEX:
            return label
        label += 1
    return DAMAGED


# ---------------------------------------------------------------- sections

cdef int add(reply_t *r, int section, rrset_ref *rrset, int owner_at) noexcept nogil:
    """Copy an RRset behind the reply; ADDED, FULL with nothing changed, or DAMAGED."""
    cdef uint8_t *at = r.p + r.size
    cdef uint8_t *end
    if r.size + rrset.length > r.room:
        return FULL
    memcpy(at, rrset.wire, rrset.length)
    r.size += rrset.length
    r.counts[(section - ANSWER) >> 1] += rrset.count
    if owner_at != HEADER_SIZE:
        end = at + rrset.length
        while at < end:
            if end - at < RR_HEAD:
                return DAMAGED
            put16(at, 0xC000 | owner_at)
            at += RR_HEAD + be16(at + 10)
        if at != end:
            return DAMAGED
    return ADDED


cdef int add_in_turn(
    reply_t *r, rrset_ref *rrset, uint16_t type, int owner_at, terms_t *terms, uint32_t turn
) noexcept nogil:
    """An address RRset beginning at this query's turn, at most max_answers of it; any other as it is."""
    cdef int most = terms.max_answers if terms.max_answers else rrset.count
    cdef int size, cut, kept, tail
    cdef rrset_ref part
    if (type != TYPE_A and type != TYPE_AAAA) or rrset.count == 0 or not (terms.rotate or most < rrset.count):
        return add(r, ANSWER, rrset, owner_at)
    size = rrset.length / rrset.count
    cut = <int>(turn % rrset.count) if terms.rotate else 0
    kept = most if most < rrset.count else rrset.count
    if r.size + kept * size > r.room:
        return FULL
    tail = rrset.count - cut if rrset.count - cut < kept else kept
    part.wire = rrset.wire + cut * size
    part.count = <uint16_t>tail
    part.length = <uint16_t>(tail * size)
    if add(r, ANSWER, &part, owner_at) == DAMAGED:
        return DAMAGED
    part.wire = rrset.wire
    part.count = <uint16_t>(kept - tail)
    part.length = <uint16_t>((kept - tail) * size)
    return add(r, ANSWER, &part, owner_at)


cdef int deny(reply_t *r, table_view *t, name_t *name, int name_at, int label) noexcept nogil:
    """The SOA of the zone above suffix `label` into the authority section."""
    cdef node_ref apex
    cdef rrset_ref soa
    cdef int found
    label = find_apex(t, name, label, &apex)
    if label == DAMAGED or rrset_of(&apex, NEGATIVE_SOA, &soa) != FOUND:
        return DAMAGED
    found = add(r, AUTHORITY, &soa, name_at + suffix_at(name, label))
    if found == FULL:
        r.truncated = 1
    return found


cdef int target_at(uint16_t type) noexcept nogil:
    """Where in the data the name begins whose addresses go along; -1 for other types."""
    if type == TYPE_NS:
        return 0
    if type == TYPE_MX or type == TYPE_SVCB or type == TYPE_HTTPS:
        return 2
    return 6 if type == TYPE_SRV else -1


cdef int add_addresses(
    reply_t *r, table_view *t, rrset_ref *rrset, uint16_t type, int start, name_t *owner, int label, node_ref *cut
) noexcept nogil:
    """Addresses of the names in an RRset's data that stands at `start`: of those in the zone above suffix `label` of
    its owner. Beneath `cut` (may be NULL) they are needed."""
    cdef uint64_t done[MOST_TARGETS + 1]
    cdef int known = 0, i, at = 0, where, found, added
    cdef uint16_t address_type
    cdef name_t target
    cdef node_ref node, apex
    cdef rrset_ref addresses
    if rrset.count > MOST_TARGETS:
        return DECLINED
    if find_apex(t, owner, label, &apex) == DAMAGED:
        return DAMAGED
    if type == TYPE_SVCB or type == TYPE_HTTPS:
        done[0] = owner.hashes[0]
        known = 1
    while at < rrset.length:
        if rrset.length - at < RR_HEAD:
            return DAMAGED
        where = at + RR_HEAD + target_at(type)
        if start + where >= POINTER_REACH:
            return ADDED
        if where >= rrset.length or not scan_name(rrset.wire + where, rrset.length - where, &target):
            return DAMAGED
        at += RR_HEAD + be16(rrset.wire + at + 10)
        hash_name(t, &target)
        i = 0
        while i < known and done[i] != target.hashes[0]:
            i += 1
        if i < known:
            continue
        if known <= MOST_TARGETS:
            done[known] = target.hashes[0]
            known += 1
        found = find_with_addresses(t, &target, &apex, cut != NULL, &node)
        if found == DAMAGED:
            return DAMAGED
        if found == MISSING:
            continue
        for i in range(2):
            address_type = TYPE_AAAA if i else TYPE_A
            found = rrset_of(&node, address_type, &addresses)
            if found == DAMAGED:
                return DAMAGED
            if found == MISSING:
                continue
            added = add(r, ADDITIONAL, &addresses, start + where)
            if added == DAMAGED:
                return DAMAGED
            if added == FULL and cut != NULL and ends_in(&target, cut):
                r.truncated = 1
    return ADDED


cdef int find_with_addresses(table_view *t, name_t *target, node_ref *apex, bint glue, node_ref *node) noexcept nogil:
    """The node of a target, or the wildcard it comes from, if it lies in the apex's zone; as glue, in one beneath."""
    cdef node_ref other
    cdef int label = 0, found = MISSING
    if not ends_in(target, apex):
        return MISSING
    while label <= target.labels:
        found = find_suffix(t, target, label, node)
        if found != MISSING:
            break
        label += 1
    if found != FOUND:
        return found
    if not glue:
        if find_apex(t, target, label, &other) == DAMAGED:
            return DAMAGED
        if other.name_length != apex.name_length:
            return MISSING
    if label == 0:
        return FOUND
    if node.flags & (FLAG_BELOW_CUT | FLAG_DELEGATION | FLAG_DNAME) or not node.flags & FLAG_WILDCARD_CHILD:
        return MISSING
    return find_wildcard(t, target, label, node)


cdef bint ends_in(name_t *name, node_ref *node) noexcept nogil:
    """Whether a name is `node`'s or beneath it."""
    cdef int i, start
    for i in range(name.labels + 1):
        start = suffix_at(name, i)
        if name.length - start == node.name_length:
            return memcmp(name.wire + start, node.name, node.name_length) == 0
    return False


cdef int refer(reply_t *r, table_view *t, name_t *name, int name_at, int label) noexcept nogil:
    """The NS RRset of the cut at or above suffix `label`, with addresses."""
    cdef node_ref cut
    cdef rrset_ref ns
    cdef int found, start
    while True:
        if label > name.labels:
            return DAMAGED
        found = find_suffix(t, name, label, &cut)
        if found == DAMAGED:
            return DAMAGED
        if found == FOUND and cut.flags & FLAG_DELEGATION and not cut.flags & FLAG_BELOW_CUT:
            break
        label += 1
    if rrset_of(&cut, TYPE_NS, &ns) != FOUND:
        return DAMAGED
    start = r.size
    found = add(r, AUTHORITY, &ns, name_at + suffix_at(name, label))
    if found == FULL:
        r.truncated = 1
        return FULL
    if found == DAMAGED:
        return DAMAGED
    return add_addresses(r, t, &ns, TYPE_NS, start, name, label, &cut)


# ---------------------------------------------------------------- RFC 1034 section 4.3.2

cdef int answer_sections(reply_t *r, table_view *t, question *q, terms_t *terms, client_t *client) noexcept nogil:
    """Fill the sections; 0, or DECLINED (a damaged table, too)."""
    cdef name_t alias
    cdef name_t *name = &q.name
    cdef uint64_t seen[MOST_ALIASES]
    cdef node_ref node, wild
    cdef rrset_ref rrset
    cdef int hop, label, found, start, name_at = HEADER_SIZE, i
    for hop in range(MOST_ALIASES):
        label = 0
        found = MISSING
        while label <= name.labels:
            found = find_suffix(t, name, label, &node)
            if found != MISSING:
                break
            label += 1
        if found == DAMAGED:
            return DECLINED
        if found == MISSING:
            if hop == 0:
                r.rcode = 5             # REFUSED: outside our zones
            return 0
        if node.flags & FLAG_BELOW_CUT or (node.flags & FLAG_DELEGATION and not (label == 0 and q.type == TYPE_DS)):
            found = refer(r, t, name, name_at, label)
            return DECLINED if found < 0 else 0
        if hop == 0:
            r.authoritative = 4
        if label:
            if node.flags & FLAG_DNAME:
                return DECLINED
            found = MISSING
            if node.flags & FLAG_AGGREGATE and label == 1 and is_all_label(name):
                wild = node
                found = FOUND
            elif node.flags & FLAG_WILDCARD_CHILD:
                found = find_wildcard(t, name, label, &wild)
                if found == DAMAGED:
                    return DECLINED
            if found == MISSING:
                r.rcode = 3             # NXDOMAIN
                return DECLINED if deny(r, t, name, name_at, label) < 0 else 0
            node = wild
        found = rrset_of(&node, q.type, &rrset)
        if found == FOUND:
            start = r.size
            found = add_in_turn(r, &rrset, q.type, name_at, terms, client.turn)
            if found == FULL:
                r.truncated = 1
            elif found == ADDED and target_at(q.type) >= 0:
                found = add_addresses(r, t, &rrset, q.type, start, name, label, NULL)
            return DECLINED if found < 0 else 0
        if found == DAMAGED or (q.type == TYPE_DS and label == 0 and node.flags & FLAG_APEX):
            return DECLINED
        found = rrset_of(&node, TYPE_CNAME, &rrset)
        if found == DAMAGED:
            return DECLINED
        if found == MISSING:
            return DECLINED if deny(r, t, name, name_at, label) < 0 else 0
        start = r.size
        found = add(r, ANSWER, &rrset, name_at)
        if found == FULL:
            r.truncated = 1
            return 0
        if found == DAMAGED or rrset.length <= RR_HEAD:
            return DECLINED
        seen[hop] = name.hashes[0]
        name_at = start + RR_HEAD
        name = &alias
        if scan_name(rrset.wire + RR_HEAD, rrset.length - RR_HEAD, name) != rrset.length - RR_HEAD:
            return DECLINED
        hash_name(t, name)
        for i in range(hop + 1):
            if seen[i] == name.hashes[0]:
                return 0
    return 0


cdef bint is_all_label(name_t *name) noexcept nogil:
    """Whether the leftmost label is `*` or `any`: beneath an aggregate, a question for all (SkyDNS)."""
    cdef uint8_t *wire = name.wire
    return (wire[0] == 1 and wire[1] == 42) or (wire[0] == 3 and memcmp(wire + 1, b"any", 3) == 0)


cdef int find_wildcard(table_view *t, name_t *name, int label, node_ref *wild) noexcept nogil:
    """The source of synthesis beneath suffix `label` (RFC 4592 section 3.3.1)."""
    cdef uint8_t wire[258]
    cdef int start = suffix_at(name, label), length = name.length - start
    if length + 2 > 255:
        return MISSING
    wire[0] = 1
    wire[1] = 42
    memcpy(wire + 2, name.wire + start, length)
    return lookup(t, wire, length + 2, tag_of(hash_label(name.hashes[label], wire)), wild)


cdef int resolve(table_view *t, uint8_t *p, question *q, int limit, terms_t *terms, client_t *client) noexcept nogil:
    """Write the reply over the query at `p`; its length, or DECLINED: then what stood behind the question may be gone,
    and the caller has to have kept it."""
    cdef reply_t r
    cdef int options = 0, version = 0
    if q.edns:
        options = OPT_SIZE + (4 + terms.nsid_length if q.nsid else 0)
        options += 28 if q.cookie_length and terms.secrets else 0
        options += KEEPALIVE_SIZE if q.keepalive and client.stream else 0
        options += ZONE_VERSION_SIZE if q.zone_version else 0
        options += PADDING_BLOCK + 4 if q.padding and client.encrypted else 0
        options += terms.stale_length if terms.stale else 0
    memset(&r, 0, sizeof(r))
    r.p = p
    r.size = q.state
    r.room = limit - options
    if answer_sections(&r, t, q, terms, client) == DECLINED:
        return DECLINED
    if q.edns:
        version = add_opt(&r, t, q, terms, client)
        if version == DECLINED:
            return DECLINED
    p[2] = <uint8_t>(0x80 | r.authoritative | r.truncated << 1 | (p[2] & 1))
    p[3] = r.rcode
    put16(p + 4, 1)
    put16(p + ANSWER, r.counts[0])
    put16(p + AUTHORITY, r.counts[1])
    put16(p + ADDITIONAL, r.counts[2] + q.edns)
    return r.size


# ---------------------------------------------------------------- EDNS

cdef int add_opt(reply_t *r, table_view *t, question *q, terms_t *terms, client_t *client) noexcept nogil:
    """The OPT with NSID, COOKIE, KEEPALIVE, ZONEVERSION, the extended error and PADDING, in the reference's order."""
    cdef uint8_t *start = r.p + r.size
    cdef uint8_t *at = start + OPT_SIZE
    cdef node_ref apex
    cdef rrset_ref soa
    cdef int label, size
    if q.nsid:
        at = put16(put16(at, OPTION_NSID), terms.nsid_length)
        memcpy(at, terms.nsid, terms.nsid_length)
        at += terms.nsid_length
    if q.cookie_length and terms.secrets:
        at = put16(put16(at, OPTION_COOKIE), 24)
        put_cookie(at, q, terms, client)
        at += 24
    if q.keepalive and client.stream:
        at = put16(put16(put16(at, OPTION_KEEPALIVE), 2), terms.keepalive_ds)
    if r.rcode == 5:
        at = put16(put16(put16(at, 15), 2), 20)             # not authoritative (RFC 8914)
    else:
        if q.zone_version:
            label = find_apex(t, &q.name, 0, &apex)
            if label == DAMAGED or rrset_of(&apex, NEGATIVE_SOA, &soa) != FOUND or soa.length < 32:
                return DECLINED
            at = put16(put16(at, OPTION_ZONEVERSION), 6)
            at[0] = <uint8_t>(q.name.labels - label)
            at[1] = 0
            memcpy(at + 2, soa.wire + soa.length - 20, 4)
            at += 6
        if terms.stale:
            memcpy(at, terms.stale_option, terms.stale_length)
            at += terms.stale_length
    if q.padding and client.encrypted:
        size = PADDING_BLOCK - 1 - (<int>(at - r.p) + 4 + PADDING_BLOCK - 1) % PADDING_BLOCK
        at = put16(put16(at, OPTION_PADDING), size)
        memset(at, 0, size)
        at += size
    memset(start, 0, OPT_SIZE)
    start[2] = 41
    put16(start + 3, terms.max_udp_size)
    start[7] = <uint8_t>(q.dnssec_ok << 7)
    put16(start + 9, <int>(at - start) - OPT_SIZE)
    r.size = <int>(at - r.p)
    return 0


cdef int64_t cookie_age(question *q, terms_t *terms) noexcept nogil:
    """Seconds, in serial arithmetic (RFC 1982)."""
    cdef uint32_t then = <uint32_t>be16(q.cookie + 12) << 16 | be16(q.cookie + 14)
    return <int64_t><uint32_t>(<uint32_t>terms.now_s - then + <uint32_t>0x80000000) - <int64_t>0x80000000


cdef int valid_cookie(question *q, terms_t *terms, client_t *client) noexcept nogil:
    """Whether the query has a server cookie of ours for this client (RFC 9018 section 4.3): the number of the secret
    that signed it, from 1 on, else 0. Its reserved bytes may be anything."""
    cdef uint8_t signed_[32]
    cdef uint8_t hash_[8]
    cdef int64_t age
    cdef int i
    if q.cookie_length != 24 or q.cookie[8] != 1:
        return 0
    age = cookie_age(q, terms)
    if age > COOKIE_OLDEST_S or age < -COOKIE_AHEAD_S:
        return 0
    memcpy(signed_, q.cookie, 16)
    memcpy(signed_ + 16, client.address, client.address_length)
    for i in range(terms.secrets):
        siphash24(terms.secret[i], signed_, 16 + client.address_length, hash_)
        if memcmp(hash_, q.cookie + 16, 8) == 0:
            return i + 1
    return 0


cdef void put_cookie(uint8_t *at, question *q, terms_t *terms, client_t *client) noexcept nogil:
    """The client's cookie back if it is ours, young, and of the newest secret; else a new one."""
    cdef uint8_t signed_[32]
    if valid_cookie(q, terms, client) == 1 and cookie_age(q, terms) <= COOKIE_RENEW_S:
        memcpy(at, q.cookie, 24)
        return
    memcpy(signed_, q.cookie, 8)
    memcpy(signed_ + 8, b"\x01\x00\x00\x00", 4)
    put16(put16(signed_ + 12, <int>((<uint32_t>terms.now_s) >> 16)), <int>(terms.now_s & 0xFFFF))
    memcpy(signed_ + 16, client.address, client.address_length)
    memcpy(at, signed_, 16)
    siphash24(terms.secret[0], signed_, 16 + client.address_length, at + 16)


cdef int reply_limit(question *q, terms_t *terms, bint stream) noexcept nogil:
    if stream:
        return 0xFFFF
    if not q.edns or q.udp_size < PLAIN_UDP_SIZE:
        return PLAIN_UDP_SIZE
    return q.udp_size if q.udp_size < terms.max_udp_size else terms.max_udp_size


# ---------------------------------------------------------------- for Python

cdef class Terms:
    """A Policy, and what all queries of a moment share, as the hot path has them. Raises ValueError out of range."""

    def __init__(self, policy):
        if not PLAIN_UDP_SIZE <= policy.max_udp_size <= 65535:
            raise ValueError("max_udp_size must be 512 to 65535")
        memset(&self.c, 0, sizeof(self.c))
        self.policy = policy
        self.c.max_udp_size = policy.max_udp_size
        self.c.max_answers = policy.max_answers
        self.c.rotate = policy.rotate
        self.c.keepalive_ds = min(0xFFFF, int(policy.keepalive_s * 10))
        self.c.stale_length = len(reference.STALE)
        memcpy(self.c.stale_option, PyBytes_AS_STRING(reference.STALE), self.c.stale_length)
        self.renew(policy.cookie_secrets)

    def renew(self, secrets):
        """Other cookie secrets from now on. Raises ValueError."""
        if len(secrets) > MOST_SECRETS or any(len(secret) != 16 for secret in secrets):
            raise ValueError("a cookie secret has 16 bytes, and there are 8 at most")
        for i, secret in enumerate(secrets):
            memcpy(self.c.secret[<int>i], PyBytes_AS_STRING(secret), 16)
        self.c.secrets = <uint8_t>len(secrets)

    def at(self, moment):
        """Take over the generation, the time, and whether data is stale."""
        name = nsid(self.policy, moment)[:MOST_NSID]
        memcpy(self.c.nsid, PyBytes_AS_STRING(name), <size_t>len(name))
        self.c.nsid_length = <uint8_t>len(name)
        self.c.now_s = moment.now_s
        self.c.stale = moment.stale
        return self


def answer_packet(bytes packet, Table table, Terms terms, moment):
    """The hot path on one packet: the reply, b"" if it is dropped, None if it is declined."""
    cdef question q
    cdef client_t client
    cdef int length = <int>PyBytes_GET_SIZE(packet), size, limit
    cdef uint8_t *p
    cdef bytes address = moment.address
    table.check_open()
    q.state = size = parse(<const uint8_t *>PyBytes_AS_STRING(packet), length, &q)
    if size == DROPPED:
        return b""
    if size == DECLINED:
        return None
    client.address = <const uint8_t *>PyBytes_AS_STRING(address)
    client.address_length = <int>len(address)
    client.turn = moment.turn
    client.stream = moment.stream
    client.encrypted = moment.encrypted
    hash_name(&table.view, &q.name)
    limit = reply_limit(&q, &terms.c, moment.stream)
    p = <uint8_t *>calloc(1, max(limit, length))
    if p == NULL:
        raise MemoryError()
    memcpy(p, PyBytes_AS_STRING(packet), length)
    try:
        size = resolve(&table.view, p, &q, limit, &terms.c, &client)
        return None if size == DECLINED else PyBytes_FromStringAndSize(<char *>p, size)
    finally:
        free(p)
