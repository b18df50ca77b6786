"""Files of cookie secrets: right and wrong ones, changes, and what children see of them."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cli import checks
from cli.settings import Settings
from server import cookie_secrets
from server._answer import Terms, answer_packet
from server.answer import answer
from server.cookie_secrets import CookieSecrets, SecretsError, read_secrets
from server.policy import MOST_SECRETS, Moment, Policy
from tests.support.packets import query
from tests.support.processes import child, wait_for
from tests.support.tables import example_table

SECRETS = [bytes([number] * 16) for number in range(1, 20)]


def write(path: Path, *secrets: bytes) -> None:
    """In one piece, as those who rotate should."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{secret.hex()}\n" for secret in secrets))
    os.replace(new, path)


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text(f"# signs\n{SECRETS[0].hex()}  # of May\n\n\t{SECRETS[1].hex().upper()}\r\n")
    assert read_secrets(path) == (SECRETS[0], SECRETS[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has none"),
        (b"# nothing\n\n", "has none"),
        (SECRETS[0].hex().encode() + b"\n0123\n", "line 2 of .* is not a cookie secret"),
        (SECRETS[0].hex().encode() + b" " + SECRETS[1].hex().encode(), "line 1"),
        (b"\n".join(secret.hex().encode() for secret in SECRETS[: MOST_SECRETS + 1]), "has 9"),
        (b"\xff\xfe", "no text"),
        (b"#" * 70000, "too large"),
    ],
)
def test_what_it_may_not(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "secrets"
    path.write_bytes(content)
    with pytest.raises(SecretsError, match=message) as error:
        read_secrets(path)
    assert "0123" not in str(error.value), "what might be a secret is not told"
    (remark,) = checks.cookies(Settings(cookie_secret_file=path))
    assert (remark.level, remark.text) == ("problem", str(error.value))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match="cannot be read: No such file"):
        CookieSecrets((), tmp_path / "none")
    with pytest.raises(SecretsError, match="cannot be read: Is a directory"):
        CookieSecrets((), tmp_path)


def test_the_check_sees_both_and_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    write(path, SECRETS[0])
    path.chmod(0o644)
    remarks = list(checks.cookies(Settings(cookie_secret_file=path, cookie_secret=["00" * 16])))
    assert [remark.level for remark in remarks] == ["problem", "ok", "warning"]
    path.chmod(0o640)
    assert [remark.level for remark in checks.cookies(Settings(cookie_secret_file=path))] == ["ok"]
    assert list(checks.cookies(Settings())) == []


def test_a_change_counts_once_it_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    write(path, SECRETS[0])
    secrets = CookieSecrets((), path)
    assert secrets.current == (SECRETS[0],)
    assert not secrets.look()
    write(path, SECRETS[1], SECRETS[0])
    assert not secrets.look(), "it may be half of a file"
    assert secrets.look()
    assert secrets.current == (SECRETS[1], SECRETS[0])
    assert not secrets.look()


def test_what_does_not_work_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "secrets"
    write(path, SECRETS[0])
    secrets = CookieSecrets((), path)
    for spoil in (lambda: path.write_text("junk"), path.unlink):
        spoil()
        assert [secrets.look() for _ in range(5)] == [False] * 5
        assert not secrets.reload()
        assert secrets.current == (SECRETS[0],)
    assert caplog.text.count("stay in use") == 4, "once by itself and once when asked, for each"
    write(path, SECRETS[2])
    assert secrets.reload()
    assert secrets.current == (SECRETS[2],)


def test_without_a_file_there_is_nothing_to_look_at() -> None:
    secrets = CookieSecrets((SECRETS[0],))
    assert not secrets.look()
    assert not secrets.reload()
    assert secrets.current == (SECRETS[0],)


def test_children_see_changes_and_later_ones_begin_with_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    write(path, SECRETS[0])
    secrets = CookieSecrets((), path)

    def watch(pipe: Connection) -> None:
        pipe.send(secrets.current)
        found: list[tuple[bytes, ...]] = []
        for number in (1, 2):
            wait_for(
                "there is news",
                lambda n=number: found.extend(filter(None, [secrets.news()])) or len(found) == n,  # type: ignore[misc]
            )
            pipe.send(found[-1])

    with child(watch) as early:
        assert early.hear() == (SECRETS[0],)
        write(path, SECRETS[1], SECRETS[0])
        secrets.reload()
        assert early.hear() == (SECRETS[1], SECRETS[0])
        with child(watch) as late:
            assert late.hear() == (SECRETS[1], SECRETS[0])
            write(path, *SECRETS[:MOST_SECRETS])
            secrets.reload()
            assert early.hear() == late.hear() == tuple(SECRETS[:MOST_SECRETS])


def test_a_half_written_page_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = CookieSecrets((SECRETS[0],))
    secrets.news()
    other = CookieSecrets((SECRETS[1],))
    other._write((SECRETS[1],))
    size = cookie_secrets._SIZE
    secrets._page[: size - 1] = other._page[: size - 1]
    assert secrets.news() is None
    secrets._page[:size] = other._page[:size]
    assert secrets.news() == (SECRETS[1],)
    assert secrets.news() is None


def test_both_answerers_after_a_change() -> None:
    """The hot path takes over what it is told; cookies of any of the secrets are accepted by both."""
    packet = query("a.example.test.", edns=1232)
    moment = Moment(now_s=1_700_000_000)

    def asked(cookie: bytes) -> bytes:
        return packet[:-2] + (4 + len(cookie)).to_bytes(2, "big") + b"\0\x0a" + len(cookie).to_bytes(2, "big") + cookie

    terms = Terms(Policy(cookie_secrets=(SECRETS[0],))).at(moment)
    for count in (1, 2, MOST_SECRETS, 3):
        renewed = tuple(SECRETS[5 : 5 + count])
        terms.renew(renewed)
        for signer in range(5, 5 + count + 1):
            reply = answer(asked(b"client-c"), example_table(), Policy(cookie_secrets=(SECRETS[signer],)), moment)
            assert reply is not None
            again = asked(reply[-24:])
            ours = answer_packet(again, example_table(), terms, moment)
            assert ours == answer(again, example_table(), Policy(cookie_secrets=renewed), moment)
    with pytest.raises(ValueError, match="8 at most"):
        terms.renew(tuple(SECRETS[: MOST_SECRETS + 1]))
