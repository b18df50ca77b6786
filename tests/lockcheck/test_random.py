"""Random functions are run on every input, and no lock that a run leaves held may be missed by the checker.

The functions acquire and release one lock between branches, loops, handlers, returns, raises and calls that raise. A
run that releases a lock which is free, or takes it twice, is left out: that is another rule's business.
"""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.lockcheck.snippets import HEAD, report

FLAGS = ("a", "b")


class OffTrackError(BaseException):
    """The run did what another rule reports."""


class CountingLock:
    """Stands for the lock when a function is run."""

    def __init__(self) -> None:
        self.held = False
        self.off_track = False

    def acquire(self, blocking: bool = True) -> bool:
        if self.held:
            if blocking:
                raise self._off_track()
            return False
        self.held = True
        return True

    def _off_track(self) -> OffTrackError:
        self.off_track = True
        return OffTrackError()

    def release(self) -> None:
        if not self.held:
            raise self._off_track()
        self.held = False


def indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


SIMPLE = st.sampled_from(["lock.acquire()"] * 2 + ["lock.release()"] * 2 + ["work()", "a = False", "b = True", "pass"])
EXITS = st.sampled_from(["return", "return 1", "raise ValueError", "raise KeyError"])
LOOP_EXITS = st.sampled_from(["break", "continue"])
TESTS = st.sampled_from(["a", "b", "not a", "a and b", "a or not b", "lock.acquire(False)", "not lock.acquire(False)"])
HANDLERS = st.sampled_from(["except ValueError:", "except KeyError:", "except Exception:", "except:"])


def blocks(in_loop: bool, depth: int) -> st.SearchStrategy[list[str]]:
    statements = [SIMPLE.map(lambda s: [s]), SIMPLE.map(lambda s: [s]), EXITS.map(lambda s: [s])]
    if in_loop:
        statements.append(LOOP_EXITS.map(lambda s: [s]))
    if depth:
        inner = blocks(in_loop, depth - 1)
        statements += [
            st.builds(lambda t, x: [f"if {t}:", *indent(x)], TESTS, inner),
            st.builds(lambda t, x, y: [f"if {t}:", *indent(x), "else:", *indent(y)], TESTS, inner, inner),
            st.builds(lambda x: ["for _ in items:", *indent(x)], blocks(True, depth - 1)),
            st.builds(lambda x, y: ["for _ in items:", *indent(x), "else:", *indent(y)],
                      blocks(True, depth - 1), inner),
            st.builds(lambda x, y: ["try:", *indent(x), "finally:", *indent(y)], inner, inner),
            st.builds(lambda x, h, y: ["try:", *indent(x), h, *indent(y)], inner, HANDLERS, inner),
            st.builds(lambda x, h, y, z: ["try:", *indent(x), h, *indent(y), "else:", *indent(z)],
                      inner, HANDLERS, inner, inner),
            st.builds(lambda x: ["with suppress(KeyError):", *indent(x)], inner),
        ]  # fmt: skip
    return st.lists(st.one_of(statements), min_size=1, max_size=3).map(lambda parts: list(itertools.chain(*parts)))


def leaves_it_held(body: list[str]) -> str:
    """The inputs of a run that ends with the lock held; empty if none does."""
    source = "from contextlib import suppress\ndef f(a, b, items):\n" + "\n".join(indent(body))
    code = compile(source, "random", "exec")
    for a, b, items, raising in itertools.product((0, 1), (0, 1), range(3), range(4)):
        calls = itertools.count()
        lock = CountingLock()

        def work(calls: itertools.count[int] = calls, raising: int = raising) -> None:
            if next(calls) == raising - 1:
                raise ValueError

        names: dict[str, Any] = {"lock": lock, "work": work}
        exec(code, names)
        try:
            names["f"](bool(a), bool(b), range(items))
        except (OffTrackError, ValueError, KeyError):
            pass
        if lock.held and not lock.off_track:
            return f"a={a} b={b} items={items} raising={raising}"
    return ""


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=blocks(False, 3))
def test_no_leak_that_happens_is_missed(tmp_path_factory: pytest.TempPathFactory, body: list[str]) -> None:
    inputs = leaves_it_held(body)
    folder = tmp_path_factory.getbasetemp()
    source = "def f(a, b, items):\n" + "\n".join(indent(body)) + "\n"
    result = report(Path(folder), source)
    assert not result.skipped
    rules = {str(f.rule) for f in result.findings}
    event(f"leaks: {bool(inputs)}, reported: {bool(rules & {'leak', 'exception-leak'})}")
    if inputs:
        assert rules & {"leak", "exception-leak"}, f"missed with {inputs}:\n{textwrap.dedent(HEAD + source)}"
