"""From settings to what the etcd client needs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loader.etcd_channel import AuthFailed, ClientOptions


class EtcdAccess(Protocol):
    """What is needed of the settings (cli/settings.py) to reach etcd."""

    @property
    def etcd_user(self) -> str: ...
    @property
    def etcd_password(self) -> str: ...
    @property
    def etcd_password_file(self) -> Path | None: ...
    @property
    def etcd_cacert(self) -> Path | None: ...
    @property
    def etcd_cert(self) -> Path | None: ...
    @property
    def etcd_key(self) -> Path | None: ...


def client_options(access: EtcdAccess, *, tls: bool) -> ClientOptions:
    """Raises ValueError for a password file that cannot be used, EtcdError for options that do not go together."""
    options = ClientOptions(
        tls=tls,
        user=access.etcd_user,
        password=access.etcd_password,
        password_file=str(access.etcd_password_file or ""),
        cacert=str(access.etcd_cacert or ""),
        cert=str(access.etcd_cert or ""),
        key=str(access.etcd_key or ""),
    )
    try:
        options.current_password()
    except AuthFailed as error:
        raise ValueError(str(error)) from error
    return options
