"""The file source: a zone file, a file of JSON lines (`.jsonl`), or a folder of them, watched for changes.

Files are looked at every half second (time, size and inode, those of included files too), and read only if they have
changed. A file that can no longer be read or understood keeps its last good content, and the problem is told under
`file:PATH`. A file that is taken out of a folder takes its names with it; a source that is one file, and is deleted, is
a file that cannot be read. Replace files by renaming: a file that is written in place may be seen half written. One
that changes while it is read is read again.

Keys are `file:PATH:NAME/TYPE`, and `file:PATH:LINE` for a line of JSON that is wrong.

The revision starts at the time of the newest file, in seconds since the epoch, and grows by one at least with each
change, so that it does not go back over a restart (if files change once a second at most, in the long run).

Things that don't work: inotify alone misses network and container mounts (and needs a watch on each folder on the way);
half a second of polling costs a stat() for each file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loader import jsonlines, names, zonefile
from loader.feed import Update
from loader.jsonlines import Content, as_list
from loader.model import Record, Reject
from shm.layout import LoaderState

log = logging.getLogger(__name__)

INTERVAL_S = 0.5
SOA = 6
#: What counts in a folder. A source that is one file may have any name: what is not JSON lines is a zone file.
SUFFIXES = (".zone", ".db", ".jsonl")

#: (st_mtime_ns, st_size, st_ino), or None if there is no such file.
Signature = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class FileStatus:
    """How the source is; loader/feed.py: FeedStatus. STALE: the file or folder is gone, or a file cannot be read."""

    state: LoaderState = LoaderState.STARTING
    last_seen_ns: int = 0
    revision: int = 0
    keys: int = 0
    error: str = ""
    relists: int = 0
    drift: int = 0


@dataclass(slots=True)
class _File:
    """What is known of one file: as it was when it was last read, whether that went well or not."""

    signatures: dict[Path, Signature] = field(default_factory=dict)  # its own, and those of the files that it includes
    prints: dict[str, int] = field(default_factory=dict)  # key -> hash of its records, of the last good content
    problems: dict[str, str] = field(default_factory=dict)
    good: bool = False
    broken: bool = False


@dataclass(slots=True)
class _News:
    """What one look at the files has found."""

    records: dict[str, Content | None] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class _Lists(Mapping[str, list[Record] | None]):
    """The contents as an Update promises them."""

    def __init__(self, contents: dict[str, Content | None]) -> None:
        self._contents = contents

    def __getitem__(self, key: str) -> list[Record] | None:
        content = self._contents[key]
        return None if content is None else as_list(content)

    def __contains__(self, key: object) -> bool:
        return key in self._contents

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)


class FileSource:
    """A Feed (loader/feed.py) of what `path` holds. `zones` are the configured apexes; interval_s in seconds."""

    def __init__(self, path: str | Path, zones: Collection[bytes] = (), *, interval_s: float = INTERVAL_S) -> None:
        self._root = Path(path)
        self._zones = frozenset(zones)
        self._interval_s = interval_s
        self._files: dict[Path, _File] = {}
        self._root_problem = ""
        self._revision = 0
        self._newest = 0
        self._told = False
        self._status = FileStatus()

    @property
    def status(self) -> FileStatus:
        """A snapshot."""
        return self._status

    async def run(self) -> AsyncGenerator[Update, None]:
        """The whole content first, as soon as there is any, then what changes. Never ends."""
        while True:
            update = await asyncio.to_thread(self.look)
            if update is not None:
                yield update
            await asyncio.sleep(self._interval_s)

    def look(self) -> Update | None:
        """Looks at the files once: the news, or None. The first Update is full; it waits until a file was readable, or
        the folder is empty: nothing is better than a table that denies every name."""
        news = _News()
        paths, error = self._list()
        self._note_root(error, news)
        if not error:
            for path in [path for path in self._files if path not in paths]:
                _drop(path, self._files.pop(path), news)
        for path in paths:
            self._visit(path, news)
        update = self._update(news, complete=not error and not paths)
        self._status = replace(
            self._status,
            state=self._state(error),
            last_seen_ns=self._status.last_seen_ns if error else time.time_ns(),
            revision=self._revision,
            keys=sum(len(file.prints) for file in self._files.values()),
            error=self._error(),
        )
        return update

    def _state(self, error: str) -> LoaderState:
        if not self._told:
            return LoaderState.STARTING
        broken = error or any(file.broken for file in self._files.values())
        return LoaderState.STALE if broken else LoaderState.FRESH

    def _error(self) -> str:
        found = [self._root_problem] if self._root_problem else []
        found += [reason for file in self._files.values() for reason in file.problems.values()]
        return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") if found else ""

    def _list(self) -> tuple[list[Path], str]:
        """(files of the source, why they cannot be told). A file or folder that is gone leaves what was known."""
        try:
            self._newest = max(self._newest, self._root.stat().st_mtime_ns)
            if not self._root.is_dir():
                return [self._root], ""
            return sorted(p for p in self._root.iterdir() if p.suffix in SUFFIXES and p.name[0] != "."), ""
        except OSError as error:
            return [], f"cannot read {self._root}: {error.strerror}"

    def _note_root(self, problem: str, news: _News) -> None:
        if problem == self._root_problem:
            return
        self._root_problem = problem
        key = f"file:{self._root}"
        news.records[key] = None
        if problem:
            news.problems[key] = problem
            self._warn(f"{problem}; waiting for it")

    def _visit(self, path: Path, news: _News) -> None:
        """Reads a file if it has changed."""
        file = self._files.setdefault(path, _File())
        if file.signatures and all(_signature(one) == held for one, held in file.signatures.items()):
            return
        before, started = _signature(path), time.time_ns()
        includes: list[Path] = []
        failed = ""
        try:
            records, problems = _read(path, self._zones, includes)
            if file.prints and not records and not problems:
                # A full disk, or an editor that empties a file before it writes it.
                how = "leave its SOA in it, or restart the loader" if path == self._root else "take the file away"
                failed = f"{path} holds no record any more (to take its names away, {how})"
        except Reject as reject:
            failed = str(reject)
        except OSError as error:
            failed = f"cannot read {path}: {error.strerror}"
        # Files included last time count after a failure, too: the mistake may be in one of them.
        watched = [*file.signatures, *includes] if failed else includes
        signatures = {one: _signature(one) for one in watched}
        if _signature(path) != before or any(held and held[0] > started for held in signatures.values()):
            return  # it has changed meanwhile, and is read again at the next look
        file.signatures = {**signatures, path: before}
        self._newest = max([self._newest, *(held[0] for held in file.signatures.values() if held)])
        file.broken = bool(failed)
        if failed:
            self._fail(path, file, failed, news)
            return
        if file.good:
            log.info("%s read again: %s", path, _summary(records))
        _accept(file, records, news)
        _tell(file, problems, news)
        file.good = True

    def _fail(self, path: Path, file: _File, reason: str, news: _News) -> None:
        kept = "its last good content stays" if file.good else "nothing of it is served"
        told = {f"file:{path}": f"{reason}; {kept}"}
        if file.problems != told:
            self._warn(f"{reason}; {kept}")
        _tell(file, told, news)

    def _warn(self, text: str) -> None:
        """Of what is in no Update yet: later problems are logged as those of any other key."""
        if not self._told:
            log.warning("%s", text)

    def _update(self, news: _News, complete: bool) -> Update | None:
        if not self._told:
            if not complete and not any(file.good for file in self._files.values()):
                return None
        elif not news.records:
            return None
        self._revision = max(self._revision + 1 if self._told else 0, self._newest // 10**9)
        full, self._told = not self._told, True
        if full:
            # News of looks that came to nothing before.
            for file in self._files.values():
                news.records.update(dict.fromkeys(file.problems))
                news.problems.update(file.problems)
        return Update(_Lists(news.records), self._revision, full, news.problems)


def _signature(path: Path) -> Signature:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path, zones: Collection[bytes], includes: list[Path]) -> tuple[dict[str, Content], dict[str, str]]:
    """(key -> records, key -> why it gives none). Raises Reject and OSError."""
    prefix = f"file:{path}:"
    if path.suffix == ".jsonl":
        with open(path, "rb") as lines:
            contents, wrong = jsonlines.read(lines, prefix)
        return contents, {f"{prefix}{number}": f"{path}:{number}: {reason}" for number, reason in wrong.items()}
    result = zonefile.ZoneFile(included=includes)
    zonefile.read(path, zones, result)
    return (
        {prefix + key: records for key, records in result.records.items()},
        {prefix + key: f"{path}: {reason}" for key, reason in result.problems.items()},
    )


def _summary(contents: dict[str, Content]) -> str:
    """What a file holds, for people: its zones with their serials, as far as it gives them."""
    if not all(isinstance(content, list) for content in contents.values()):
        return f"{len(contents)} records"  # JSON lines
    records = [record for content in contents.values() for record in as_list(content)]
    parts = []
    for apex in sorted({record.zone for record in records if record.zone is not None}):
        owned = [record for record in records if record.zone == apex]
        serials = [int.from_bytes(record.rdata[-20:-16], "big") for record in owned if record.type == SOA]
        parts.append(
            f"zone {names.to_text(apex)} {len({record.owner for record in owned})} names"
            + (f", serial {serials[0]}" if serials else "")
        )
    return "; ".join(parts) or f"{len(contents)} record sets"


def _accept(file: _File, contents: dict[str, Content], news: _News) -> None:
    """Puts into the news what differs from the content before."""
    old, file.prints = file.prints, {}
    for key, content in contents.items():
        file.prints[key] = made = hash(tuple(content) if isinstance(content, list) else content)
        if old.get(key) != made:
            news.records[key] = content
    news.records.update((key, None) for key in old.keys() - contents.keys())


def _tell(file: _File, problems: dict[str, str], news: _News) -> None:
    """Puts into the news which problems are new, different, or gone."""
    for key in file.problems.keys() | problems.keys():
        if file.problems.get(key) != problems.get(key):
            news.records.setdefault(key, None)
            if key in problems:
                news.problems[key] = problems[key]
    file.problems = problems


def _drop(path: Path, file: _File, news: _News) -> None:
    """The file was taken away: so are its names and its problems."""
    log.info("%s is gone, and its names with it", path)
    news.records.update(dict.fromkeys((*file.prints, *file.problems)))
