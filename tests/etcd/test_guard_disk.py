"""The disk under state_dir fails while the guard holds a change, and then the loader is killed: another one starts on
what is left.

What was held stays held, or is judged anew by the table that readers have; `standoff pending` and `status` tell.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.etcd.test_guard import HOSTS, ZONE, Guarded, make_guarded
from tests.etcd.test_running import Asking
from tests.support.disks import Disk, mounted
from tests.torture.service import Part, wait_for

__all__ = ["make_guarded"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OLD = "192.0.2.1"


class Parts(Guarded):
    """Server and loader apart, so that the loader may be away for a while."""

    loader: Part
    disk: Disk

    def begin(self, *options: str) -> None:
        self.change(dict.fromkeys(range(HOSTS), OLD))
        self.service.source = [
            "--source", f"etcd://{self.etcd.endpoint}/names?schema=records", "--zone", ZONE,
            "--state-dir", str(self.state), "--image-interval", "0", *options,
        ]  # fmt: skip
        self.service.start_server()
        self.loader = self.service.start_loader()
        wait_for("the service answers", self.service.ready)
        self.until_host(HOSTS - 1, OLD)

    def begin_loader(self) -> None:
        self.loader = self.service.start_loader()
        wait_for("a loader is at work", lambda: self.service.loader_pid)

    def flows(self, address: str) -> None:
        """A change of a name that nothing holds is answered."""
        self.change({HOSTS - 1: address})
        self.until_host(HOSTS - 1, address)

    def on_disk(self, keys: int) -> None:
        """What is held, and the snapshot."""
        wait_for("what is held is on disk", (self.state / f"{self.service.instance}.held").exists)
        wait_for("so is the snapshot", lambda: len(self.kept("SELECT key FROM entries")) == keys)
        with closing(sqlite3.connect(self.snapshot())) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def reasons(self) -> str:
        return " ".join(self.status()["verdict"]["reasons"])


@pytest.fixture
def parts(make_guarded: Callable[..., Guarded], tmp_path: Path) -> Iterator[Parts]:
    made = make_guarded(Parts)
    assert isinstance(made, Parts)
    with mounted(tmp_path / "state") as disk:
        made.disk = disk
        yield made


def overwrite_pages(file: Path) -> None:
    """All but the header, as a disk that has lost its mind."""
    content = file.read_bytes()
    file.write_bytes(content[:100] + os.urandom(len(content) - 100))


def overwrite_values(file: Path) -> None:
    """An octet of each value, which SQLite does not see."""
    content = file.read_bytes()
    assert content.count(OLD.encode()) > 100
    file.write_bytes(content.replace(OLD.encode(), b"192.9.2.1"))


@pytest.mark.parametrize("harm", [overwrite_pages, overwrite_values])
def test_overwritten(parts: Parts, harm: Callable[[Path], None]) -> None:
    parts.begin()
    parts.change(gone=range(300))
    parts.until_held()
    parts.on_disk(HOSTS - 300)
    (before,) = parts.pending()
    with Asking(parts, f"h0.{ZONE}") as held, Asking(parts, f"h400.{ZONE}") as other:
        harm(parts.snapshot())
        parts.loader.kill()
        parts.begin_loader()
        parts.flows("192.0.2.99")
        assert parts.pending() == [before]
        wait_for("the snapshot is whole", lambda: len(parts.kept("SELECT key FROM entries")) == HOSTS - 300)
    assert held.seen == other.seen == [[OLD]]
    assert list(parts.state.glob("*.damaged-*"))
    parts.standoff("approve", "--all")
    parts.until_host(0, "NXDOMAIN")


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_full_or_read_only(parts: Parts, how: str) -> None:
    """Nothing gets on disk any more: neither what changes, nor a decision. The next loader finds what was held before,
    and judges anew what came since."""
    parts.begin()
    parts.change(gone=range(200))
    parts.until_held()
    parts.on_disk(HOSTS - 200)
    with Asking(parts, f"h0.{ZONE}") as held, Asking(parts, f"h400.{ZONE}") as other:
        if how == "full":
            parts.disk.harm(how)
            parts.change({400: "192.0.2.40"})
            parts.until_host(400, "192.0.2.40")
            done = parts.service.standoff("reject", "1", *parts._runtime)
            assert "change 1 with 200 names is rejected" in done.stdout
            assert "not on disk" in done.stderr
            assert "No space left on device" in done.stderr
        parts.loader.kill()
        if how == "read-only":  # not while somebody has a file open
            parts.disk.harm(how)
            parts.change({400: "192.0.2.40"})
        parts.begin_loader()
        parts.flows("192.0.2.99")
        parts.until_host(400, "192.0.2.40")
        (change,) = parts.pending()
        assert (change["change"], change["names"], change["state"]) == (1, 200, "pending")
        parts.change({401: "192.0.2.41"}, gone=range(200, 210))
        parts.until_host(200, "NXDOMAIN")
        wait_for("status tells", lambda: "cannot be written" in parts.reasons())
        assert "HELD" in parts.reasons()
        parts.loader.kill()
        parts.begin_loader()
        parts.flows("192.0.2.100")
        assert (parts.host(0), parts.host(401), parts.host(200)) == ([OLD], ["192.0.2.41"], ["NXDOMAIN"])
        (change,) = parts.pending()
        assert (change["change"], change["names"]) == (1, 200)
        parts.disk.well()
        wait_for("the disk is used again", lambda: "cannot be written" not in parts.reasons(), 60)
        assert parts.service.standoff("reject", "1", *parts._runtime).stderr == ""
        parts.loader.kill()
        parts.begin_loader()
        parts.flows("192.0.2.101")
        assert parts.pending("--rejected")[0]["names"] == 200
    assert held.seen == [[OLD]], f"in {held.count} answers"
    assert other.seen == [[OLD], ["192.0.2.40"]], f"in {other.count} answers"
