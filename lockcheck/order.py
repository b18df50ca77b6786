"""Locks that are taken in different orders: cycles in the graph of who is taken while whom is held.

An edge needs an acquire that waits without limit: whoever tries and gives up cannot be part of a deadlock. Two orders
under one common outer lock cannot meet either. Variables of functions are left out: two functions' variables are never
known to be the same lock; and so are two instances of one class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lockcheck.flow import Outcome
from lockcheck.judge import Name, shared_name
from lockcheck.model import Finding, Key, Place, Rule


@dataclass(frozen=True, slots=True)
class Edge:
    """`second` is taken at `place` while `first` is held."""

    first: Name
    second: Name
    place: Place
    function: str
    held: frozenset[Name]


Edges = dict[tuple[Name, Name], list[Edge]]


def shown(name: Name) -> str:
    return f"{name[0]}.{name[1]}"


def collect(outcomes: Iterable[Outcome]) -> Edges:
    edges: Edges = defaultdict(list)
    for outcome in outcomes:
        for (held, taken, line, column), keys in outcome.orders.items():
            if _is_nameless(held.key) or _is_nameless(taken.key):
                continue
            first, second = shared_name(held.key), shared_name(taken.key)
            if first == second or held.kind.counting or taken.kind.counting:
                continue
            place = Place(outcome.function.module.path, line, column)
            around = frozenset(map(shared_name, keys))
            edges[(first, second)].append(Edge(first, second, place, outcome.function.qualname, around))
    return edges


def _is_nameless(key: Key) -> bool:
    return key.local or not key.owner


def findings(edges: Edges) -> list[Finding]:
    found = []
    in_pairs: set[Name] = set()
    for first, second in sorted(edges):
        if first < second and (second, first) in edges:
            pair = _conflict(edges[(first, second)], edges[(second, first)])
            if pair is not None:
                in_pairs.update((first, second))
                found.append(_pair_finding(*pair))
    for cycle in _cycles({pair for pair in edges if not in_pairs.intersection(pair)}):
        found.append(_cycle_finding([edges[pair][0] for pair in cycle]))
    return found


def _conflict(one: list[Edge], other: list[Edge]) -> tuple[Edge, Edge] | None:
    """Two sites that can deadlock: no third lock is held at both. The rarer order comes first."""
    if len(one) > len(other):
        one, other = other, one
    for a in one:
        for b in other:
            if not (a.held & b.held) - {a.first, a.second}:
                return a, b
    return None


def _pair_finding(a: Edge, b: Edge) -> Finding:
    message = f"{shown(a.second)} is taken while {shown(a.first)} is held; {b.function} ({b.place}) does the opposite"
    return Finding(Rule.ORDER, a.place, shown(a.second), message, a.function, ((b.place, "the other order"),))


def _cycle_finding(cycle: list[Edge]) -> Finding:
    chain = " -> ".join([shown(e.first) for e in cycle] + [shown(cycle[0].first)])
    related = tuple((e.place, f"{shown(e.first)} -> {shown(e.second)}") for e in cycle[1:])
    message = f"locks are taken in a circle: {chain}"
    return Finding(Rule.ORDER, cycle[0].place, shown(cycle[0].second), message, cycle[0].function, related)


def _cycles(pairs: set[tuple[Name, Name]]) -> list[list[tuple[Name, Name]]]:
    """One shortest cycle for each group of locks that are in a circle together."""
    after: dict[Name, list[Name]] = defaultdict(list)
    for a, b in sorted(pairs):
        after[a].append(b)
    found = []
    done: set[Name] = set()
    for start in sorted(after):
        if start in done:
            continue
        path = _way_back(start, after)
        if path:
            done.update(path)
            found.append(list(zip(path, [*path[1:], path[0]], strict=True)))
    return found


def _way_back(start: Name, after: dict[Name, list[Name]]) -> list[Name]:
    """The shortest way from a lock back to itself, without its end; empty if there is none."""
    todo = [[start]]
    seen: set[Name] = set()
    while todo:
        path = todo.pop(0)
        for following in after.get(path[-1], []):
            if following == start:
                return path
            if following not in seen:
                seen.add(following)
                todo.append([*path, following])
    return []
