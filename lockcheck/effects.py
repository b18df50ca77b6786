"""What each step of a function does to locks: worked out once, before the paths are walked."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace

from lockcheck import calls
from lockcheck.facts import targets
from lockcheck.graph import Graph, Node, Step
from lockcheck.kinds import ASYNC_GUESS
from lockcheck.locks import Lock, Operation, Resolver
from lockcheck.model import Key, Place
from lockcheck.project import FunctionInfo


@dataclass(slots=True)
class Summary:
    """What calling a function does to locks that outlive the call."""

    #: Held when it returns -> whether only a true result says so.
    acquires: dict[Lock, bool] = field(default_factory=dict)
    releases: set[Key] = field(default_factory=set)
    #: Held while the body of `with function():` runs.
    context: set[Lock] = field(default_factory=set)
    #: Taken, waiting as long as it needs, at some time during the call -> where.
    takes: dict[Lock, Place] = field(default_factory=dict)


@dataclass(slots=True)
class Effect:
    operation: Operation | None = None
    summary: Summary | None = None
    callee: FunctionInfo | None = None
    raises: bool = True
    blocks: str = ""
    #: TEST: the lock whose `locked()` is asked for.
    owned: Lock | None = None
    #: Locks that are passed on, stored or returned: from then on someone else may release them.
    escapes: tuple[Key, ...] = ()
    #: Variables that the step binds to something else.
    binds: tuple[str, ...] = ()


Summaries = dict[str, Summary]


class Effects:
    """Effects of the steps of one function."""

    def __init__(self, function: FunctionInfo, graph: Graph, resolver: Resolver, summaries: Summaries) -> None:
        self.function = function
        self.resolver = resolver
        self.summaries = summaries
        tree = ast.Module(function.body, [])
        self.busy_is_caught = any(
            isinstance(n, ast.ExceptHandler) and n.type is not None and "BusyError" in ast.unparse(n.type)
            for n in ast.walk(tree)
        )
        self._awaited = _awaited_calls(tree)
        self._async_contexts = {
            id(item.context_expr) for n in ast.walk(tree) if isinstance(n, ast.AsyncWith) for item in n.items
        }
        #: `for pause in lock.acquire():` is some other protocol.
        self._iterated = {id(n.iter) for n in ast.walk(tree) if isinstance(n, (ast.For, ast.AsyncFor))}
        self._by_item: dict[tuple[Step, int], Effect] = {}
        for node in graph.nodes:
            key = (node.step, id(node.item))
            if node.item is not None and key not in self._by_item:
                self._by_item[key] = self._effect(node.step, node.item)

    def of(self, node: Node) -> Effect:
        return self._by_item.get((node.step, id(node.item)), _NOTHING)

    @property
    def touches_locks(self) -> bool:
        return any(e.operation is not None or e.summary is not None for e in self._by_item.values())

    def _effect(self, step: Step, item: ast.AST) -> Effect:
        if step is Step.CALL and isinstance(item, ast.Call):
            return self._call(item)
        if step is Step.AWAIT:
            return self._await(item)
        if step in (Step.ENTER, Step.LEAVE) and isinstance(item, ast.withitem):
            return self._context(item.context_expr)
        if step is Step.TEST and isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
            asks = item.func.attr in ("locked", "_is_owned", "is_owned", "_is_mine")
            return Effect(owned=self.resolver.resolve(item.func.value, self.function) if asks else None)
        if step is Step.VALUE and isinstance(item, ast.expr):
            return Effect(escapes=tuple(self._releases_in(item)))
        if step is Step.RETURN and isinstance(item, ast.Return) and item.value is not None:
            return Effect(escapes=tuple(self._mentioned([item.value])))
        if step is Step.YIELD and isinstance(item, ast.Yield) and item.value is not None:
            return Effect(escapes=tuple(self._mentioned([item.value])))
        if step is Step.ASSIGN:
            return self._assign(item)
        return Effect()

    def _call(self, call: ast.Call) -> Effect:
        operation = self.resolver.operation(call, self.function, self.busy_is_caught)
        if id(call) in self._iterated:
            operation = None
        if operation is not None and operation.action != "wait":
            if id(call) in self._awaited:
                return Effect(raises=False)  # happens when it is awaited
            return Effect(operation=operation, raises=operation.how == "raises")
        if operation is not None:
            return Effect(operation=operation, blocks=f"{ast.unparse(call.func)}() waits for a condition")
        summary, callee = self._summary(call)
        if callee is not None and isinstance(callee.node, ast.AsyncFunctionDef):
            summary = None  # does it when it is awaited
        quiet = calls.is_quiet(call, self.function, self.resolver.values)
        passed = call.args + [k.value for k in call.keywords]
        escapes = () if quiet and not _stores(call) else tuple(self._mentioned(passed))
        blocking = calls.blocks(call, self.function, self.resolver.values)
        return Effect(None, summary, callee, not quiet, blocking, escapes=escapes)

    def _await(self, item: ast.AST) -> Effect:
        value = item.value if isinstance(item, ast.Await) else None
        candidates = [value, *value.args] if isinstance(value, ast.Call) else []
        for candidate in candidates:
            if isinstance(candidate, ast.Call) and id(candidate) in self._awaited:
                summary, callee = self._summary(candidate)
                if summary is not None and callee is not None and isinstance(callee.node, ast.AsyncFunctionDef):
                    return Effect(summary=summary, callee=callee)
                operation = self.resolver.operation(candidate, self.function, False)
                if operation is not None and operation.action != "wait":
                    return Effect(operation=replace(operation, how="must"))
        return Effect()

    def _context(self, e: ast.expr) -> Effect:
        found = self.resolver.context(e, self.function)
        if found is not None:
            lock = found[0]
            # Whatever the annotation says: a lock of threads cannot be taken by `async with`.
            if id(e) in self._async_contexts and lock.kind.family in ("guess", "threading"):
                lock = Lock(lock.key, ASYNC_GUESS)
            return Effect(operation=Operation(lock, "with", found[1]), raises=False)
        if isinstance(e, ast.Call):
            summary, callee = self._summary(e)
            if summary is not None and summary.context:
                return Effect(summary=summary, callee=callee)
        return Effect()

    def _assign(self, item: ast.AST) -> Effect:
        names = targets(item)
        value = getattr(item, "value", None)
        escapes: tuple[Key, ...] = ()
        outlives = any("." in n or "[" in n or n in self.function.globals for n in names)
        if isinstance(value, ast.expr) and outlives:
            escapes = tuple(self._mentioned([value]))
        return Effect(binds=tuple(names), escapes=escapes)

    def _mentioned(self, expressions: list[ast.expr]) -> list[Key]:
        """Locks handed over as such, not merely used, by these expressions."""
        found = []
        todo = list(expressions)
        while todo:
            e = todo.pop()
            if isinstance(e, (ast.Tuple, ast.List, ast.Set)):
                todo.extend(e.elts)
            elif isinstance(e, ast.Dict):
                todo.extend(e.values)
            elif isinstance(e, (ast.Starred, ast.IfExp)):
                todo.append(e.value if isinstance(e, ast.Starred) else e.body)
            elif isinstance(e, (ast.Name, ast.Attribute, ast.Subscript)):
                lock = self.resolver.resolve(e, self.function)
                if lock is not None:
                    found.append(lock.key)
        return found

    def _releases_in(self, e: ast.expr) -> list[Key]:
        """Locks whose `release` is mentioned: it will be called by someone, some time."""
        found = []
        for node in ast.walk(e):
            if isinstance(node, ast.Attribute) and node.attr in ("release", "__exit__"):
                lock = self.resolver.resolve(node.value, self.function)
                if lock is not None:
                    found.append(lock.key)
        return found

    def _summary(self, call: ast.Call) -> tuple[Summary | None, FunctionInfo | None]:
        callee = self.resolver.values.callee(call, self.function)
        if callee is None or callee is self.function:
            return None, callee
        summary = self.summaries.get(callee.dotted)
        if summary is None:
            return None, callee
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        via = "" if receiver is None or self._is_self(receiver, callee) else ast.unparse(receiver)
        return _seen_from(summary, via, callee), callee

    def _is_self(self, receiver: ast.expr, callee: FunctionInfo) -> bool:
        if isinstance(receiver, ast.Name) and receiver.id in (self.function.self_name, "cls"):
            return True
        is_super = isinstance(receiver, ast.Call) and ast.unparse(receiver.func) == "super"
        return is_super or callee.cls is None


def _seen_from(summary: Summary, via: str, callee: FunctionInfo) -> Summary:
    """A summary with the callee's `self` named as the caller names it."""
    if not via:
        return summary

    def key(k: Key) -> Key:
        if callee.cls is None or "." not in k.owner or k.owner == callee.module.name:
            return k
        return replace(k, via=f"{via}.{k.via}" if k.via else via)

    def lock(one: Lock) -> Lock:
        return Lock(key(one.key), one.kind)

    return Summary(
        {lock(k): v for k, v in summary.acquires.items()},
        {key(k) for k in summary.releases},
        {lock(k) for k in summary.context},
        {lock(k): v for k, v in summary.takes.items()},
    )


def _awaited_calls(tree: ast.AST) -> set[int]:
    """Ids of the calls that an `await` runs: `await lock.acquire()`, `await wait_for(lock.acquire(), 1)`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            found.add(id(node.value))
            name = ast.unparse(node.value.func).rpartition(".")[2]
            if name in ("wait_for", "shield"):
                found.update(id(a) for a in node.value.args if isinstance(a, ast.Call))
    return found


def _stores(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in (
        "append",
        "appendleft",
        "add",
        "extend",
        "setdefault",
    )


_NOTHING = Effect(raises=False)
