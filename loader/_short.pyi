from collections.abc import Container
from typing import Any

from loader.apexes import Apexes, Zone

def plain(
    base: str, key: str, value: bytes, revision: int, default_ttl: int
) -> tuple[bytes, tuple[Any, ...]] | None: ...
def name_of(base: str, key: str) -> bytes: ...
def spelled(base: str, name: bytes) -> str: ...
def place(
    name: bytes,
    gift: tuple[Any, ...],
    zones: Apexes,
    gifts_to: dict[bytes, Any],
    names_of: dict[str, Any],
    children: dict[bytes, Any],
    nothing: Container[bytes],
) -> Zone | None: ...
def block(name: bytes, flags: int, gift: tuple[Any, ...]) -> bytes | None: ...
