"""What `standoff check` looks at, beyond the settings' own form: sources, sockets, folders, shared memory."""

from __future__ import annotations

import enum
import errno
import os
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli import origins, values
from cli.settings import Settings
from shm import layout
from shm.segment import SHM_FOLDER, Names, is_held

#: Bytes of /dev/shm for a name: the design's target of 100 bytes for each of two tables, half as much again for growth,
#: and a third table while a larger one is built.
BYTES_PER_NAME = 450
#: Docker's default of 64 MiB holds about 150,000 names: enough to start with, worth a word.
SMALL_SHM = 128 << 20


class Level(enum.StrEnum):
    """A problem keeps the service from working; a warning does not."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing looked at."""

    level: Level
    what: str
    text: str


def ok(what: str, text: str) -> Remark:
    return Remark(Level.OK, what, text)


def warning(what: str, text: str) -> Remark:
    return Remark(Level.WARNING, what, text)


def problem(what: str, text: str) -> Remark:
    return Remark(Level.PROBLEM, what, text)


def variables(environ: dict[str, str]) -> Iterator[Remark]:
    """Variables that look like misspelt settings."""
    for remark in origins.strange_variables(environ):
        yield warning("settings", remark)


def listen(settings: Settings) -> Iterator[Remark]:
    """Whether each address can be bound, on UDP and TCP, and those of TLS and the metrics."""
    wanted = [
        (text, kind)
        for text in settings.listen
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    ]  # fmt: skip
    wanted += [(text, socket.SOCK_STREAM) for text in settings.tls_listen]
    if settings.metrics and not settings.metrics.endswith(":0"):
        wanted.append((settings.metrics, socket.SOCK_STREAM))
    names = Names(settings.instance)
    # Workers answer on when their supervisor has died, and leave once the next one's are there: that is us.
    running = any(is_held(names.lock(who)) for who in ("supervisor", *(f"slot{n}" for n in range(layout.SLOTS))))
    for text, kind in wanted:
        name = f"{'udp' if kind == socket.SOCK_DGRAM else 'tcp'} {text}"
        try:
            _bind(text, kind)
        except OSError as error:
            if running and error.errno == errno.EADDRINUSE:
                yield ok("listen", f"{name} is in use, and this instance is running")
            else:
                yield problem("listen", f"{name} cannot be bound: {_bind_hint(error)}")
        else:
            yield ok("listen", f"{name} can be bound")


def _bind(text: str, kind: socket.SocketKind) -> None:
    """Without SO_REUSEPORT: beside a running server, such a socket would take a share of its queries, and drop them."""
    host, port = values.split_address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as trial:
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:  # connections of the last run that linger are no obstacle
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(socket.getaddrinfo(host, port, family, kind, flags=socket.AI_NUMERICHOST)[0][4])


def _bind_hint(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{text}: ports below 1024 need the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRINUSE:
        return f"{text}: another program listens there (ss -lnup, ss -lntp)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}: this machine has no such address"
    return text


def runtime_dir(settings: Settings) -> Iterator[Remark]:
    """Whether the control socket can be made."""
    folder = settings.runtime_dir
    place = folder if os.path.exists(folder) else folder.parent
    length = len(os.fsencode(settings.control_path))
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        yield problem("runtime_dir", f"{folder} cannot be written to; make it, or choose another runtime_dir")
    elif length > 107:  # sockaddr_un
        yield problem("runtime_dir", f"{settings.control_path} has {length} bytes, a socket's path has at most 107")
    else:
        yield ok("runtime_dir", f"{folder} can hold the control socket")


def state_dir(settings: Settings) -> Iterator[Remark]:
    """Whether the loader can keep there what it needs after a restart. It makes the folder, and those above it, and
    goes on without."""
    folder = settings.state_dir
    if folder is None:
        yield ok("state_dir", "there is none: no snapshot, no image, no history")
        return
    place = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        what = "cannot be written to" if place == folder else f"cannot be made: {place} cannot be written to"
        yield warning("state_dir", f"{folder} {what}: no snapshot, no image, no history")
    else:
        yield ok("state_dir", f"{folder} can be {'written to' if place == folder else 'made'}")


def guard_hook(settings: Settings) -> Iterator[Remark]:
    """Whether the command that may decide on held changes can be run."""
    try:
        command = shlex.split(settings.guard_hook)
    except ValueError as error:
        yield problem("guard_hook", f"{settings.guard_hook!r} cannot be split as by a shell: {error}")
        return
    if not command:
        return
    if shutil.which(command[0]):
        yield ok("guard_hook", f"{command[0]} can be run")
    else:
        state = "may not be run: chmod +x" if os.path.exists(command[0]) else "is not there"
        yield warning("guard_hook", f"{command[0]} {state}: every held change would be left to a person")


def shared_memory(settings: Settings, names: int) -> Iterator[Remark]:
    """Room and permission in /dev/shm, and who owns what is there under our name. `names`: how many are to fit."""
    if not SHM_FOLDER.is_dir() or not os.access(SHM_FOLDER, os.W_OK | os.X_OK):
        yield problem("memory", f"{SHM_FOLDER} cannot be written to; in a container, mount a tmpfs there")
        return
    room = os.statvfs(SHM_FOLDER)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    needed = layout.control_size() + names * BYTES_PER_NAME + (4 << 20)
    text = f"{SHM_FOLDER} has {free >> 20} of {total >> 20} MiB free, room for about {free // BYTES_PER_NAME:,} names"
    existing = Names(settings.instance).existing()
    if free < needed and not existing:
        yield problem("memory", f"{text}; {needed >> 20} MiB are needed: mount -o remount,size=… {SHM_FOLDER}")
    elif total <= SMALL_SHM:
        yield warning("memory", f"{text}; in Docker, --shm-size gives more")
    else:
        yield ok("memory", text)
    for path in existing:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        group_may = status.st_gid in {os.getegid(), *os.getgroups()} and status.st_mode & stat.S_IRGRP
        if os.geteuid() not in (0, status.st_uid) and not group_may:
            yield problem("memory", f"{path} is uid {status.st_uid}'s, not ours: another --instance, or remove it")
            return


def credentials(settings: Settings) -> Iterator[Remark]:
    """Whether what belongs together is given together, and secrets are kept."""
    if (settings.etcd_cert is None) != (settings.etcd_key is None):
        yield problem("etcd", "etcd_cert and etcd_key belong together: give both, or none")
    if settings.etcd_password and settings.etcd_password_file:
        yield problem("etcd", "etcd_password and etcd_password_file are both given: give one")
    if (settings.etcd_password or settings.etcd_password_file) and not settings.etcd_user:
        yield problem("etcd", "a password for etcd is given, but no etcd_user")
    for path in (settings.etcd_password_file, settings.etcd_key, settings.config if settings.etcd_password else None):
        if path is not None and _open_to_others(path):
            yield warning("etcd", f"{path} holds a secret and may be read by every user: chmod o-r {path}")


def tls(settings: Settings) -> Iterator[Remark]:
    """Whether the certificate of DNS over TLS and its key belong together, and how long it lasts."""
    from server.tls import WARN_DAYS, CertificateError, expiry, make_context

    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        if settings.tls_listen or cert is not None or key is not None:
            yield problem("tls", "tls_listen, tls_cert and tls_key belong together: give all, or none")
        return
    try:
        make_context(cert, key)
        left = (expiry(cert) - time.time()) / 86400
    except CertificateError as error:
        yield problem("tls", str(error))
        return
    if left < WARN_DAYS:
        state = "has expired" if left < 0 else f"expires in {left:.0f} days"
        yield warning("tls", f"{cert} {state}: clients that check it turn away")
    else:
        yield ok("tls", f"{key} is the key of {cert}, which lasts {left:.0f} days")
    if not settings.tls_listen:
        yield warning("tls", "a certificate is given, but no tls_listen to use it on")
    if _open_to_others(key):
        yield warning("tls", f"{key} is a secret and may be read by every user: chmod o-r {key}")


def cookies(settings: Settings) -> Iterator[Remark]:
    """Whether the file of cookie secrets can be used."""
    from server.cookie_secrets import SecretsError, read_secrets

    path = settings.cookie_secret_file
    if path is None:
        return
    if settings.cookie_secret:
        yield problem("cookies", "cookie_secret and cookie_secret_file are both given: give one")
    try:
        secrets = read_secrets(path)
    except SecretsError as error:
        yield problem("cookies", str(error))
        return
    yield ok("cookies", f"{path} has {len(secrets)} secret{'s' if len(secrets) > 1 else ''}")
    if _open_to_others(path):
        yield warning("cookies", f"{path} holds secrets and may be read by every user: chmod o-r {path}")


def transfers(settings: Settings) -> Iterator[Remark]:
    """Whether every key that is named is there, and keys are kept."""
    from server.main import transfer_problems

    yield from (problem("transfers", text) for text in transfer_problems(settings))
    if settings.tsig_key and settings.config is not None and _open_to_others(settings.config):
        yield warning("transfers", f"{settings.config} holds a key and may be read by every user: chmod o-r it")


def filters(settings: Settings) -> Iterator[Remark]:
    """Whether each filter is ours, or the entry point of a package that is installed here."""
    from importlib.metadata import entry_points

    from loader.filters import GROUP
    from loader.filters.chain import BUILT_IN, NO_FILTER

    for name in settings.filters:
        if name in BUILT_IN or name == NO_FILTER:
            continue
        found = entry_points(group=GROUP, name=name)
        if found:
            yield ok("filters", f"{name} is {', '.join(point.value for point in found)}")
        else:
            # No problem: the loader starts, and does without it.
            yield warning("filters", f"{name} is none of {', '.join(BUILT_IN)}, and no package has it in {GROUP}")


def _open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
