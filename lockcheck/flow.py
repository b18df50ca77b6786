"""Walks all paths of a function with the locks that are held on each.

The walk is over pairs of node and state until no new pair turns up. States that differ in held locks or in facts are
kept apart, so what holds for one way through the function is not blurred by another. What was seen goes into an
Outcome; judge.py decides what of it is a finding.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field

from lockcheck import facts as fact
from lockcheck.effects import Effect, Effects
from lockcheck.facts import Raised
from lockcheck.graph import Graph, Label, Node, Step
from lockcheck.kinds import GUESS
from lockcheck.locks import Lock, Operation
from lockcheck.model import Key, Kind
from lockcheck.project import FunctionInfo
from lockcheck.state import MAX_DEPTH, Hold, State, Status, Way

#: Pairs of node and state; a function with more is walked again without facts, then given up.
MAX_VISITS = 40_000


@dataclass(slots=True)
class Outcome:
    function: FunctionInfo
    graph: Graph
    effects: Effects
    ends: list[State] = field(default_factory=list)
    fails: list[State] = field(default_factory=list)
    #: (line, column) of a release -> statuses that it met, by lock.
    releases: dict[tuple[Lock, int, int], set[Status | None]] = field(default_factory=lambda: defaultdict(set))
    doubles: dict[tuple[Lock, int, int], Hold] = field(default_factory=dict)
    #: (held, acquired, line, column) -> all that was held
    orders: dict[tuple[Lock, Lock, int, int], frozenset[Key]] = field(default_factory=dict)
    #: (held, call id) -> (node, what it does, hold)
    blocked: dict[tuple[Lock, int], tuple[Node, str, Hold]] = field(default_factory=dict)
    #: A held lock whose name a loop bound to the next element.
    rebound: dict[tuple[Lock, Hold], Way | None] = field(default_factory=dict)
    #: Blocking acquires that did not make up for a release: lock -> line.
    takes: dict[Lock, int] = field(default_factory=dict)
    at_yield: set[Lock] = field(default_factory=set)
    #: Calls that take a lock which is held already: (lock, line, column) -> (hold, callee)
    calls_in: dict[tuple[Lock, int, int], tuple[Hold, FunctionInfo]] = field(default_factory=dict)
    too_tangled: bool = False


class Walk:
    def __init__(self, function: FunctionInfo, graph: Graph, effects: Effects) -> None:
        self.graph = graph
        self.effects = effects
        self.out = Outcome(function, graph, effects)
        self.tracked = fact.worth_tracking(graph)
        self.loops = {n.item for n in graph.nodes if isinstance(n.item, (ast.For, ast.AsyncFor, ast.While))}
        self.release_lines: dict[Key, set[int]] = defaultdict(set)
        for node in graph.nodes:
            operation = effects.of(node).operation
            if operation is not None and operation.action == "release":
                self.release_lines[operation.lock.key].add(node.line)

    def run(self) -> Outcome:
        if not self._walk():
            function, graph, effects = self.out.function, self.graph, self.effects
            self.out = Outcome(function, graph, effects)
            self.tracked = frozenset()
            self.out.too_tangled = not self._walk()
        return self.out

    def _walk(self) -> bool:
        start = State()
        seen = {(self.graph.entry, start)}
        todo = [(self.graph.entry, start)]
        while todo:
            if len(seen) > MAX_VISITS:
                return False
            node, state = todo.pop()
            for following in self._after(node, state):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        return True

    def _after(self, node: Node, state: State) -> list[tuple[Node, State]]:
        """The pairs that follow a pair."""
        if node.step is Step.END:
            self.out.ends.append(state)
            return []
        if node.step is Step.FAIL:
            self.out.fails.append(state)
            return []
        effect = self.effects.of(node)
        if node.step is Step.DISPATCH:
            return self._dispatch(node, state)
        if node.step in (Step.TEST, Step.LOOP):
            return self._test(node, state)
        result: list[tuple[Node, State]] = []
        normal = self._normal(node, effect, state)
        for label, target in node.next:
            if label is not Label.RAISES:
                result += [(target, one) for one in normal]
            elif effect.raises or node.step is Step.RAISE:
                result.append((target, self._raise(node, effect, state)))
        return result

    # Exceptions

    def _raise(self, node: Node, effect: Effect, state: State) -> State:
        name = ""
        kind = {Step.AWAIT: "await", Step.YIELD: "yield", Step.RAISE: "raise"}.get(node.step, "call")
        if effect.operation is not None and effect.operation.how == "raises":
            kind, name = "busy", "BusyError"
        elif isinstance(node.item, ast.Assert):
            kind, name = "assert", "AssertionError"
        elif isinstance(node.item, ast.Raise) and node.item.exc is not None:
            e = node.item.exc
            text = ast.unparse(e.func if isinstance(e, ast.Call) else e).rpartition(".")[2]
            name = text if text[:1].isupper() else ""
        if effect.summary is not None and node.step is Step.CALL:
            state = self._lend(state, effect.summary.releases, node)
        return state._replace(raised=Raised(kind, node.line, name), way=None)

    @staticmethod
    def _dispatch(node: Node, state: State) -> list[tuple[Node, State]]:
        raised = state.raised or Raised("call", node.line)
        result = []
        uncaught = True
        for label, target in sorted(node.next, key=lambda edge: edge[0] is Label.UNCAUGHT):
            if label is Label.UNCAUGHT:
                if uncaught:
                    result.append((target, state))
                continue
            assert isinstance(target.item, ast.ExceptHandler)
            if not uncaught:
                break
            answer = fact.catches(target.item, raised)
            if answer is not False:
                result.append((target, state._replace(raised=None)))
            if answer:
                uncaught = False
        return result

    # Tests

    def _test(self, node: Node, state: State) -> list[tuple[Node, State]]:
        if node.step is Step.LOOP:
            found = (fact.loop_atom(node.item), True) if node.first else None
            if node.first and isinstance(node.item, ast.For) and _never_empty(node.item.iter):
                return [(target, state) for label, target in node.next if label is Label.TRUE]
        else:
            assert isinstance(node.item, ast.expr)
            found = fact.atom(node.item)
        result = []
        owned = self.effects.of(node).owned
        for label, target in node.next:
            if owned is not None:
                result += [(target, one) for one in _told_locked(state, owned, label is Label.TRUE)]
                continue
            if found is None:
                result.append((target, state))
                continue
            came_out = (label is Label.TRUE) == found[1]
            learnt = fact.learn(state.facts, found[0], came_out, self.tracked)
            if learnt is not None:
                kept = frozenset(f for f in learnt if f[0] != found[0]) if found[0].startswith("@") else learnt
                result.append((target, state._replace(facts=kept)))
        return result

    # Steps

    def _normal(self, node: Node, effect: Effect, state: State) -> list[State]:
        if effect.blocks or (node.step is Step.AWAIT and effect.operation is None):
            self._blocking(node, effect, state)
        if effect.operation is not None and effect.operation.action != "wait":
            return self._operate(node, effect.operation, state)
        if effect.summary is not None:
            return self._call(node, effect, state)
        if node.step is Step.YIELD:
            self.out.at_yield.update(lock for lock, _ in state.holding())
        for key in effect.escapes:
            hold = state.get(key)
            if hold is not None and hold.status is Status.HELD and not hold.by_with:
                state = state.put(Lock(key, _kind_of(state, key)), Hold(Status.GONE))
        if node.step is Step.ASSIGN and node.item is not None:
            state = self._bind(node, effect.binds, state)
        elif node.step is Step.RETURN:
            assert isinstance(node.item, ast.Return)
            result = fact.truth(node.item.value, state.facts)
            state = state._replace(way=Way("return", node.line, result))
        elif node.step is Step.JUMP and state.holding():
            word = "break" if isinstance(node.item, ast.Break) else "continue"
            state = state._replace(way=Way(word, node.line))
        return [state]

    def _bind(self, node: Node, names: tuple[str, ...], state: State) -> State:
        assert node.item is not None
        state = state._replace(facts=fact.assign(state.facts, node.item, self.tracked))
        for lock, hold in state.held:
            own = {lock.key.name} if lock.key.local and not lock.key.via else set()
            words = own | fact.mentioned(lock.key.via)
            if not words.intersection(names) or hold.by_with:
                continue
            # All acquired in one loop, all released in another, is no leak.
            here = _within(node.item, {hold.line}) and _within(node.item, self.release_lines[lock.key])
            if hold.status is Status.HELD and here:
                self.out.rebound.setdefault((lock, hold), state.way)
            state = state.put(lock, Hold(Status.OPEN))
        return state

    def _operate(self, node: Node, operation: Operation, state: State) -> list[State]:
        lock = operation.lock
        if node.step is Step.LEAVE:
            return [self._leave(node, lock, state)]
        if operation.action == "release":
            return [self._release(node, lock, state)]
        if operation.how == "maybe":
            name = fact.result_atom(node.item) if isinstance(node.item, ast.Call) else ""
            without = state._replace(facts=state.facts | {(name, False)})
            hold = state.get(lock.key)
            if hold is not None and hold.status is Status.HELD and not lock.kind.reentrant and not lock.kind.counting:
                return [without]
            had = self._acquire(node, lock, state, waits=False)
            return [without, had._replace(facts=had.facts | {(name, True)})]
        waits = operation.how == "must"
        after = self._acquire(node, lock, state, waits, by_with=node.step is Step.ENTER)
        if isinstance(node.item, ast.Call) and operation.how == "must":
            after = after._replace(facts=after.facts | {(fact.result_atom(node.item), True)})
        return [after]

    def _acquire(self, node: Node, lock: Lock, state: State, waits: bool, by_with: bool = False) -> State:
        hold = state.get(lock.key)
        at = (node.line, node.column)
        if waits:
            self._order(node, lock, state)
            if hold is None or hold.status is Status.FREE:
                self.out.takes.setdefault(lock, node.line)
        if hold is None or hold.status in (Status.FREE, Status.OPEN):
            return state.put(lock, Hold(Status.HELD, 1, *at, by_with))
        if hold.status is Status.LENT:
            return state.put(lock, Hold(Status.BACK))
        if hold.status in (Status.GONE, Status.BACK):
            return state
        if waits and not (lock.kind.reentrant or lock.kind.counting):
            self.out.doubles.setdefault((lock, *at), hold)
        elif lock.kind.reentrant and (hold.line, hold.column) == at and self._released_in_loop(lock.key, node.line):
            # Another turn of a loop that releases it in others: each such turn leaves it held once more.
            self.out.rebound.setdefault((lock, hold._replace(depth=1)), state.way)
        return state.put(lock, hold._replace(depth=min(hold.depth + 1, MAX_DEPTH)))

    def _released_in_loop(self, key: Key, line: int) -> bool:
        """Whether the innermost loop around a line releases the lock, too."""
        around = [loop for loop in self.loops if _within(loop, {line})]
        return bool(around) and _within(max(around, key=lambda loop: loop.lineno), self.release_lines[key])

    def _order(self, node: Node, lock: Lock, state: State) -> None:
        held = state.holding()
        if any(one.key == lock.key for one, _ in held):
            return  # taken once more, or a deadlock by itself
        for other, _ in held:
            if other.key != lock.key:
                keys = frozenset(one.key for one, _ in held)
                at = (other, lock, node.line, node.column)
                self.out.orders[at] = self.out.orders.get(at, keys) & keys

    def _release(self, node: Node, lock: Lock, state: State) -> State:
        hold = state.get(lock.key)
        if hold is not None and hold.by_with and hold.status is Status.FREE and lock.kind.reentrant:
            hold = None  # the caller may hold it beneath our own `with`
        self.out.releases[(lock, node.line, node.column)].add(hold.status if hold is not None else None)
        if hold is None or hold.status is Status.BACK:
            return state.put(lock, Hold(Status.LENT))
        if hold.status is not Status.HELD:
            return state
        if hold.depth > 1 and not lock.kind.counting:
            return state.put(lock, hold._replace(depth=hold.depth - 1))
        return state.put(lock, Hold(Status.FREE))._replace(way=None)

    def _leave(self, node: Node, lock: Lock, state: State) -> State:
        hold = state.get(lock.key)
        if hold is None or hold.status is Status.HELD:
            if hold is not None and hold.depth > 1:
                return state.put(lock, hold._replace(depth=hold.depth - 1))
            return state.put(lock, Hold(Status.FREE, by_with=True))
        if hold.status is Status.FREE:
            self.out.releases[(lock, node.line, node.column)].update((Status.FREE, Status.HELD))
        return state

    # Calls of functions that are known

    def _call(self, node: Node, effect: Effect, state: State) -> list[State]:
        summary = effect.summary
        assert summary is not None
        if node.step is Step.ENTER:
            for lock in summary.context:
                state = self._acquire(node, lock, state, waits=False, by_with=True)
            return [state]
        if node.step is Step.LEAVE:
            for lock in summary.context:
                state = self._leave(node, lock, state)
            return [state]
        assert effect.callee is not None
        for lock in summary.takes:
            self._order(node, lock, state)
            self.out.takes.setdefault(lock, node.line)
            hold = state.get(lock.key)
            deadlocks = lock.kind.known and not lock.kind.reentrant and not lock.kind.counting
            if deadlocks and hold is not None and hold.status is Status.HELD:
                self.out.calls_in.setdefault((lock, node.line, node.column), (hold, effect.callee))
        state = self._lend(state, summary.releases, node)
        states = [state]
        for lock, conditional in summary.acquires.items():
            held = [self._acquire(node, lock, one, waits=False) for one in states]
            call = node.item.value if isinstance(node.item, ast.Await) else node.item
            if conditional and isinstance(call, ast.Call):
                name = fact.result_atom(call)
                states = [one._replace(facts=one.facts | {(name, False)}) for one in states]
                states += [one._replace(facts=one.facts | {(name, True)}) for one in held]
            else:
                states = held
        return states

    def _lend(self, state: State, keys: set[Key], node: Node) -> State:
        for key in keys:
            state = self._release(node, Lock(key, _kind_of(state, key)), state)
        return state

    def _blocking(self, node: Node, effect: Effect, state: State) -> None:
        waited = effect.operation.lock.key if effect.operation is not None else None
        for lock, hold in state.holding():
            if lock.kind.counting or lock.key == waited:
                continue
            if node.step is Step.AWAIT and not effect.blocks and not lock.kind.blocks_loop:
                continue
            if lock.kind.family == "asyncio" and (effect.blocks.endswith(("logs", "prints"))):
                continue  # keeps the whole loop waiting, and would do so without the lock
            what = effect.blocks or "waits in the event loop"
            self.out.blocked.setdefault((lock, id(node.item)), (node, what, hold))


def _kind_of(state: State, key: Key) -> Kind:
    return next((lock.kind for lock, _ in state.held if lock.key == key), GUESS)


def _told_locked(state: State, lock: Lock, locked: bool) -> list[State]:
    """The state after `if lock.locked():`; none if it cannot be so."""
    hold = state.get(lock.key)
    is_ours = hold is not None and hold.status is Status.HELD
    if locked:
        # Someone has it, and whoever asks may know who.
        return [state if is_ours else state.put(lock, Hold(Status.OPEN))]
    return [] if is_ours and not lock.kind.counting else [state]


def _within(item: ast.AST, lines: set[int]) -> bool:
    """Whether one of the lines is in the body of this loop."""
    if not isinstance(item, (ast.For, ast.AsyncFor, ast.While)):
        return False
    last = item.body[-1].end_lineno or item.lineno
    return any(item.body[0].lineno <= line <= last for line in lines)


def _never_empty(e: ast.expr) -> bool:
    if isinstance(e, (ast.List, ast.Tuple, ast.Set)):
        return bool(e.elts)
    if isinstance(e, ast.Call) and ast.unparse(e.func) == "range" and len(e.args) == 1:
        return isinstance(e.args[0], ast.Constant) and bool(e.args[0].value)
    return False


def returns_with(states: list[State], key: Key) -> tuple[list[State], list[State]]:
    """Normal exits that hold a lock, and those that do not."""
    held: list[State] = []
    free: list[State] = []
    for state in states:
        hold = state.get(key)
        (held if hold is not None and hold.status is Status.HELD else free).append(state)
    return held, free
