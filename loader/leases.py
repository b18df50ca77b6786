"""What is known of etcd's leases: how long they were granted for, and when each should be looked at again.

A leased record's TTL is the lease's *granted* time, not what is left of it: what is left changes every second, differs
between two loaders, and starts anew with every keepalive; the granted time stays, and bounds just as well for how long
a cache keeps a record whose lease has ended.

A lease that ends deletes its keys, and the watch tells. In case it does not, every lease has a deadline here, when etcd
is asked once more. Only etcd's own word that a lease is gone removes anything: while etcd is away, records stay.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Iterable

from loader.etcd_channel import EtcdError, EtcdUnavailable

log = logging.getLogger(__name__)

#: lease -> (seconds left, seconds granted); (-1, 0) if there is none. Raises EtcdError.
Ask = Callable[[int], Awaitable[tuple[int, int]]]

#: Questions to etcd that run at a time, and at most in one go: many leases must not fill the connection.
_AT_ONCE = 32
_BATCH = 512
#: Seconds that a first list, and a change, wait for the TTLs of leases that are new in it. Then they go out with the
#: shortest TTL, and once more when etcd has told.
LIST_PATIENCE = 2.0
CHANGE_PATIENCE = 0.02
_CHECK_PATIENCE = 5.0
_SOON = 0.05
#: Seconds after a lease should have ended: etcd looks for ended leases twice a second, and the watch needs its time.
_GRACE = 3.0
#: A lease that is kept alive is asked for at most this often, in seconds.
_LEAST_PAUSE = 10.0
#: Seconds until the next try while etcd does not answer.
_RETRY = 5.0


class Leases:
    """The leases of one source. `now` is a monotonic clock, in seconds."""

    def __init__(self, ask: Ask, now: Callable[[], float]) -> None:
        self._ask, self._now = ask, now
        self._granted: dict[int, int] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap
        self._due: dict[int, float] = {}  # lease -> the deadline that counts

    def granted(self, lease: int) -> int:
        """Seconds; 0 as long as etcd has not told."""
        return self._granted.get(lease, 0)

    def known(self) -> set[int]:
        """Those that are looked after."""
        return set(self._due)

    async def learn(self, leases: Iterable[int], patience: float) -> None:
        """Ask for those that are not known, for so many seconds. What is not learned now is asked for soon."""
        fresh = [lease for lease in dict.fromkeys(leases) if lease and lease not in self._due]
        if fresh:
            await self._look(fresh, patience, _SOON)

    def pause(self) -> float | None:
        """Seconds until a lease is due; None: none is."""
        while self._deadlines:
            at, lease = self._deadlines[0]
            if self._due.get(lease) == at:
                return max(at - self._now(), 0.0)
            heapq.heappop(self._deadlines)
        return None

    async def check(self) -> tuple[set[int], set[int]]:
        """Ask for those that are due: (leases that are gone, leases whose granted time is another one than known)."""
        due: list[int] = []
        while self.pause() == 0 and len(due) < _BATCH:
            lease = heapq.heappop(self._deadlines)[1]
            del self._due[lease]
            due.append(lease)
        before = {lease: self.granted(lease) for lease in due}
        gone = await self._look(due, _CHECK_PATIENCE, _RETRY)
        return gone, {lease for lease in due if lease not in gone and self.granted(lease) != before[lease]}

    def forget(self, lease: int) -> None:
        """No key hangs on it any more."""
        self._granted.pop(lease, None)
        self._due.pop(lease, None)

    async def _look(self, leases: list[int], patience: float, again: float) -> set[int]:
        """Ask for all of these; those that are gone. What was not answered is due again after so many seconds."""
        gone: set[int] = set()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(lease: int) -> None:
            async with gate:
                left, granted = await self._answer(lease)
            if left < 0:
                gone.add(lease)
                self._plan(lease, _RETRY)
            else:
                self._granted[lease] = granted
                self._plan(lease, max(left + _GRACE, _LEAST_PAUSE))

        for lease in leases:
            self._plan(lease, again)  # unless it is answered
        tasks = [asyncio.ensure_future(one(lease)) for lease in leases]
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*tasks)
        except (EtcdError, TimeoutError) as error:
            log.debug("leases: %s; asking again", error or "no answer in time")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return gone

    async def _answer(self, lease: int) -> tuple[int, int]:
        """As _ask, but nothing that goes wrong with a connection that is being closed can end the feed."""
        try:
            return await self._ask(lease)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # grpcio raises this when a call was canceled under us.
            raise EtcdUnavailable("the call was canceled") from None
        except EtcdError:
            raise
        except Exception as error:
            raise EtcdUnavailable(f"unexpected error: {error!r}") from error

    def _plan(self, lease: int, seconds: float) -> None:
        self._due[lease] = at = self._now() + seconds
        heapq.heappush(self._deadlines, (at, lease))
