"""A real systemd boots a small Debian, `make install` puts Standoff into it, and both units are treated badly.

Needs root, systemd-nspawn, debootstrap and a kernel that lets containers boot; skipped, saying why, where it cannot.
The bare system is made once and kept in .cache; each run works on a copy, in a network of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.siphash import siphash24

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
#: The interpreter of the service: the container's own, which has to be the same as the one that installs.
PYTHON = Path("/usr/bin/python3")
INSIDE = "systemd,systemd-sysv,python3,procps"
SERVER, LOADER = "standoff-server.service", "standoff-loader.service"
SECRETS = "/etc/standoff/cookie-secrets"
CONFIGURATION = """\
source = ["file:/etc/standoff/example.test.zone", "file:/etc/standoff/checked.jsonl"]
listen = ["127.0.0.1:53"]
"""
#: Names whose records are checked, by HTTP and by TCP, within the sandbox of the loader's unit.
BACKENDS = ("127.0.0.11", "127.0.0.12")
CHECK = {"interval": 0.5, "timeout": 0.4, "fall": 2, "rise": 1}
CHECKED = [
    {"name": "checked.test.", "type": "SOA", "data": "ns1.checked.test. root.checked.test. 1 7200 1800 86400 30"},
    {"name": "checked.test.", "type": "NS", "data": "ns1.example.test."},
    *(
        {"name": f"{url[:3]}.checked.test.", "type": "A", "ttl": 5, "data": BACKENDS, "check": CHECK | {"url": url}}
        for url in ("http://{address}:8080/", "tcp://{address}:8080")
    ),
]


def require_a_machine_that_can_boot() -> None:
    if os.geteuid() != 0:
        pytest.skip("booting a container takes root")
    for program in ("systemd-nspawn", "debootstrap", "nsenter", "dig", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on the PATH (`make test` fetches it)")
    if not PYTHON.exists() or codename() is None:
        pytest.skip("not a Debian with a Python of its own: the container could not share the compiled modules")


def codename() -> str | None:
    """The Debian release of this machine, which the container is made of as well."""
    fields = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )  # fmt: skip
    return fields.get("VERSION_CODENAME") if fields.get("ID", "").strip('"') == "debian" else None


def mirror() -> list[str]:
    """Where this machine gets its packages from, as debootstrap's argument; empty: debootstrap's default."""
    result = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in result.stdout.splitlines():
        release, _, uri = line.partition(" ")
        if release == codename():
            return [uri]
    return []


def bare_system() -> Path:
    """A minimal Debian with systemd and Python; made by the first run."""
    tree = CACHE / f"system-{codename()}"
    if not tree.exists():
        CACHE.mkdir(exist_ok=True)
        unfinished = tree.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={INSIDE}", str(codename()), str(unfinished), *mirror()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"debootstrap failed: {made.stdout[-300:]}{made.stderr[-300:]}")
        unfinished.rename(tree)
    return tree


class Machine:
    """A booted container: run commands in it, ask its name server."""

    def __init__(self, tree: Path, console: Path) -> None:
        alone = [] if Path("/run/systemd/system").exists() else ["--register=no", "--keep-unit"]
        with console.open("wb") as output:
            self.nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--private-network", "--resolv-conf=off", "--link-journal=no", *alone,
                 f"--machine=standoff-test-{os.getpid()}", f"--directory={tree}", "--boot"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.console = console
        self.leader = 0

    def wait_until_up(self) -> None:
        """Until PID 1 takes commands. Skips the test if the container cannot boot here."""
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
        for _ in range(300):
            if self.nspawn.poll() is not None:
                break
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    self.leader = int(pid)
                    if self.run("systemctl", "list-jobs", check=False).returncode == 0:
                        return
            time.sleep(0.1)
        pytest.skip(f"no systemd container boots on this machine: {self.console.read_text(errors='replace')[-500:]}")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={self.leader}", "--all", *command],
            capture_output=True, text=True, timeout=60, check=check,
        )  # fmt: skip

    def dig(self, name: str, *options: str) -> str:
        """What dig +short says, from the outside but in the container's network."""
        return subprocess.run(
            ["nsenter", f"--target={self.leader}", "--net",
             "dig", "@127.0.0.1", "+short", "+tries=1", "+time=1", *options, name, "A"],
            capture_output=True, text=True, timeout=10, check=False,
        ).stdout.strip()  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--unit=standoff*", "--lines=60", check=False).stdout

    def eventually(self, holds: Callable[[], bool], what: str, patience_s: float = 30) -> None:
        deadline = time.monotonic() + patience_s
        while not holds():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {patience_s} s: {what}\n{self.journal()}")
            time.sleep(0.05)

    def power_off(self) -> None:
        self.nspawn.terminate()
        try:
            self.nspawn.wait(30)
        except subprocess.TimeoutExpired:
            self.nspawn.kill()
            self.nspawn.wait()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted with standoff.target enabled before its first boot, like an image."""
    require_a_machine_that_can_boot()
    scratch = tmp_path_factory.mktemp("systemd")
    tree = scratch / "root"
    subprocess.run(["cp", "--archive", "--reflink=auto", str(bare_system()), str(tree)], check=True)
    installed = subprocess.run(
        ["make", "--silent", "install", f"DESTDIR={tree}", f"PYTHON={PYTHON}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    (tree / "etc/standoff/standoff.toml").write_text(CONFIGURATION)
    (tree / "etc/standoff/checked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in CHECKED))
    shutil.copy(ROOT / "deploy/sample/example.test.zone", tree / "etc/standoff")
    subprocess.run(["chroot", str(tree), "systemctl", "enable", "standoff.target"], check=True, capture_output=True)
    booted = Machine(tree, scratch / "console")
    try:
        booted.wait_until_up()
        yield booted
    finally:
        booted.power_off()
        shutil.rmtree(tree, ignore_errors=True)


@pytest.fixture
def running(machine: Machine) -> Machine:
    """Both units up and answering, whatever the test before did to them."""
    machine.run("systemctl", "start", "--no-block", SERVER, LOADER)
    for unit in (SERVER, LOADER):
        machine.eventually(lambda unit=unit: machine.show(unit, "ActiveState") == "active", f"{unit} is ready")
    machine.eventually(lambda: machine.dig("ns1.example.test") == "192.0.2.1", "the name server answers")
    return machine


@contextlib.contextmanager
def every_query_answered(machine: Machine) -> Iterator[None]:
    """Ask without a pause while the block runs; fails if any one query was not answered rightly."""
    wrong: list[str] = []
    asked = 0
    over = threading.Event()

    def ask() -> None:
        nonlocal asked
        while not over.is_set():
            answer = machine.dig("mail.example.test")
            asked += 1
            if answer != "192.0.2.25":
                wrong.append(answer)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert asked > 0
    assert wrong == [], f"of {asked} queries; {machine.journal()}"


def test_the_target_brings_both_up_at_boot(running: Machine) -> None:
    assert running.show("standoff.target", "ActiveState") == "active"
    assert running.dig("ns2.example.test", "+tcp") == "192.0.2.2"
    assert running.show(SERVER, "NRestarts") == running.show(LOADER, "NRestarts") == "0", running.journal()


def test_the_number_of_workers_comes_from_the_environment_file(running: Machine) -> None:
    command = running.run("cat", f"/proc/{running.main_pid(SERVER)}/cmdline").stdout.split("\0")
    assert command[command.index("--workers") + 1] == "2"


def test_the_servers_user_cannot_write_tables(running: Machine) -> None:
    listing = running.run("find", "/dev/shm", "-name", "standoff.*.table.*", "-printf", "%u %g %m\n").stdout
    assert set(listing.splitlines()) == {"standoff-loader standoff 640"}


def test_restarting_the_loader_costs_no_answer(running: Machine) -> None:
    server = running.main_pid(SERVER)
    with every_query_answered(running):
        running.run("systemctl", "restart", LOADER)
    assert running.main_pid(SERVER) == server


def test_answers_go_on_without_a_loader(running: Machine) -> None:
    with every_query_answered(running):
        running.run("systemctl", "stop", LOADER)
        time.sleep(2)
    assert running.show(SERVER, "ActiveState") == "active"


def test_restarting_the_server_leaves_the_loader_alone(running: Machine) -> None:
    loader = running.main_pid(LOADER)
    running.run("systemctl", "restart", SERVER)
    running.eventually(lambda: running.dig("ns1.example.test") == "192.0.2.1", "answers after the restart", 10)
    assert running.main_pid(LOADER) == loader


def test_reload_changes_the_cookie_secrets(running: Machine) -> None:
    """No process is restarted for it, and no query is lost."""
    old, new = "01" * 16, "02" * 16

    def write(*secrets: str) -> None:
        text = "".join(f"{secret}\\n" for secret in secrets)
        command = f"printf '{text}' >$0.new && chgrp standoff $0.new && chmod 640 $0.new && mv $0.new $0"
        running.run("sh", "-c", command, SECRETS)

    def signer() -> str:
        said = running.dig("ns1.example.test", "+cookie=0102030405060708", "+noshort", "+comments")
        found = re.search(r"COOKIE: ([0-9a-f]{48})", said)
        cookie = bytes.fromhex(found[1]) if found else bytes(24)
        known = [s for s in (old, new) if siphash24(bytes.fromhex(s), cookie[:16] + b"\x7f\0\0\1") == cookie[16:]]
        return known[0] if known else ""

    write(old)
    running.run("sh", "-c", f"echo STANDOFF_COOKIE_SECRET_FILE={SECRETS} >>/etc/standoff/standoff.env")
    try:
        running.run("systemctl", "restart", SERVER)
        running.eventually(lambda: signer() == old, "cookies are signed with the secret in the file")
        pid = running.main_pid(SERVER)
        with every_query_answered(running):
            write(new, old)
            running.run("systemctl", "reload", SERVER)
            running.eventually(lambda: signer() == new, "cookies are signed with the new secret")
        assert running.main_pid(SERVER) == pid
    finally:
        running.run("sed", "-i", "/COOKIE_SECRET_FILE/d", "/etc/standoff/standoff.env")


@pytest.mark.parametrize("first", [SERVER, LOADER])
def test_either_may_start_first(running: Machine, first: str) -> None:
    second = LOADER if first == SERVER else SERVER
    running.run("systemctl", "stop", SERVER, LOADER)
    running.run("sh", "-c", "rm -f /dev/shm/standoff.* /dev/shm/sem.standoff.*")  # as after a reboot
    restarts = running.show(first, "NRestarts")
    running.run("systemctl", "start", "--no-block", first)
    time.sleep(3)
    assert running.show(first, "ActiveState") in ("activating", "active"), running.journal()
    assert running.show(first, "NRestarts") == restarts
    running.run("systemctl", "start", second)
    running.eventually(lambda: running.dig("ns1.example.test") == "192.0.2.1", f"answers, {first} first", 10)
    running.eventually(lambda: running.show(first, "ActiveState") == "active", f"{first} is ready", 10)


def comes_back(machine: Machine, unit: str, ended: int) -> None:
    """Wait until systemd has started the unit again and it is ready."""
    machine.eventually(lambda: machine.main_pid(unit) not in (0, ended), f"{unit} is started again", 60)
    machine.eventually(lambda: machine.show(unit, "ActiveState") == "active", f"{unit} is ready again")


@pytest.mark.parametrize("unit", [SERVER, LOADER])
def test_a_killed_main_process_comes_back_and_costs_no_answer(running: Machine, unit: str) -> None:
    killed = running.main_pid(unit)
    with every_query_answered(running):
        running.run("kill", f"-{signal.SIGKILL.value}", str(killed))
        comes_back(running, unit, killed)


def test_a_loader_that_dies_is_replaced_within_its_unit(running: Machine) -> None:
    unit = running.main_pid(LOADER)

    def children() -> list[str]:
        return running.run("ps", "-o", "pid=", "--ppid", str(unit), check=False).stdout.split()

    (loader,) = children()
    restarts = running.show(LOADER, "NRestarts")
    with every_query_answered(running):
        running.run("kill", f"-{signal.SIGKILL.value}", loader)
        running.eventually(lambda: children() not in ([], [loader]), "another loader")
    assert running.main_pid(LOADER) == unit
    assert running.show(LOADER, "NRestarts") == restarts
    assert running.show(LOADER, "StatusText") == "a table is published"


def test_the_watchdog_replaces_a_supervisor_that_hangs(running: Machine) -> None:
    """SIGSTOP is what a hang looks like from outside: READY was sent, and nothing follows."""
    stopped = running.main_pid(SERVER)
    with every_query_answered(running):
        running.run("kill", f"-{signal.SIGSTOP.value}", str(stopped))
        comes_back(running, SERVER, stopped)


def test_health_checks_work_within_the_sandbox(running: Machine) -> None:
    """And a checker that is killed is replaced, in the same loader."""

    def serve(backend: str) -> None:
        server = ("/usr/bin/python3", "-m", "http.server", "8080", "--bind", backend, "--directory", "/etc/standoff")
        running.run("systemd-run", "--quiet", f"--unit=backend{backend[-2:]}", *server)

    def health(*arguments: str) -> list[dict[str, str]]:
        told = running.run("/opt/standoff/bin/standoff", "health", *arguments)
        return json.loads(told.stdout)["targets"] if "--json" in arguments else []

    def states() -> dict[str, str]:
        return {one["target"].partition(" ")[0]: one["state"] for one in health("--json")}

    def answered(*addresses: str) -> bool:
        return all(sorted(running.dig(f"{name}.checked.test").split()) == sorted(addresses) for name in ("htt", "tcp"))

    def checkers() -> list[str]:
        listed = running.run("pgrep", "--full", "loader.checker", check=False).stdout
        return listed.split()

    first, second = BACKENDS
    for backend in BACKENDS:
        serve(backend)
    try:
        running.eventually(lambda: list(states().values()) == ["up"] * 4, "all four targets are up")
        assert answered(*BACKENDS)
        running.run("systemctl", "stop", f"backend{first[-2:]}")
        running.eventually(lambda: answered(second), "a backend that is gone is not answered")
        assert sorted(states().values()) == ["down", "down", "up", "up"]
        (checker,) = checkers()
        loader, restarts = running.main_pid(LOADER), running.show(LOADER, "NRestarts")
        running.run("kill", f"-{signal.SIGKILL.value}", checker)
        running.eventually(lambda: checkers() not in ([], [checker]), "another checker")
        assert answered(second), "what was known stays"
        serve(first)
        running.eventually(lambda: answered(*BACKENDS), "the other checker sees it come back")
        assert (running.main_pid(LOADER), running.show(LOADER, "NRestarts")) == (loader, restarts)
        target = next(one for one in states() if one.startswith("tcp") and second in one)
        health("set", target, "down")
        running.eventually(lambda: running.dig("tcp.checked.test") == first, "an operator's word")
        assert running.run("ls", "/var/lib/standoff").stdout.count("health.json") == 1
        running.run("systemctl", "restart", LOADER)
        running.eventually(lambda: running.show(LOADER, "ActiveState") == "active", "ready again")
        assert running.dig("tcp.checked.test") == first, "it outlives the loader"
        health("set", target, "auto")
        running.eventually(lambda: answered(*BACKENDS), "all are back")
        assert "denied" not in running.journal().lower()
    finally:
        running.run("systemctl", "stop", *(f"backend{backend[-2:]}" for backend in BACKENDS), check=False)


def test_stopping_is_clean(running: Machine) -> None:
    running.run("systemctl", "stop", "standoff.target")
    for unit in (SERVER, LOADER):
        running.eventually(lambda unit=unit: running.show(unit, "ActiveState") == "inactive", f"{unit} stops")
        assert running.show(unit, "Result") == "success", running.journal()
