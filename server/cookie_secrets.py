"""The secrets of DNS cookies (RFC 9018): read from a file, read again when it changes, and shared with all workers.

The supervisor reads; its children see what it has read, in a page of memory that they inherit and that has no name. So
a file is judged once, all workers take the new secrets within a few hundredths of a second, none needs to be told by a
signal, and none needs to be able to read the file.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import struct
from pathlib import Path

from server.policy import MOST_SECRETS, SECRET_SIZE
from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: Number of the version, how many secrets; then the secrets, then a digest of all before it: a child that reads while
#: the supervisor writes sees that it does not fit, and looks again.
_HEAD = struct.Struct("=QQ")
_DIGEST = hashlib.sha256().digest_size
_SIZE = _HEAD.size + MOST_SECRETS * SECRET_SIZE + _DIGEST
#: More than a file of secrets with comments needs; something else was named by mistake.
LARGEST_FILE = 65536


class SecretsError(StandoffError):
    """A file of secrets cannot be used; the message says why, and quotes none of them."""


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """A secret a line, 32 hexadecimal digits; empty lines and what follows `#` do not count. Raises SecretsError."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1).decode("ascii")
    except OSError as error:
        raise SecretsError(f"the cookie secrets in {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SecretsError(f"{path} is no text with cookie secrets") from error
    if len(text) > LARGEST_FILE:
        raise SecretsError(f"{path} is too large to be a file of cookie secrets")
    secrets = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not re.fullmatch(r"[0-9a-fA-F]{32}", word):
            raise SecretsError(f"line {number} of {path} is not a cookie secret of 32 hexadecimal digits")
        secrets.append(bytes.fromhex(word))
    check_number(secrets, str(path))
    return tuple(secrets)


def check_number(secrets: list[bytes], where: str) -> None:
    """Raises SecretsError."""
    if not 1 <= len(secrets) <= MOST_SECRETS:
        found = "none" if not secrets else len(secrets)
        raise SecretsError(f"1 to {MOST_SECRETS} cookie secrets are needed, and {where} has {found}")


class CookieSecrets:
    """Make it before the fork; `look` and `reload` are the supervisor's, `news` is for its children."""

    def __init__(self, secrets: tuple[bytes, ...], path: Path | None = None) -> None:
        """The secrets to begin with; with a path, those that it holds. Raises SecretsError."""
        self._path = path
        self._page = mmap.mmap(-1, mmap.PAGESIZE)  # shared with children, and with nobody else
        self._version = self._known = 0
        self._current: tuple[bytes, ...] = ()
        self._used = self._seen = self._signature()
        self._write(secrets if path is None else read_secrets(path))

    def look(self) -> bool:
        """Whether the file has changed, and is in use now. Call it every second or so: a change counts once it has been
        the same for two looks, so that a file that is being written is read when it is whole."""
        if self._path is None:
            return False
        now = self._signature()
        settled, self._seen = now == self._seen, now
        return settled and now != self._used and self.reload()

    def reload(self) -> bool:
        """Take the file as it is. One that does not work is reported, and the secrets from before stay in use."""
        if self._path is None:
            return False
        self._used = self._seen = self._signature()
        try:
            secrets = read_secrets(self._path)
        except SecretsError as error:
            log.error("%s; the secrets read before stay in use", error)
            return False
        if secrets == self.current:
            log.info("the cookie secrets in %s are the same", self._path)
            return True
        renewed = secrets[0] != self.current[0]
        self._write(secrets)
        signer = "a new one" if renewed else "the same one"
        log.info("%d cookie secrets from %s are in use; %s signs", len(secrets), self._path, signer)
        return True

    @property
    def current(self) -> tuple[bytes, ...]:
        """What the supervisor has taken last; in a child, what it has seen last."""
        return self._current

    def news(self) -> tuple[bytes, ...] | None:
        """In a child: the secrets, if they are others than at the last call. Costs next to nothing if not."""
        if _HEAD.unpack_from(self._page)[0] == self._known:
            return None
        content = self._page[:_SIZE]
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        self._known, count = _HEAD.unpack_from(body)
        found = tuple(body[at : at + SECRET_SIZE] for at in range(_HEAD.size, len(body), SECRET_SIZE))[:count]
        if found == self._current:
            return None
        self._current = found
        return found

    def _write(self, secrets: tuple[bytes, ...]) -> None:
        self._version += 1
        self._current = secrets
        room = MOST_SECRETS * SECRET_SIZE
        body = _HEAD.pack(self._version, len(secrets)) + b"".join(secrets).ljust(room, b"\0")
        self._page[:_SIZE] = body + hashlib.sha256(body).digest()

    def _signature(self) -> tuple[int, int, int] | None:
        """Differs when the file has been replaced or written."""
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
