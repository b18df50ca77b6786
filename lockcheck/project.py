"""An index of the sources under check: modules, classes, functions, and what their names stand for.

Names are resolved through imports, plain assignments, annotations, `self` attributes over a class and its bases, and
what simple functions return. Where that fails the answer is None: nothing is run, and no import is followed out of the
files that were given.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lockcheck.cfg import Function


@dataclass(slots=True, eq=False)
class ClassInfo:
    module: ModuleInfo
    qualname: str
    node: ast.ClassDef
    methods: dict[str, FunctionInfo] = field(default_factory=dict)
    #: attribute -> what is assigned to it, or its annotation, anywhere in the class.
    attributes: dict[str, list[Source]] = field(default_factory=dict)

    @property
    def dotted(self) -> str:
        return f"{self.module.name}.{self.qualname}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a variable gets its value from."""

    expression: ast.expr
    #: The expression is a type.
    annotation: bool
    function: FunctionInfo | None
    #: An element of what the expression gives: the target of a `for`.
    element: bool = False


@dataclass(slots=True, eq=False)
class FunctionInfo:
    module: ModuleInfo
    qualname: str
    node: Function | None  # None: the body of the module
    cls: ClassInfo | None = None
    parent: FunctionInfo | None = None
    self_name: str = ""
    variables: dict[str, list[Source]] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)

    @property
    def dotted(self) -> str:
        return f"{self.module.name}.{self.qualname}"

    @property
    def body(self) -> list[ast.stmt]:
        return self.node.body if self.node is not None else self.module.tree.body


@dataclass(slots=True, eq=False)
class ModuleInfo:
    name: str
    path: str
    tree: ast.Module
    lines: list[str]
    is_package: bool = False
    imports: dict[str, str] = field(default_factory=dict)
    variables: dict[str, list[Source]] = field(default_factory=dict)
    classes: dict[str, ClassInfo] = field(default_factory=dict)
    functions: list[FunctionInfo] = field(default_factory=list)
    by_name: dict[str, FunctionInfo] = field(default_factory=dict)


class _Indexer(ast.NodeVisitor):
    """Fills a ModuleInfo."""

    def __init__(self, module: ModuleInfo) -> None:
        self.module = module
        self.cls: ClassInfo | None = None
        self.function: FunctionInfo | None = None
        self.prefix = ""

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            first = name.name.partition(".")[0]
            self.module.imports[name.asname or first] = name.name if name.asname else first

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        if node.level:
            package = self.module.name.split(".")
            keep = len(package) - node.level + self.module.is_package
            source = ".".join([*package[: max(keep, 0)], *([source] if source else [])])
        for name in node.names:
            self.module.imports[name.asname or name.name] = f"{source}.{name.name}"

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        saved = self.cls, self.prefix
        self.cls = ClassInfo(self.module, self.prefix + node.name, node)
        self.module.classes[self.cls.qualname] = self.cls
        self.prefix += node.name + "."
        for child in node.body:
            self.visit(child)
        self.cls, self.prefix = saved

    def visit_FunctionDef(self, node: Function) -> None:
        saved = self.function, self.prefix, self.cls
        # A class inside a function has methods of its own; a function inside a method still sees its class.
        is_method = self.cls is not None and self.prefix == self.cls.qualname + "."
        info = FunctionInfo(self.module, self.prefix + node.name, node, self.cls, self.function)
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        arguments = node.args.posonlyargs + node.args.args
        if is_method:
            assert self.cls is not None
            self.cls.methods[node.name] = info
            if arguments and not static:
                info.self_name = arguments[0].arg
        elif self.function is not None:
            info.self_name = self.function.self_name
        if not self.prefix:
            self.module.by_name[node.name] = info
        for argument in arguments + node.args.kwonlyargs:
            sources = info.variables.setdefault(argument.arg, [])
            if argument.annotation is not None:
                sources.append(Source(argument.annotation, True, info))
        self.module.functions.append(info)
        self.function, self.prefix = info, self.prefix + node.name + "."
        for child in node.body:
            self.visit(child)
        self.function, self.prefix, self.cls = saved

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Global(self, node: ast.Global) -> None:
        if self.function is not None:
            self.function.globals.update(node.names)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(target, node.value, False)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._bind(node.target, node.annotation, True)
        if node.value is not None:
            self._bind(node.target, node.value, False)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, node.value, False)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._bind(node.target, node.iter, False, element=True)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self.visit_For(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr, False)
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self.visit_With(node)

    def _bind(self, target: ast.expr, value: ast.expr, annotation: bool, element: bool = False) -> None:
        source = Source(value, annotation, self.function, element)
        if isinstance(target, (ast.Tuple, ast.List)):
            values: list[ast.expr | None] = [None] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
                values = list(value.elts)
            for part, its in zip(target.elts, values, strict=True):
                if its is not None:
                    self._bind(part, its, annotation, element)
                elif isinstance(part, ast.Name):
                    self._scope(part.id).setdefault(part.id, [])
        elif isinstance(target, ast.Name):
            self._scope(target.id).setdefault(target.id, []).append(source)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            if self.function is not None and self.cls is not None and target.value.id == self.function.self_name:
                self.cls.attributes.setdefault(target.attr, []).append(source)
        elif isinstance(target, ast.Subscript) and not element:
            # locks[key] = Lock(): what the container holds
            base = target.value
            wrapped = ast.copy_location(ast.List([value], ast.Load()), value)
            if isinstance(base, (ast.Name, ast.Attribute)):
                self._bind(base, wrapped, annotation)

    def _scope(self, name: str) -> dict[str, list[Source]]:
        if self.function is not None:
            return self.module.variables if name in self.function.globals else self.function.variables
        if self.cls is not None:
            return self.cls.attributes
        return self.module.variables


def module_name(path: Path) -> str:
    """The dotted name by which a file is imported, from the packages around it."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.resolve().parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts) or path.parent.name


def index(path: Path, shown: str) -> ModuleInfo:
    """Raises OSError, SyntaxError, UnicodeDecodeError, ValueError (null bytes)."""
    source = path.read_bytes()
    tree = ast.parse(source, filename=shown)
    lines = source.decode("utf-8", "replace").splitlines()
    module = ModuleInfo(module_name(path), shown, tree, lines, path.name == "__init__.py")
    _Indexer(module).visit(tree)
    module.functions.append(FunctionInfo(module, "<module>", None))
    return module


def _is_alias(source: Source, name: str) -> bool:
    e = source.expression
    return isinstance(e, (ast.Name, ast.Attribute)) and not source.annotation and ast.unparse(e) != name


class Project:
    """All modules, and look-ups across them."""

    def __init__(self, modules: list[ModuleInfo]) -> None:
        self.modules = modules
        self.by_name = {module.name: module for module in modules}
        self.classes = {cls.dotted: cls for module in modules for cls in module.classes.values()}

    def dotted(self, e: ast.expr, module: ModuleInfo, function: FunctionInfo | None = None) -> str:
        """The full dotted name of a name or attribute chain; empty if it is anything else or starts at a variable."""
        if isinstance(e, ast.Attribute):
            base = self.dotted(e.value, module, function)
            return self.canonical(f"{base}.{e.attr}") if base else ""
        if not isinstance(e, ast.Name) or self._is_local(e.id, function):
            return ""
        name = e.id
        if name in module.classes or name in module.by_name:
            return f"{module.name}.{name}"
        if name in module.imports:
            return self.canonical(module.imports[name])
        sources = module.variables.get(name, [])
        if len(sources) == 1 and _is_alias(sources[0], name):
            return self.dotted(sources[0].expression, module) or f"{module.name}.{name}"
        return f"{module.name}.{name}" if sources else name

    @staticmethod
    def _is_local(name: str, function: FunctionInfo | None) -> bool:
        while function is not None:
            if name in function.variables:
                return True
            function = function.parent
        return False

    def canonical(self, dotted: str, depth: int = 5) -> str:
        """Follow re-exports: asyncio.Lock stays, package.Class becomes package.module.Class."""
        base, _, name = dotted.rpartition(".")
        module = self.by_name.get(base)
        if module is not None and depth and name in module.imports:
            target = module.imports[name]
            return self.canonical(target, depth - 1) if target != dotted else dotted
        return dotted

    def bases(self, cls: ClassInfo) -> Iterator[ClassInfo]:
        """The class and those of its ancestors that are in the project, nearest first."""
        seen: set[str] = set()
        todo = [cls]
        while todo:
            one = todo.pop(0)
            if one.dotted in seen:
                continue
            seen.add(one.dotted)
            yield one
            for base in one.node.bases:
                found = self.classes.get(self.dotted(base, one.module))
                if found is not None:
                    todo.append(found)

    def method(self, cls: ClassInfo, name: str) -> FunctionInfo | None:
        return next((one.methods[name] for one in self.bases(cls) if name in one.methods), None)

    def function(self, dotted: str) -> FunctionInfo | None:
        base, _, name = dotted.rpartition(".")
        module = self.by_name.get(base)
        return module.by_name.get(name) if module is not None else None
