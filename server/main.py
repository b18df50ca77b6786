"""Wiring of the server: settings in, exit status out."""

from __future__ import annotations

import logging
import secrets
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from server import tsig
from server.access import Access
from server.control import ControlSocket
from server.cookie_secrets import CookieSecrets, SecretsError, check_number
from server.exporter import run_exporter
from server.notifier import Target
from server.passage import Doorkeeper, Passage
from server.policy import Policy
from server.sockets import Address
from server.stream import StreamLimits, run_stream
from server.supervisor import Plan, Supervisor
from server.tls import Certificate, CertificateError
from server.transfers import TransferPlan, run_transfers
from server.worker import Limits
from shm.board import Board
from shm.errors import StandoffError
from shm.segment import LockFile, Names

log = logging.getLogger(__name__)


class ServerSettings(Protocol):
    """What the server needs of the settings (cli/settings.py)."""

    @property
    def instance(self) -> str: ...
    @property
    def listen_addresses(self) -> list[tuple[str, int]]: ...
    @property
    def metrics_address(self) -> tuple[str, int] | None: ...
    @property
    def control_path(self) -> Path: ...
    @property
    def workers(self) -> int: ...
    @property
    def max_udp_size(self) -> int: ...
    @property
    def tcp_clients(self) -> int: ...
    @property
    def tcp_clients_per_address(self) -> int: ...
    @property
    def tcp_idle(self) -> float: ...
    @property
    def tls_listen_addresses(self) -> list[tuple[str, int]]: ...
    @property
    def tls_cert(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def drain_timeout(self) -> float: ...
    @property
    def freebind(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def max_answers(self) -> int: ...
    @property
    def chaos(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def cookie_secret(self) -> list[str]: ...
    @property
    def cookie_secret_file(self) -> Path | None: ...
    @property
    def rrl_rate(self) -> float: ...
    @property
    def rrl_slip(self) -> int: ...
    @property
    def rrl_exempt(self) -> list[str]: ...
    @property
    def refuse(self) -> list[str]: ...
    @property
    def drop(self) -> list[str]: ...
    @property
    def stale_after(self) -> float: ...
    @property
    def transfer_allow(self) -> list[str]: ...
    @property
    def tsig_key(self) -> list[str]: ...
    @property
    def notify(self) -> list[str]: ...


def serve(settings: ServerSettings) -> int:
    """Run the server until it is told to stop; 0, or 1 with the reason in the log."""
    problems = transfer_problems(settings)
    for problem in problems:
        log.error("%s", problem)
    if problems:
        return 1
    lock = LockFile(Names(settings.instance).lock("supervisor"))
    try:
        if not lock.try_acquire(patience_s=0.25):
            who = _server_pid(settings.instance)
            log.error(
                "instance %s has a server already%s; stop it, or choose another --instance", settings.instance, who
            )
            return 1
        board = Board.create_or_attach(settings.instance)
        control = ControlSocket(settings.control_path)
        try:
            return Supervisor(_plan(settings, lock), board, control).run()
        finally:
            control.close()
    except StandoffError as error:
        log.error("%s", error)
        return 1
    finally:
        lock.release()


def _server_pid(instance: str) -> str:
    """Of the server that runs, if the board tells it."""
    try:
        board = Board.attach(instance)
    except StandoffError:
        return ""
    pid = board.supervisor.get("supervisor_pid")
    board.close()
    return f" (pid {pid})" if pid else ""


def _plan(settings: ServerSettings, lock: LockFile) -> Plan:
    addresses = tuple(Address(host, port) for host, port in settings.listen_addresses)
    cookies = _cookies(settings)
    policy = _policy(settings)
    access = Limits(
        rate=settings.rrl_rate,
        slip=settings.rrl_slip,
        exempt=tuple(settings.rrl_exempt),
        refuse=tuple(settings.refuse),
        drop=tuple(settings.drop),
        stale_after_s=settings.stale_after,
        random_turns=settings.order == "random",
    )
    limits = StreamLimits(settings.tcp_clients, settings.tcp_idle, settings.tcp_clients_per_address)
    certificate = _certificate(settings)
    metrics = Address(*settings.metrics_address) if settings.metrics_address else None
    transfers = _transfers(settings, policy, addresses)
    passage = Passage() if policy.transfers else None
    return Plan(
        instance=settings.instance,
        addresses=addresses,
        tls_addresses=tuple(Address(host, port) for host, port in settings.tls_listen_addresses),
        workers=settings.workers,
        policy=policy,
        limits=access,
        freebind=settings.freebind == "on",
        control_path=settings.control_path,
        drain_timeout_s=settings.drain_timeout,
        run_stream=lambda plain, encrypted: run_stream(
            settings.instance,
            plain,
            policy,
            limits,
            settings.drain_timeout,
            access,
            None if passage is None else Doorkeeper(passage, policy, settings.refuse),
            encrypted,
            certificate,
            cookies,
        ),
        run_exporter=None if metrics is None else lambda: run_exporter(settings.instance, metrics, _version()),
        lock=lock,
        cookies=cookies,
        passage=passage,
        run_transfers=None if transfers is None else lambda: run_transfers(transfers, passage),
    )


def _certificate(settings: ServerSettings) -> Certificate | None:
    """Loaded here, so that a pair that does not work keeps the server from starting. Raises CertificateError.

    A stream worker inherits it: one that is replaced while the files are broken still has this one.
    """
    if not settings.tls_listen_addresses:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise CertificateError("tls_listen needs tls_cert and tls_key: the files of a certificate and its key")
    return Certificate(settings.tls_cert, settings.tls_key)


class TransferSettings(Protocol):
    """What is said of whole zones."""

    @property
    def transfer_allow(self) -> list[str]: ...
    @property
    def tsig_key(self) -> list[str]: ...
    @property
    def notify(self) -> list[str]: ...


def transfer_problems(settings: TransferSettings) -> list[str]:
    """What does not go together."""
    try:
        keys = tsig.Keys(settings.tsig_key)
    except ValueError as error:
        return [f"setting tsig_key: {error}"]
    named = [("transfer_allow", key) for key in Access(settings.transfer_allow).keys]
    named += [("notify", key) for text in settings.notify if (key := Target.parse(text).key)]
    return [
        f"setting {setting} names key {tsig.text_name(key)}, and tsig_key has none of it"
        for setting, key in named
        if key not in keys
    ]


def _transfers(settings: ServerSettings, policy: Policy, addresses: tuple[Address, ...]) -> TransferPlan | None:
    """None if nobody may have zones, nor hear of them."""
    targets = tuple(Target.parse(text) for text in settings.notify)
    if not targets and not policy.transfers:
        return None
    return TransferPlan(settings.instance, policy, targets, addresses, settings.drain_timeout)


def _cookies(settings: ServerSettings) -> CookieSecrets:
    """Secrets that are not given are drawn here: the workers share them, and a restart makes clients ask anew.

    Raises SecretsError.
    """
    if settings.cookie_secret and settings.cookie_secret_file is not None:
        raise SecretsError("cookie_secret and cookie_secret_file are both given: give one")
    given = [bytes.fromhex(secret) for secret in settings.cookie_secret] or [secrets.token_bytes(16)]
    check_number(given, "setting cookie_secret")
    return CookieSecrets(tuple(given), settings.cookie_secret_file)


def _policy(settings: ServerSettings) -> Policy:
    return Policy(
        max_udp_size=settings.max_udp_size,
        rotate=settings.order != "fixed",
        max_answers=settings.max_answers,
        chaos=settings.chaos == "on",
        identity=settings.identity or socket.gethostname(),
        version=f"standoff {_version()}",
        keepalive_s=settings.tcp_idle,
        keys=tsig.Keys(settings.tsig_key),
        transfers=Access(settings.transfer_allow),
    )


def _version() -> str:
    try:
        return version("standoff")
    except PackageNotFoundError:
        return "unknown"
