"""The table of settings: every row from every origin, right and wrong; which origin wins; what messages say."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import origins, values
from cli import settings as table
from cli.main import standoff
from cli.origins import SettingsError, resolve
from cli.rows import GROUPS, Setting
from cli.serving_rows import MAX_WORKERS, available_cpus
from cli.settings import Settings, rows
from shm import layout
from shm.segment import INSTANCE_PATTERN

ROWS = {row.name: row for row in rows()}

#: For each setting, what is wrong as text, and what is wrong in the file besides.
WRONG: dict[str, tuple[str, Any]] = {
    "config": ("/nonexistent/standoff.toml", None),
    "instance": ("Über", ["a"]),
    "runtime_dir": ("/etc/passwd", 7),
    "source": ("http://example.test", "file:x"),
    "zone": ("exa mple.test", "example.test"),
    "state_dir": ("/etc/passwd", 7),
    "image_interval": ("86401", -1),
    "history": ("100001", -1),
    "history_size": ("0", 1.5),
    "default_ttl": ("604801", -1),
    "missing": ("ignore", 1),
    "semantics": ("skydns", 1),
    "on_reject": ("ignore", 1),
    "filters": ("a b/c", "health"),
    "filter_timeout": ("0", "1"),
    "relist_interval": ("9.9", "300"),
    "etcd_user": ("a\tb", 1),
    "etcd_password": ("a\tb", 1),
    "etcd_password_file": ("/nonexistent/password", True),
    "etcd_cacert": ("/nonexistent/ca", 5.5),
    "etcd_cert": ("/nonexistent/cert", []),
    "etcd_key": ("/nonexistent/key", {}),
    "guard": ("yes", True),
    "guard_removed": ("1.1", "0.3"),
    "guard_floor": ("0", 1.5),
    "guard_window": ("-1", "60"),
    "guard_last_address": ("yes", True),
    "guard_canary": ("www.example.test", "www.example.test A"),
    "guard_order": ("loose", 1),
    "guard_hold_for": ("-1", "60"),
    "guard_then": ("publish", True),
    "guard_hook": ("a\tb", ["/bin/true"]),
    "listen": ("127.0.0.1", [53]),
    "workers": ("61", 0),
    "max_udp_size": ("511", 4097),
    "tcp_clients": ("0", 1.5),
    "tcp_clients_per_address": ("-1", "10"),
    "tcp_idle": ("3601", float("nan")),
    "tls_listen": ("127.0.0.1:0", [853]),
    "tls_cert": ("/nonexistent/cert", []),
    "tls_key": ("/nonexistent/key", {}),
    "drain_timeout": ("-1", float("inf")),
    "metrics": ("localhost:9153", 9153),
    "freebind": ("yes", True),
    "order": ("cyclic", 1),
    "max_answers": ("-1", "3"),
    "stale_after": ("-0.1", "60"),
    "identity": ("a\tb", 1),
    "chaos": ("1", False),
    "cookie_secret": ("abc", "00112233445566778899aabbccddeeff"),
    "cookie_secret_file": ("/nonexistent/secrets", ["/etc/passwd"]),
    "rrl_rate": ("-1", "fast"),
    "rrl_slip": ("11", 1.5),
    "rrl_exempt": ("192.0.2.1/24", "192.0.2.0/24"),
    "refuse": ("example.test", [1]),
    "drop": ("192.0.2.0/33", {}),
    "transfer_allow": ("192.0.2.1/24", "192.0.2.0/24"),
    "notify": ("secondary.test", [53]),
    "tsig_key": ("transfer:hmac-sha257:c2VjcmV0", "transfer:hmac-sha256:c2VjcmV0"),
    "log_level": ("loud", "INFO"),
    "log_format": ("xml", 1),
}
#: For each setting, text that is right and its value.
RIGHT: dict[str, tuple[str, Any]] = {
    "instance": ("edge-1", "edge-1"),
    "runtime_dir": ("/run/x", Path("/run/x")),
    "source": ("etcd://[::1]:2379,h:1/x?schema=records", ["etcd://[::1]:2379,h:1/x?schema=records"]),
    "zone": ("Example.TEST.", ["example.test"]),
    "state_dir": ("/var/lib/x", Path("/var/lib/x")),
    "image_interval": ("0", 0.0),
    "history": ("0", 0),
    "history_size": ("100000", 100000),
    "default_ttl": ("0", 0),
    "missing": ("wait", "wait"),
    "semantics": ("strict", "strict"),
    "on_reject": ("keep", "keep"),
    "filters": ("my-own", ["my-own"]),
    "filter_timeout": ("10", 10.0),
    "relist_interval": ("10", 10.0),
    "etcd_user": ("a b", "a b"),
    "etcd_password": ("geheim", "geheim"),
    "etcd_password_file": (__file__, Path(__file__)),
    "etcd_cacert": (__file__, Path(__file__)),
    "etcd_cert": (__file__, Path(__file__)),
    "etcd_key": (__file__, Path(__file__)),
    "guard": ("off", "off"),
    "guard_removed": ("0", 0.0),
    "guard_floor": ("1", 1),
    "guard_window": ("0", 0.0),
    "guard_last_address": ("on", "on"),
    "guard_canary": ("www.example.test MX 10 mail.example.test.", ["www.example.test MX 10 mail.example.test."]),
    "guard_order": ("strict", "strict"),
    "guard_hold_for": ("3600", 3600.0),
    "guard_then": ("approve", "approve"),
    "guard_hook": ("/bin/true -x", "/bin/true -x"),
    "listen": ("[0:0::1]:53", ["[::1]:53"]),
    "workers": ("60", 60),
    "max_udp_size": ("4096", 4096),
    "tcp_clients": ("1", 1),
    "tcp_clients_per_address": ("0", 0),
    "tcp_idle": ("0.1", 0.1),
    "tls_listen": ("[::1]:853", ["[::1]:853"]),
    "tls_cert": (__file__, Path(__file__)),
    "tls_key": (__file__, Path(__file__)),
    "drain_timeout": ("0", 0.0),
    "metrics": ("127.0.0.1:0", "127.0.0.1:0"),
    "freebind": ("on", "on"),
    "order": ("random", "random"),
    "max_answers": ("3", 3),
    "stale_after": ("0", 0.0),
    "identity": ("ns1", "ns1"),
    "chaos": ("off", "off"),
    "cookie_secret": ("00112233445566778899AABBCCDDEEFF", ["00112233445566778899aabbccddeeff"]),
    "cookie_secret_file": (__file__, Path(__file__)),
    "rrl_rate": ("0", 0.0),
    "rrl_slip": ("1", 1),
    "rrl_exempt": ("192.0.2.0/24", ["192.0.2.0/24"]),
    "refuse": ("2001:db8::/32", ["2001:db8::/32"]),
    "drop": ("203.0.113.7", ["203.0.113.7/32"]),
    "transfer_allow": ("192.0.2.0/24#Transfer", ["192.0.2.0/24#transfer"]),
    "notify": ("2001:db8::1#KEY", ["[2001:db8::1]:53#key"]),
    "tsig_key": ("transfer:hmac-sha256:c2VjcmV0", ["transfer:hmac-sha256:c2VjcmV0"]),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


@pytest.fixture(autouse=True)
def no_system_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "DEFAULT_CONFIG", tmp_path / "nothing.toml")
    for row in rows():
        monkeypatch.delenv(row.variable, raising=False)


def command_of(row: Setting) -> str:
    return next(name for name in ("run", "serve", "load") if name in row.commands)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace("\t", "\\t") + '"'
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def file_with(folder: Path, text: str) -> Path:
    path = folder / "standoff.toml"
    path.write_text(text)
    return path


def test_the_examples_cover_the_table() -> None:
    assert set(WRONG) == set(ROWS)
    assert set(RIGHT) == set(ROWS) - {"config"}


def exit_of_wrong(arguments: list[str], env: dict[str, str]) -> str:
    result = CliRunner().invoke(standoff, arguments, env=env)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("row", [row for row in rows() if row.flag], ids=lambda row: row.name)
def test_a_wrong_flag_exits_2_and_is_named(row: Setting) -> None:
    value = WRONG[row.name][0]
    message = exit_of_wrong([command_of(row), row.option, value], {})
    assert f"setting {row.name}, from flag {row.option}: {value!r} is not {row.allowed}" in message


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_wrong_variable_exits_2_and_is_named(row: Setting) -> None:
    value = WRONG[row.name][0]
    text = f"'{value}'" if row.multiple else value
    message = exit_of_wrong([command_of(row)], {row.variable: text})
    shown = "the value" if row.secret else repr(value)
    assert f"setting {row.name}, from variable {row.variable}: {shown} is not {row.allowed}" in message


@pytest.mark.parametrize("row", [row for row in rows() if row.key], ids=lambda row: row.name)
def test_a_wrong_key_exits_2_and_is_named(row: Setting, tmp_path: Path) -> None:
    text, other = WRONG[row.name]
    for value in ([text] if row.multiple else text, other):
        if row.base in (int, float) and isinstance(value, str) and value == text:
            value = float(text) if row.base is float else int(text)
        path = file_with(tmp_path, f"{row.name} = {toml(value)}\n")
        message = exit_of_wrong([command_of(row), "--config", str(path)], {})
        assert f"setting {row.name}, from file {path}:{row.name}: " in message
        assert row.allowed in message
        assert ("the value" if row.secret else repr(text if value == [text] else value)) in message


@pytest.mark.parametrize("name", RIGHT)
def test_every_setting_from_every_origin(name: str, tmp_path: Path) -> None:
    row, (text, expected) = ROWS[name], RIGHT[name]
    command = command_of(row)
    value = [text] if row.multiple else float(text) if row.base is float else int(text) if row.base is int else text
    path = file_with(tmp_path, f"{name} = {toml(value)}\n")
    variable = shlex.quote(text) if row.multiple else text
    assert getattr(resolve(command, {}, {row.variable: variable}), name) == expected
    assert getattr(resolve(command, {"config": str(path)}, {}), name) == expected
    if row.flag:
        assert getattr(resolve(command, {name: (text,) if row.multiple else text}, {}), name) == expected


@pytest.mark.parametrize(
    ("flag", "variable", "key"), list(itertools.product([None, "11"], [None, "12"], [None, 13])), ids=str
)
def test_flag_before_variable_before_file_before_default(
    flag: str | None, variable: str | None, key: int | None, tmp_path: Path
) -> None:
    path = file_with(tmp_path, "" if key is None else f"workers = {key}\n")
    environ = {"STANDOFF_CONFIG": str(path)} | ({"STANDOFF_WORKERS": variable} if variable else {})
    chosen = resolve("serve", {"workers": flag}, environ).workers
    assert chosen == next((int(value) for value in (flag, variable, key) if value), available_cpus())


def test_lists_do_not_mix_origins(tmp_path: Path) -> None:
    path = file_with(tmp_path, 'zone = ["file.test"]\nlisten = ["127.0.0.1:53", "[::1]:53"]\n')
    environ = {"STANDOFF_CONFIG": str(path), "STANDOFF_ZONE": "a.test  b.test a.test"}
    settings = resolve("run", {"zone": ()}, environ)
    assert settings.zone == ["a.test", "b.test"]
    assert settings.listen_addresses == [("127.0.0.1", 53), ("::1", 53)]


def test_variables_of_lists_take_shell_quotes() -> None:
    settings = resolve("load", {}, {"STANDOFF_SOURCE": "'file:/my zones/a.zone' file:b.zone"})
    assert settings.source == ["file:/my zones/a.zone", "file:b.zone"]
    with pytest.raises(SettingsError, match="No closing quotation"):
        resolve("load", {}, {"STANDOFF_SOURCE": "'file:a"})


def test_empty_variables_do_not_count_and_empty_flags_do(tmp_path: Path) -> None:
    path = file_with(tmp_path, 'metrics = "127.0.0.1:9153"\n')
    assert resolve("serve", {"config": str(path)}, {"STANDOFF_METRICS": ""}).metrics == "127.0.0.1:9153"
    assert resolve("serve", {"config": str(path), "metrics": ""}, {}).metrics == ""


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    path = file_with(tmp_path, 'worker = 3\ntcp_idle = "x"\n[dns]\n')
    with pytest.raises(SettingsError) as caught:
        resolve("run", {"workers": "0", "config": str(path)}, {"STANDOFF_LISTEN": "1:2 127.0.0.1"})
    text = "\n".join(caught.value.problems)
    for part in (
        f"{path}:worker: there is no such setting; did you mean 'workers'?",
        f"{path}:dns",
        "--workers",
        "tcp_idle",
        "STANDOFF_LISTEN",
    ):
        assert part in text  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), [("workers = ", "is not TOML"), ("a = 1\na = 2", "is not TOML")])
def test_a_broken_file(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=reason):
        resolve("status", {"config": str(file_with(tmp_path, text))}, {})


def test_the_default_file_is_read_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "DEFAULT_CONFIG", file_with(tmp_path, 'instance = "edge"\n'))
    assert resolve("status", {}, {}).instance == "edge"
    assert resolve("status", {"config": "/dev/null"}, {}).instance == "default"
    assert resolve("status", {"config": ""}, {}).instance == "default"


def test_a_command_looks_only_at_what_it_takes(tmp_path: Path) -> None:
    """An operator must be able to look at a service whose settings somebody has just broken."""
    path = file_with(tmp_path, "workers = 99\n")
    assert resolve("status", {"config": str(path)}, {"STANDOFF_LISTEN": "nonsense"}).workers == available_cpus()


def test_secrets_stay_out_of_messages() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve("load", {}, {"STANDOFF_ETCD_PASSWORD": "se\tcret"})
    assert "cret" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        resolve("load", {"source": ("etcd://me:secret@127.0.0.1:2379/x",)}, {})
    assert "cret" not in str(caught.value)


def test_kubernetes_variables_are_no_settings() -> None:
    """Kubernetes sets these in the neighbours of a service named "standoff"."""
    made = {"STANDOFF_PORT": "tcp://10.0.0.1:53", "STANDOFF_SERVICE_HOST": "10.0.0.1", "STANDOFF_SERVICE_PORT": "53"}
    assert not {row.variable for row in rows()} & set(made)
    assert not [name for name in ROWS if name.startswith(("port", "service"))]
    assert origins.strange_variables(made) == []
    assert origins.strange_variables({"STANDOFF_WORKER": "3", "STANDOF_X": "1"}) == [
        "variable STANDOFF_WORKER is no setting; did you mean STANDOFF_WORKERS?"
    ]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("127.0.0.1:53", "127.0.0.1:53"),
        ("[2001:DB8:0::1]:5300", "[2001:db8::1]:5300"),
        ("[fe80::1%eth0]:53", "[fe80::1%eth0]:53"),
        ("0.0.0.0:65535", "0.0.0.0:65535"),
    ],
)
def test_right_addresses(text: str, normal: str) -> None:
    assert values.LISTEN.parse(text) == normal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("::1:53", "brackets"),
        ("127.0.0.1", "port is missing"),
        ("[::1]", "port is missing"),
        ("[127.0.0.1]:53", "brackets are for IPv6"),
        ("localhost:53", "not an IP address"),
        ("127.0.0.1:0", "port 0"),
        ("127.0.0.1:65536", "not a port"),
        ("127.0.0.1:٣", "not a port"),
        ("127.0.0.1:+53", "not a port"),
        (":53", "not an IP address"),
        ("", "port is missing"),
    ],
)
def test_wrong_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        values.LISTEN.parse(text)


@pytest.mark.parametrize(
    ("text", "normal"), [("EXAMPLE.test.", "example.test"), (".", "."), ("0/25.2.0.192.in-addr.arpa", None)]
)
def test_right_zones(text: str, normal: str | None) -> None:
    assert values.zone_name(text) == (normal or text)


@pytest.mark.parametrize("text", ["", "a..b", ".a", "a" * 64, "bücher.test", "*.test", ".".join(["a" * 49] * 6)])
def test_wrong_zones(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        values.zone_name(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/etc/zones", "starts with none of"),
        ("file:", "path is missing"),
        ("etcd:/x", "hosts are missing"),
        ("etcd:///x", "hosts are missing"),
        ("etcd://me:secret@h:1/x", "settings of their own"),
    ],
)
def test_wrong_sources(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        values.source_url(text)


def test_limits_agree_with_shared_memory() -> None:
    assert MAX_WORKERS < layout.SLOTS
    assert values.INSTANCE.pattern == INSTANCE_PATTERN.pattern


def test_rows_are_complete() -> None:
    shorts = [row.short for row in rows() if row.short]
    assert len(shorts) == len(set(shorts))
    for row in rows():
        assert row.help.endswith("."), row.name
        assert row.group in GROUPS
        assert row.commands
        assert row.form or row.choices or row.ge is not None, f"{row.name}: what is allowed?"
    assert list(dict.fromkeys(row.group for row in rows())) == list(GROUPS)


def test_settings_are_frozen_and_know_their_paths() -> None:
    settings = Settings(instance="edge", runtime_dir=Path("/run/x"), metrics="[::1]:9153")
    assert settings.control_path == Path("/run/x/edge.sock")
    assert settings.metrics_address == ("::1", 9153)
    assert Settings().metrics_address is None
    with pytest.raises(AttributeError):
        settings.instance = "other"  # type: ignore[misc]
