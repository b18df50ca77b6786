"""Wiring of the loader: sources, publisher, signals, standby. Settings in, exit status out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from loader import etcd_url, image, names
from loader.ages import earlier
from loader.chronicle import Chronicle
from loader.control import Desk, LoaderSocket
from loader.feed import Feed, Update
from loader.filters.service import FilterService, FilterSettings
from loader.history import history_of
from loader.imaging import Imager
from loader.listing import FirstList
from loader.publisher import ProgressBar, Publisher
from loader.rollback import Rollback
from loader.serials import live_serials
from loader.sources import SourceSettings, confirmed, feed_of, show_unwritten, show_watches
from loader.start import Restored, publish_image
from loader.warden import GuardSettings, Warden
from loader.zone import Zones
from shm import notes
from shm.board import Board
from shm.errors import StandoffError, TableDamaged
from shm.layout import LoaderState
from shm.notify import notify, watchdog_interval_s
from shm.segment import LockFile
from shm.tables import TableWriter, remove_leftovers

log = logging.getLogger(__name__)

#: How often a standby asks whether the loader is gone: a system call of microseconds, while changes wait.
STANDBY_POLL_S = 0.02
#: A standby for this long tells systemd that it is ready. One that is to replace a loader which stands still, and may
#: yet go on, is not worth telling.
STANDBY_TOLD_S = 1.0
#: How often the loader shows a sign of life.
BEAT_S = 0.1
#: How often what is wrong with keys is looked through and logged.
TELL_S = 1.0
#: Updates that may wait while a swap is made; beyond, the sources are not read and hold them themselves.
QUEUE = 1024
#: After a failed publish (no memory, say) the next try.
RETRY_S = 1.0
#: At most this often are the tables made anew because a worker met damage: what keeps damaging them must not eat the
#: machine as well.
REPAIR_PAUSE_S = 1.0
#: Set for drills and tests only (loader/faults.py).
FAULTS_VARIABLE = "STANDOFF_FAULTS"


class LoaderSettings(SourceSettings, FilterSettings, GuardSettings, Protocol):
    """What the loader needs of the settings (cli/settings.py)."""

    @property
    def loader_control_path(self) -> Path: ...
    @property
    def source(self) -> list[str]: ...
    @property
    def zone(self) -> list[str]: ...
    @property
    def default_ttl(self) -> int: ...
    @property
    def image_interval(self) -> float: ...
    @property
    def history(self) -> int: ...
    @property
    def history_size(self) -> int: ...


def load(settings: LoaderSettings, progress: ProgressBar | None = None, restored: Restored | None = None) -> int:
    """Mirror the sources until told to stop; 0, or 1 with the reason in the log. restored: what is published already
    (loader/start.py, which is where to begin)."""
    gc.disable()  # until the first table is published: what is loaded stays, and looking through it takes seconds
    try:
        return asyncio.run(_Loader(settings, progress, restored).run())
    except (StandoffError, ValueError) as error:
        log.error("%s", error)
        return 1


class _Loader:
    """One loader process: a standby first, then the one that writes."""

    def __init__(self, settings: LoaderSettings, progress: ProgressBar | None, restored: Restored | None) -> None:
        self._settings = settings
        self._progress = progress
        self._first_list = FirstList(progress)
        self._restored = restored  # until the sources' table replaces it
        self._waited = False  # as a standby
        path = image.path_of(settings)
        self._imager = Imager(path, image.shaping_of(settings), settings.image_interval) if path else None
        self._history = history_of(settings)
        self._zones = [names.from_text(zone) for zone in settings.zone]
        self._feeds = [feed_of(url, settings, self._zones) for url in settings.source]
        self._queue: asyncio.Queue[tuple[int, Update] | None] = asyncio.Queue(QUEUE)
        self._stop = asyncio.Event()
        self._quiet = asyncio.Lock()  # held while something is published
        self._ready = False
        self._damage: int | None = None  # lookups that found damage, as far as it has been repaired
        self._repairing = False
        self._repaired = -REPAIR_PAUSE_S

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        board = Board.create_or_attach(self._settings.instance)
        lock = (self._restored and self._restored.lock) or LockFile(board.names.lock("writer"))
        if not lock.held_by_us and not await self._acquire(lock):
            return 0
        writer = TableWriter(board)
        if os.environ.get(FAULTS_VARIABLE) == "1":
            from loader import faults

            faults.arm(writer)
        if self._waited and not board.live:  # the loader before has died before it had published anything
            self._restored = publish_image(writer, self._settings)
        self._introduce(writer, remove_leftovers(board))
        zones = Zones(self._zones, self._settings.default_ttl)
        chronicle = Chronicle(writer, self._history)
        if self._restored is not None:
            chronicle.restored(*self._restored.published)
        self._filters = filters = FilterService(self._settings, zones, self._wake)
        self._warden = warden = Warden(self._settings, zones, self._wake)
        kept, lost = warden.kept(), board.live >> 1 <= 1  # nothing was published since the memory was made, or an image
        serials = warden.floors(kept, live_serials(board), lost)
        publisher = Publisher(
            writer, zones, len(self._feeds), self._progress, serials, chronicle, filters=filters, gate=warden.gate
        )
        publisher.held, publisher.revisions_grow = kept, etcd_url.is_etcd_url(self._settings.source[0])
        publisher.confirmed = lambda wanted: confirmed(self._feeds[0].status, publisher.revision, wanted)
        rollback = Rollback(self._history, chronicle, warden, self._quiet, self._wake_for_image)
        more = {**warden.handlers, **rollback.handlers}
        desk = Desk(publisher, lambda: self._status(publisher), filters, more, warden.held_at)
        control = LoaderSocket(self._settings.loader_control_path, desk)
        await control.open()
        tasks = [asyncio.create_task(self._read(number, feed)) for number, feed in enumerate(self._feeds)]
        tasks.append(asyncio.create_task(self._beat(writer, board, publisher)))
        tasks.append(asyncio.create_task(filters.run()))
        tasks.append(asyncio.create_task(warden.run()))
        work = asyncio.create_task(self._work(publisher, writer))
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, work, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                await task  # only an error ends one of these; it is told by `load`
            return 0 if stop in done else 1
        finally:
            notify(STOPPING="1")
            await control.close()
            await rollback.close()
            await _cancel([*tasks, work, stop])
            await warden.close()
            if self._imager is not None:
                await self._imager.finish(writer, writer.words.get("source_seen_ns"))
            if self._history is not None:
                await asyncio.to_thread(self._history.close)
            writer.close()
            lock.release()

    async def _acquire(self, lock: LockFile) -> bool:
        """Become the one writer, as a standby for as long as it takes. False if told to stop meanwhile."""
        since, told = time.monotonic(), False
        while not lock.try_acquire():
            if not self._waited:
                self._waited = True
                log.info("standby: another loader holds %s; taking over when it ends", lock.path)
            if not told and time.monotonic() - since > STANDBY_TOLD_S:
                told = True
                notify(READY="1", STATUS="standby: another loader is at work")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), STANDBY_POLL_S)
                return False
        if self._waited:
            log.warning("the other loader is gone: taking over")
        return True

    def _introduce(self, writer: TableWriter, leftovers: int) -> None:
        if leftovers:
            log.info("removed %d unfinished tables of a loader that died", leftovers)
        words = writer.words
        started_ns = time.time_ns()
        self._over_table = bool(writer.live)
        self._earlier = earlier(words, started_ns, live=self._over_table)
        words.set("loader_pid", os.getpid())
        words.set("loader_started_ns", started_ns)
        words.set("loader_state", LoaderState.STALE if self._restored else LoaderState.STARTING)
        words.set("write_hold_since_ns", 0)

    async def _read(self, number: int, feed: Feed) -> None:
        async with contextlib.aclosing(feed.run()) as updates:
            async for update in updates:
                await self._queue.put((number, update))
        raise StandoffError(f"source {self._settings.source[number]} has ended")

    async def _work(self, publisher: Publisher, writer: TableWriter) -> None:
        """Take what has come, publish it in one swap; what comes meanwhile is the next swap's."""
        while True:
            await self._take(publisher, await self._queue.get())
            while not self._queue.empty():
                await self._take(publisher, self._queue.get_nowait())
            while True:
                try:
                    async with self._quiet:
                        await publisher.publish()
                    break
                except TableDamaged as error:
                    log.error("table damaged: %s; making both anew", error)
                    publisher.start_over()
                except StandoffError as error:
                    log.error("cannot publish: %s; trying again", error)
                    await asyncio.sleep(RETRY_S)
            if publisher.published and self._imager is not None and self._imager.is_due(writer.live):
                await self._imager.keep(writer, writer.words.get("source_seen_ns"))

    async def _take(self, publisher: Publisher, item: tuple[int, Update] | None) -> None:
        """An update, or None: nothing new, but something is to be published."""
        if item is not None:
            await publisher.take(*item)

    def _look_for_damage(self, board: Board, publisher: Publisher, now: float) -> None:
        """What a worker found damaged is damaged for all, and comes back with every second swap: make it anew."""
        found = sum(board.slot(number).get("table_damaged") for number in board.slots)
        if self._repairing:
            if publisher.published:
                self._repairing, self._damage = False, found
        elif self._damage is None or not publisher.published:
            self._damage = found
        elif found > self._damage and now - self._repaired > REPAIR_PAUSE_S:
            log.error("workers met damage in the table (%d times): making both tables anew", found - self._damage)
            self._repaired, self._repairing = now, True
            publisher.start_over()
            self._wake()

    def _wake(self) -> None:
        """Publish, though no source has told anything."""
        with contextlib.suppress(asyncio.QueueFull):  # then there is work, and it is done with the next
            self._queue.put_nowait(None)

    def _wake_for_image(self) -> None:
        """Publish, and keep the image of it at once."""
        if self._imager is not None:
            self._imager.want()
        self._wake()

    async def _beat(self, writer: TableWriter, board: Board, publisher: Publisher) -> None:
        """Show on the board, and to systemd, that the loader lives and how its sources are."""
        interval = watchdog_interval_s()
        fed = told = 0.0
        while True:
            now = time.monotonic()
            writer.words.set("loader_heartbeat_ns", time.monotonic_ns())
            self._show_sources(writer)
            self._look_for_damage(board, publisher, now)
            if publisher.waiting_since:
                self._wake()
            if publisher.published:
                self._restored = None
                if self._imager is not None and self._imager.is_due(board.live) and self._queue.empty():
                    self._queue.put_nowait(None)
            if not self._ready and board.live:
                self._ready = True
                notify(READY="1", STATUS="a table is published")
            if interval is not None and now - fed > interval:
                fed = now
                notify(WATCHDOG="1")
            if now - told > TELL_S:
                told = now
                publisher.tell()
            await asyncio.sleep(BEAT_S)

    def _status(self, publisher: Publisher) -> dict[str, Any]:
        """For the control socket."""
        sources = [
            {"source": url, "state": feed.status.state.name.lower(), "error": feed.status.error}
            for url, feed in zip(self._settings.source, self._feeds, strict=True)
        ]
        return {
            "pid": os.getpid(),
            "revision": publisher.revision,
            "published": publisher.published,
            "rejects": len(publisher.rejects()),
            "state_dir": str(self._settings.state_dir or ""),
            "history": str(self._history.path) if self._history else "",
            "sources": sources,
        }

    def _show_sources(self, writer: TableWriter) -> None:
        states = [feed.status for feed in self._feeds]
        words = writer.words
        restored = self._restored
        seen_ns = min(s.last_seen_ns or self._earlier.seen_ns for s in states)
        state = max((s.state for s in states), key=_SEVERITY.index)
        if self._over_table:
            state = self._earlier.state(state, seen_ns, "".join(s.error for s in states), time.time_ns())
        words.set("loader_state", LoaderState.STALE if restored else state)
        words.set("source_seen_ns", restored.seen_ns if restored else seen_ns)
        words.set("relists", sum(s.relists for s in states))
        words.set("drift", sum(s.drift for s in states))
        show_watches(words, states, self._earlier)
        self._first_list.show(states)
        self._filters.show(words)
        self._warden.show(words)
        told = zip(self._settings.source, states, strict=True)
        lines = [notes.of_source(url, s.error) for url, s in told if s.error]
        lines += [restored.note()] if restored else []
        imaged, recorded = (kept.error if kept else "" for kept in (self._imager, self._history))
        unwritten = show_unwritten(words, states, imaged, recorded, self._warden.error)
        lines += [notes.of_state(one) for one in [*unwritten, self._filters.unwritten] if one]
        writer.note(notes.join([*lines, self._filters.note(), self._warden.note()]))


#: The worst of several sources' states is the loader's.
_SEVERITY = [LoaderState.FRESH, LoaderState.LISTING, LoaderState.STARTING, LoaderState.STALE]


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
