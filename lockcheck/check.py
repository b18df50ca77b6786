"""From paths to a report: read, index, walk every function that touches a lock, judge."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from lockcheck import judge, order, suppress
from lockcheck.cfg import build_graph
from lockcheck.effects import Effect, Effects, Summaries, Summary
from lockcheck.flow import Outcome, Walk
from lockcheck.graph import Step, TooTangledError
from lockcheck.judge import Handovers
from lockcheck.kinds import GUESS
from lockcheck.locks import Lock, Resolver
from lockcheck.model import Finding, Key, LockUse, Place, Report, Rule, Site
from lockcheck.project import FunctionInfo, Project, index
from lockcheck.state import Status

#: How often the summaries of functions are fed back to their callers: the depth of wrappers around wrappers.
ROUNDS = 3


def python_files(paths: Iterable[str], exclude: Iterable[str] = ()) -> Iterator[Path]:
    """Files as given, and every .py below the folders. Raises FileNotFoundError."""
    patterns = list(exclude)
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise FileNotFoundError(given)
        found = [path] if path.is_file() else sorted(path.rglob("*.py"))
        for one in found:
            if not any(fnmatch(str(one), p) or fnmatch(one.name, p) or p in one.parts for p in patterns):
                yield one


def check(paths: Iterable[str], rules: Iterable[Rule] = tuple(Rule), exclude: Iterable[str] = ()) -> Report:
    skipped: list[tuple[Place, str]] = []
    modules = []
    for path in python_files(paths, exclude):
        try:
            modules.append(index(path, os.path.relpath(path) if not path.is_absolute() else str(path)))
        except (SyntaxError, ValueError, OSError, RecursionError) as error:
            skipped.append((Place(str(path), getattr(error, "lineno", None) or 1), str(error)))
    checker = Checker(Project(modules))
    checker.run()
    skipped += checker.skipped
    wanted = set(rules)
    report = Report(checker.inventory(), [], len(modules), skipped)
    by_path = {module.path: module for module in modules}
    for finding in sorted(checker.findings(), key=lambda f: (f.place, f.rule)):
        if finding.rule not in wanted:
            continue
        if suppress.is_silenced(finding, by_path[finding.place.path].lines):
            report.suppressed += 1
        else:
            report.findings.append(finding)
    for module in modules:
        skipped += suppress.without_reason(module.path, module.lines)
    return report


class Checker:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.resolver = Resolver(project)
        self.summaries: Summaries = {}
        self.outcomes: dict[str, Outcome] = {}
        self.handovers = Handovers([])
        self.skipped: list[tuple[Place, str]] = []

    def run(self) -> None:
        functions = [f for module in self.project.modules for f in module.functions if _may_touch_locks(f)]
        for number in range(ROUNDS):
            before = self.summaries
            todo = functions if number == 0 else [f for f in functions if self._calls_summarised(f)]
            if number == 1:
                others = [f for m in self.project.modules for f in m.functions if not _may_touch_locks(f)]
                todo += [f for f in others if self._calls_summarised(f)]
                functions = functions + todo
            for function in dict.fromkeys(todo):
                self._walk(function)
            self.handovers = Handovers(self.outcomes.values())
            self.summaries = {name: s for name, o in self.outcomes.items() if (s := self._summarise(o)) is not None}
            if self.summaries == before:
                break

    def _calls_summarised(self, function: FunctionInfo) -> bool:
        names = {name.rpartition(".")[2] for name in self.summaries}
        for node in _own_nodes(function):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in names:
                    return True
        return False

    def _walk(self, function: FunctionInfo) -> None:
        place = Place(function.module.path, function.node.lineno if function.node is not None else 1)
        try:
            graph = build_graph(function.body)
            effects = Effects(function, graph, self.resolver, self.summaries)
            if not effects.touches_locks:
                return
            outcome = Walk(function, graph, effects).run()
        except (TooTangledError, RecursionError):
            self.skipped.append((place, f"{function.qualname} is too tangled to follow"))
            return
        if outcome.too_tangled:
            self.skipped.append((place, f"{function.qualname} has too many paths; what was seen of it is reported"))
        self.outcomes[_unique(function)] = outcome

    def _summarise(self, outcome: Outcome) -> Summary | None:
        summary = Summary()
        path = outcome.function.module.path
        for lock in {lock for state in outcome.ends for lock, hold in state.holding() if not hold.by_with}:
            if lock.key.local or lock.key.via.startswith(("[", "(")):
                continue
            by_design, conditional = judge.hands_over(outcome, lock, self.handovers.partner(lock, outcome))
            if by_design:
                summary.acquires[lock] = conditional
        for state in outcome.ends:
            summary.releases.update(
                lock.key
                for lock, hold in state.held
                if hold.status is Status.LENT and not lock.key.local and not judge.acquires(outcome, lock.key)
            )
        if _is_context_manager(outcome.function):
            summary.context = {lock for lock in outcome.at_yield if not lock.key.local}
        for lock, line in outcome.takes.items():
            if not lock.key.local and not lock.key.via:
                summary.takes[lock] = Place(path, line)
        if summary.acquires or summary.releases or summary.context or summary.takes:
            return summary
        return None

    def findings(self) -> list[Finding]:
        found = []
        for outcome in self.outcomes.values():
            found += judge.leaks(outcome, self.handovers)
            found += judge.doubles(outcome, self.handovers)
            found += judge.unmatched(outcome, self.handovers)
            found += judge.blocking(outcome)
        found += order.findings(order.collect(self.outcomes.values()))
        return list(dict.fromkeys(found))

    def inventory(self) -> list[LockUse]:
        """Every acquire and release, by lock."""
        uses: dict[Key, LockUse] = {}
        for outcome in self.outcomes.values():
            for node in outcome.graph.nodes:
                if node.step is Step.LEAVE:
                    continue
                for lock, action, mode, note in _uses(outcome.effects.of(node)):
                    use = uses.setdefault(lock.key, LockUse(lock.key, lock.kind))
                    place = Place(outcome.function.module.path, node.line, node.column)
                    site = Site(place, action, outcome.function.qualname, mode, note)
                    if site not in use.sites:
                        use.sites.append(site)
        for use in uses.values():
            use.sites.sort(key=lambda s: s.place)
        return sorted(uses.values(), key=lambda u: u.key)


def _uses(effect: Effect) -> Iterator[tuple[Lock, str, str, str]]:
    """(lock, action, mode, note) of what a step does, itself or through a function that it calls."""
    operation = effect.operation
    if operation is not None and operation.action != "wait":
        note = "does not wait for ever" if operation.action == "acquire" and operation.how != "must" else ""
        yield operation.lock, operation.action, operation.mode, note
    elif effect.summary is not None and effect.callee is not None:
        note = f"through {effect.callee.qualname}()"
        for lock in effect.summary.acquires:
            yield lock, "acquire", "", note
        for lock in effect.summary.context:
            yield lock, "with", "", note
        for key in effect.summary.releases:
            yield Lock(key, GUESS), "release", "", note


def _unique(function: FunctionInfo) -> str:
    """Dotted name; overloads and conditional definitions of one name are told apart by their line."""
    module = function.module
    same = [f for f in module.functions if f.qualname == function.qualname]
    if len(same) == 1 or function is same[0] or function.node is None:
        return function.dotted
    return f"{function.dotted}@{function.node.lineno}"


def _own_nodes(function: FunctionInfo) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            todo.extend(ast.iter_child_nodes(node))


_HINTS = {"acquire", "release", "acquire_lock", "release_lock", "unlock", "__enter__", "__exit__"}


def _may_touch_locks(function: FunctionInfo) -> bool:
    for node in _own_nodes(function):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            return True
        if isinstance(node, ast.Attribute) and (
            node.attr in _HINTS or "acquire" in node.attr or "release" in node.attr
        ):
            return True
    return False


def _is_context_manager(function: FunctionInfo) -> bool:
    if function.node is None:
        return False
    names = {ast.unparse(d).rpartition(".")[2] for d in function.node.decorator_list}
    return bool(names & {"contextmanager", "asynccontextmanager"})
