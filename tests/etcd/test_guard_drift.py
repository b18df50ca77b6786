"""Lists find what the watch never told, while the guard holds something: of the held names, and of others.

Every re-list compares all keys (relist_interval, 10 s here). What it puts right is a change like any other: it flows,
waits with what is held, or is held itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.etcd.test_guard import ZONE, Guarded, key, make_guarded
from tests.etcd.test_running import Asking
from tests.support.lossy import Lossy
from tests.torture.service import wait_for

__all__ = ["make_guarded"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Drifting(Guarded):
    """Whose watch loses events."""

    lossy: Lossy
    drift = 0
    heard = 100

    @contextmanager
    def unheard(self, *numbers: int) -> Iterator[None]:
        """What happens to these hosts meanwhile no watch tells."""
        with self.lossy.losing(*map(key, numbers)):
            yield
            self.heard += 1
            self.change({499: f"192.0.2.{self.heard}"})  # etcd tells in order
            self.until_host(499, f"192.0.2.{self.heard}")

    def until_drift(self, more: int) -> None:
        seen = self.drift
        wait_for(f"{more} differences are found", lambda: self.service.board.loader.get("drift") >= seen + more)
        self.drift = self.service.board.loader.get("drift")
        assert self.drift == seen + more

    def held_hosts(self, *arguments: str) -> dict[str, tuple[list[str], list[str]]]:
        """Host -> (what readers have, what the source says), of those that are held or rejected."""
        found = self.standoff("pending", *arguments)
        assert found["complete"]
        return {
            one["name"].partition(".")[0]: (one["removed"], one["added"])
            for one in found["differences"]
            if one["name"] != f"{ZONE}."
        }


@pytest.fixture
def drifting(make_guarded: Callable[..., Guarded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drifting:
    lossy = Lossy(tmp_path / "lossy")
    for name, value in lossy.environment.items():
        monkeypatch.setenv(name, value)
    made = make_guarded(Drifting)
    assert isinstance(made, Drifting)
    made.lossy = lossy
    return made


def test_of_held_names_and_of_others(drifting: Drifting) -> None:
    drifting.begin("--relist-interval", "10")
    with Asking(drifting, f"h0.{ZONE}") as held, Asking(drifting, f"h401.{ZONE}") as other:
        wait_for("first answers", lambda: held.count and other.count)
        find_and_approve(drifting)
    assert held.seen == [["192.0.2.1"], ["192.0.2.50"]], f"in {held.count} answers"
    assert other.seen == [["192.0.2.1"], ["192.0.2.41"]]


def find_and_approve(drifting: Drifting) -> None:
    drifting.change(gone=range(300))
    drifting.until_held()
    serial = drifting.serial()
    with drifting.unheard(0, 1, 400, 401, 600):
        # Held: back with other data, and as it was. Others: gone, changed, new.
        drifting.change({0: "192.0.2.50", 1: "192.0.2.1", 401: "192.0.2.41", 600: "192.0.2.60"}, gone=[400])
    assert drifting.host(401) == ["192.0.2.1"], "not heard of"
    before = drifting.serial()
    assert before > serial
    drifting.until_drift(5)
    drifting.until_host(400, "NXDOMAIN")
    drifting.until_host(401, "192.0.2.41")
    drifting.until_host(600, "192.0.2.60")
    assert drifting.serial() > before, "though what was found is older than the last change"
    assert drifting.host(0) == drifting.host(1) == ["192.0.2.1"]
    held = drifting.held_hosts()
    assert held["h0"] == (["300 A 192.0.2.1"], ["300 A 192.0.2.50"])
    assert "h1" not in held
    assert held["h2"] == (["300 A 192.0.2.1"], [])
    assert len(held) == 299
    drifting.kill_loader()
    assert drifting.held_hosts() == held
    assert drifting.host(0) == ["192.0.2.1"]
    drifting.standoff("approve", "--all")
    drifting.until_host(0, "192.0.2.50")
    drifting.until_host(2, "NXDOMAIN")
    assert drifting.host(1) == ["192.0.2.1"]
    assert drifting.host(400) == ["NXDOMAIN"]


def test_one_change_unheard_of_moves_the_serial(drifting: Drifting) -> None:
    """It is older than the last one of its zone, which secondaries have."""
    drifting.begin("--relist-interval", "10")
    with drifting.unheard(401):
        drifting.change({401: "192.0.2.41"})
    before = drifting.serial()
    drifting.until_drift(1)
    drifting.until_host(401, "192.0.2.41")
    assert drifting.serial() > before


def test_deletions_unheard_of_are_held_and_join_nothing_else(drifting: Drifting) -> None:
    """Too many at once, found by a list; while a canary's change is held, which is lost, too."""
    drifting.begin("--relist-interval", "10", "--guard-canary", f"h7.{ZONE} A 192.0.2.1")
    drifting.change({7: "192.0.2.7"})
    drifting.until_held()
    with drifting.unheard(*range(7, 300)):
        drifting.change({8: "192.0.2.8"}, gone=[7, *range(9, 300)])
    drifting.until_drift(293)
    drifting.until_held(2)
    first, second = drifting.pending()
    assert (first["names"], second["names"]) == (1, 292)
    assert "canary" in first["reasons"][0]
    assert "291 of 501 names would be lost" in second["reasons"][0]
    held = drifting.held_hosts()
    assert held["h7"] == (["300 A 192.0.2.1"], [])
    assert held["h8"] == (["300 A 192.0.2.1"], ["300 A 192.0.2.8"]), "of the same list: torn apart by nobody"
    assert {drifting.host(number)[0] for number in (7, 8, 9, 299)} == {"192.0.2.1"}
    drifting.standoff("reject", "2")
    drifting.standoff("approve", "1")
    drifting.until_host(7, "NXDOMAIN")
    assert drifting.host(8) == ["192.0.2.1"]
    assert drifting.held_hosts("--rejected")["h8"] == (["300 A 192.0.2.1"], ["300 A 192.0.2.8"])
    with drifting.unheard(8, 9, 10):  # rejected names follow again as soon as the source says something else
        drifting.change({8: "192.0.2.18", 9: "192.0.2.19", 10: "192.0.2.1"})
    assert drifting.host(9) == ["192.0.2.1"]
    drifting.until_drift(3)
    drifting.until_host(8, "192.0.2.18")
    drifting.until_host(9, "192.0.2.19")
    drifting.kill_loader()
    drifting.change({499: "192.0.2.99"})
    drifting.until_host(499, "192.0.2.99")
    assert (drifting.host(8), drifting.host(10), drifting.host(11)) == (["192.0.2.18"], ["192.0.2.1"], ["192.0.2.1"])
    assert len(drifting.held_hosts("--rejected")) == 289


def test_pinned(drifting: Drifting) -> None:
    drifting.begin("--relist-interval", "10")
    drifting.change({5: "192.0.2.5"})
    drifting.until_host(5, "192.0.2.5")
    state = ["--state-dir", str(drifting.state)]
    assert drifting.service.standoff("rollback", "now", "--yes", *drifting._runtime, *state).returncode == 0
    with drifting.lossy.losing(key(5), key(6)):
        drifting.change({5: "192.0.2.55"}, gone=[6])
        drifting.change({499: "192.0.2.99"})
        wait_for("it waits", lambda: drifting.service.board.loader.get("pinned_names") == 1)
    drifting.until_drift(2)
    wait_for("it waits, too", lambda: drifting.service.board.loader.get("pinned_names") == 3)
    assert (drifting.host(5), drifting.host(6)) == (["192.0.2.5"], ["192.0.2.1"])
    drifting.kill_loader()
    wait_for("it waits still", lambda: drifting.service.board.loader.get("pinned_names") == 3)
    assert drifting.service.standoff("resume", *drifting._runtime).returncode == 0
    assert (drifting.host(5), drifting.host(6)) == (["192.0.2.55"], ["NXDOMAIN"])
