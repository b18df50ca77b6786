"""Any part may be away: answers go on from the last good table, it is told, and the part catches up when it is back."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from loader.etcd import Etcd
from shm.layout import SlotKind
from tests.support.etcd import EtcdServer
from tests.torture import content
from tests.torture.asking import MS, Answers, Asker
from tests.torture.changing import ZONE, Changer
from tests.torture.service import PREFIX, Service, ask_all, wait_for

#: From etcd's silence to a status that says so, and from its return to the next change: pings and pauses between
#: connection attempts (loader/mirror.py).
NOTICED_S = 30.0


def status(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(service.standoff("status", "--json").stdout)
    return found


def state(service: Service) -> str:
    return str(status(service)["loader"]["state"])


def check(answers: Answers) -> None:
    print(answers.report())
    assert not answers.faulty
    assert not answers.lost
    _, fair = answers.slowest()
    assert fair < 100 * MS


def reaches(service: Service, changer: Changer) -> None:
    """A change gets through to every worker."""
    waited = service.standoff("wait", "--revision", str(changer.one().revision), "--timeout", "15")
    assert waited.returncode == 0, waited.stderr


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.timeout(120)
def test_etcd_goes_away_and_comes_back(
    service: Service, changer: Changer, ask: Callable[..., Asker], etcd: EtcdServer, how: str
) -> None:
    service.start_server()
    service.start_loader()
    wait_for("the service answers", service.ready)
    asker = ask(1000)
    reaches(service, changer)
    if how == "killed":
        etcd.kill()
    else:
        etcd.signal(signal.SIGSTOP)
    wait_for("the loader is stale", lambda: state(service) == "stale", NOTICED_S)
    verdict = status(service)["verdict"]
    assert verdict["state"] == "degraded"
    assert any("source cannot be read" in reason for reason in verdict["reasons"])
    if how == "killed":
        etcd.start()
    else:
        etcd.signal(signal.SIGCONT)
    wait_for("the loader is fresh again", lambda: state(service) == "fresh", NOTICED_S)
    reaches(service, changer)
    answers = asker.stop()
    check(answers)
    assert answers.udp[-1].number == changer.changes()[-1].number
    assert status(service)["verdict"]["state"] == "ok"


def test_a_loader_that_dies_leaves_its_table(
    service: Service, changer: Changer, ask: Callable[..., Asker], etcd: EtcdServer
) -> None:
    service.start_server()
    loader = service.start_loader()
    wait_for("the service answers", service.ready)
    asker = ask(1000)
    changer.start(50)
    time.sleep(0.5)
    loader.kill()
    changer.stop()
    generation = service.board.live >> 1
    verdict = status(service)["verdict"]
    assert verdict["state"] == "degraded"
    assert any("no loader is running" in reason for reason in verdict["reasons"])
    time.sleep(0.5)
    assert service.board.live >> 1 == generation
    service.start_loader()
    reaches(service, changer)
    check(asker.stop())
    assert content.published(service.board) == content.compiled(etcd.endpoint)


def test_a_new_loader_does_not_put_the_serial_back(service: Service, changer: Changer, etcd: EtcdServer) -> None:
    service.start_server()
    loader = service.start_loader()
    wait_for("the service answers", service.ready)
    revision = asyncio.run(delete(etcd.endpoint, f"{PREFIX}/{ZONE}/host1/A"))
    assert service.standoff("wait", "--revision", str(revision)).returncode == 0
    serial = content.soa_serial(service)
    loader.kill()
    live = service.board.live
    service.start_loader()
    wait_for("the next loader has published", lambda: service.board.live != live and service.adopted() >= revision)
    assert content.soa_serial(service) >= serial


async def delete(endpoint: str, key: str) -> int:
    async with Etcd(endpoint) as client:
        return await client.delete(key)


def test_a_loader_goes_on_without_a_server(service: Service, changer: Changer) -> None:
    server = service.start_server()
    service.start_loader()
    wait_for("the service answers", service.ready)
    assert server.stop() == 0
    before = service.board.loader.get("publishes")
    changer.start(50)
    wait_for("tables are published", lambda: service.board.loader.get("publishes") > before + 20)
    changer.stop()
    assert status(service)["verdict"]["state"] == "down"
    service.start_server()
    wait_for("the service answers", service.ready)
    reaches(service, changer)


@pytest.mark.parametrize("first", ["server", "loader"])
def test_either_starts_first(service: Service, etcd: EtcdServer, first: str) -> None:
    if first == "server":
        service.start_server()
        wait_for("workers live", lambda: len(service.slots(SlotKind.WORKER)) == 2)
        question = b"\0\1\0\0\0\1\0\0\0\0\0\0\5host1\7example\4test\0\0\1\0\1"
        assert ask_all(service.port, [question])[question][3] & 15 == 2, "SERVFAIL until there is a table"
        service.start_loader()
    else:
        service.start_loader()
        wait_for("a table is published", service.published)
        service.start_server()
    wait_for("the service answers", service.ready)
    assert content.check_answers(service, content.compiled(etcd.endpoint)) > 100
    assert status(service)["verdict"]["state"] == "ok"


def test_the_whole_machine_restarts_everything_at_once(service: Service, etcd: EtcdServer) -> None:
    """SIGKILL to all, as out of memory would; what lies in shared memory is no hindrance to the next."""
    for _ in range(2):
        server, loader = service.start_server(), service.start_loader()
        wait_for("the service answers", service.ready)
        pids = [pid for pid in service.processes() if pid not in (server.pid, loader.pid)]
        server.kill()
        loader.kill()
        for pid in pids:
            service.kill(pid)
        wait_for("all are gone", lambda: not service.processes())
    service.start_loader()
    service.start_server()
    wait_for("the service answers", service.ready)
    assert content.check_answers(service, content.compiled(etcd.endpoint)) > 100
