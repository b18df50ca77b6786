"""Sockets: the reuse-port group, steering, parking; what cannot be bound says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from server import sockets
from server.sockets import Address, BindError, SocketTable, open_tcp, open_udp, probe_free, steer


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for datagrams and streams now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(50):
        with socket.socket(family, socket.SOCK_STREAM) as stream, socket.socket(family, socket.SOCK_DGRAM) as datagram:
            stream.bind((host, 0))
            port: int = stream.getsockname()[1]
            try:
                datagram.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture
def address() -> Address:
    return Address("127.0.0.1", free_port())


@pytest.fixture
def table(address: Address) -> Iterator[SocketTable]:
    table = SocketTable([address])
    yield table
    table.close()


def send(address: Address, count: int = 200) -> None:
    """Datagrams from one source: hashing would give them all to one socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(count):
            client.sendto(b"x", (address.host, address.port))


def received(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(16)
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:53", "127.0.0.1", 53),
        ("[::1]:5300", "::1", 5300),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("::1:53", "::1", 53),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize("text", ["", "53", "127.0.0.1", "127.0.0.1:", "127.0.0.1:dns", ":", "127.0.0.1:-1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="not ADDR:PORT"):
        Address.parse(text)


def test_addresses_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:53", "[2001:db8::1]:53"):
        assert str(Address.parse(text)) == text


def test_one_group_many_sockets(address: Address) -> None:
    group = [open_udp(address) for _ in range(3)]
    assert all(not sock.getblocking() for sock in group)
    send(address)
    assert sum(map(received, group)) == 200
    for sock in group:
        sock.close()


def test_steering_spreads_one_clients_queries(address: Address) -> None:
    group = [open_udp(address) for _ in range(4)]
    if not steer(group[0], 4):
        pytest.skip("this kernel does not steer")
    send(address, 400)
    counts = [received(sock) for sock in group]
    assert sum(counts) == 400
    assert min(counts) > 40, counts
    for sock in group:
        sock.close()


def test_steering_stops_what_goes_to_the_others(address: Address) -> None:
    group = [open_udp(address) for _ in range(4)]
    if not steer(group[0], 4) or not steer(group[0], 2):
        pytest.skip("this kernel does not steer")
    send(address, 300)
    counts = [received(sock) for sock in group]
    assert counts[2:] == [0, 0]
    assert min(counts[:2]) > 60
    assert steer(group[0], 3)
    send(address, 300)
    assert all(received(sock) > 40 for sock in group[:3])
    for sock in group:
        sock.close()


def test_a_kernel_that_does_not_steer_is_not_an_error(monkeypatch: pytest.MonkeyPatch, address: Address) -> None:
    monkeypatch.setattr(sockets, "SO_ATTACH_REUSEPORT_CBPF", 9999)
    table = SocketTable([address])
    table.open_for(0)
    table.open_for(1)
    table.steer(2)
    table.close_for(1)
    send(address)
    assert received(table.udp[0][0]) == 200, "a removed worker's socket is closed then: hashing would go on using it"
    table.close()


@pytest.mark.parametrize("leak", [False, True])
def test_scaling_down_and_up_loses_nothing(address: Address, table: SocketTable, leak: bool) -> None:
    """Not even if some process still has a copy of a removed worker's socket, which keeps its place in the group."""
    for worker in range(3):
        table.open_for(worker)
    table.steer(3)
    leaked = [sock.dup() for sock in table.udp[2]] if leak else []
    for workers in (1, 3, 2, 3):
        for worker in range(3):
            if worker >= workers and worker in table.udp:
                table.steer(workers)
                table.close_for(worker)
            elif worker < workers and worker not in table.udp:
                table.open_for(worker)
        table.steer(workers)
        send(address)
        counts = [received(table.udp[worker][0]) for worker in range(workers)]
        assert sum(counts) == 200, (workers, counts)
        assert min(counts) > 20
    for sock in leaked:
        sock.close()


def test_shedding_one_kind(table: SocketTable) -> None:
    udp = table.open_for(0)
    tcp = list(table.tcp)
    table.close_udp()
    assert udp[0].fileno() == -1
    assert tcp[0].fileno() != -1
    table.close_tcp()
    assert tcp[0].fileno() == -1
    assert table.udp == {}


def test_another_program_listens_there(address: Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((address.host, address.port))
        for open_ in (open_udp, probe_free):
            with pytest.raises(BindError, match=rf"cannot listen on {address}: .*another program .*ss -l"):
                open_(address)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind((address.host, address.port))
        other.listen()
        for open_ in (open_tcp, probe_free):
            with pytest.raises(BindError, match="another program"):
                open_(address)
    probe_free(address)


def test_a_group_of_ours_is_not_free(address: Address) -> None:
    """SO_REUSEPORT would let a second server share the address in silence."""
    sock = open_udp(address)
    with pytest.raises(BindError):
        probe_free(address)
    sock.close()


def test_no_such_interface() -> None:
    with pytest.raises(BindError, match="no interface has this address"):
        open_udp(Address("192.0.2.1", 5300))


def test_the_hint_for_low_ports() -> None:
    text = sockets._why_not(Address("127.0.0.1", 53), PermissionError(13, "Permission denied"))
    assert "CAP_NET_BIND_SERVICE" in text


def test_v6_only() -> None:
    """`[::]` must not take the IPv4 address too: both may be configured."""
    try:
        port = free_port("::")
    except OSError:
        pytest.skip("no IPv6 here")
    six, four = open_udp(Address("::", port)), open_udp(Address("0.0.0.0", port))
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    for sock in (six, four):
        sock.close()
