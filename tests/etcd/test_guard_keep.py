"""on_reject = keep together with the guard: refused values of keys that are held, rejected, or deleted and held.

What counts: a key that was deleted has no last good value, held or not; a last good value may itself be held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from loader.etcd import Etcd
from tests.etcd.test_guard import HOSTS, ZONE, Guarded, make_guarded
from tests.etcd.test_running import Asking
from tests.torture.service import wait_for

__all__ = ["make_guarded"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BAD = "none"
OLD = "192.0.2.1"


class Keeping(Guarded):
    """In either schema."""

    schema = "records"
    revision = 0

    def begin(self, *options: str) -> None:
        self.change(dict.fromkeys(range(HOSTS), OLD))
        self.start(self.schema, "--on-reject", "keep", *options)
        self.until(f"h{HOSTS - 1}.{ZONE}", OLD)

    def key(self, number: int) -> str:
        return f"/names/example.test/h{number}/A" if self.schema == "records" else f"/names/test/example/h{number}"

    def value(self, address: str) -> bytes:
        if self.schema == "records":
            return address.encode()
        return b'{"host":1}' if address == BAD else f'{{"host":"{address}"}}'.encode()

    def change(self, puts: dict[int, str] | None = None, gone: range | list[int] = range(0)) -> None:
        async def body() -> None:
            async with Etcd(self.etcd.endpoint) as client:
                values = [(self.key(number), self.value(address)) for number, address in (puts or {}).items()]
                self.revision = await client.transact(values, [self.key(number) for number in gone])

        asyncio.run(body())

    def until_refused(self, number: int, kept: int = 0) -> None:
        """kept: the revision of the value that it goes on with, 0: with none."""
        ending = f"last good value of revision {kept} kept"

        def told() -> bool:
            reason = self.rejects().get(self.key(number), "")
            return bool(reason) and reason.endswith(ending) == bool(kept) and ("kept" in reason) == bool(kept)

        wait_for(f"h{number} is refused", told)

    def held_host(self, number: int, *arguments: str) -> tuple[list[str], list[str]] | None:
        """The addresses that readers have, and those that the source says; None: it is not held."""

        def addresses(lines: list[str]) -> list[str]:
            return [line.split()[2] for line in lines if line.split()[1] == "A"]

        for one in self.standoff("pending", *arguments)["differences"]:
            if one["name"] == f"h{number}.{ZONE}.":
                return addresses(one["removed"]), addresses(one["added"])
        return None

    def settled(self) -> None:
        """All that was put is on disk, and all of it has been taken in."""
        address = f"192.0.2.{100 + self.revision % 100}"
        self.change({HOSTS - 1: address})
        self.until_host(HOSTS - 1, address)
        wait_for("it is on disk", lambda: self.kept("SELECT revision FROM state") == [(self.revision,)])

    def restart(self) -> None:
        self.kill_loader()
        self.settled()


@pytest.fixture(params=["records", "skydns"])
def keeping(request: pytest.FixtureRequest, make_guarded: Callable[..., Guarded]) -> Keeping:
    made = make_guarded(Keeping)
    assert isinstance(made, Keeping)
    made.schema = request.param
    return made


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_held_value_is_followed_by_one_that_is_refused(keeping: Keeping, decision: str) -> None:
    keeping.begin("--guard-canary", f"h7.{ZONE} A {OLD}")
    with Asking(keeping, f"h7.{ZONE}") as seen:
        keeping.change({7: "192.0.2.7"})
        good = keeping.revision
        keeping.until_held()
        keeping.change({7: BAD})
        keeping.until_refused(7, good)
        keeping.settled()
        keeping.restart()
        keeping.until_refused(7, good)
        assert keeping.held_host(7) == ([OLD], ["192.0.2.7"]), "the last good value is held"
        keeping.standoff(decision, "1")
        if decision == "approve":
            keeping.until_host(7, "192.0.2.7")
        else:
            wait_for("it is rejected", lambda: keeping.service.board.loader.get("rejected_names") > 0)
        keeping.restart()
        keeping.until_refused(7, good)
        assert keeping.host(7) == ["192.0.2.7" if decision == "approve" else OLD]
        keeping.change({7: OLD if decision == "reject" else "192.0.2.8"})
        if decision == "approve":
            keeping.until_host(7, "192.0.2.8")
        wait_for("it is refused no more", lambda: not keeping.rejects())
        wait_for("nothing is rejected", lambda: keeping.service.board.loader.get("rejected_names") == 0)
    expected = [[OLD], ["192.0.2.7"], ["192.0.2.8"]] if decision == "approve" else [[OLD]]
    assert seen.seen == expected, f"in {seen.count} answers"


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_held_deletion_is_followed_by_a_value_that_is_refused(keeping: Keeping, decision: str) -> None:
    keeping.begin()
    with Asking(keeping, f"h0.{ZONE}") as seen:
        keeping.change(gone=range(300))
        keeping.until_held()
        keeping.change({0: BAD})
        keeping.until_refused(0)
        keeping.settled()
        keeping.restart()
        keeping.until_refused(0)
        assert keeping.host(0) == [OLD]
        assert keeping.held_host(0) == ([OLD], []), "it was deleted: nothing of it is good any more"
        keeping.standoff(decision, "1")
        if decision == "approve":
            keeping.until_host(0, "NXDOMAIN")
        else:
            wait_for("it is rejected", lambda: keeping.service.board.loader.get("rejected_names") >= 300)
        keeping.restart()
        keeping.until_refused(0)
        assert keeping.host(0) == ["NXDOMAIN" if decision == "approve" else OLD]
        keeping.change({0: "192.0.2.8"})
        keeping.until_host(0, "192.0.2.8")
        wait_for("it is refused no more", lambda: not keeping.rejects())
        keeping.change({0: BAD})
        keeping.until_refused(0, keeping.revision - 1)
        keeping.settled()
        keeping.restart()
        assert keeping.host(0) == ["192.0.2.8"]
    expected = [[OLD], ["NXDOMAIN"], ["192.0.2.8"]] if decision == "approve" else [[OLD], ["192.0.2.8"]]
    assert seen.seen == expected, f"in {seen.count} answers"
