"""Which expressions are locks, and which calls take or release them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from lockcheck import kinds
from lockcheck.model import Key, Kind
from lockcheck.project import ClassInfo, FunctionInfo, ModuleInfo, Project, Source
from lockcheck.values import Value, Values


@dataclass(frozen=True, slots=True)
class Lock:
    key: Key
    kind: Kind


@dataclass(frozen=True, slots=True)
class Operation:
    """One acquire or release."""

    lock: Lock
    action: str  # acquire, release, wait (of a condition: releases and takes again)
    mode: str = ""
    #: acquire: `must`, `maybe` (the result tells) or `raises` (an exception tells that it was not had).
    how: str = "must"


class Resolver:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.values = Values(project)

    # Expressions

    def resolve(self, e: ast.expr, function: FunctionInfo, depth: int = 6) -> Lock | None:
        """The lock that an expression names, if it names one."""
        if depth <= 0:
            return None
        if isinstance(e, ast.Name):
            return self._name(e, function, depth)
        if isinstance(e, ast.Attribute):
            return self._attribute(e, function, depth)
        if isinstance(e, ast.Subscript):
            return self._subscript(e, function, depth)
        if isinstance(e, ast.NamedExpr):
            return self.resolve(e.target, function, depth)
        if isinstance(e, ast.Call):
            return self._returned(e, function)
        return None

    def _name(self, e: ast.Name, function: FunctionInfo, depth: int) -> Lock | None:
        scope: FunctionInfo | None = function
        while scope is not None:
            if e.id in scope.variables:
                return self._local(e.id, scope, depth)
            scope = scope.parent
        dotted = self.project.dotted(e, function.module)
        return self._global(dotted, depth)

    def _local(self, name: str, scope: FunctionInfo, depth: int) -> Lock | None:
        sources = [s for s in scope.variables[name] if not s.annotation]
        if len(sources) == 1 and not sources[0].element:
            lock = self._alias(sources[0], scope, depth)
            if lock is not None:
                return lock
        value = self.values.from_sources(scope.variables[name], scope.module, depth)
        return self._lock(Key(scope.dotted, name, local=True), name, value)

    def _alias(self, source: Source, scope: FunctionInfo, depth: int) -> Lock | None:
        """`lock = self._lock`: another name for the same lock."""
        if not isinstance(source.expression, (ast.Name, ast.Attribute, ast.Subscript)):
            return None
        return self.resolve(source.expression, source.function or scope, depth - 1)

    @staticmethod
    def _lock(key: Key, name: str, value: Value | None) -> Lock | None:
        if value is not None and value.kind is not None:
            return Lock(key, value.kind)
        if value is not None and (value.element is not None or value.type in kinds.OTHER_TYPES.values()):
            return None
        kind = kinds.guess(name)
        return Lock(key, kind) if kind is not None else None

    def _global(self, dotted: str, depth: int) -> Lock | None:
        owner, _, name = dotted.rpartition(".")
        module = self.project.by_name.get(owner)
        if module is not None:
            if name in module.classes or name in module.by_name:
                return None
            sources = module.variables.get(name, [])
            value = self.values.from_sources(sources, module, depth)
            aliased = self._condition(value, FunctionInfo(module, "<module>", None), depth)
            return aliased or self._lock(Key(owner, name), name, value)
        return self._lock(Key(owner, name), name, None) if owner else None

    def _condition(self, value: Value | None, function: FunctionInfo, depth: int) -> Lock | None:
        """Condition(lock) is that lock."""
        if value is None or value.alias is None or isinstance(value.alias, ast.Call):
            return None
        return self.resolve(value.alias, function, depth - 1)

    def _attribute(self, e: ast.Attribute, function: FunctionInfo, depth: int) -> Lock | None:
        cls = self.values.class_of(e.value, function)
        if cls is not None:
            own = isinstance(e.value, ast.Name) and e.value.id in (function.self_name, "cls", cls.node.name)
            return self._of_class(cls, e.attr, "" if own else ast.unparse(e.value), depth)
        dotted = self.project.dotted(e, function.module, function)
        if dotted and dotted.rpartition(".")[0] in self.project.by_name:
            return self._global(dotted, depth)
        receiver = ast.unparse(e.value)
        return self._lock(Key("", e.attr, receiver, local=True), e.attr, None)

    def _of_class(self, cls: ClassInfo, name: str, via: str, depth: int) -> Lock | None:
        for one in self.project.bases(cls):
            sources = one.attributes.get(name, [])
            value = self.values.from_sources(sources, one.module, depth)
            function = next((s.function for s in sources if s.function is not None), None)
            if value is not None and value.alias is not None and function is not None:
                aliased = self._condition(value, function, depth)
                if aliased is not None:
                    return Lock(replace(aliased.key, via=via), aliased.kind)
            if sources:
                return self._lock(Key(one.dotted, name, via), name, value)
            method = one.methods.get(name)
            if method is not None:
                return self._property(method, via, depth)
        return self._lock(Key(cls.dotted, name, via), name, None)

    def _property(self, method: FunctionInfo, via: str, depth: int) -> Lock | None:
        assert method.node is not None
        if not any(ast.unparse(d).endswith("property") for d in method.node.decorator_list):
            return None
        for node in method.node.body:
            if isinstance(node, ast.Return) and isinstance(node.value, (ast.Attribute, ast.Name)):
                lock = self.resolve(node.value, method, depth - 1)
                return Lock(replace(lock.key, via=via), lock.kind) if lock is not None else None
        return None

    def _subscript(self, e: ast.Subscript, function: FunctionInfo, depth: int) -> Lock | None:
        """An element of a container of locks."""
        value = self.values.infer(e.value, function)
        kind = value.element if value is not None else None
        base = e.value
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if kind is None:
            kind = kinds.guess(name) if value is None else None
        if kind is None or not name:
            return None
        own = isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name)
        owner = function.cls.dotted if own and function.cls is not None else function.dotted
        return Lock(Key(owner, f"{name}[]", ast.unparse(e.slice), local=not own), kind)

    def _returned(self, e: ast.Call, function: FunctionInfo) -> Lock | None:
        if isinstance(e.func, ast.Attribute) and e.func.attr == "get_lock" and not e.args:
            kind = kinds.CONSTRUCTORS["multiprocessing.RLock"]
            return Lock(Key(function.dotted, ast.unparse(e), local=True), kind)
        target = self.values.callee(e, function)
        if target is None:
            return None
        value = self.values.infer(e, function)
        if value is None or value.kind is None:
            return None
        arguments = ", ".join(ast.unparse(a) for a in e.args)
        return Lock(
            Key(target.dotted.rpartition(".")[0], f"{target.qualname.rpartition('.')[2]}()", arguments), value.kind
        )

    # Calls

    def operation(self, call: ast.Call, function: FunctionInfo, busy_is_caught: bool) -> Operation | None:
        """What a call does to a lock. `busy_is_caught`: the function handles posix_ipc.BusyError somewhere."""
        if not isinstance(call.func, ast.Attribute):
            return None
        name = call.func.attr
        known = kinds.METHODS.get(name) or kinds.RW_METHODS.get(name)
        if known is None and name not in ("wait", "wait_for"):
            return None
        receiver = call.func.value
        if isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Name) and receiver.func.id == "super":
            return None
        lock = self.resolve(receiver, function)
        if lock is None and name.startswith("__") and isinstance(receiver, ast.Call):
            return self._entered(receiver, function, known)
        if lock is None:
            return None
        if known is None:
            return Operation(lock, "wait") if lock.kind.condition or not lock.kind.known else None
        if name in ("lock", "unlock") and lock.kind.known:
            return None
        action, mode = known
        if action == "release":
            # pool.release(connection), condition.release(): only semaphores take an argument.
            if call.args and not lock.kind.counting and not name.startswith("__"):
                return None
            return Operation(_side(lock, mode), action, mode)
        return Operation(_side(lock, mode), action, mode, _how(call, lock.kind, busy_is_caught))

    def _entered(self, call: ast.Call, function: FunctionInfo, known: tuple[str, str] | None) -> Operation | None:
        """lock.read().__enter__()"""
        lock, mode = self.context(call, function) or (None, "")
        if lock is None or known is None:
            return None
        return Operation(lock, known[0], mode)

    def context(self, e: ast.expr, function: FunctionInfo) -> tuple[Lock, str] | None:
        """The lock and mode that `with e:` takes."""
        lock = self.resolve(e, function)
        if lock is not None:
            return lock, ""
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Attribute) and e.func.attr in kinds.WITH_MODES:
            lock = self.resolve(e.func.value, function)
            mode = kinds.WITH_MODES[e.func.attr]
            if lock is not None and (not lock.kind.known or lock.kind is kinds.READ_LOCK):
                return _side(lock, mode), mode
        return None


def _side(lock: Lock, mode: str) -> Lock:
    """The read and the write side of a lock whose methods tell them apart are two locks to us."""
    if not mode or lock.kind is kinds.READ_LOCK:
        return lock
    return Lock(replace(lock.key, name=f"{lock.key.name}:{mode}"), lock.kind)


def _how(call: ast.Call, kind: Kind, busy_is_caught: bool) -> str:
    """Whether an acquire may come back without the lock, and how it says so."""
    if kind.raises or (busy_is_caught and not kind.known):
        return "raises" if call.args or call.keywords else "must"
    if kind.family == "asyncio":
        return "must"
    arguments = {k.arg: k.value for k in call.keywords}
    for name, value in zip(("blocking", "timeout"), call.args, strict=False):
        arguments.setdefault(name, value)
    blocking = arguments.get("blocking", arguments.get("block"))
    if blocking is not None and not (isinstance(blocking, ast.Constant) and blocking.value):
        return "maybe"
    timeout = arguments.get("timeout")
    if timeout is None or ast.unparse(timeout) in ("None", "-1"):
        return "must"
    return "maybe"


def module_function(module: ModuleInfo) -> FunctionInfo:
    return next(f for f in module.functions if f.node is None)
