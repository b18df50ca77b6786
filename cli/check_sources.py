"""`standoff check` of sources: files are read in full, etcd is asked if wanted. Imports the loader: slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from cli.checks import Remark, ok, problem
from cli.settings import Settings

SUFFIXES = (".zone", ".db", ".jsonl")


def sources(settings: Settings, connect: bool) -> Iterator[Remark]:
    """Every source of the settings."""
    if not settings.source:
        yield problem("source", 'there is none: give source = ["file:PATH"] or ["etcd://HOST:PORT/PREFIX"]')
    for source in settings.source:
        if source.startswith("file:"):
            yield from _file(Path(source.removeprefix("file:")))
        else:
            yield from _etcd(source, settings, connect)


def _file(path: Path) -> Iterator[Remark]:
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            yield problem("source", f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
        for file in files:
            with file.open("rb"):
                yield ok("source", f"{file} can be read")
    except OSError as error:
        yield problem("source", f"{error.filename} cannot be read: {error.strerror}")


def _etcd(source: str, settings: Settings, connect: bool) -> Iterator[Remark]:
    from loader import etcd_url

    try:
        url = etcd_url.parse(source)
    except etcd_url.EtcdUrlError as error:
        yield problem("source", str(error))
        return
    yield ok("source", f"etcd at {', '.join(url.endpoints)}, keys under {url.key_prefix}, schema {url.schema}")
    if url.schema == "skydns" and not settings.zone:
        yield problem("source", f"schema skydns needs the zones: give zone for what is under {url.key_prefix}")
    if connect:
        for endpoint in url.endpoints:
            yield asyncio.run(_ask(endpoint, url.tls, settings))


async def _ask(endpoint: str, tls: bool, settings: Settings) -> Remark:
    from loader.etcd import Etcd
    from loader.etcd_channel import ClientOptions, EtcdError

    try:
        password = settings.etcd_password
        if settings.etcd_password_file:
            password = settings.etcd_password_file.read_text().split("\n", 1)[0]
        options = ClientOptions(
            user=settings.etcd_user,
            password=password,
            tls=tls,
            cacert=str(settings.etcd_cacert or ""),
            cert=str(settings.etcd_cert or ""),
            key=str(settings.etcd_key or ""),
        )
        async with Etcd(endpoint, options) as client:
            version, _ = await client.status()
            return ok("etcd", f"{endpoint} answers: etcd {version}")
    except (EtcdError, OSError) as error:
        return problem("etcd", f"{endpoint}: {error}")
