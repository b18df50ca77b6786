"""An EtcdSource with a consumer that applies what it gets, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

from loader import etcd_url, mirror
from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions
from loader.etcd_source import EtcdSource
from loader.model import Changes, Delete, Listing, Put

T = TypeVar("T")

_RUNNER = asyncio.Runner()

#: Seconds. Everything is quicker; this only ends tests that hang.
LIMIT = 30.0


def run_async(body: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run(), but in one loop for all tests: grpc.aio does not get over a closed loop."""
    return _RUNNER.run(body)


class Mirroring:
    """`async with Mirroring(endpoints, prefix) as mirroring:` runs a source in a task; content is what it has given."""

    def __init__(
        self, endpoints: list[str], prefix: str, options: ClientOptions | None = None, query: str = "", **policy: Any
    ) -> None:
        """query: more parameters of the URL, each with its `&`. An endpoint with a scheme stands as it is."""
        options = options or ClientOptions()
        scheme = "" if "://" in endpoints[0] else "etcds://" if options.tls else "etcd://"
        url = etcd_url.parse(f"{scheme}{','.join(endpoints)}{prefix}?schema=records{query}")
        self.source = EtcdSource(url, options, policy=mirror.Policy(endpoints=len(endpoints), **policy))
        self.content: dict[str, Put] = {}
        self.items: list[Listing | Changes] = []
        self.hold = asyncio.Event()  # cleared: the consumer is busy
        self.hold.set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._consume())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _consume(self) -> None:
        async with aclosing(self.source.run()) as items:
            async for item in items:
                self._apply(item)
                async with self._changed:
                    self._changed.notify_all()
                await self.hold.wait()

    def _apply(self, item: Listing | Changes) -> None:
        self.items.append(item)
        if isinstance(item, Listing):
            self.content = {put.key: put for put in item.entries}
            return
        for change in item.events:
            if isinstance(change, Delete):
                self.content.pop(change.key, None)
            else:
                self.content[change.key] = change

    async def until(self, wanted: Callable[[], bool], what: str = "the state wanted") -> None:
        """Wait until wanted() holds."""
        end = time.monotonic() + LIMIT
        while not wanted():
            assert not self._task.done(), self._task
            assert time.monotonic() < end, f"no {what} within {LIMIT} s: {self.source.status}"
            await asyncio.sleep(0.01)

    async def until_like(self, etcd: Etcd, prefix: str) -> None:
        """Wait until the content is the store's, key by key."""
        expected = {}
        async for page in etcd.pages(prefix + "/"):
            expected.update({put.key: put for put in page.entries})
        try:
            await self.until(lambda: self.content == expected)
        except AssertionError:
            missing, extra = expected.keys() - self.content.keys(), self.content.keys() - expected.keys()
            print(f"{len(missing)} missing, {len(extra)} extra, of {len(expected)}")
            raise

    async def until_fresh(self) -> None:
        """Wait until a watch runs."""
        await self.until(lambda: self.source.status.state.name == "FRESH" and self.source._mirror.watching, "watch")


async def write_many(etcd: Etcd, prefix: str, count: int, start: int = 0, size: int = 10) -> None:
    """count revisions of one key each, pipelined."""
    for first in range(start, start + count, 200):
        numbers = range(first, min(first + 200, start + count))
        await asyncio.gather(*(etcd.put(f"{prefix}/k{i:06}", b"%d" % i + b"x" * size) for i in numbers))
