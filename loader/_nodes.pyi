from collections.abc import Container, Iterator
from typing import Any

from loader._books import Books
from loader._short import Plain

SRV_HEAD: bytes

def blocks(
    books: Books, outside: Container[bytes], wildcard: int, aggregate: int, left: list[bytes]
) -> Iterator[bytes]: ...
def block(name: bytes, flags: int, held: Plain | tuple[Any, ...] | list[Any] | dict[str, Any]) -> bytes | None: ...
