"""One gRPC channel to one etcd endpoint: connecting, deadlines, tokens, and errors that say what to do."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from loader._etcdpb import METHODS
from shm.errors import StandoffError

#: Seconds for the endpoint's name: two name servers of three may be dead, each costs five.
LOOKUP_S = 12.0


class EtcdError(StandoffError):
    """Base of what etcd or the way to it can do to us."""


class EtcdUnavailable(EtcdError):
    """This endpoint does not answer now: try the next one, or later."""


class TooSlow(EtcdUnavailable):
    """No answer within the time that a call may take."""


class Compacted(EtcdError):
    """The revision asked for is no longer kept. revision: the oldest that is, 0 if etcd did not say."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class TooLarge(EtcdError):
    """A message is larger than ClientOptions.max_message."""


class AuthFailed(EtcdError):
    """etcd refuses us: user, password, role or certificate. A retry alone will not help."""


class TokenExpired(AuthFailed):
    """The token is not valid any more; a new one usually helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How to reach etcd. Certificates are paths of PEM files, read at every connect, so that they may be renewed.

    password_file    instead of password: its first line, read whenever we authenticate, so that it may be renewed, too
    connect_timeout  seconds until an endpoint that accepts but never answers is given up; a local handshake takes
                     milliseconds, one across the world less than half a second
    call_timeout     seconds for a small call
    page_timeout     seconds for one page of a list; 100,000 keys take about half a second on an idle server
    max_message      bytes of one received message. The default of gRPC (4 MiB) is too small for pages, and for
                     watches too: while catching up, etcd sends up to 1000 revisions in one message
    """

    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    tls: bool = False
    cacert: str = ""
    cert: str = ""
    key: str = ""
    connect_timeout: float = 1.0
    call_timeout: float = 5.0
    page_timeout: float = 30.0
    max_message: int = 256 << 20

    def __post_init__(self) -> None:
        if not self.tls and (self.cacert or self.cert or self.key):
            raise EtcdError(
                "TLS files are given for etcd, but the source URL is plain: write etcds:// instead of etcd://"
            )
        if bool(self.cert) != bool(self.key):
            raise EtcdError("the etcd client certificate and its key belong together: give both, or none")
        if (self.password or self.password_file) and not self.user:
            raise EtcdError("an etcd password is given without a user: give both, or none")

    def current_password(self) -> str:
        """Raises AuthFailed for a file that cannot be used."""
        if not self.password_file:
            return self.password
        try:
            return Path(self.password_file).read_text().splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise AuthFailed(f"cannot read the etcd password file {self.password_file}: {error}") from None


def _channel_arguments(options: ClientOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message),
        ("grpc.max_send_message_length", -1),
        # etcd answers GOAWAY to pings more often than every 5 s, and grpcio lets pings slip a little early.
        ("grpc.keepalive_time_ms", 6000),
        # grpcio 1.85 ignores the first in favour of the second, whose default is a minute.
        ("grpc.keepalive_timeout_ms", 3000),
        ("grpc.http2.ping_timeout_ms", 3000),
        ("grpc.http2.max_pings_without_data", 0),
        # A channel shares nothing with the one it replaces, least of all that one's wait before reconnecting.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Octets on their way to us. With gRPC's own estimate a list over a slow line has so many that the answer to a
        # ping, behind them, comes too late.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1 << 20),
        # A proxy from the environment is meant for web traffic.
        ("grpc.enable_http_proxy", 0),
    ]


#: What gRPC puts before the cause: its own status, and the address, which the endpoint tells already.
_WRAPPING = re.compile(
    r"(?:failed to connect to all addresses; last error: )?(?:[A-Z_]+: )?(?:(?:ipv[46]|unix):\S+: )?"
    r"(?:Failed to connect to remote host: )?(?=.)"
)


def _for_people(details: str) -> str:
    """The cause alone, without what gRPC wraps it in."""
    wrapping = _WRAPPING.match(details)
    if wrapping is None or not wrapping.end():
        return details
    cause = details[wrapping.end() :]
    return cause[:1].lower() + cause[1:]


def _look_up(host: str) -> asyncio.Future[None]:
    """Done when the system has looked up the name, with whatever result. In a thread that nobody has to wait for: those
    of asyncio hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    def look() -> None:
        with suppress(OSError, UnicodeError):
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=look, name="look-up", daemon=True).start()
    return done


class EtcdChannel:
    """A connection to one endpoint. Use open() before anything else and close() at the end.

    It does not reconnect on purpose: whoever owns it makes a new one, for this endpoint or the next.
    """

    def __init__(self, endpoint: str, options: ClientOptions) -> None:
        self.endpoint = endpoint
        self.options = options
        self.token = ""
        self.worked = False  # this connection, or an earlier one with the same options: then these are not the cause
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect, within connect_timeout, and authenticate if a user is set. Raises EtcdUnavailable or AuthFailed."""
        arguments = _channel_arguments(self.options)
        if self.options.tls:
            self._channel = grpc.aio.secure_channel(self.endpoint, self._credentials(), options=arguments)
        else:
            self._channel = grpc.aio.insecure_channel(self.endpoint, options=arguments)
        try:
            await self._ready()
            self.worked = True
            if self.options.user:
                await self.authenticate()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Drop the connection and every call on it."""
        self._stubs.clear()
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def authenticate(self) -> None:
        """Get a token for user and password."""
        self.token = ""
        try:
            password = self.options.current_password()
            answer = await self._call_once("Authenticate", {"name": self.options.user, "password": password})
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return  # authentication is not enabled (yet): nothing to prove
            raise self.explain(error) from None
        self.token = answer.token

    async def call(self, method: str, timeout: float | None = None, /, **fields: Any) -> Any:
        """Make one unary call of METHODS; timeout in seconds, default call_timeout. Raises EtcdError's children.

        An expired token is renewed once. A call that timed out may still have been carried out.
        """
        for last_try in (False, True):
            try:
                return await self._call_once(method, fields, timeout)
            except grpc.aio.AioRpcError as error:
                problem = self.explain(error)
                if last_try or not isinstance(problem, TokenExpired) or not self.options.user:
                    raise problem from None
            await self.authenticate()
        raise AssertionError("unreachable")

    def stream(self, method: str) -> Any:
        """Open a bidirectional stream."""
        path, request, response = METHODS[method]
        multicallable = self._open_channel().stream_stream(
            path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        # hasleader: a member cut off from the majority ends the stream. It would stay silent otherwise, and look alive.
        return multicallable(metadata=(*self._metadata(), ("hasleader", "true")))

    def explain(self, error: grpc.aio.AioRpcError) -> EtcdError:
        """Turn a gRPC status into an error that names the endpoint and what to do."""
        code, details = error.code(), error.details() or ""
        where = f"etcd {self.endpoint}"
        status = grpc.StatusCode
        nameless = code == status.INVALID_ARGUMENT and "user name is empty" in details
        if code == status.UNAUTHENTICATED or "auth store is old" in details or (nameless and self.options.user):
            # The last: authentication was switched on after we had connected.
            return TokenExpired(f"{where}: token refused ({details}); is the user still there?")
        if code == status.PERMISSION_DENIED:
            user = self.options.user
            return AuthFailed(f"{where}: user {user!r} may not do this ({details}); grant its role read on the prefix")
        if nameless:
            return AuthFailed(f"{where} wants a user: set the etcd user and password ({details})")
        if code == status.INVALID_ARGUMENT and "authentication failed" in details:
            return AuthFailed(f"{where}: wrong user {self.options.user!r} or wrong password ({details})")
        if code == status.OUT_OF_RANGE and "compacted" in details:
            return Compacted(f"{where}: {details}")
        if code == status.RESOURCE_EXHAUSTED and "larger than max" in details:
            return TooLarge(f"{where}: message above {self.options.max_message} bytes ({details})")
        if code == status.DEADLINE_EXCEEDED:
            return TooSlow(f"{where} does not answer in time; is it overloaded or without a leader?")
        hint = "" if code != status.UNAVAILABLE else self._connection_hint(details)
        return EtcdUnavailable(f"{where}: {_for_people(details) or code.name}{hint}")

    def _connection_hint(self, details: str) -> str:
        text = details.lower()
        if self.options.tls and ("ssl" in text or "tls" in text or "handshake" in text or "certificate" in text):
            return "; check cacert, cert and key, and that the certificate names this host"
        if (
            not self.options.tls
            and not self.worked
            and ("socket closed" in text or "connection reset" in text or "preface" in text)
        ):
            return "; if it speaks TLS, write etcds:// instead of etcd://"
        if "refused" in text:
            return "; is it running, and is the port right?"
        return ""

    async def _ready(self) -> None:
        """Wait until the HTTP/2 handshake is done."""
        channel, states = self._open_channel(), grpc.ChannelConnectivity

        async def settle() -> Any:
            while (state := channel.get_state(try_to_connect=True)) not in (states.READY, states.TRANSIENT_FAILURE):
                await channel.wait_for_state_change(state)
            return state

        settling = asyncio.ensure_future(settle())
        try:
            if not await self._is_named(settling):
                raise EtcdUnavailable(
                    f"etcd {self.endpoint}: no name server has told its address within {LOOKUP_S:g} s"
                )
            state = await asyncio.wait_for(settling, self.options.connect_timeout)
        except TimeoutError:
            seconds = self.options.connect_timeout
            raise EtcdUnavailable(
                f"etcd {self.endpoint} gave no answer within {seconds:g} s; is it stopped or cut off?"
            ) from None
        finally:
            settling.cancel()
        if state is not states.READY:
            # Only a call tells why. It fails at once while the channel is in this state.
            try:
                await self._call_once("Status", {}, self.options.connect_timeout)
            except grpc.aio.AioRpcError as error:
                raise self.explain(error) from None

    async def _is_named(self, settling: asyncio.Future[Any]) -> bool:
        """Wait until the endpoint's name is looked up, or the connection made; whether one of them is.

        gRPC looks it up by itself, at the same time and in the same way, but does not tell when it is done; and a dead
        name server, which takes seconds, is not the endpoint's fault.
        """
        host = self.endpoint.rpartition(":")[0].strip("[]")
        with suppress(ValueError):
            ipaddress.ip_address(host)
            return True
        named = _look_up(host)
        try:
            done, _ = await asyncio.wait({settling, named}, timeout=LOOKUP_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            named.cancel()
        return bool(done)

    async def _call_once(self, method: str, fields: dict[str, Any], timeout: float | None = None) -> Any:
        path, request, response = METHODS[method]
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = self._open_channel().unary_unary(
                path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
        seconds = self.options.call_timeout if timeout is None else timeout
        return await stub(request(**fields), timeout=seconds, metadata=self._metadata())

    def _open_channel(self) -> Any:
        if self._channel is None:
            raise EtcdUnavailable(f"the connection to etcd {self.endpoint} is closed")
        return self._channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self.token),) if self.token else ()

    def _credentials(self) -> Any:
        def read(path: str, what: str) -> bytes | None:
            if not path:
                return None
            try:
                found = Path(path).read_bytes()
            except OSError as error:
                raise AuthFailed(f"cannot read the etcd {what} {path}: {error.strerror}") from None
            if b"-----BEGIN " not in found:  # gRPC ends the process for an empty one
                raise AuthFailed(f"the etcd {what} {path} is not a PEM file, or not yet")
            return found

        return grpc.ssl_channel_credentials(
            root_certificates=read(self.options.cacert, "CA certificate"),
            private_key=read(self.options.key, "client key"),
            certificate_chain=read(self.options.cert, "client certificate"),
        )
