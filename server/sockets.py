"""The sockets of the service. No other module creates network sockets.

Every UDP address has one SO_REUSEPORT socket a worker, opened by the supervisor and kept by it: the queue of a worker
that died waits for its replacement.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: Room for some ten thousand queries while a worker is replaced; the kernel caps it at net.core.rmem_max for those who
#: may not exceed it.
UDP_BUFFER_BYTES = 4 << 20
TCP_BACKLOG = 1024

SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
SO_ATTACH_REUSEPORT_CBPF = 51
IP_PKTINFO = 8
IP_FREEBIND = 15
IPV6_FREEBIND = 78


class BindError(StandoffError):
    """An address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """ADDR:PORT, an IPv6 address in brackets. Raises ValueError."""
        host, separator, port = text.rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"{text!r} is not ADDR:PORT")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def is_wildcard(self) -> bool:
        """All addresses of the machine."""
        return self.host in ("0.0.0.0", "::")

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


def open_udp(address: Address, *, freebind: bool = False) -> socket.socket:
    """A non-blocking datagram socket of the address's SO_REUSEPORT group. Raises BindError.

    freebind: the address may appear on an interface later. A socket for all addresses tells each datagram's own.
    """
    sock = _open(address, socket.SOCK_DGRAM, freebind)
    if address.is_wildcard:
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, UDP_BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, UDP_BUFFER_BYTES)
    return sock


def open_tcp(address: Address, *, freebind: bool = False) -> socket.socket:
    """A non-blocking listening stream socket. Raises BindError."""
    sock = _open(address, socket.SOCK_STREAM, freebind)
    sock.listen(TCP_BACKLOG)
    return sock


def open_client(target: Address, sources: Iterable[Address] = ()) -> socket.socket:
    """A non-blocking datagram socket that talks to `target` only, from one of our own `sources` if one suits."""
    sock = socket.socket(target.family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    suitable = (a for a in sources if a.family == target.family and not a.is_wildcard)
    source = next((a for a in suitable if a.is_loopback == target.is_loopback), None)
    try:
        if source is not None:
            sock.bind((source.host, 0))
        sock.connect((target.host, target.port))
    except OSError as error:
        sock.close()
        raise BindError(f"cannot send to {target}: {error.strerror}") from error
    return sock


def _open(address: Address, kind: socket.SocketKind, freebind: bool) -> socket.socket:
    sock = socket.socket(address.family, kind)
    try:
        if freebind:
            _free(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        raise BindError(_why_not(address, error)) from error
    return sock


def _free(sock: socket.socket) -> None:
    """The address may appear on an interface later."""
    ipv6 = sock.family == socket.AF_INET6
    sock.setsockopt(socket.IPPROTO_IPV6 if ipv6 else socket.IPPROTO_IP, IPV6_FREEBIND if ipv6 else IP_FREEBIND, 1)


def _why_not(address: Address, error: OSError) -> str:
    hint = ""
    if isinstance(error, PermissionError) and address.port < 1024:
        hint = "; ports below 1024 need CAP_NET_BIND_SERVICE (the systemd unit grants it) or root"
    elif error.errno == 98:
        hint = "; another program or instance listens there (see: ss -lunp, ss -ltnp): stop it, or change --listen"
    elif error.errno == 99:
        hint = "; no interface has this address"
    return f"cannot listen on {address}: {error.strerror}{hint}"


def probe_free(
    address: Address,
    kinds: Iterable[socket.SocketKind] = (socket.SOCK_DGRAM, socket.SOCK_STREAM),
    *,
    freebind: bool = False,
) -> None:
    """Whether nobody else holds the address: SO_REUSEPORT would share it silently with our own user's programs.

    Raises BindError.
    """
    for kind in kinds:
        with socket.socket(address.family, kind) as sock:
            try:
                if freebind:
                    _free(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
                if address.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address.host, address.port))
            except OSError as error:
                raise BindError(_why_not(address, error)) from error


def steer(sock: socket.socket, sockets: int) -> bool:
    """Spread the datagrams of `sock`'s group evenly over its first `sockets` members, whatever their sources.

    Without it the kernel hashes addresses and ports, so that one busy client keeps one worker busy; and a member that
    is about to go would get datagrams until its very end. False if the kernel cannot (then it hashes).
    """
    random_offset = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
    program = b"".join(
        struct.pack("=HBBI", code, 0, 0, value)
        for code, value in ((0x20, random_offset), (0x94, sockets), (0x16, 0))  # ld random; mod #n; ret a
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    option = struct.pack("@HP", 3, ctypes.addressof(buffer))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, option)
    except OSError as error:
        log.info("the kernel chooses sockets by hash: %s", error)
        return False
    return True


class SocketTable:
    """All UDP sockets, by worker, and the TCP and TLS listeners. Kept by the supervisor, inherited by its children.

    A group's members are numbered in the order of their opening, and `steer` counts on it: a socket that stays open
    somewhere while its successor is opened would go on getting datagrams that nobody reads. So where the kernel steers,
    a worker that goes for good leaves its sockets parked here, for the next worker of its number.
    """

    def __init__(
        self, addresses: Iterable[Address], tls_addresses: Iterable[Address] = (), *, freebind: bool = False
    ) -> None:
        self.addresses = tuple(addresses)
        self._freebind = freebind
        self.udp: dict[int, list[socket.socket]] = {}
        self._parked: dict[int, list[socket.socket]] = {}
        self._steered = False
        self.tcp = [open_tcp(address, freebind=freebind) for address in self.addresses]
        self.tls = [open_tcp(address, freebind=freebind) for address in tls_addresses]

    def open_for(self, worker: int) -> list[socket.socket]:
        """The sockets of a new worker."""
        parked = self._parked.pop(worker, None)
        self.udp[worker] = parked or [open_udp(address, freebind=self._freebind) for address in self.addresses]
        return self.udp[worker]

    def close_for(self, worker: int) -> None:
        """A worker is gone for good."""
        sockets = self.udp.pop(worker, [])
        if self._steered:
            self._parked[worker] = sockets
        else:
            _close(sockets)

    def steer(self, workers: int) -> None:
        """Send every group's datagrams to the first `workers` members."""
        self._steered = all(steer(sock, workers) for sock in self.udp.get(0, ()))

    def close_udp(self) -> None:
        for sockets in self.udp.values():
            _close(sockets)
        self.udp.clear()
        self.close_parked()

    def close_parked(self) -> None:
        for sockets in self._parked.values():
            _close(sockets)
        self._parked.clear()

    def close_tcp(self) -> None:
        _close(self.tcp)
        _close(self.tls)
        self.tcp, self.tls = [], []

    def close(self) -> None:
        self.close_udp()
        self.close_tcp()


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
