"""The control-flow graph: which lines can follow which, and where exceptions go."""

from __future__ import annotations

import ast
import textwrap

import pytest

from lockcheck import cfg
from lockcheck.graph import Graph, Node, Step, TooTangledError


def graph(body: str) -> Graph:
    function = ast.parse("def f():\n" + textwrap.indent(textwrap.dedent(body), "    ")).body[0]
    assert isinstance(function, ast.FunctionDef)
    return cfg.build_graph(function.body)


def runs(body: str) -> set[str]:
    """Every way through, as the names of functions called and how it ends; loops are gone round once."""
    g = graph(body)
    found: set[str] = set()

    def walk(node: Node, path: list[str], seen: dict[int, int]) -> None:
        if node.step in (Step.END, Step.FAIL):
            found.add(" ".join([*path, "." if node.step is Step.END else "!"]))
            return
        if seen.get(id(node), 0) > 1:
            return
        seen = {**seen, id(node): seen.get(id(node), 0) + 1}
        if node.step is Step.CALL and isinstance(node.item, ast.Call):
            path = [*path, ast.unparse(node.item.func)]
        elif node.step is Step.YIELD:
            path = [*path, "yield"]
        for _, following in node.next:
            walk(following, path, seen)

    walk(g.entry, [], {})
    return found


def test_a_call_may_raise() -> None:
    assert runs("a()\nb()") == {"a !", "a b !", "a b ."}


def test_finally_runs_on_every_way_out() -> None:
    ways = runs(
        """
        try:
            if x:
                return a()
            b()
        finally:
            c()
        d()
        """
    )
    assert ways == {
        "a c !", "a c .", "b c !", "b c d .", "b c d !",
    }  # fmt: skip


def test_return_in_finally_swallows_the_exception() -> None:
    assert runs("try:\n    a()\nfinally:\n    return") == {"a ."}


def test_handlers_and_else() -> None:
    ways = runs(
        """
        try:
            a()
        except ValueError:
            b()
        else:
            c()
        """
    )
    assert ways == {"a !", "a b !", "a b .", "a c !", "a c ."}


def test_break_and_continue_run_the_cleanups_between() -> None:
    ways = runs(
        """
        for x in xs:
            try:
                break
            finally:
                a()
        else:
            b()
        c()
        """
    )
    assert ways == {"a !", "a c !", "a c .", "b !", "b c !", "b c ."}


def test_while_true_ends_by_break_only() -> None:
    assert runs("while True:\n    a()") == {"a !", "a a !"}
    assert "a ." in runs("while True:\n    if a():\n        break")


def test_suppress_goes_on_behind_the_with() -> None:
    assert runs("with suppress(ValueError):\n    a()\nb()") >= {"suppress a b .", "suppress a !"}
    assert "manager a b ." in runs("with manager():\n    a()\nb()")
    assert "manager a !" in runs("with manager():\n    a()\nb()")


def test_short_circuits_part_the_ways() -> None:
    assert runs("if a() and b():\n    c()") == {"a !", "a .", "a b !", "a b .", "a b c !", "a b c ."}
    assert runs("x = a() or b()") == {"a !", "a .", "a b !", "a b ."}
    assert runs("x = a() if y else b()") == {"a !", "a .", "b !", "b ."}


def test_a_generator_may_be_closed_at_its_yield() -> None:
    assert runs("yield 1\na()") == {"yield !", "yield a !", "yield a ."}


def test_nothing_comes_after_the_end_of_the_process() -> None:
    assert runs("os._exit(1)\na()") == set()


def test_match_falls_through_without_a_wildcard() -> None:
    body = "match x:\n    case 1:\n        a()\n    case {0}:\n        b()"
    assert runs(body.format("2")) == {"a !", "a .", "b !", "b .", "."}
    assert runs(body.format("_")) == {"a !", "a .", "b !", "b ."}


def test_a_function_that_is_too_tangled_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfg, "MAX_NODES", 50)
    with pytest.raises(TooTangledError):
        graph("\n".join(["a()"] * 60))


def test_every_statement_of_the_language_is_taken() -> None:
    source = """
        global g
        import os
        x: int
        x: int = 1
        x += 1
        del x
        assert x, "no"
        class C: pass
        def inner(): pass
        async def later():
            async with a as b: pass
            async for c in d: pass
            await e
        try:
            pass
        except* ValueError:
            pass
        (y := 1)
        [z for z in xs if z]
        lambda: 1
        raise ValueError from None
        """
    assert "!" in runs(source)
