"""A start after a reboot: answers come from the image of the table at once, then from the snapshot, then from etcd; and
whatever happens to the image, it is whole or not used."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import dns.edns
import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from loader import image
from loader.etcd import Etcd
from shm._table import Table
from shm.layout import LoaderState
from tests.support.etcd import EtcdServer
from tests.torture import content
from tests.torture.changing import ZONE, Changer
from tests.torture.service import PREFIX, Service, wait_for

pytestmark = pytest.mark.timeout(120)
NAMES = 3000


class Kept:
    """A service with a folder for its state."""

    def __init__(self, service: Service, etcd: EtcdServer, state: Path) -> None:
        self.service, self.etcd, self.state = service, etcd, state
        self.image = state / f"{service.instance}.image"
        self._source = [*service.source, "--state-dir", str(state)]
        service.source = self._source

    def start(self, *options: str) -> None:
        self.service.source = [*self._source, *options]
        self.service.start_run()

    def put(self, **addresses: str | None) -> int:
        """Name -> address, None: deleted; the revision."""

        async def body() -> int:
            revision = 0
            async with Etcd(self.etcd.endpoint) as client:
                for name, address in addresses.items():
                    key = f"{PREFIX}/{ZONE}/{name}/A"
                    revision = await (client.put(key, address.encode()) if address else client.delete(key))
            return revision

        return asyncio.run(body())

    def adopt(self, revision: int) -> None:
        wait_for(f"all answer from revision {revision}", lambda: self.service.adopted() >= revision)

    def ask(self, name: str) -> dns.message.Message | None:
        query = dns.message.make_query(f"{name}.{ZONE}", "A", use_edns=0)
        try:
            return dns.query.udp(query, "127.0.0.1", port=self.service.port, timeout=0.5)
        except (dns.exception.Timeout, OSError):
            return None

    def first_answer(self, name: str) -> dns.message.Message:
        """The first that is not SERVFAIL: nobody is ready to answer before there is a table."""
        found: list[dns.message.Message] = []

        def answered() -> bool:
            answer = self.ask(name)
            if answer is not None and answer.rcode() != dns.rcode.SERVFAIL:
                found.append(answer)
            return bool(found)

        wait_for("an answer", answered)
        return found[0]

    def loader(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.service.standoff("status", "--json").stdout)["loader"]
        return found


@pytest.fixture
def kept(service: Service, etcd: EtcdServer, tmp_path: Path) -> Kept:
    """It has run, with an image of its first table; then www got another address, and all was killed."""
    kept = Kept(service, etcd, tmp_path / "state")
    kept.put(www="192.0.2.1", gone="192.0.2.9")
    kept.start()
    wait_for("the service answers", service.ready)
    wait_for("an image", kept.image.exists)
    kept.adopt(revision := kept.put(www="192.0.2.2"))
    wait_for("the change is in the snapshot", lambda: snapshot_has(kept.state, revision))
    kept.service.power_cut()
    return kept


def snapshot_has(state: Path, revision: int) -> bool:
    (path,) = state.glob(f"*-{8 * '[0-9a-f]'}.sqlite")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return bool(connection.execute("SELECT 1 FROM state WHERE revision >= ?", (revision,)).fetchone())


def address(answer: dns.message.Message | None) -> str:
    return "" if answer is None or not answer.answer else str(answer.answer[0][0])


def stale(answer: dns.message.Message) -> bool:
    return any(option.otype == dns.edns.OptionType.EDE and option.code == 3 for option in answer.options)


def test_a_start_without_etcd(kept: Kept, etcd: EtcdServer) -> None:
    """The first answer is the image's; the snapshot, which is newer, follows. Both are stale, and told to be."""
    etcd.kill()
    time.sleep(1.5)  # it is to be older than --stale-after
    kept.start("--stale-after", "1")
    first = kept.first_answer("www")
    assert address(first) in {"192.0.2.1", "192.0.2.2"}
    assert "answers come from the image of revision" in kept.service.said()
    wait_for("the snapshot's answer", lambda: address(kept.ask("www")) == "192.0.2.2")
    wait_for("EDE 3", lambda: (answer := kept.ask("www")) is not None and stale(answer))
    wait_for("stale", lambda: kept.loader()["state"] == "stale")
    wait_for("no image any more", lambda: "image of revision" not in kept.loader()["note"])


def test_stale_until_the_sources_are_there(kept: Kept, etcd: EtcdServer) -> None:
    """Without a snapshot and without etcd the image is all there is, and stays."""
    etcd.kill()
    for path in kept.state.glob("*.sqlite*"):
        path.unlink()
    kept.start()
    assert address(kept.first_answer("www")) == "192.0.2.1"
    wait_for("ready", kept.service.ready)
    told = kept.loader()
    assert told["state"] == "stale"
    assert "answers come from the image of revision" in told["note"]
    etcd.start()
    wait_for("etcd's answer", lambda: address(kept.ask("www")) == "192.0.2.2")
    wait_for("fresh", lambda: kept.loader()["state"] == "fresh")


def test_what_changed_meanwhile(kept: Kept) -> None:
    revision = kept.put(www="192.0.2.3", gone=None, new="192.0.2.4")
    kept.start()
    assert address(kept.first_answer("www")) in {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    kept.adopt(revision)
    assert address(kept.ask("www")) == "192.0.2.3"
    assert address(kept.ask("new")) == "192.0.2.4"
    gone = kept.ask("gone")
    assert gone is not None
    assert gone.rcode() == dns.rcode.NXDOMAIN
    assert content.both_sides(kept.service.board)[0] == content.both_sides(kept.service.board)[1]


@pytest.mark.parametrize("harm", ["damaged", "cut", "another's"])
def test_an_image_that_cannot_be_used(kept: Kept, etcd: EtcdServer, harm: str) -> None:
    """The snapshot has the answers, and the next image is whole again."""
    etcd.kill()
    raw = bytearray(kept.image.read_bytes())
    if harm == "damaged":
        raw[len(raw) // 2] ^= 1
    elif harm == "cut":
        del raw[-1]
    kept.image.write_bytes(raw)
    kept.start(*(["--default-ttl", "77"] if harm == "another's" else []))
    assert address(kept.first_answer("www")) == "192.0.2.2"
    said = kept.service.said()
    if harm == "another's":
        assert "it was made with another default_ttl" in said
    else:
        assert "cannot be used" in said
        assert kept.image.with_name(f"{kept.image.name}.damaged").exists()
    wait_for("another image", lambda: whole(kept) > 0)


def test_a_clean_end_keeps_the_last_change(service: Service, etcd: EtcdServer, tmp_path: Path) -> None:
    kept = Kept(service, etcd, tmp_path / "state")
    kept.start()
    wait_for("the service answers", service.ready)
    wait_for("an image", kept.image.exists)
    before = whole(kept)
    kept.adopt(revision := kept.put(late="192.0.2.7"))
    assert before < revision
    assert service.parts[0].stop() == 0
    assert whole(kept) == revision
    etcd.kill()
    for path in kept.state.glob("*.sqlite*"):
        path.unlink()
    service.parts.clear()
    service._board = None
    kept.start()
    assert address(kept.first_answer("late")) == "192.0.2.7"


def whole(kept: Kept) -> int:
    """The revision of the image, all of which is right; 0: there is none, or not for these settings."""
    try:
        with kept.image.open("rb") as file:
            shaping = image._description(file)[0].shaping
        with image.open_image(kept.image, shaping) as found:
            buffer = bytearray(found.description.size)
            with memoryview(buffer) as view:
                found.fill(view)
    except FileNotFoundError:
        return 0
    table = Table(buffer)
    try:
        assert sum(1 for _ in table.blocks()) == table.names == found.description.names
        return found.description.revision
    finally:
        table.close()


@pytest.mark.slow
def test_killed_while_it_is_written(
    service: Service, etcd: EtcdServer, changer: Changer, tmp_path: Path, torture_seed: int
) -> None:
    """At random moments, a hundred changes a second, images as fast as the disk takes them."""
    kept = Kept(service, etcd, tmp_path / "state")
    asyncio.run(widen(etcd.endpoint))
    chance = random.Random(torture_seed)
    changer.start(100)
    revisions = []
    for _ in range(12):
        service.source = [*kept._source, "--image-interval", "0.001"]
        loader = service.start_loader()
        wait_for("it publishes", service.published)
        wait_for("etcd's own table", lambda: is_fresh(service))
        time.sleep(chance.uniform(0.3, 0.8))
        loader.kill()
        wait_for("it is gone", lambda: not service.lives("writer"))
        revisions.append(whole(kept))
        service.forget()
    assert revisions == sorted(revisions)
    assert len(set(revisions)) > 6, "the images were of the same few moments"
    changer.stop()


def is_fresh(service: Service) -> bool:
    """Whether the names come from etcd, no longer from the image."""
    words = service.board.loader
    return words.get("names") > NAMES and words.get("loader_state") == LoaderState.FRESH


async def widen(endpoint: str) -> None:
    async with Etcd(endpoint) as client:
        for start in range(0, NAMES, 100):
            await client.transact([(f"{PREFIX}/{ZONE}/wide{i}/A", b"192.0.2.1") for i in range(start, start + 100)])


def test_a_full_disk(service: Service, etcd: EtcdServer, tmp_path: Path) -> None:
    """It is told, answers go on, and the next one is written."""
    kept = Kept(service, etcd, tmp_path / "state")
    kept.state.mkdir()
    kept.image.with_name(f"{kept.image.name}.new").symlink_to("/dev/full")
    kept.start("--image-interval", "2")
    wait_for("the service answers", service.ready)
    wait_for("it is told", lambda: "No space left on device" in kept.loader()["note"])
    assert address(kept.ask("host1")) == "192.0.2.1"
    wait_for("another image", lambda: whole(kept) > 0)
    wait_for("nothing is told any more", lambda: "No space" not in kept.loader()["note"])
    assert "is written again" in service.said()
