"""What is known of a path: how tests came out, which exception is on its way.

Facts keep apart the paths that a test has parted: `if got:` after `got = lock.acquire(False)`, or two tests of a flag.
An atom is the text of a simple test; a fact is (atom, how it came out).
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from typing import NamedTuple

from lockcheck.graph import Graph, Step

Facts = frozenset[tuple[str, bool]]

_WORDS = re.compile(r"[A-Za-z_]\w*")


def result_atom(call: ast.Call) -> str:
    """The atom for what a call returns."""
    return f"@{call.lineno}:{call.col_offset}"


def atom(e: ast.expr) -> tuple[str, bool] | None:
    """The atom of a test, and whether the test is true when the atom is. None for tests that are not followed."""
    if isinstance(e, ast.NamedExpr):
        return atom(e.target)
    if isinstance(e, ast.Await):
        return atom(e.value)
    if isinstance(e, ast.Call):
        if isinstance(e.func, ast.Name) and e.func.id in ("isinstance", "len", "callable", "bool", "hasattr"):
            return ast.unparse(e), True
        return result_atom(e), True
    if isinstance(e, (ast.Name, ast.Attribute)):
        return ast.unparse(e), True
    if isinstance(e, ast.Compare) and len(e.ops) == 1 and not _has_call(e):
        left, op, right = ast.unparse(e.left), e.ops[0], e.comparators[0]
        if isinstance(right, ast.Constant) and isinstance(right.value, bool) and isinstance(op, (ast.Is, ast.IsNot)):
            return left, right.value == isinstance(op, ast.Is)
        opposite = {ast.IsNot: "is", ast.NotEq: "==", ast.NotIn: "in"}.get(type(op))
        if opposite is not None:
            return f"{left} {opposite} {ast.unparse(right)}", False
        return ast.unparse(e), True
    return None


def _has_call(e: ast.expr) -> bool:
    return any(isinstance(n, (ast.Call, ast.Await, ast.NamedExpr)) for n in ast.walk(e))


def loop_atom(node: ast.AST | None) -> str:
    return f"any {ast.unparse(node.iter)}" if isinstance(node, (ast.For, ast.AsyncFor)) else ""


def worth_tracking(graph: Graph) -> frozenset[str]:
    """Atoms that are tested twice, or that are variables which get constants or results of calls."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for node in graph.nodes:
        if id(node.item) in seen or node.item is None:
            continue
        if node.step is Step.TEST and isinstance(node.item, ast.expr):
            seen.add(id(node.item))
            found = atom(node.item)
            if found is not None:
                counts[found[0]] += 1
        elif node.step is Step.LOOP and node.first:
            seen.add(id(node.item))
            counts[loop_atom(node.item)] += 1
        elif node.step is Step.ASSIGN and isinstance(node.item, (ast.Assign, ast.NamedExpr, ast.AnnAssign)):
            seen.add(id(node.item))
            value = node.item.value.value if isinstance(node.item.value, ast.Await) else node.item.value
            if isinstance(value, (ast.Constant, ast.Call)):
                for target in targets(node.item):
                    counts[target] += 1
                    counts[f"{target} is None"] += 1
    return frozenset(a for a, n in counts.items() if n > 1 or a.startswith("@"))


def targets(item: ast.AST) -> list[str]:
    """The texts of what an ASSIGN step binds."""
    found: list[ast.expr] = []
    if isinstance(item, ast.Assign):
        found = list(item.targets)
    elif isinstance(item, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.AsyncFor)):
        found = [item.target]
    elif isinstance(item, ast.Delete):
        found = list(item.targets)
    elif isinstance(item, ast.match_case):
        return [n.name for n in ast.walk(item.pattern) if isinstance(n, (ast.MatchAs, ast.MatchStar)) and n.name]
    texts = []
    while found:
        one = found.pop()
        if isinstance(one, (ast.Tuple, ast.List)):
            found.extend(one.elts)
        elif isinstance(one, ast.Starred):
            found.append(one.value)
        else:
            texts.append(ast.unparse(one))
    return texts


def learn(facts: Facts, name: str, came_out: bool, tracked: frozenset[str]) -> Facts | None:
    """The facts after a test; None if the test cannot have come out like this."""
    if (name, not came_out) in facts:
        return None
    if name.endswith(" is None"):
        subject = name.removesuffix(" is None")
        if came_out and (subject, True) in facts:
            return None
    elif came_out and (f"{name} is None", True) in facts:
        return None
    return facts | {(name, came_out)} if name in tracked else facts


def assign(facts: Facts, item: ast.AST, tracked: frozenset[str]) -> Facts:
    """The facts after an ASSIGN step."""
    names = targets(item)
    value = getattr(item, "value", None)
    result: bool | None = None
    if isinstance(value, (ast.Call, ast.Await)):
        call = value.value if isinstance(value, ast.Await) else value
        if isinstance(call, ast.Call):
            result = truth(call, facts)
    facts = frozenset(f for f in facts if not any(name in mentioned(f[0]) for name in names))
    if isinstance(item, ast.AugAssign):
        return facts
    for name in names:
        if isinstance(value, ast.Constant):
            result = bool(value.value)
            if f"{name} is None" in tracked:
                facts |= {(f"{name} is None", value.value is None)}
        if result is not None and name in tracked:
            facts |= {(name, result)}
    return facts


def truth(e: ast.expr | None, facts: Facts) -> bool | None:
    """Whether an expression is known to be true or false."""
    if e is None:
        return False
    if isinstance(e, ast.Constant):
        return bool(e.value)
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.Not):
        inner = truth(e.operand, facts)
        return None if inner is None else not inner
    found = atom(e)
    if found is None:
        return None
    for came_out in (True, False):
        if (found[0], came_out) in facts:
            return came_out == found[1]
    return None


def mentioned(text: str) -> set[str]:
    """Names and dotted names in an atom."""
    words = set(_WORDS.findall(text))
    return words | set(re.findall(r"[A-Za-z_][\w.]*", text))


class Raised(NamedTuple):
    """An exception on its way."""

    #: call, yield, await, raise, assert, busy
    kind: str
    line: int
    #: The class, where a `raise` names it.
    name: str = ""


def catches(handler: ast.ExceptHandler, raised: Raised) -> bool | None:
    """Whether a handler takes an exception; None if that cannot be told."""
    if handler.type is None:
        return True
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    answers = [_matches(ast.unparse(t).rpartition(".")[2], raised) for t in types]
    if True in answers:
        return True
    return None if None in answers else False


def _matches(name: str, raised: Raised) -> bool | None:
    if name == "BaseException":
        return True
    if raised.kind == "busy":
        return name in ("BusyError", "Error", "OSError", "Exception")
    if raised.kind in ("yield", "await"):
        return None
    if name == "Exception":
        return raised.name not in ("KeyboardInterrupt", "SystemExit", "GeneratorExit", "CancelledError")
    if not raised.name:
        return None
    if raised.name == name:
        return True
    mine, its = getattr(builtins, raised.name, None), getattr(builtins, name, None)
    if isinstance(mine, type) and isinstance(its, type):
        return issubclass(mine, its)
    return None
