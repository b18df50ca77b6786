"""The etcd source: does what loader/mirror.py decides, and hands Listing and Changes to the loader.

    source = EtcdSource(etcd_url.parse("etcd://127.0.0.1:2379/skydns"), ClientOptions())
    async with aclosing(source.run()) as items:
        async for item in items: ...

What arrives while the consumer is busy is offered merged, when it comes back: one swap for all of it. run() never ends
and never raises for what etcd does; source.status tells how it is. One run() at a time, and one event loop for the life
of the process: grpc.aio loses events when a second loop follows a closed one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from loader import mirror as m
from loader.etcd import PAGE_SIZE, Etcd, Watch
from loader.etcd_channel import AuthFailed, ClientOptions, Compacted, EtcdError, EtcdUnavailable, TooLarge
from loader.etcd_discovery import RENEW_S, Members
from loader.etcd_url import EtcdUrl
from loader.model import Changes, Listing
from shm.layout import LoaderState

log = logging.getLogger("standoff.etcd")

#: Keys of a page when nothing else is going on: 1M keys take 5.1 s so, 6.8 s with PAGE_SIZE.
FIRST_PAGE_SIZE = 100_000
#: Messages that may wait for the consumer before the watch is no longer read, and etcd has to hold them.
_QUEUE = 32
#: Looks at the queue before a change is handed on: each lets messages in that have arrived already.
_LOOKS = 3
#: Seconds without a watch after which the content counts as stale; moving on to the next endpoint is quicker.
_STALE_AFTER = 3.0
#: How often to ask a member for alarms, in seconds: a small call, answered from its memory.
LOOK_EVERY_S = 5.0
_RAISED = "alarm {}: it takes no changes until the cause is gone and `etcdctl alarm disarm` was called; answers go on"
#: Seconds in which the same message is logged once.
_LOG_AGAIN = 60.0


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How the source is, at the moment of asking.

    state         STARTING, LISTING (first list), FRESH (a watch runs) or STALE
    error         what went wrong last, for people; empty once all is well again
    last_seen_ns  CLOCK_REALTIME of the last sign of life, 0 = none yet
    listed        keys read by the list that runs or ran last, of total
    relists       lists after the first; drift: differences that those beside a watch have found
    alarms        what is wrong although the watch runs: what the cluster has raised, as in "NOSPACE", and that we may
                  not read any more; told in error, too
    event_ns      CLOCK_REALTIME of the watch's last event; progress_ns: of that, or of etcd's word that there is none;
                  relisted_ns: of the last list that was compared in full. 0 = none yet
    store_revision  the whole store's when the watch began, 0 = none has
    unwritten       why the snapshot is not up to date (loader/kept_source.py); empty if it is, or there is none
    """

    state: LoaderState
    endpoint: str
    cluster_id: int
    revision: int
    keys: int
    listed: int
    total: int
    relists: int
    drift: int
    last_seen_ns: int
    error: str
    alarms: str
    event_ns: int
    progress_ns: int
    relisted_ns: int
    store_revision: int
    unwritten: str = ""


class EtcdSource:
    """Mirrors what is under url.key_prefix. relist_interval in seconds, 10 to 86400 in the settings."""

    def __init__(
        self,
        url: EtcdUrl,
        options: ClientOptions,
        *,
        relist_interval: float = 300.0,
        policy: m.Policy | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._options = options
        self._chance = chance
        self._members = Members(url)
        self._mirror = m.Mirror(
            policy or m.Policy(endpoints=max(1, len(url.endpoints)), relist_interval=relist_interval)
        )
        self._inbox: asyncio.Queue[tuple[str, int, m.Event]] = asyncio.Queue(_QUEUE)
        self._etcd: Etcd | None = None
        self._watch: Watch | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}  # "connect", "list", "watch", "ping", "look", "renew"
        self._serial = 0  # of the task started last
        self._serials: dict[str, int] = {}  # of the tasks whose events count
        self._progress = (0, 0)
        self._last_seen_ns = self._event_ns = self._progress_ns = 0
        self._error = self._alarms = ""
        self._logged = ("", 0.0)
        self._worked = False  # some connection has: its options are not what is wrong

    def prime(self, listing: Listing, cluster_id: int, seen_ns: int) -> None:
        """Before run(): begin with what was known before a restart. What has changed since then comes as Changes."""
        self._mirror.prime(listing, cluster_id)
        self._last_seen_ns = seen_ns

    @property
    def status(self) -> SourceStatus:
        """A snapshot, cheap enough for every second."""
        mirror = self._mirror
        return SourceStatus(
            state=self._state(),
            endpoint=self._endpoint(),
            cluster_id=mirror.content.cluster_id,
            revision=mirror.revision,
            keys=len(mirror.content.held),
            listed=self._progress[0],
            total=self._progress[1],
            relists=mirror.relists,
            drift=mirror.drift,
            last_seen_ns=self._last_seen_ns,
            error="; ".join(filter(None, (self._error, self._alarms))),
            alarms=self._alarms,
            event_ns=self._event_ns,
            progress_ns=self._progress_ns,
            relisted_ns=self._relisted_ns(),
            store_revision=mirror.store_revision,
        )

    def _endpoint(self) -> str:
        """The one that is in use, or that is tried next."""
        endpoints = self._members.endpoints
        return endpoints[self._mirror.endpoint % len(endpoints)] if endpoints else self._members.name

    def _relisted_ns(self) -> int:
        at = self._mirror.listed_at
        return 0 if at is None else time.time_ns() - int((time.monotonic() - at) * 1e9)

    def _state(self) -> LoaderState:
        mirror = self._mirror
        if not mirror.listed:
            return LoaderState.LISTING if mirror.phase is m.Phase.LISTING else LoaderState.STARTING
        if mirror.watching or time.monotonic() - mirror.heard_at < _STALE_AFTER:
            return LoaderState.FRESH
        return LoaderState.STALE

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        """(seconds left, seconds granted) of a lease, (-1, 0) if there is none. Raises EtcdError."""
        if self._etcd is None:
            raise EtcdUnavailable("no connection to etcd")
        return await self._etcd.lease_ttl(lease)

    async def listing(self) -> Listing:
        """All keys as they are now, beside what run() gives and not newer than that for long. Raises EtcdError."""
        etcd, known, least = self._etcd, self._mirror.content.cluster_id, self._mirror.revision
        if etcd is None or not self._mirror.watching:
            raise EtcdUnavailable("no connection to etcd")
        made = Listing([], 0)
        async with aclosing(etcd.pages(self._url.key_prefix)) as pages:
            async for page in pages:
                if page.cluster_id != known or page.revision < least:
                    raise EtcdUnavailable(f"etcd {etcd.endpoint} tells another history")
                made = Listing(made.entries, page.revision)
                made.entries.extend(page.entries)
                await asyncio.sleep(0)
        return made

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        """Listing first, then Changes, and a Listing again when the store's history is another one than before.

        Changes that a re-list found carry mod_revisions below those already seen; Changes.revision never goes back.
        """
        pending: list[Listing | Changes] = []
        try:
            while True:
                await self._step(await self._next_event(), pending)
                looks = 0
                while looks < _LOOKS:
                    if self._inbox.empty():
                        looks += 1
                        await asyncio.sleep(0)
                    else:
                        await self._step(self._current(self._inbox.get_nowait()), pending)
                        looks += len(pending) > _QUEUE
                if time.monotonic() >= self._mirror.wake_at:
                    await self._step(m.Tick(), pending)  # even when the queue never gets empty
                merged = merge(pending)[::-1]
                pending.clear()
                if any(isinstance(item, Listing) and not item.entries for item in merged):
                    log.warning("there is no key under %s yet: is the prefix right?", self._url.key_prefix)
                while merged:
                    yield merged.pop()  # and keep nothing of it: a listing may be 300 MB
        finally:
            await self._disconnect()

    async def _next_event(self) -> m.Event | None:
        delay = self._mirror.wake_at - time.monotonic()
        if self._inbox.empty() and delay <= 0:
            return m.Tick()
        try:
            async with asyncio.timeout(max(delay, 0) if self._inbox.empty() else None):
                return self._current(await self._inbox.get())
        except TimeoutError:
            return m.Tick()

    def _current(self, queued: tuple[str, int, m.Event]) -> m.Event | None:
        """The event, unless its task was dropped since."""
        what, serial, event = queued
        return event if self._serials.get(what) == serial else None

    async def _step(self, event: m.Event | None, pending: list[Listing | Changes]) -> None:
        if event is None:
            return
        if not isinstance(event, m.Failed | m.Tick):
            self._last_seen_ns = now_ns = time.time_ns()
            if isinstance(event, m.WatchRead):
                self._error = ""
                self._progress_ns = now_ns
                if event.events:
                    self._event_ns = now_ns
        for action in self._mirror.step(event, time.monotonic(), self._chance()):
            if isinstance(action, m.Emit):
                pending.append(action.item)
            else:
                await self._perform(action)

    async def _perform(self, action: m.Action) -> None:
        match action:
            case m.Connect():
                await self._disconnect()
                self._start("connect", self._connect())
            case m.Disconnect():
                await self._disconnect()
            case m.StartList(beside):
                if not beside:
                    await self._drop("watch", "ping")
                await self._drop("list")
                self._start("list", self._list(self._connected(), PAGE_SIZE if beside else FIRST_PAGE_SIZE))
            case m.StartWatch(revision):
                await self._drop("watch", "ping")
                self._start("watch", self._follow(self._connected(), revision))
            case m.StopWatch():
                await self._drop("watch", "ping")
            case m.Ping():
                # Not awaited: a write to a peer that has stopped reading blocks.
                if self._watch is not None and ("ping" not in self._tasks or self._tasks["ping"].done()):
                    self._tasks["ping"] = asyncio.ensure_future(self._watch.ping())
            case m.Note(text, urgent):
                self._note(text, urgent)

    def _note(self, text: str, urgent: bool) -> None:
        if self._etcd is not None and self._etcd.endpoint not in text:
            text = f"etcd {self._etcd.endpoint}: {text}"
        if urgent and not self._mirror.watching:
            self._error = text
        now = time.monotonic()
        if text != self._logged[0] or now - self._logged[1] > _LOG_AGAIN:
            self._logged = (text, now)
            log.log(logging.WARNING if urgent else logging.INFO, "%s", text)

    def _connected(self) -> Etcd:
        assert self._etcd is not None
        return self._etcd

    # ------------------------------------------------------------ tasks

    def _start(self, what: str, body: Coroutine[Any, Any, None]) -> None:
        self._serial += 1
        self._serials[what] = self._serial
        self._tasks[what] = asyncio.ensure_future(self._guard(what, self._serial, body))

    async def _drop(self, *names: str) -> None:
        """End tasks; what they have queued no longer counts."""
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for name in names:
            self._serials.pop(name, None)
        if "watch" in names and self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _disconnect(self) -> None:
        await self._drop("connect", "list", "watch", "ping", "look", "renew")
        if self._etcd is not None:
            etcd, self._etcd = self._etcd, None
            await etcd.close()

    async def _guard(self, what: str, serial: int, body: Coroutine[Any, Any, None]) -> None:
        """Run a task's body; whatever ends it becomes an event."""
        try:
            await body
            return
        except EtcdError as error:
            failed = m.Failed(what, _kind(error), str(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # grpcio raises this when a call was canceled under us.
            failed = m.Failed(what, m.Kind.LOST, f"the {what} call was canceled")
        except Exception as error:
            # A bug must not end the mirror silently: say it, and try again with a fresh connection.
            log.exception("unexpected error in the etcd %s", what)
            failed = m.Failed(what, m.Kind.LOST, f"unexpected error in the etcd {what}: {error!r}")
        await self._inbox.put((what, serial, failed))

    async def _put(self, what: str, event: m.Event) -> None:
        await self._inbox.put((what, self._serials.get(what, 0), event))

    async def _connect(self) -> None:
        await self._members.before_connecting()
        endpoint = self._endpoint()
        self._mirror.set_endpoints(len(self._members.endpoints), self._members.endpoints.index(endpoint))
        self._etcd = etcd = Etcd(endpoint, self._options, self._url.namespace)
        etcd.worked = self._worked
        await etcd.open()
        self._worked = True
        self._start("look", self._look_for_alarms(etcd))
        if self._members.name:
            self._start("renew", self._renew(endpoint))
        await self._put("connect", m.Connected())

    async def _look_for_alarms(self, etcd: Etcd) -> None:
        while True:
            with suppress(EtcdUnavailable):  # the watch tells, too, if the connection is gone
                alarms = await self._look(etcd)
                if alarms != self._alarms:
                    self._alarms = alarms
                    log.log(
                        logging.WARNING if alarms else logging.INFO, "%s", alarms or f"etcd {etcd.endpoint} is well"
                    )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, etcd: Etcd) -> str:
        try:
            await etcd.may_read(self._url.key_prefix)
            raised = ", ".join(await etcd.alarms())
        except AuthFailed as error:
            return f"{error}; the watch that runs goes on, another one would not begin"
        return f"etcd {etcd.endpoint}: {_RAISED.format(raised)}" if raised else ""

    async def _renew(self, endpoint: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._members.renew()
            except EtcdUnavailable as error:
                log.info("%s", error)
                continue
            endpoints = self._members.endpoints
            if endpoint not in endpoints:
                raise EtcdUnavailable(f"etcd {endpoint} is not among the SRV records {self._members.name} any more")
            self._mirror.set_endpoints(len(endpoints), endpoints.index(endpoint))

    async def _list(self, etcd: Etcd, page_size: int) -> None:
        listed = 0
        async with aclosing(etcd.pages(self._url.key_prefix, page_size)) as pages:
            async for page in pages:
                listed += len(page.entries)
                self._progress = listed, page.total
                await self._put("list", m.PageRead(page.entries, page.revision, page.cluster_id, page.last))
                await asyncio.sleep(0)  # a put alone lets nobody else run

    async def _follow(self, etcd: Etcd, revision: int) -> None:
        self._watch = watch = await etcd.watch(self._url.key_prefix, revision)
        await self._put("watch", m.WatchMade(watch.revision, watch.cluster_id))
        while True:
            await self._put("watch", m.WatchRead(await watch.read()))


def _kind(error: EtcdError) -> m.Kind:
    match error:
        case Compacted():
            return m.Kind.COMPACTED
        case TooLarge():
            return m.Kind.TOO_LARGE
        case AuthFailed():
            return m.Kind.DENIED
    return m.Kind.LOST


def merge(items: list[Listing | Changes]) -> list[Listing | Changes]:
    """The same content in as few items as possible: the last Listing, if any, and one Changes for what follows."""
    merged: list[Listing | Changes] = []
    for item in items:
        if isinstance(item, Listing):
            merged = [item]
        elif merged and isinstance(merged[-1], Changes):
            merged[-1].events.extend(item.events)
            merged[-1] = Changes(merged[-1].events, max(merged[-1].revision, item.revision))
        else:
            merged.append(Changes(list(item.events), item.revision))
    return merged
