"""Wiring of the server: settings in, exit status out."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from server.answer import Policy
from server.control import ControlSocket
from server.exporter import run_exporter
from server.sockets import Address
from server.stream import StreamLimits, run_stream
from server.supervisor import Plan, Supervisor
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
    def tcp_idle(self) -> float: ...
    @property
    def drain_timeout(self) -> float: ...


def serve(settings: ServerSettings) -> int:
    """Run the server until it is told to stop; 0, or 1 with the reason in the log."""
    lock = LockFile(Names(settings.instance).lock("supervisor"))
    try:
        if not lock.try_acquire(patience_s=0.25):
            log.error("instance %s has a server already; stop it, or choose another --instance", settings.instance)
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


def _plan(settings: ServerSettings, lock: LockFile) -> Plan:
    addresses = tuple(Address(host, port) for host, port in settings.listen_addresses)
    policy = Policy(max_udp_size=settings.max_udp_size)
    limits = StreamLimits(clients=settings.tcp_clients, idle_s=settings.tcp_idle)
    metrics = Address(*settings.metrics_address) if settings.metrics_address else None
    return Plan(
        instance=settings.instance,
        addresses=addresses,
        workers=settings.workers,
        policy=policy,
        control_path=settings.control_path,
        drain_timeout_s=settings.drain_timeout,
        run_stream=lambda listeners: run_stream(settings.instance, listeners, policy, limits, settings.drain_timeout),
        run_exporter=None if metrics is None else lambda: run_exporter(settings.instance, metrics, _version()),
        lock=lock,
    )


def _version() -> str:
    try:
        return version("standoff")
    except PackageNotFoundError:
        return "unknown"
