# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""The first list of a SkyDNS source, compiled: into the tree's books, and from there into the zone model's. A part of
loader/skydns_tree.py and loader/skydns_fill.py, for speed.

Two million names the long way take half a minute. What is unusual in any way is left to it here, too.

The same name is one object in all books, as far as that can be: a million of them are 64 MB.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

cimport cython

cdef extern from "<string.h>" nogil:
    void *memmem(const void *octets, size_t size, const void *wanted, size_t wanted_size)

from loader._short cimport MAX_NAME, Plain, behind, key_of, spell_name, take

cdef enum:
    TYPE_A = 1
    TYPE_TXT = 16
    TYPE_AAAA = 28
    TYPE_SRV = 33
    FIRST_RR = 3                   # loader/compiler.py: Gift
    MOST_SHARING = 64              # keys that give to one name
    MOST_TEXT = 16384              # octets of their texts


cdef bint is_name(const uint8_t *name) noexcept nogil:
    """skydns_tree.is_name: whether no label of it stands for all labels."""
    while name[0]:
        if (name[0] == 1 and name[1] == c"*") or (name[0] == 3 and memcmp(name + 1, b"any", 3) == 0):
            return False
        name += name[0] + 1
    return True


# ---------------------------------------------------------------- keys into the tree

@cython.final
cdef class Load:
    """Takes the keys of a list that are plain into the books of a loader/skydns_tree.py's ServiceTree."""

    cdef str base
    cdef long default_ttl
    cdef object zones
    cdef bint strict
    cdef dict by_key, hosts, texts, odd
    cdef list above          # of the key before: the names above its own, up to an apex

    def __init__(self, str base, long default_ttl, zones, bint strict):
        """base: what all keys begin with, with the last slash. zones: the apexes. strict: the semantics."""
        self.base, self.default_ttl, self.zones, self.strict = base, default_ttl, zones, strict
        self.above = []

    def books(self, dict by_key, dict hosts, dict texts, dict odd):
        """Before anything else. Key -> what is kept; name -> the keys beneath it, hosts or texts; and those of its own
        that are not spelled as it is. One key as itself."""
        self.by_key, self.hosts, self.texts, self.odd = by_key, hosts, texts, odd

    def load(self, list puts):
        """The numbers of those that it left alone. Nobody has asked yet what lies beneath a name."""
        cdef uint8_t name[MAX_NAME + 1]
        cdef int length
        cdef Py_ssize_t number
        cdef list left = []
        cdef str key
        for number in range(len(puts)):
            put = puts[number]
            key = put.key
            kept = None
            if not put.lease:
                kept = take(self.base, key, put.value, put.mod_revision, self.default_ttl, self.strict, name, &length)
            if kept is None:
                left.append(number)
                continue
            self.climb(name, length)
            if not self.strict:
                enter(self.hosts if type(kept) is Plain else self.texts, self.above, key)
            elif not self.is_usual(name, length, kept):
                left.append(number)
                continue
            self.by_key[key] = kept
        return left

    cdef bint is_usual(self, const uint8_t *name, int length, kept) except -1:
        """strict: whether its owner is a name below an apex, and the key is not of the special ones beneath `dns`."""
        cdef int skipped = (<Plain>kept).skipped if type(kept) is Plain else 0
        cdef bytes apex
        if not self.above or memmem(name, length, b"\x03dns", 4) != NULL:
            return False
        apex = self.above[len(self.above) - 1]
        if length - skipped <= PyBytes_GET_SIZE(apex):
            return False
        if skipped:
            owner = next(one for one in self.above if len(one) == length - skipped)
            enter(self.odd, [owner], kept.key)
        return True

    cdef int climb(self, const uint8_t *name, int length) except -1:
        """`above` is the name's from now on; what it shares with the name before is the same objects."""
        cdef list found = []
        cdef int at = 0
        cdef Py_ssize_t i = 0, count = len(self.above)
        cdef bytes one = PyBytes_FromStringAndSize(<char *>name, length)
        while one not in self.zones:
            if name[at] == 0:
                found.clear()          # outside all zones
                break
            at += name[at] + 1
            while i < count and PyBytes_GET_SIZE(<bytes>self.above[i]) > length - at:
                i += 1
            if i < count and is_same(<bytes>self.above[i], name + at, length - at):
                found.extend(self.above[i:])
                break
            one = PyBytes_FromStringAndSize(<char *>name + at, length - at)
            found.append(one)
        self.above = found
        return 0


cdef bint is_same(bytes name, const uint8_t *octets, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(name) == size and memcmp(PyBytes_AS_STRING(name), octets, size) == 0


cdef int depth(str key, Py_ssize_t base) except -1:
    """Labels of a key."""
    cdef Py_ssize_t i
    cdef int count = 1
    for i in range(base, len(key)):
        count += key[i] == u"/"
    return count


cdef int enter(dict beneath, list above, str key) except -1:
    """The key lies beneath these names (skydns_beneath.Beneath.load)."""
    for name in above:
        held = beneath.get(name)
        if held is None:
            beneath[name] = key
        elif type(held) is list:
            (<list>held).append(key)
        else:
            beneath[name] = [held, key]
    return 0


cdef int labels_of(bytes name) noexcept:
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(name)
    cdef int labels = 0
    while at[0]:
        at += at[0] + 1
        labels += 1
    return labels


# ---------------------------------------------------------------- names into the zone model

@cython.final
cdef class Books:
    """The zone model's books, for names that are new."""

    def __init__(self, zones, touch, dict gifts_to, dict names_of, dict children, dict nothing, set aggregates):
        """zones: loader/apexes.py. touch: is told of a zone and of the revision that touched it. The books: what is
        given to a name, lone gifts as themselves; the names that a key gives to, one as itself; name -> its children;
        the names whose gifts come to nothing; the aggregates."""
        self.zones, self.touch = zones, touch
        self.gifts_to, self.names_of, self.children, self.nothing = gifts_to, names_of, children, nothing
        self.aggregates = aggregates
        self.zone, self.revision = None, 0

    def place(self, bytes name, gift):
        """Whether it could be entered as the name's only gift; else the long way: it is not an address or a text,
        perhaps with a SRV; or its name is not new, or an apex, or outside all zones."""
        if type(gift) is tuple and not is_usual(<tuple>gift):
            return False
        return self.placed(name, gift)

    def tell(self):
        """The zones' revisions: before anybody else looks."""
        if self.zone is not None:
            self.touch(self.zone, self.revision)
        self.zone, self.revision = None, 0

    cdef bint placed(self, bytes name, gift) except -1:
        cdef bytes up = behind(name) if PyBytes_GET_SIZE(name) > 1 else name
        cdef str key
        cdef long long revision
        zone = self.zone_beneath(up)
        if zone is None or name in self.zones or name in self.gifts_to:
            return False
        if type(gift) is Plain:
            key, revision = (<Plain>gift).key, (<Plain>gift).revision
        else:
            key, revision = (<tuple>gift)[0], (<tuple>gift)[1]
        self.gifts_to[name] = gift
        self.add_name(key, name, gift)
        self.link(name, up)
        self.touched(zone, revision)
        return True

    cdef bint all_placed(self, bytes name, list plains) except -1:
        """The same of several keys that a name is given the gifts of. False, too: something is to be said of them."""
        cdef bytes up = behind(name) if PyBytes_GET_SIZE(name) > 1 else name
        cdef Plain one, first = plains[0]
        cdef Py_ssize_t texts = 0
        zone = self.zone_beneath(up)
        if zone is None or name in self.zones or name in self.gifts_to or len(plains) > MOST_SHARING:
            return False
        for one in plains:
            texts += 0 if one.text is None else PyBytes_GET_SIZE(one.text)
            if one.ttl != first.ttl or texts > MOST_TEXT:
                return False
        plains.sort(key=by_key)
        self.gifts_to[name] = plains
        for one in plains:
            self.add_name(one.key, name, one)
            self.touched(zone, one.revision)
        self.link(name, up)
        return True

    cdef int add_name(self, str key, bytes name, gift) except -1:
        """The key gives to the name. Its own goes without saying if it gives to one other: loader/gifts.py."""
        cdef Plain said
        held = self.names_of.get(key)
        if held is None:
            self.names_of[key] = name
        elif type(held) is not bytes:
            self.names_of[key] = (*held, name)
        else:
            said = plain_of(self.gifts_to.get(held), key)
            own = held if said is None else said.name
            if own == held or self.gifts_to.get(own) is not said:
                self.names_of[key] = (held, name)
            elif own != name:
                self.names_of[key] = (own, held, name)
        return 0

    cdef bint both_placed(self, bytes name, bytes own, Plain gift) except -1:
        """The same of a name, and of that of its only key, a child of it."""
        cdef bytes up = behind(name) if PyBytes_GET_SIZE(name) > 1 else name
        zone = self.zone_beneath(up)
        if zone is None or name in self.zones or own in self.zones or gift.key in self.names_of:
            return False
        if name in self.gifts_to or own in self.gifts_to or name in self.children:
            return False
        self.gifts_to[name] = gift
        self.gifts_to[own] = gift
        self.names_of[gift.key] = name                 # and its own: loader/gifts.py
        self.link(name, up)
        self.children[name] = own
        self.touched(zone, gift.revision)
        return True

    cdef object zone_beneath(self, bytes up):
        """Of the names beneath it that are no apexes; None: they are outside all zones."""
        zone = self.zones.get(up)
        return self.zones.around(up) if zone is None else zone

    cdef int touched(self, zone, long long revision) except -1:
        if zone is not self.zone:
            self.tell()
            self.zone = zone
        if revision > self.revision:
            self.revision = revision
        return 0

    cdef int link(self, bytes name, bytes up) except -1:
        """As loader/tree.py does it."""
        while PyBytes_GET_SIZE(name) > 1:
            held = self.children.get(up)
            if held is not None:
                if type(held) is set:
                    (<set>held).add(name)
                elif held != name:
                    self.children[up] = {held, name}
                return 0
            self.children[up] = name
            if up in self.zones or (up in self.gifts_to and up not in self.nothing):
                return 0
            name = up
            up = behind(name) if PyBytes_GET_SIZE(name) > 1 else name
        return 0


cdef bint has(held, gift) except -1:
    """Whether it is among what is given to a name."""
    return held is gift or (type(held) is list and gift in <list>held)


cdef Plain plain_of(held, str key):
    """That of the key, among what is given to a name."""
    if type(held) is Plain and (<Plain>held).key == key:
        return held
    if type(held) is list:
        for one in <list>held:
            if type(one) is Plain and (<Plain>one).key == key:
                return one
    return None


def by_key(Plain plain):
    """In what order they are."""
    return plain.key


cdef bint is_usual(tuple gift) except -1:
    cdef Py_ssize_t parts = len(gift)
    cdef long first = gift[FIRST_RR]
    if first != TYPE_A and first != TYPE_AAAA and first != TYPE_TXT:
        return False
    return parts == FIRST_RR + 3 or (parts == FIRST_RR + 6 and gift[FIRST_RR + 3] == TYPE_SRV)


@cython.final
cdef class Fill:
    """Names out of a tree's books into a zone model's: those that have one plain key, of their own or beneath them, or
    several that give addresses."""

    cdef Books model
    cdef str base
    cdef object zones
    cdef bint strict
    cdef dict by_key, hosts, texts, odd
    cdef set depths                # numbers of labels that keys have
    cdef int deepest
    cdef set aside                 # names that `beneath` left alone

    def __init__(self, Books model, str base, zones, bint strict):
        """See Load."""
        self.model, self.base, self.zones, self.strict = model, base, zones, strict
        self.aside = set()

    def books(self, dict by_key, dict hosts, dict texts, dict odd):
        """See Load."""
        cdef str key
        self.by_key, self.hosts, self.texts, self.odd = by_key, hosts, texts, odd
        self.depths = {depth(key, len(self.base)) for key in by_key}
        self.deepest = max(self.depths, default=0)

    def beneath(self, list names):
        """Takes names that have keys beneath them; returns those that it left alone. An apex is neither."""
        cdef list left = []
        cdef bytes name
        for name in names:
            if name not in self.zones and not self.aggregate(name):
                left.append(name)
        self.aside.update(left)
        return left

    def own(self, list keys):
        """Takes the names of these keys; returns the keys that it left alone. Apexes, and names that `beneath` had
        something to do with, are neither."""
        cdef list left = []
        cdef uint8_t octets[MAX_NAME + 1]
        cdef int length, at
        cdef bytes name
        cdef str key
        for key in keys:
            held = self.by_key.get(key)
            if held is None:
                continue
            if type(held) is not Plain and type(held) is not tuple:
                left.append(key)
                continue
            length = spell_name(key, len(self.base), octets)
            at = (<Plain>held).skipped if self.strict and type(held) is Plain else 0
            if not self.strict and not is_name(octets):
                continue
            name = PyBytes_FromStringAndSize(<char *>octets + at, length - at)
            if has(self.model.gifts_to.get(name), held) or name in self.zones:
                continue
            if self.has_beneath(name):
                if name not in self.aside:
                    left.append(key)   # since then only: the tree moves on
                continue
            if at and type(self.odd.get(name)) is list:
                if self.has_key(name) or not self.all_given(name, <list>self.odd[name]):
                    left.append(key)
            elif not self.is_only(name, key, at) or not self.model.placed(name, held):
                left.append(key)
        return left

    cdef bint all_given(self, bytes name, list keys) except -1:
        """Whether the keys, none of which gives anything but addresses, could be entered as what is given to a name."""
        cdef list plains = []
        for key in keys:
            held = self.by_key.get(key)
            if type(held) is not Plain:
                return False
            plains.append(held)
        return self.model.all_placed(name, plains)

    cdef bint is_only(self, bytes name, str key, bint stripped) except -1:
        """Whether the name has no other keys of its own."""
        if stripped:
            return self.odd.get(name) == key and not self.has_key(name)
        return name not in self.odd

    cdef bint aggregate(self, bytes name) except -1:
        """With the name of the key beneath it, if that is a child: all there is to know of it is at hand."""
        cdef uint8_t octets[MAX_NAME + 1]
        cdef int length, first
        cdef bytes own
        key = self.hosts.get(name)
        other = self.texts.get(name)
        if self.strict or (key is None) == (other is None):
            return False
        if key is None:
            key = other
        if name in self.odd or self.has_key(name):
            return False
        if not is_name(<const uint8_t *>PyBytes_AS_STRING(name)):
            return False
        self.model.aggregates.add(name)
        if type(key) is list:
            return self.all_given(name, <list>key)
        held = self.by_key.get(key)
        if type(held) is not Plain and (other is None or type(held) is not tuple):
            return False
        if type(held) is Plain:
            length = spell_name(<str>key, len(self.base), octets)
            first = octets[0] + 1
            if is_same(name, octets + first, length - first) and is_name(octets):
                own = PyBytes_FromStringAndSize(<char *>octets, length)
                if own not in self.zones and not self.has_beneath(own) and self.is_only(own, <str>key, False):
                    if self.model.both_placed(name, own, <Plain>held):
                        return True
        return self.model.placed(name, held)

    cdef bint has_key(self, bytes name) except -1:
        """Whether there is a key that is spelled as the name is."""
        return labels_of(name) in self.depths and key_of(self.base, name) in self.by_key

    cdef bint has_beneath(self, bytes name) except -1:
        return labels_of(name) < self.deepest and (name in self.hosts or name in self.texts)
