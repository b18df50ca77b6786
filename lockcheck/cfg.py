"""The control-flow graph of one function, from its `ast`.

A node is one step: a call, an assignment, a test, the way into or out of a `with`. Edges carry labels. Each call,
`await` and `yield` also has an edge for the exception that may come out of it; it leads through the cleanups on its way
(`finally` bodies, exits of `with`), which are copied for each way that control takes through them, as a compiler does.
So a path through the graph is a path that the program can take, save for what tests and exception types forbid:
that is for whoever walks it (flow.py).

`Builder.raise_target` is the heart: the node that an exception raised at this point goes to.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field

from lockcheck.graph import (
    MAX_NODES,
    Graph,
    Label,
    Node,
    Step,
    TooTangledError,
    contains_steps,
    never_returns,
    swallows,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


Tails = list[tuple[Node, Label]]


@dataclass(slots=True)
class _Loop:
    again: Node
    breaks: Tails = field(default_factory=list)


@dataclass(slots=True)
class _Cleanup:
    """A `finally` body or the exit of a `with`: `build` adds it to the graph at the present tails."""

    build: Callable[[], None]
    swallows: bool = False
    swallowed: Tails = field(default_factory=list)
    on_raise: Node | None = None


@dataclass(slots=True)
class _Handlers:
    dispatch: Node


class Builder:
    """Use `build_graph`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tails: Tails = []
        self.frames: list[_Loop | _Cleanup | _Handlers] = []
        self.end = self._node(Step.END, None)
        self.fail = self._node(Step.FAIL, None)
        self.entry = self._node(Step.ENTRY, None)
        self.tails = [(self.entry, Label.NEXT)]

    def _node(self, step: Step, item: ast.AST | None) -> Node:
        if len(self.nodes) > MAX_NODES:
            raise TooTangledError
        where = item.context_expr if isinstance(item, ast.withitem) else item
        node = Node(step, item, getattr(where, "lineno", 0), getattr(where, "col_offset", -1) + 1)
        self.nodes.append(node)
        return node

    def add(self, step: Step, item: ast.AST | None, raises: bool = False) -> Node:
        node = self._node(step, item)
        self._land(node)
        self.tails = [(node, Label.NEXT)]
        if raises:
            node.next.append((Label.RAISES, self.raise_target()))
        return node

    def _land(self, node: Node) -> None:
        """All open ends lead to this node."""
        for tail, label in self.tails:
            tail.next.append((label, node))
        self.tails = []

    # Ways out

    def raise_target(self) -> Node:
        """The node that an exception raised here goes to."""
        for depth in range(len(self.frames) - 1, -1, -1):
            frame = self.frames[depth]
            if isinstance(frame, _Handlers):
                return frame.dispatch
            if isinstance(frame, _Cleanup):
                if frame.on_raise is None:
                    self._build_on_raise(frame, depth)
                assert frame.on_raise is not None
                return frame.on_raise
        return self.fail

    def _build_on_raise(self, frame: _Cleanup, depth: int) -> None:
        """The copy of a cleanup that exceptions go through."""
        saved = self.tails, self.frames
        self.frames = self.frames[:depth]
        frame.on_raise = self._node(Step.ENTRY, None)
        self.tails = [(frame.on_raise, Label.NEXT)]
        frame.build()
        if frame.swallows:
            frame.swallowed = list(self.tails)
        if self.tails:
            self._land(self.raise_target())
        self.tails, self.frames = saved

    def unwind(self, depth: int) -> None:
        """Run the cleanups of all frames above `depth`, innermost first, as return, break and continue do."""
        saved = self.frames
        while len(self.frames) > depth:
            frame = self.frames[-1]
            self.frames = self.frames[:-1]
            if isinstance(frame, _Cleanup):
                frame.build()
        self.frames = saved

    # Statements

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if not self.tails:
                return  # nothing gets here
            self.statement(statement)

    def statement(self, s: ast.stmt) -> None:
        method = getattr(self, f"_{type(s).__name__}", None)
        if method is not None:
            method(s)
        # Nested functions and classes, imports, pass, global: nothing that control or a lock goes through.

    def _Expr(self, s: ast.Expr) -> None:
        self.expression(s.value)

    def _Assign(self, s: ast.Assign) -> None:
        self.expression(s.value)
        for target in s.targets:
            self.expression(target)
        self.add(Step.ASSIGN, s)

    def _AugAssign(self, s: ast.AugAssign) -> None:
        self.expression(s.value)
        self.add(Step.ASSIGN, s)

    def _AnnAssign(self, s: ast.AnnAssign) -> None:
        if s.value is not None:
            self.expression(s.value)
            self.add(Step.ASSIGN, s)

    def _Delete(self, s: ast.Delete) -> None:
        self.add(Step.ASSIGN, s)

    def _Return(self, s: ast.Return) -> None:
        if s.value is not None:
            self.expression(s.value)
        self.add(Step.RETURN, s)
        self.unwind(0)
        self._land(self.end)

    def _Raise(self, s: ast.Raise) -> None:
        for part in (s.exc, s.cause):
            if part is not None:
                self.expression(part)
        self.add(Step.RAISE, s, raises=True)
        self.tails = []

    def _Assert(self, s: ast.Assert) -> None:
        yes, no = self.condition(s.test)
        self.tails = no
        if self.tails:
            self.add(Step.RAISE, s, raises=True)
        self.tails = yes

    def _If(self, s: ast.If) -> None:
        yes, no = self.condition(s.test)
        self.tails = yes
        self.block(s.body)
        after = self.tails
        self.tails = no
        self.block(s.orelse)
        self.tails = after + self.tails

    def _While(self, s: ast.While) -> None:
        again = self.add(Step.ENTRY, s)
        yes, no = self.condition(s.test)
        self._loop_body(s, again, yes, no)

    def _loop_body(self, s: ast.While | ast.For | ast.AsyncFor, again: Node, yes: Tails, no: Tails) -> None:
        loop = _Loop(again)
        self.frames = [*self.frames, loop]
        self.tails = yes
        if not isinstance(s, ast.While) and yes:
            self.add(Step.ASSIGN, s)
        self.block(s.body)
        self._land(again)
        self.frames = self.frames[:-1]
        self.tails = no
        self.block(s.orelse)
        self.tails = self.tails + loop.breaks

    def _For(self, s: ast.For | ast.AsyncFor) -> None:
        self.expression(s.iter)
        first = self.add(Step.LOOP, s)
        first.first = True
        again = self._node(Step.LOOP, s)
        waits = []
        if isinstance(s, ast.AsyncFor):
            for node in (first, again):
                self.tails = [(node, Label.TRUE)]
                self.add(Step.AWAIT, s, raises=True)
                waits += self.tails
        yes = waits or [(first, Label.TRUE), (again, Label.TRUE)]
        no = [(first, Label.FALSE), (again, Label.FALSE)]
        self._loop_body(s, again, yes, no)

    _AsyncFor = _For

    def _leave_loop(self, s: ast.Break | ast.Continue) -> None:
        depth = max((i for i, frame in enumerate(self.frames) if isinstance(frame, _Loop)), default=None)
        if depth is None:
            return
        loop = self.frames[depth]
        assert isinstance(loop, _Loop)
        self.add(Step.JUMP, s)
        self.unwind(depth + 1)
        if isinstance(s, ast.Break):
            loop.breaks += self.tails
        else:
            self._land(loop.again)
        self.tails = []

    _Break = _Continue = _leave_loop

    def _With(self, s: ast.With | ast.AsyncWith) -> None:
        self._with_items(s, list(s.items))

    _AsyncWith = _With

    def _with_items(self, s: ast.With | ast.AsyncWith, items: list[ast.withitem]) -> None:
        if not items:
            self.block(s.body)
            return
        item = items[0]
        self.expression(item.context_expr)
        if isinstance(s, ast.AsyncWith):
            # Before ENTER: a cancelled wait has not entered.
            self.add(Step.AWAIT, s, raises=True)
        self.add(Step.ENTER, item, raises=True)
        frame = _Cleanup(lambda: self._leave_with(item), swallows(item.context_expr))
        self.frames = [*self.frames, frame]
        self._with_items(s, items[1:])
        self.frames = self.frames[:-1]
        if self.tails:
            frame.build()
        self.tails = self.tails + frame.swallowed

    def _leave_with(self, item: ast.withitem) -> None:
        self.add(Step.LEAVE, item)

    def _Try(self, s: ast.Try) -> None:
        depth = len(self.frames)
        if s.finalbody:
            body = s.finalbody
            self.frames = [*self.frames, _Cleanup(lambda: self.block(body))]
        after = self._guarded(s) if s.handlers else self._unguarded(s)
        self.frames = self.frames[:depth]
        self.tails = after
        if self.tails:
            self.block(s.finalbody)

    _TryStar = _Try

    def _unguarded(self, s: ast.Try) -> Tails:
        self.block(s.body)
        self.block(s.orelse)
        return self.tails

    def _guarded(self, s: ast.Try) -> Tails:
        dispatch = self._node(Step.DISPATCH, s)
        dispatch.next.append((Label.UNCAUGHT, self.raise_target()))
        self.frames = [*self.frames, _Handlers(dispatch)]
        self.block(s.body)
        self.frames = self.frames[:-1]
        self.block(s.orelse)
        after = self.tails
        for handler in s.handlers:
            self.tails = [(dispatch, Label.CATCH)]
            self.add(Step.CAUGHT, handler)
            self.block(handler.body)
            after = after + self.tails
        return after

    def _Match(self, s: ast.Match) -> None:
        self.expression(s.subject)
        start = self.add(Step.ENTRY, s)
        after: Tails = []
        misses: Tails = self.tails
        for case in s.cases:
            self.tails = [(start, Label.NEXT)] if case is s.cases[0] else misses
            head = self.add(Step.ASSIGN, case)
            sure = isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
            misses = [] if sure else [(head, Label.NEXT)]
            if case.guard is not None:
                yes, no = self.condition(case.guard)
                self.tails = yes
                misses = misses + no
            self.block(case.body)
            after = after + self.tails
        self.tails = after + misses

    # Expressions

    def condition(self, e: ast.expr) -> tuple[Tails, Tails]:
        """Evaluate a test: the open ends where it is true and where it is false."""
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.Not):
            yes, no = self.condition(e.operand)
            return no, yes
        if isinstance(e, ast.BoolOp):
            return self._short_circuit(e)
        if isinstance(e, ast.Constant):
            return (self.tails, []) if e.value else ([], self.tails)
        self.expression(e)
        if not self.tails:
            return [], []
        node = self.add(Step.TEST, e)
        return [(node, Label.TRUE)], [(node, Label.FALSE)]

    def _short_circuit(self, e: ast.BoolOp) -> tuple[Tails, Tails]:
        is_and = isinstance(e.op, ast.And)
        early: Tails = []
        yes: Tails = []
        no: Tails = []
        for operand in e.values:
            yes, no = self.condition(operand)
            early = early + (no if is_and else yes)
            self.tails = yes if is_and else no
        return (yes, early) if is_and else (early, no)

    def expression(self, e: ast.expr) -> None:
        """Add the steps of an expression in the order of their evaluation."""
        if isinstance(e, ast.BoolOp) and contains_steps(e):
            yes, no = self.condition(e)
            self.tails = yes + no
            return
        if isinstance(e, ast.IfExp) and contains_steps(e):
            yes, no = self.condition(e.test)
            self.tails = yes
            self.expression(e.body)
            after = self.tails
            self.tails = no
            self.expression(e.orelse)
            self.tails = after + self.tails
            return
        if isinstance(e, ast.Lambda):
            self.add(Step.VALUE, e)
            return
        for child in ast.iter_child_nodes(e):
            if isinstance(e, ast.Call) and child is e.func and isinstance(child, ast.Attribute):
                self.expression(child.value)  # not a mention of the method: a call of it
            elif isinstance(child, ast.expr):
                self.expression(child)
            elif isinstance(child, (ast.keyword, ast.comprehension)):
                for part in ast.iter_child_nodes(child):
                    if isinstance(part, ast.expr):
                        self.expression(part)
        self._own_step(e)

    def _own_step(self, e: ast.expr) -> None:
        if isinstance(e, ast.Call):
            node = self.add(Step.CALL, e, raises=True)
            if never_returns(e):
                node.next = []
                self.tails = []
        elif isinstance(e, ast.Await):
            self.add(Step.AWAIT, e, raises=True)
        elif isinstance(e, (ast.Yield, ast.YieldFrom)):
            self.add(Step.YIELD, e, raises=True)
        elif isinstance(e, ast.NamedExpr):
            self.add(Step.ASSIGN, e)
        elif isinstance(e, ast.Attribute) and e.attr in ("release", "__exit__"):
            self.add(Step.VALUE, e)


def build_graph(body: list[ast.stmt]) -> Graph:
    """The graph of a function's body. Raises TooTangledError."""
    builder = Builder()
    builder.block(body)
    builder._land(builder.end)
    return Graph(builder.entry, builder.end, builder.fail, builder.nodes)
