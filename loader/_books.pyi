from collections.abc import Callable, Container
from typing import Any, final

from loader._short import Plain
from loader.apexes import Apexes, Zone
from loader.model import Put
from loader.skydns import Service

@final
class Load:
    def __init__(
        self,
        base: str,
        default_ttl: int,
        zones: Container[bytes],
        by_key: dict[str, Service | Plain | tuple[Any, ...]],
        hosts: dict[bytes, str | list[str]],
        texts: dict[bytes, str | list[str]],
    ) -> None: ...
    def load(self, puts: list[Put]) -> list[int]: ...

@final
class Books:
    def __init__(
        self,
        zones: Apexes,
        touch: Callable[[Zone, int], None],
        gifts_to: dict[bytes, Any],
        names_of: dict[str, bytes | tuple[bytes, ...]],
        children: dict[bytes, bytes | set[bytes]],
        nothing: dict[bytes, bytes],
        aggregates: set[bytes],
    ) -> None: ...
    def place(self, name: bytes, gift: Plain | tuple[Any, ...]) -> bool: ...
    def tell(self) -> None: ...

@final
class Fill:
    def __init__(
        self,
        books: Books,
        base: str,
        zones: Container[bytes],
        by_key: dict[str, Service | Plain | tuple[Any, ...]],
        hosts: dict[bytes, str | list[str]],
        texts: dict[bytes, str | list[str]],
        odd: dict[bytes, list[str]],
    ) -> None: ...
    def beneath(self, names: list[bytes]) -> list[bytes]: ...
    def own(self, keys: list[str]) -> list[str]: ...
