from collections.abc import Callable, Container
from typing import Any, final

from loader._short import Plain
from loader.apexes import Apexes, Zone
from loader.model import Put
from loader.skydns import Service

_Kept = dict[str, Service | Plain | tuple[Any, ...]]
_Keys = dict[bytes, str | list[str]]

@final
class Load:
    def __init__(self, base: str, default_ttl: int, zones: Container[bytes], strict: bool) -> None: ...
    def books(self, by_key: _Kept, hosts: _Keys, texts: _Keys, odd: _Keys) -> None: ...
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
    def __init__(self, model: Books, base: str, zones: Container[bytes], strict: bool) -> None: ...
    def books(self, by_key: _Kept, hosts: _Keys, texts: _Keys, odd: _Keys) -> None: ...
    def beneath(self, names: list[bytes]) -> list[bytes]: ...
    def own(self, keys: list[str]) -> list[str]: ...
