"""What an expression gives: a lock of some kind, a container of locks, or an object of a class that matters."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from lockcheck import kinds
from lockcheck.model import Kind
from lockcheck.project import ClassInfo, FunctionInfo, ModuleInfo, Project, Source

#: How far to follow assignments and returns.
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Value:
    kind: Kind | None = None
    #: Containers: what they hold.
    element: Kind | None = None
    #: Dotted name of a class in the project, or a word of kinds.OTHER_TYPES.
    type: str = ""
    element_type: str = ""
    #: threading.Condition(this): the lock that it takes.
    alias: ast.expr | None = None


class Values:
    def __init__(self, project: Project) -> None:
        self.project = project
        self._known: dict[tuple[int, bool, bool], Value | None] = {}

    def from_sources(self, sources: list[Source], module: ModuleInfo, depth: int) -> Value | None:
        for source in sources:
            key = (id(source.expression), source.annotation, source.element)
            if key not in self._known:
                self._known[key] = None  # ends recursion
                self._known[key] = self._from_source(source, module, depth)
            value = self._known[key]
            if value is not None:
                return value
        return None

    def _from_source(self, source: Source, module: ModuleInfo, depth: int) -> Value | None:
        if source.annotation:
            return self.from_annotation(source.expression, module)
        function = source.function or FunctionInfo(module, "<module>", None)
        value = self.infer(source.expression, function, depth - 1)
        if source.element and value is not None:
            return Value(kind=value.element, type=value.element_type) if value.element or value.element_type else None
        return value

    def infer(self, e: ast.expr, function: FunctionInfo, depth: int = _DEPTH) -> Value | None:
        if depth <= 0:
            return None
        if isinstance(e, ast.Call):
            return self._call(e, function, depth)
        if isinstance(e, (ast.Await, ast.NamedExpr)):
            return self.infer(e.value, function, depth)
        if isinstance(e, ast.BoolOp):
            return self._first(e.values, function, depth)
        if isinstance(e, ast.IfExp):
            return self._first([e.body, e.orelse], function, depth)
        if isinstance(e, (ast.List, ast.Tuple, ast.Set)):
            return self._container(self._first(e.elts, function, depth))
        if isinstance(e, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            return self._container(self.infer(e.elt, function, depth - 1))
        if isinstance(e, ast.Dict):
            return self._container(self._first(e.values, function, depth))
        if isinstance(e, ast.DictComp):
            return self._container(self.infer(e.value, function, depth - 1))
        if isinstance(e, ast.Subscript):
            base = self.infer(e.value, function, depth - 1)
            return Value(kind=base.element, type=base.element_type) if base is not None else None
        if isinstance(e, ast.Name):
            return self._name(e.id, function, depth)
        if isinstance(e, ast.Attribute):
            return self._attribute(e, function, depth)
        return None

    def _first(self, expressions: list[ast.expr], function: FunctionInfo, depth: int) -> Value | None:
        for e in expressions:
            value = self.infer(e, function, depth - 1)
            if value is not None:
                return value
        return None

    @staticmethod
    def _container(value: Value | None) -> Value | None:
        return Value(element=value.kind, element_type=value.type) if value is not None else None

    def _call(self, e: ast.Call, function: FunctionInfo, depth: int) -> Value | None:
        dotted = self.project.dotted(e.func, function.module, function)
        made = self._constructed(dotted, e, function, depth)
        if made is not None:
            return made
        name = dotted.rpartition(".")[2]
        if name == "field":
            factories = [k.value for k in e.keywords if k.arg == "default_factory"]
            return self._factory(factories[0], function) if factories else None
        if name in ("defaultdict", "partial") and e.args:
            made = self._factory(e.args[0], function)
            return self._container(made) if name == "defaultdict" else made
        target = self.callee(e, function, depth)
        if target is not None and target.node is not None:
            return self._returned(target, depth)
        if isinstance(e.func, ast.Attribute):
            if e.func.attr in kinds.BY_METHOD:
                return Value(kind=kinds.BY_METHOD[e.func.attr])
            if e.func.attr in ("get", "setdefault", "pop"):
                base = self.infer(e.func.value, function, depth - 1)
                return Value(kind=base.element, type=base.element_type) if base and base.element else None
            if e.func.attr == "submit":
                return Value(type="future")
        return None

    def _constructed(self, dotted: str, e: ast.Call, function: FunctionInfo, depth: int) -> Value | None:
        kind = kinds.CONSTRUCTORS.get(dotted)
        if kind is not None:
            if kind is kinds.POSIX_SEMAPHORE:
                ones = [k for k in e.keywords if k.arg == "initial_value" and ast.unparse(k.value) == "1"]
                return Value(kind=kinds.POSIX_MUTEX if ones else kind)
            arguments = e.args + [k.value for k in e.keywords if k.arg == "lock"]
            if kind.condition and arguments and not isinstance(arguments[0], ast.Constant):
                inner = self.infer(arguments[0], function, depth - 1)
                if inner is not None and inner.kind is not None:
                    kind = Kind(kind.name, kind.family, inner.kind.reentrant, condition=True)
                return Value(kind=kind, alias=arguments[0])
            return Value(kind=kind)
        if dotted in kinds.OTHER_TYPES:
            made = kinds.OTHER_TYPES[dotted]
            return Value(type=f"unbounded {made}" if made == "queue" and not (e.args or e.keywords) else made)
        return Value(type=dotted) if dotted in self.project.classes else None

    def _factory(self, e: ast.expr, function: FunctionInfo) -> Value | None:
        """What calling this without arguments gives."""
        if isinstance(e, ast.Lambda):
            return self.infer(e.body, function)
        call = ast.copy_location(ast.Call(e, [], []), e)
        return self._call(call, function, _DEPTH)

    def _returned(self, target: FunctionInfo, depth: int) -> Value | None:
        assert target.node is not None
        if target.node.returns is not None:
            value = self.from_annotation(target.node.returns, target.module)
            if value is not None:
                return value
        for node in ast.walk(target.node):
            if isinstance(node, ast.Return) and node.value is not None:
                value = self.infer(node.value, target, depth - 2)
                if value is not None:
                    return value
        return None

    def callee(self, e: ast.Call, function: FunctionInfo, depth: int = _DEPTH) -> FunctionInfo | None:
        """The function of the project that a call runs, where that is plain."""
        if isinstance(e.func, ast.Attribute):
            cls = self.class_of(e.func.value, function, depth)
            if cls is not None:
                return self.project.method(cls, e.func.attr)
        elif isinstance(e.func, ast.Name):
            nested = next((f for f in function.module.functions if f.parent is function
                           and f.qualname == f"{function.qualname}.{e.func.id}"), None)  # fmt: skip
            if nested is not None:
                return nested
        return self.project.function(self.project.dotted(e.func, function.module, function))

    def class_of(self, e: ast.expr, function: FunctionInfo, depth: int = _DEPTH) -> ClassInfo | None:
        """The class of the project that an object is an instance of."""
        if isinstance(e, ast.Name) and e.id == function.self_name:
            return function.cls
        if isinstance(e, ast.Name) and e.id == "cls" and function.cls is not None:
            return function.cls
        dotted = self.project.dotted(e, function.module, function)
        if dotted in self.project.classes:
            return self.project.classes[dotted]
        value = self.infer(e, function, depth - 1)
        return self.project.classes.get(value.type) if value is not None else None

    def _name(self, name: str, function: FunctionInfo, depth: int) -> Value | None:
        scope: FunctionInfo | None = function
        while scope is not None:
            if name in scope.variables:
                return self.from_sources(scope.variables[name], scope.module, depth)
            scope = scope.parent
        return self._global(self.project.dotted(ast.Name(name), function.module), depth)

    def _global(self, dotted: str, depth: int) -> Value | None:
        base, _, name = dotted.rpartition(".")
        module = self.project.by_name.get(base)
        if module is None:
            return None
        return self.from_sources(module.variables.get(name, []), module, depth)

    def _attribute(self, e: ast.Attribute, function: FunctionInfo, depth: int) -> Value | None:
        cls = self.class_of(e.value, function, depth - 1)
        if cls is not None:
            return self.attribute(cls, e.attr, depth)
        dotted = self.project.dotted(e, function.module, function)
        return self._global(dotted, depth) if dotted else None

    def attribute(self, cls: ClassInfo, name: str, depth: int = _DEPTH) -> Value | None:
        for one in self.project.bases(cls):
            value = self.from_sources(one.attributes.get(name, []), one.module, depth)
            if value is not None:
                return value
        return None

    def from_annotation(self, e: ast.expr, module: ModuleInfo) -> Value | None:
        if isinstance(e, ast.Constant) and isinstance(e.value, str):
            try:
                return self.from_annotation(ast.parse(e.value, mode="eval").body, module)
            except SyntaxError:
                return None
        if isinstance(e, ast.BinOp):
            return self.from_annotation(e.left, module) or self.from_annotation(e.right, module)
        if isinstance(e, ast.Subscript):
            outer = self.project.dotted(e.value, module).rpartition(".")[2].lower()
            parts = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
            inner = next(filter(None, (self.from_annotation(part, module) for part in reversed(parts))), None)
            if outer in ("optional", "union", "final", "classvar", "annotated"):
                return inner
            return self._container(inner) if outer not in ("type", "callable") else None
        dotted = self.project.dotted(e, module)
        if dotted in kinds.CONSTRUCTORS:
            return Value(kind=kinds.CONSTRUCTORS[dotted])
        if dotted in kinds.OTHER_TYPES:
            return Value(type=kinds.OTHER_TYPES[dotted])
        return Value(type=dotted) if dotted in self.project.classes else None
