"""The command as users meet it: help, version, usage, what it imports; serve, load, run and check from outside."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import checks
from cli import settings as table
from cli.main import COMMANDS, standoff
from cli.settings import Settings
from shm.segment import LockFile, Names, remove_instance

ROOT = Path(__file__).parents[2]
ALL = [name for names in COMMANDS.values() for name in names]
#: What takes long to import, and what no command needs that only shows help.
HEAVY = ("grpc", "google.protobuf", "dns", "rich", "prometheus_client", "asyncio", "server", "loader", "shm.board")


@pytest.fixture(autouse=True)
def no_system_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "DEFAULT_CONFIG", tmp_path / "nothing.toml")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(standoff, arguments)


def spawn(*arguments: str, code: str = "from cli.main import main; main()") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=50
    )


# ---------------------------------------------------------------- help and usage


def test_help_shows_every_command_and_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ALL:
        assert re.search(rf"^  {name} +\w", result.stdout, re.MULTILINE)
    assert "standoff run --source file:example.zone\n" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_help_with_examples(name: str) -> None:
    for flag in ("-h", "--help"):
        result = call(name, flag)
        assert result.exit_code == 0
        assert "Examples:\n  standoff" in result.stdout
    if name not in ("completion", "drill"):  # which have no instance, or one of their own
        assert "--instance NAME" in result.stdout


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("serve", "load", "completion")])
def test_every_command_that_prints_has_json(name: str) -> None:
    assert "--json" in call(name, "--help").stdout


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str) -> None:
    assert re.fullmatch(r"standoff \d+\.\d+\S*\n", call(flag).stdout)


def test_misspelt_command() -> None:
    result = call("statsu")
    assert result.exit_code == 2
    assert "did you mean 'status'?" in result.stderr
    assert result.stdout == ""


def test_misspelt_option() -> None:
    result = call("run", "--lisen", "127.0.0.1:53")
    assert result.exit_code == 2
    assert "--listen" in result.stderr


@pytest.mark.parametrize("name", ["run", "load"])
def test_without_a_source(name: str) -> None:
    result = call(name)
    assert result.exit_code == 2
    assert "--source file:PATH" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0
    assert "_STANDOFF_COMPLETE" in result.stdout


def test_completion_completes() -> None:
    environ = {"_STANDOFF_COMPLETE": "fish_complete", "COMP_WORDS": "standoff sta", "COMP_CWORD": "sta"}
    done = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()"],
        cwd=ROOT, env=os.environ | environ, capture_output=True, text=True,
    )  # fmt: skip
    assert "status" in done.stdout


def imported(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    return set(spawn(*arguments, code=code).stderr.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["lookup", "--help"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not imported(*arguments) & set(HEAVY)


def test_status_imports_neither_server_nor_loader() -> None:
    loaded = imported("status", "--json", "--instance", "no-such-instance")
    assert "shm.board" in loaded
    assert not loaded & (set(HEAVY) - {"shm.board"})


def test_a_reader_that_goes_away_is_no_crash() -> None:
    shell = f"{sys.executable} -c 'from cli.main import main; main()' run --help | head -n 1"
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Usage:")
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- run, with parts that do nothing

FAKE_PARTS = """
import os, signal, sys, time, types

def part(name, **known):
    def main(settings, progress=None):
        os.write(1, f"{name} {os.getpid()} {settings.instance}\\n".encode())
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            time.sleep(10)
    return main

for path, entry in (("server.main", "serve"), ("loader.start", "load")):
    module = types.ModuleType(path)
    setattr(module, entry, part(path.split(".")[0]))
    sys.modules[path] = module
sys.modules["loader.main"] = types.ModuleType("loader.main")
from cli.commands import run
from shm.segment import Names
run.is_ready = lambda instance: Names(instance).lock("ready").touch() is None
run.survey = lambda instance: (["example.test"], "www.example.test A")
from cli.main import main
main()
"""


def test_run_from_begin_to_end() -> None:
    name = f"cli-run-{os.getpid()}"
    arguments = ["run", "--source", "file:README.md", "--instance", name, "--listen", "[::]:5300", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE_PARTS, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        parts = {line.split()[0]: line.split()[2] for line in lines if not line.startswith("{")}
        assert parts == {"server": name, "loader": name}
        ready = msgspec.json.decode(next(line for line in lines if line.startswith("{")))
        assert ready == {
            "event": "ready", "listen": ["[::]:5300"], "zones": ["example.test"],
            "try": "dig @::1 -p 5300 www.example.test A",
        }  # fmt: skip
        assert Names(name).existing()
        second = spawn("run", "--source", "file:README.md", "--instance", name)
        assert (second.returncode, second.stdout) == (1, "")
        assert "is running already" in second.stderr
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "try: dig @::1 -p 5300 www.example.test A" in errors
        assert Names(name).existing() == []
    finally:
        process.kill()
        process.communicate()
        remove_instance(name)


# ---------------------------------------------------------------- check


def check(*arguments: str) -> tuple[int, list[dict[str, str]]]:
    """Exit status and remarks."""
    result = call("check", "--json", "--instance", f"cli-check-{os.getpid()}", *arguments)
    answer = msgspec.json.decode(result.stdout)
    assert answer["ok"] == (result.exit_code == 0)
    return result.exit_code, answer["remarks"]


def problems(remarks: list[dict[str, str]]) -> str:
    return "\n".join(f"{remark['what']}: {remark['text']}" for remark in remarks if remark["level"] == "problem")


@pytest.fixture
def port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def test_check_of_a_server_that_would_start(port: int, tmp_path: Path) -> None:
    status, remarks = check("serve", "--listen", f"127.0.0.1:{port}", "--runtime-dir", str(tmp_path))
    assert (status, problems(remarks)) == (0, "")
    texts = [remark["text"] for remark in remarks]
    assert f"udp 127.0.0.1:{port} can be bound" in texts
    assert f"tcp 127.0.0.1:{port} can be bound" in texts


def test_check_lists_all_problems_at_once(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind(("127.0.0.1", port))
        status, remarks = check(
            "--listen", f"127.0.0.1:{port}", "--listen", "192.0.2.77:5300", "--runtime-dir", "/proc/nothing/here",
            "--source", "file:/no/such.zone", "--source", "etcd://127.0.0.1:x/y", "--etcd-cert", __file__,
        )  # fmt: skip
    assert status == 1
    text = problems(remarks)
    for part in (
        f"udp 127.0.0.1:{port} cannot be bound: Address already in use: another program",
        "udp 192.0.2.77:5300 cannot be bound: Cannot assign requested address",
        "tcp 192.0.2.77:5300",
        "runtime_dir: /proc/nothing/here cannot be written to",
        "/no/such.zone",
        "etcd://127.0.0.1:x/y",
        "etcd_cert and etcd_key belong together",
    ):
        assert part in text
    assert f"tcp 127.0.0.1:{port} cannot" not in text


def test_check_for_a_part_looks_at_that_part_only(tmp_path: Path) -> None:
    """The loader's user may not bind port 53."""
    _, remarks = check("load", "--listen", "192.0.2.77:53", "--source", "file:/no/such.zone")
    assert "192.0.2.77" not in problems(remarks)
    _, remarks = check("serve", "--runtime-dir", str(tmp_path), "--source", "file:/no/such.zone")
    assert "such.zone" not in problems(remarks)


def test_check_beside_a_running_server(port: int, tmp_path: Path) -> None:
    settings = Settings(instance=f"cli-check-{os.getpid()}", listen=[f"127.0.0.1:{port}"])
    lock = LockFile(Names(settings.instance).lock("supervisor"))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.bind(("127.0.0.1", port))
            assert "problem" in {remark.level for remark in checks.listen(settings)}
            assert lock.try_acquire()
            assert {remark.level for remark in checks.listen(settings)} == {"ok"}
    finally:
        lock.release()
        remove_instance(settings.instance)


def test_check_takes_no_queries_from_a_running_server(port: int) -> None:
    """A trial socket in its SO_REUSEPORT group would get a share of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", port))
        settings = Settings(instance=f"cli-check-{os.getpid()}", listen=[f"127.0.0.1:{port}"])
        assert "in use" in next(iter(checks.listen(settings))).text


def test_check_without_etcd(port: int) -> None:
    source = f"etcd://127.0.0.1:{port}/names?schema=records"
    assert check("load", "--source", source)[0] == 0
    status, remarks = check("load", "--source", source, "--connect")
    assert status == 1
    assert f"etcd: etcd 127.0.0.1:{port}: " in problems(remarks)


def test_check_of_skydns_without_zones() -> None:
    _, remarks = check("load", "--source", "etcd://127.0.0.1:1/skydns")
    assert "needs the zones" in problems(remarks)


def test_check_warns_of_open_secrets_and_misspelt_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text("x")
    secret.chmod(0o644)
    monkeypatch.setenv("STANDOFF_LOGLEVEL", "debug")
    source = "etcd://127.0.0.1:1/x?schema=records"
    arguments = ["load", "--source", source, "--etcd-user", "me", "--etcd-password-file", str(secret)]
    status, remarks = check(*arguments)
    warnings = " ".join(remark["text"] for remark in remarks if remark["level"] == "warning")
    assert status == 0
    assert "may be read by every user" in warnings
    assert "did you mean STANDOFF_LOG_LEVEL?" in warnings
    assert check(*arguments, "--strict")[0] == 1


def test_check_reads_files_in_full(tmp_path: Path) -> None:
    head = "$ORIGIN example.test.\n$TTL 60\n@ SOA ns1 h 1 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.1\n"
    (tmp_path / "good.zone").write_text(head)
    status, remarks = check("load", "--source", f"file:{tmp_path}")
    assert status == 0
    assert "files hold 2 names in zones: example.test." in [remark["text"] for remark in remarks]

    (tmp_path / "poor.zone").write_text(head.replace("example", "poor") + "ns1 CNAME x\nx.example.net. A 192.0.2.1\n")
    (tmp_path / "poor.jsonl").write_text('{"name": "a.poor.test", "type": "A"}\n')
    (tmp_path / "broken.zone").write_text("@ IN A\n")
    status, remarks = check("load", "--source", f"file:{tmp_path}")
    assert status == 1
    assert problems(remarks).startswith(f"source: {tmp_path}/broken.zone:1: ")
    assert "\n" not in problems(remarks)
    warnings = " ".join(remark["text"] for remark in remarks if remark["level"] == "warning")
    for part in ("poor.jsonl:1: ", "x.example.net.", "ns1.poor.test./CNAME"):
        assert part in warnings


def test_check_of_an_empty_folder_is_fine(tmp_path: Path) -> None:
    assert check("load", "--source", f"file:{tmp_path}")[0] == 0


def test_check_for_people() -> None:
    result = call("check", "load")
    assert result.exit_code == 1
    assert re.search(r"^problem  source +there is none", result.stdout, re.MULTILINE)
    assert result.stderr == "standoff: 1 problem found\n"


def test_check_with_wrong_settings_exits_2() -> None:
    assert call("check", "--workers", "0").exit_code == 2


# ---------------------------------------------------------------- logs and progress, as seen from outside

LOADING = """
import sys, time
from cli import logs, progress
progress.SHOW_AFTER_S, progress.LOG_EVERY_S = float(sys.argv[1]), 0.02
logs.set_up("info", "text", "loader")
bar = progress.Progress()
for total in (1000, None):
    bar.start(total)
    for _ in range(10):
        bar.advance(100)
        time.sleep(0.03)
    bar.done()
bar.done()
"""


def test_progress_without_a_terminal_is_log_lines() -> None:
    done = spawn("0.05", code=LOADING)
    assert (done.returncode, done.stdout) == (0, "")
    assert re.search(r" INFO    loader\[\d+\] loaded \d00 of 1000 names, \d+ a second\n", done.stderr)
    assert re.search(r"loaded \d00 names, ", done.stderr)


def test_short_loads_show_nothing() -> None:
    assert spawn("60", code=LOADING).stderr == ""


def test_progress_on_a_terminal_is_a_bar() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, "0.05"], cwd=ROOT, stderr=theirs, stdout=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == 0
    assert b"names" in shown
    assert "━" in shown.decode()
    assert b"INFO" not in shown
