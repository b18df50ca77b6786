"""`standoff check` of sources: files are read in full, etcd is asked if wanted. Imports the loader: slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from cli.checks import Level, Remark, ok, problem, warning
from cli.settings import Settings
from loader import etcd_url, names
from loader.etcd_channel import EtcdError
from loader.etcd_discovery import endpoints_of
from loader.files import FileSource
from loader.zone import Zones

#: Remarks on single records; what is wrong with the first hundred is mostly wrong with the others.
MOST_RECORDS = 100


class SourceCheck:
    """Goes through the sources of the settings; afterwards `names` is how many names the files have."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._apexes = [names.from_text(zone) for zone in settings.zone]
        self._zones = Zones(self._apexes, settings.default_ttl)
        self.names = 0
        # What the sources log is in the remarks.
        logging.getLogger("loader").addHandler(logging.NullHandler())

    def remarks(self, connect: bool) -> Iterator[Remark]:
        """All that there is to say."""
        if not self._settings.source:
            yield problem("source", 'there is none: give source = ["file:PATH"] or ["etcd://HOST:PORT/PREFIX"]')
        unreadable = False
        files = [source for source in self._settings.source if not etcd_url.is_etcd_url(source)]
        for number, source in enumerate(files):
            remarks = list(self._file(number, source.removeprefix("file:")))
            unreadable |= any(remark.level is Level.PROBLEM for remark in remarks)
            yield from remarks
        if files:
            self.names = len(self._zones)
            apexes = sorted(names.to_text(apex) for apex in self._zones.apexes())
            told = self._zones.problems | self._zones.warnings
            yield from _records({key: f"{key.partition(':')[2]}: {text}" for key, text in told.items()})
            if self.names or not unreadable:
                yield ok("source", f"files hold {self.names} names in zones: {' '.join(apexes) or 'none'}")
        for source in self._settings.source:
            if etcd_url.is_etcd_url(source):
                yield from _etcd(source, self._settings, connect)

    def _file(self, number: int, path: str) -> Iterator[Remark]:
        source = FileSource(path, self._apexes)
        update = source.look()
        if update is None:
            waited = self._settings.missing == "wait" and not Path(path).exists()
            text = source.status.error or f"{path} holds nothing that can be read"
            yield warning("source", f"{text}: it will be waited for") if waited else problem("source", text)
            return
        files = {key: text for key, text in update.problems.items() if Path(key.removeprefix("file:")).exists()}
        for text in files.values():
            yield problem("source", text)
        yield from _records({key: text for key, text in update.problems.items() if key not in files})
        for key, records in update.records.items():
            self._zones.apply(f"{number}:{key}", records or (), update.revision)
        if not files:
            yield ok("source", f"{path} can be read")


def _records(problems: dict[str, str]) -> Iterator[Remark]:
    """Problems of single records cost those records only: warnings."""
    for _, text in sorted(problems.items())[:MOST_RECORDS]:
        yield warning("record", text)
    if len(problems) > MOST_RECORDS:
        yield warning("record", f"and {len(problems) - MOST_RECORDS} more")


def _etcd(source: str, settings: Settings, connect: bool) -> Iterator[Remark]:
    try:
        url = etcd_url.parse(source)
    except etcd_url.EtcdUrlError as error:
        yield problem("source", str(error))
        return
    where = ", ".join(url.endpoints) or f"what the SRV records of {url.domain} name"
    keys = f"{url.key_prefix} in namespace {url.namespace}" if url.namespace else url.key_prefix
    asked = "" if connect else "; not asked, --connect would"
    yield ok("source", f"etcd at {where}, keys under {keys}, schema {url.schema}{asked}")
    if url.schema == "skydns" and not settings.zone:
        yield problem("source", f"schema skydns needs the zones: give zone for what is under {url.key_prefix}")
    if connect:
        try:
            endpoints = asyncio.run(endpoints_of(url))
        except EtcdError as error:
            yield problem("etcd", str(error))
            return
        remarks = [asyncio.run(_ask(endpoint, url.tls, settings)) for endpoint in endpoints]
        answered = any(remark.level is Level.OK for remark in remarks)
        for remark in remarks:  # one that answers is enough
            yield warning(remark.what, remark.text) if answered and remark.level is Level.PROBLEM else remark


async def _ask(endpoint: str, tls: bool, settings: Settings) -> Remark:
    from loader.etcd import Etcd
    from loader.etcd_access import client_options

    try:
        options = client_options(settings, tls=tls)
        async with Etcd(endpoint, options) as client:
            version, _ = await client.status()
            return ok("etcd", f"{endpoint} answers: etcd {version}")
    except (EtcdError, OSError, ValueError) as error:
        return problem("etcd", str(error))
