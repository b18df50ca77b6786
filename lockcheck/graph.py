"""The parts of a control-flow graph (cfg.py builds it)."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from enum import Enum, auto

#: Copies of `finally` bodies multiply; a function that grows beyond this many nodes is given up.
MAX_NODES = 20_000


class Step(Enum):
    ENTRY = auto()
    CALL = auto()  # ast.Call
    AWAIT = auto()  # ast.Await, or the async `for` or `with` that waits
    YIELD = auto()  # ast.Yield, ast.YieldFrom
    ASSIGN = auto()  # ast.Assign, AnnAssign, AugAssign, NamedExpr, For (its target), Delete
    VALUE = auto()  # ast.expr that is only mentioned: a lock handed on
    TEST = auto()  # ast.expr; edges TRUE and FALSE
    LOOP = auto()  # ast.For: is there another element? edges TRUE and FALSE
    ENTER = auto()  # ast.withitem
    LEAVE = auto()  # ast.withitem
    RAISE = auto()  # ast.Raise, ast.Assert
    DISPATCH = auto()  # ast.Try: which handler? edges CATCH and UNCAUGHT
    CAUGHT = auto()  # ast.ExceptHandler
    RETURN = auto()  # ast.Return
    JUMP = auto()  # ast.Break, ast.Continue
    END = auto()  # the normal exit
    FAIL = auto()  # the exit by exception


class Label(Enum):
    NEXT = auto()
    TRUE = auto()
    FALSE = auto()
    RAISES = auto()
    CATCH = auto()
    UNCAUGHT = auto()


@dataclass(slots=True, eq=False)
class Node:
    step: Step
    item: ast.AST | None
    line: int
    column: int
    next: list[tuple[Label, Node]] = field(default_factory=list)
    #: For JUMP, RETURN and LOOP: whether it is the first arrival at a loop.
    first: bool = False

    def __repr__(self) -> str:
        return f"<{self.step.name} {self.line}>"


class TooTangledError(Exception):
    """The graph grew beyond MAX_NODES."""


@dataclass(slots=True)
class Graph:
    entry: Node
    end: Node
    fail: Node
    nodes: list[Node]


def contains_steps(e: ast.expr) -> bool:
    return any(isinstance(n, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)) for n in ast.walk(e))


#: Calls after which no lock of this process matters any more.
_NEVER_RETURN = {"os._exit", "os.abort", "sys.exit", "os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl"}


def never_returns(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func) in _NEVER_RETURN


def swallows(e: ast.expr) -> bool:
    """Whether a context manager is one of those that catch exceptions."""
    if not isinstance(e, ast.Call):
        return False
    name = e.func.attr if isinstance(e.func, ast.Attribute) else getattr(e.func, "id", "")
    return name in ("suppress", "raises", "assertRaises", "assertRaisesRegex")
