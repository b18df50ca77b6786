"""A thin asyncio client for etcd v3: what a mirror needs, and the few writes that tests and tools need.

Things that don't work, each measured:
* Small pages: every page makes etcd count the rest of the range, so that 1M keys take 23 s in pages of 5,000 and 5 s in
  pages of 100,000.
* `fragment` on watches: ten times slower in etcd 3.4, and broken in 3.5.1.
* Resuming at the revision of a response's header: while catching up, it is the store's, not that of the last event.
* The revision of a progress answer: older servers send it ahead of the events (etcd issues 15220, 17507).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from loader._etcdpb import EVENT_DELETE, PERMISSION_READWRITE, RequestOp, WatchRequest
from loader.etcd_channel import (
    AuthFailed,
    ClientOptions,
    Compacted,
    EtcdChannel,
    EtcdError,
    EtcdUnavailable,
    TokenExpired,
    TooLarge,
    TooSlow,
)
from loader.model import NO_UTF8, Delete, Put

#: Keys of a page, see the module's head. A first list may take larger pages than one beside a running watch.
PAGE_SIZE = 50_000
#: Entries handed on at once: converting and comparing 1,000 takes about 2 ms, which a list holds up a watch beside it.
CHUNK = 1_000
#: When even pages this small are too large, values are of another kind than ours.
SMALLEST_PAGE = 16
#: When a page this small takes too long, it is not its size.
SLOW_PAGE = 10_000
_ALL_KEYS = b"\0"


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. revision and cluster_id are the same in all parts; total is the number of keys in the list."""

    entries: list[Put]
    revision: int
    cluster_id: int
    total: int
    last: bool


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with prefix; b"\\0" (no end) if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else _ALL_KEYS


def key_text(raw: bytes) -> str:
    """A key as text. One that is not UTF-8 is escaped and marked with U+FFFD: the schema rejects it, and only it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="backslashreplace") + NO_UTF8


class Watch:
    """A running watch, made by Etcd.watch. revision and cluster_id are those of the store when it was made.

    The revision must not be resumed from; it tells how far behind the watch starts.
    """

    def __init__(self, channel: EtcdChannel, call: Any, created: Any, skip: int = 0) -> None:
        """skip: octets of each key that are the namespace."""
        self._channel = channel
        self._call = call
        self._skip = skip
        self.revision: int = created.header.revision
        self.cluster_id: int = created.header.cluster_id

    async def read(self) -> list[Put | Delete]:
        """The next events, complete up to the mod_revision of the last one; an empty list is just a sign of life.

        Raises EtcdUnavailable, Compacted, AuthFailed or TooLarge, after which the watch is over. Continue with a new
        one from the last event's mod_revision + 1.
        """
        response = await _read(self._channel, self._call)
        if response.canceled:
            raise _canceled(self._channel, response)
        skip = self._skip
        return [
            Delete(key_text(event.kv.key[skip:]), event.kv.mod_revision)
            if event.type == EVENT_DELETE
            else _put(event.kv, skip)
            for event in response.events
        ]

    async def ping(self) -> None:
        """Ask for a sign of life; read() returns an empty list when it comes.

        etcd from 3.5.8 and 3.4.25 on does not answer while the watch is catching up, earlier ones do. A broken stream
        shows in read(), not here.
        """
        request = WatchRequest()
        request.progress_request.SetInParent()
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(request)

    def cancel(self) -> None:
        """End the watch at once."""
        self._call.cancel()


class Etcd(EtcdChannel):
    """An open channel and the calls on it. `async with Etcd(endpoint, options) as etcd:` opens and closes it.

    A namespace stands before every key on the wire, and in no key on this side.
    """

    def __init__(self, endpoint: str, options: ClientOptions | None = None, namespace: str = "") -> None:
        super().__init__(endpoint, options or ClientOptions())
        self._namespace = namespace.encode()

    def _raw(self, key: str | bytes) -> bytes:
        return self._namespace + (key.encode() if isinstance(key, str) else key)

    def _range(self, prefix: str) -> dict[str, bytes]:
        raw = self._raw(prefix)
        return {"key": raw or _ALL_KEYS, "range_end": prefix_end(raw)}

    def _put(self, kv: Any) -> Put:
        return _put(kv, len(self._namespace))

    async def __aenter__(self) -> Etcd:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def pages(self, prefix: str, page_size: int = PAGE_SIZE, revision: int = 0) -> AsyncGenerator[Page, None]:
        """List all keys under prefix as of one revision: the current one, or the one given.

        The first page is a linearizable read: nothing that was acknowledged before is missing. The rest is read at the
        first page's revision. Raises Compacted if that is compacted meanwhile; a page that is too large, or takes too
        long, is asked for again in a smaller size. While a page is converted the next one is on its way.
        """
        span = self._range(prefix)
        skip = len(self._namespace)
        total = 0
        request: asyncio.Task[Any] | None = None
        try:
            while True:
                if request is None:
                    request = self._request_page(span, page_size, revision)
                try:
                    response = await request
                except (TooLarge, TooSlow) as error:
                    if page_size <= (SMALLEST_PAGE if isinstance(error, TooLarge) else SLOW_PAGE):
                        raise
                    page_size, request = max(SMALLEST_PAGE, page_size // 4), None
                    continue
                revision = revision or response.header.revision
                total = total or response.count
                kvs, more, cluster_id = response.kvs, response.more, response.header.cluster_id
                request = None
                if more:
                    span = {**span, "key": kvs[-1].key + b"\0"}
                    request = self._request_page(span, page_size, revision)
                for start in range(0, max(1, len(kvs)), CHUNK):
                    entries = [_put(kv, skip) for kv in kvs[start : start + CHUNK]]
                    last = not more and start + CHUNK >= len(kvs)
                    yield Page(entries, revision, cluster_id, total, last)
                if not more:
                    return
        finally:
            if request is not None and not request.done():
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)

    def _request_page(self, span: dict[str, bytes], limit: int, revision: int) -> asyncio.Task[Any]:
        call = self.call("Range", self.options.page_timeout, **span, limit=limit, revision=revision)
        task = asyncio.ensure_future(call)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody asks for it
        return task

    async def watch(self, prefix: str, start_revision: int) -> Watch:
        """Watch prefix from start_revision on (inclusive; it may lie in the future). Raises as Watch.read does.

        A refused token and a refused permission look the same on a watch, so the token is renewed once.
        """
        for last_try in (False, True):
            call = self.stream("Watch")
            try:
                request = WatchRequest(create_request={**self._range(prefix), "start_revision": start_revision})
                with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the read that follows tells why
                    await call.write(request)
                async with asyncio.timeout(self.options.call_timeout):
                    response = await _read(self, call)
                    # "created" comes together with "canceled" when access is refused, and before it when compacted.
                    if not response.canceled:
                        return Watch(self, call, response, len(self._namespace))
            except TimeoutError:
                call.cancel()
                raise EtcdUnavailable(f"etcd {self.endpoint} does not answer to a watch") from None
            except TokenExpired:
                call.cancel()
                if last_try or not self.options.user:
                    raise
            except BaseException:
                call.cancel()
                raise
            else:
                call.cancel()
                problem = _canceled(self, response)
                if last_try or not self.options.user or not isinstance(problem, AuthFailed):
                    raise problem
            await self.authenticate()
        raise AssertionError("unreachable")

    async def revision(self) -> int:
        """The store's current revision, by a linearizable read."""
        response = await self.call("Range", key=_ALL_KEYS, count_only=True)
        return int(response.header.revision)

    async def may_read(self, key: str) -> None:
        """Raises AuthFailed if our user may not read the key any more. Asks this member alone."""
        if self.options.user:
            await self.call("Range", key=self._raw(key), serializable=True, keys_only=True)

    async def get(self, key: str) -> Put | None:
        """One key, or None."""
        response = await self.call("Range", key=self._raw(key))
        return self._put(response.kvs[0]) if response.kvs else None

    async def put(self, key: str | bytes, value: bytes, lease: int = 0) -> int:
        """Write one key; returns its revision. After an EtcdUnavailable it may or may not have been written."""
        response = await self.call("Put", key=self._raw(key), value=value, lease=lease)
        return int(response.header.revision)

    async def delete(self, key: str) -> int:
        """Delete one key; returns the store's revision after it, whether the key existed or not."""
        return int((await self.call("DeleteRange", key=self._raw(key))).header.revision)

    async def delete_prefix(self, prefix: str) -> int:
        """Delete everything under prefix; returns the store's revision after it."""
        return int((await self.call("DeleteRange", **self._range(prefix))).header.revision)

    async def transact(self, puts: Iterable[tuple[str, bytes]], deletes: Sequence[str] = ()) -> int:
        """Write and delete several keys in one revision (etcd takes 128 by default, no key twice); returns it."""
        operations = [RequestOp(request_put={"key": self._raw(key), "value": value}) for key, value in puts]
        operations += [RequestOp(request_delete_range={"key": self._raw(key)}) for key in deletes]
        return int((await self.call("Txn", success=operations)).header.revision)

    async def compact(self, revision: int) -> None:
        """Forget the history before revision."""
        await self.call("Compact", revision=revision, physical=True)

    async def grant_lease(self, ttl: int) -> int:
        """A new lease that lives for ttl seconds; returns its id."""
        return int((await self.call("LeaseGrant", TTL=ttl)).ID)

    async def revoke_lease(self, lease: int) -> None:
        """End a lease and delete its keys."""
        await self.call("LeaseRevoke", ID=lease)

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        """Seconds that a lease has left, and seconds that it was granted; (-1, 0) if there is no such lease."""
        response = await self.call("LeaseTimeToLive", ID=lease)
        return response.TTL, response.grantedTTL

    async def status(self) -> tuple[str, int]:
        """Version of the server and id of its cluster."""
        response = await self.call("Status")
        return response.version, response.header.cluster_id

    async def alarms(self) -> list[str]:
        """What this member knows to be wrong with its cluster, such as NOSPACE and CORRUPT; each once."""
        response = await self.call("Status")
        return sorted({error.rpartition("alarm:")[2].strip() for error in response.errors if "alarm:" in error})

    async def add_user(self, name: str, password: str, prefix: str, permission: int = PERMISSION_READWRITE) -> None:
        """A user with a role of the same name that may use what is under prefix."""
        await self.call("UserAdd", name=name, password=password)
        await self.call("RoleAdd", name=name)
        await self.call("RoleGrantPermission", name=name, perm={"permType": permission, **self._range(prefix)})
        await self.call("UserGrantRole", user=name, role=name)

    async def enable_auth(self, root_password: str) -> None:
        """Switch authentication on, with a root user."""
        await self.call("UserAdd", name="root", password=root_password)
        await self.call("RoleAdd", name="root")
        await self.call("UserGrantRole", user="root", role="root")
        await self.call("AuthEnable")


def _put(kv: Any, skip: int) -> Put:
    return Put(key_text(kv.key[skip:] if skip else kv.key), kv.value, kv.mod_revision, kv.lease)


async def _read(channel: EtcdChannel, call: Any) -> Any:
    """The next message of a stream; raises EtcdError's children when there is none."""
    try:
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        raise channel.explain(error) from None
    if response is grpc.aio.EOF:
        raise EtcdUnavailable(f"etcd {channel.endpoint} has ended the watch")
    return response


def _canceled(channel: EtcdChannel, response: Any) -> EtcdError:
    """Why the server ended a watch."""
    where, reason = f"etcd {channel.endpoint}", response.cancel_reason or "no reason given"
    if response.compact_revision:
        return Compacted(f"{where}: history before {response.compact_revision} is gone", response.compact_revision)
    if response.created or "permission" in reason or "auth" in reason:
        user = channel.options.user
        return AuthFailed(f"{where}: user {user!r} may not watch ({reason}); grant its role read on the prefix")
    return EtcdUnavailable(f"{where} has ended the watch: {reason}")
