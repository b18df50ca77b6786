from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

def seal(key: str, value: bytes, mod_revision: int, lease: int) -> int: ...
def unsealed(rows: Iterable[Any], make: Callable[[str, bytes, int, int], T]) -> list[T]: ...
