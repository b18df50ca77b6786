"""The checker: when a target turns, what one look at a real server says, and what is told to the loader."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import checker, targets
from loader.checker import Checker, State
from loader.targets import Options, Target
from tests.support.certificates import Authority
from tests.support.mirroring import run_async

# ---------------------------------------------------------------- rise and fall


def target(url: str = "tcp://127.0.0.1:9", **options: Any) -> Target:
    return targets.parse(Options(url, **{"interval": 1, "timeout": 0.5, **options}))


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4), st.sampled_from([True, False, None]))
def test_a_target_turns_after_so_many_in_a_row(looks: list[bool], rise: int, fall: int, before: bool | None) -> None:
    state, wanted = State(before), before
    for number, well in enumerate(looks, 1):
        state.note(well, target(rise=rise, fall=fall))
        if wanted is None and well:
            wanted = True
        row = fall if wanted is not False else rise
        last = looks[max(0, number - row) : number]
        # A row that has turned it is used up; what turned it cannot turn it back.
        if len(last) == row and set(last) == {wanted is False}:
            wanted = wanted is False
        assert state.up == wanted


# ---------------------------------------------------------------- one look


@asynccontextmanager
async def serving(answer: bytes | None, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on 127.0.0.1 that reads a request and says this; None: nothing, ever. Its port, and what it read."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            if answer is None:
                await asyncio.sleep(60)
            else:
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


def looked(
    answer: bytes | None, url: str, tls: ssl.SSLContext | None = None, **options: Any
) -> tuple[str | None, bytes]:
    """What a look at such a server says, and what the server read."""
    found: list[Any] = []

    async def body() -> None:
        async with serving(answer, tls) as (port, heard):
            found.append(await checker.look(target(url.replace("PORT", str(port)), **options)))
            found.append(heard[0] if heard else b"")

    run_async(body())
    return found[0], found[1]


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "options", "wrong"),
    [
        (OK, {}, ""),
        (b"HTTP/1.1 204\r\n\r\n", {}, ""),
        (b"HTTP/1.0 302 Found\n", {}, ""),
        (b"HTTP/1.1 404 Not Found\r\n", {}, "status 404"),
        (b"HTTP/1.1 404 Not Found\r\n", {"status": [404, 410]}, ""),
        (OK, {"status": 204}, "status 200"),
        (b"SSH-2.0-OpenSSH\r\n", {}, "it does not speak HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n", {}, "it does not speak HTTP"),
        (b"HTTP/1.1\r\n", {}, "it does not speak HTTP"),
        (b"", {}, "it does not speak HTTP"),
        (b"HTTP/1.1 200" + b"x" * 10000, {}, "it does not speak HTTP"),
        (None, {}, "no answer within 0.5 s"),
    ],
)
def test_http(answer: bytes | None, options: dict[str, Any], wrong: str) -> None:
    assert looked(answer, "http://127.0.0.1:PORT/up?x=1", **options)[0] == wrong


def test_the_request() -> None:
    error, request = looked(OK, "http://127.0.0.1:PORT/up?x=1", host="www.example.test")
    assert error == ""
    lines = request.split(b"\r\n")
    assert lines[0] == b"GET /up?x=1 HTTP/1.1"
    assert b"Host: www.example.test" in lines
    _, request = looked(OK, "http://127.0.0.1:PORT")
    assert request.startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:")


def test_a_connection_is_enough_for_tcp() -> None:
    assert looked(None, "tcp://127.0.0.1:PORT")[0] == ""


def test_a_closed_port(free_port: int) -> None:
    async def body() -> None:
        assert await checker.look(target(f"tcp://127.0.0.1:{free_port}")) == os.strerror(111)
        assert await checker.look(target(f"tcp://[::1]:{free_port}")) in (os.strerror(111), os.strerror(99))

    run_async(body())


@pytest.fixture
def free_port() -> int:
    from tests.support.etcd import free_ports

    return free_ports(1)[0]


def test_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.path("server.pem"), authority.path("server.key"))
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    url = "https://127.0.0.1:PORT/"
    assert looked(OK, url, context)[0] == ""  # like most checks: whoever signed it
    assert looked(OK, url, context, host="www.example.test")[0] == ""
    assert looked(OK, url, context, sni="other.example.test", host="www.example.test")[0] == ""
    assert names == [None, "www.example.test", "other.example.test"]
    wrong, _ = looked(OK, url, context, verify=True)
    assert wrong is not None
    assert wrong.startswith("TLS: ")
    assert looked(OK, url)[0] not in ("", None)  # no TLS there


def test_authorities_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system trusts is renewed while the checker runs; and names count."""
    monkeypatch.setattr(checker, "TRUST_S", 0.05)
    other = Authority(tmp_path, "other")
    ours = Authority(tmp_path)
    ours.sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.path("server.pem"), ours.path("server.key"))
    url = "https://127.0.0.1:PORT/"
    monkeypatch.setenv("SSL_CERT_FILE", other.path("other.pem"))
    assert "unable to get local issuer" in (looked(OK, url, context, verify=True)[0] or "")
    monkeypatch.setenv("SSL_CERT_FILE", ours.path("ca.pem"))
    time.sleep(0.1)
    assert looked(OK, url, context, verify=True)[0] == ""
    assert "ostname mismatch" in (looked(OK, url, context, verify=True, sni="www.example.test")[0] or "")


def test_who_was_held_up_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that was stopped finds all its checks timed out; that is no word about the targets."""

    async def sleepy(_: Target) -> str:
        time.sleep(2.0)  # the whole process
        await asyncio.sleep(1)
        return ""

    monkeypatch.setattr(checker, "_connect", sleepy)

    async def body() -> None:
        assert await checker.look(target()) is None

    run_async(body())


def test_a_machine_without_free_descriptors_knows_nothing() -> None:
    async def body() -> None:
        async with serving(OK) as (port, _):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = [os.open(os.devnull, os.O_RDONLY)]
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
                with suppress(OSError):
                    while True:
                        taken.append(os.dup(taken[0]))
                assert await checker.look(target(f"tcp://127.0.0.1:{port}")) is None
            finally:
                for one in taken:
                    os.close(one)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await checker.look(target(f"tcp://127.0.0.1:{port}")) == ""

    run_async(body())


def test_what_nobody_expects_is_an_error_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not end the task that looks at a target: that would be up, or down, for ever."""

    async def odd(_: Target) -> str:
        return "www..example.test".encode("idna").decode()

    monkeypatch.setattr(checker, "_connect", odd)

    async def body() -> None:
        made = Checker(1)
        made.watch([(target(interval=0.2, timeout=0.1, fall=3), None)])
        news: list[tuple[str, bool | None, str]] = []
        async with asyncio.timeout(10):
            while not news or news[-1][1] is not False:
                await asyncio.sleep(0.01)
                news += made.news()
        assert "label empty" in news[-1][2]
        made.forget([news[-1][0]])

    run_async(body())


# ---------------------------------------------------------------- what is told


def test_news_are_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, str | None] = {}

    async def look(one: Target) -> str | None:
        return answers.get(one.text, "")

    monkeypatch.setattr(checker, "look", look)
    monkeypatch.setattr(random, "uniform", lambda a, b: a)
    first, second = (
        target(interval=0.2, timeout=0.1, fall=1, rise=1),
        target("tcp://127.0.0.1:10", interval=0.2, timeout=0.1),
    )

    async def body() -> None:
        made = Checker(10)
        news: list[Any] = []

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(10):
                while not condition():
                    news.extend(made.news())
                    await asyncio.sleep(0.01)

        made.watch([(first, None), (second, True)])
        await until(lambda: (first.text, True, "") in news)
        assert news == [(first.text, True, "")]  # the second one is as it was said to be
        answers[first.text] = "broken"
        await until(lambda: len(news) == 2)
        assert news[1] == (first.text, False, "broken")
        answers[first.text] = "broken otherwise"
        await until(lambda: len(news) == 3)
        assert news[2] == (first.text, False, "broken otherwise")
        answers[first.text] = None  # nothing is known: nothing is told
        await asyncio.sleep(0.5)
        assert made.news() == []
        answers[first.text] = ""
        made.forget([first.text])
        await asyncio.sleep(0.5)
        assert made.news() == []
        made.forget([second.text])
        assert not made._tasks

    run_async(body())


def test_no_more_looks_at_a_time_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = total = 0

    async def look(_: Target) -> str:
        nonlocal at_once, most, total
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        total += 1
        return ""

    monkeypatch.setattr(checker, "look", look)

    async def body() -> None:
        made = Checker(7)
        made.watch([(target(f"tcp://127.0.0.1:{port}"), None) for port in range(1, 101)])
        async with asyncio.timeout(10):
            while total < 100:
                await asyncio.sleep(0.01)
        made.forget([f"tcp://127.0.0.1:{port} interval=1 timeout=0.5" for port in range(1, 101)])
        await asyncio.sleep(0)

    run_async(body())
    assert most == 7
