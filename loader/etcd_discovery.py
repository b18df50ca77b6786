"""Which endpoints an etcd cluster has: those that the URL names, or what DNS says (etcd's own SRV discovery).

Asked again before a connection is made, so that a cluster that moved is found as soon as the old one fails, and every
RENEW_S. A DNS that does not answer changes nothing: what it said last counts.

TLS is not a matter of what DNS says: who spoofs it could switch it off. The URL says it, and etcd's certificate has to
name the host that the SRV record names.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable

from loader.etcd_channel import EtcdUnavailable
from loader.etcd_url import EtcdUrl

log = logging.getLogger("standoff.etcd")

#: How often to ask while all is well, in seconds; etcd's members change once in months.
RENEW_S = 60.0
#: Connections that fail one after the other ask once in so many seconds.
AGAIN_S = 2.0
#: Seconds that DNS has to answer: a few tries over UDP.
LIFETIME_S = 3.0

#: (priority, weight, port, target without the last dot)
Srv = tuple[int, int, int, str]


def ordered(records: Iterable[Srv], draw: Callable[[], float]) -> list[str]:
    """HOST:PORT by priority, and within one at random by weight (RFC 2782), so that many loaders spread."""
    found = []
    for priority, weight, port, target in records:
        if target:  # "." says that there is no such service
            key = draw() ** (1.0 / weight) if weight else -draw()
            found.append((priority, -key, f"{target}:{port}"))
    return list(dict.fromkeys(endpoint for _, _, endpoint in sorted(found)))


class Members:
    """The endpoints of one source. `endpoints` may be empty before the first `renew`."""

    def __init__(self, url: EtcdUrl, draw: Callable[[], float] = random.random) -> None:
        self._url = url
        self._draw = draw
        self._asked_at = -RENEW_S
        self.endpoints: tuple[str, ...] = url.endpoints
        service = "_etcd-client-ssl" if url.tls else "_etcd-client"
        self.name = f"{service}._tcp.{url.domain}" if url.domain else ""

    async def before_connecting(self) -> None:
        """Raises EtcdUnavailable if there is none to connect to."""
        if not self.name or (self.endpoints and time.monotonic() - self._asked_at < AGAIN_S):
            return
        try:
            await self.renew()
        except EtcdUnavailable as error:
            if not self.endpoints:
                raise
            log.warning("%s; going on with %s", error, ", ".join(self.endpoints))

    async def renew(self) -> None:
        """Ask DNS. The order stays as long as the endpoints are the same. Raises EtcdUnavailable."""
        self._asked_at = time.monotonic()
        found = ordered(await self._ask(), self._draw)
        if not found:
            raise EtcdUnavailable(f"the SRV records {self.name} name no etcd endpoint")
        if set(found) != set(self.endpoints):
            log.info("SRV records %s: etcd is at %s", self.name, ", ".join(found))
            self.endpoints = tuple(found)

    async def _ask(self) -> list[Srv]:
        from dns import asyncresolver, exception  # 60 ms that most loaders need not spend

        resolver = asyncresolver.Resolver(configure=not self._url.resolver)
        if self._url.resolver:
            host, _, port = self._url.resolver.rpartition(":")
            resolver.nameservers, resolver.port = [host.strip("[]")], int(port)
        try:
            answer = await resolver.resolve(f"{self.name}.", "SRV", lifetime=LIFETIME_S)
        except (exception.DNSException, OSError) as error:
            raise EtcdUnavailable(f"no etcd endpoints in DNS: {error}") from None
        return [(rr.priority, rr.weight, rr.port, rr.target.to_text(omit_final_dot=True).strip(".")) for rr in answer]


async def endpoints_of(url: EtcdUrl) -> tuple[str, ...]:
    """For who asks once. Raises EtcdUnavailable."""
    members = Members(url)
    await members.before_connecting()
    return members.endpoints
