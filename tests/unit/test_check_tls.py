"""`standoff check` on the certificate of DNS over TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cli import checks
from cli.checks import Level
from cli.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def make_pair(folder: Path, name: str, days: int) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", str(days), "-subj", f"/CN={name}"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def remarks(*, listen: bool = True, cert: Path | None = None, key: Path | None = None) -> list[tuple[Level, str]]:
    settings = Settings(tls_listen=["127.0.0.1:8853"] if listen else [], tls_cert=cert, tls_key=key)
    return [(remark.level, remark.text) for remark in checks.tls(settings)]


def test_a_pair(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a", 90)
    assert remarks(listen=False) == []
    assert [level for level, _ in remarks(cert=cert, key=key)] == [Level.OK]
    assert [level for level, _ in remarks(listen=False, cert=cert, key=key)] == [Level.OK, Level.WARNING]
    key.chmod(0o644)
    assert "chmod" in remarks(cert=cert, key=key)[-1][1]


def test_what_is_missing(tmp_path: Path) -> None:
    cert, _ = make_pair(tmp_path, "a", 90)
    for given in (remarks(), remarks(cert=cert), remarks(listen=False, key=cert)):
        assert [level for level, _ in given] == [Level.PROBLEM]


def test_not_a_pair(tmp_path: Path) -> None:
    cert, _ = make_pair(tmp_path, "a", 90)
    _, key = make_pair(tmp_path, "b", 90)
    assert remarks(cert=cert, key=key) == [(Level.PROBLEM, f"{key} is not the key of the certificate {cert}")]


def test_one_that_ends_soon(tmp_path: Path) -> None:
    level, text = remarks(**dict(zip(("cert", "key"), make_pair(tmp_path, "a", 3), strict=True)))[0]
    assert level == Level.WARNING
    assert "expires in" in text
