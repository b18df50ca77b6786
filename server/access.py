"""Who may have a whole zone: networks, keys, or both at once. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from server.tsig import wire_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Grant:
    """Clients of `network` (None: any) that sign with `key` (a name in wire form; empty: or do not)."""

    network: Network | None
    key: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Grant:
        """NETWORK, KEY or NETWORK#KEY. Raises ValueError."""
        place, separator, key = text.partition("#")
        try:
            network = ipaddress.ip_network(place)
        except ValueError:
            if separator or "/" in place:
                raise ValueError(f"{place!r} is not a network, or has bits beside its prefix") from None
            return cls(None, wire_name(place))
        if separator and not key:
            raise ValueError("the key's name is missing after '#'")
        return cls(network, wire_name(key) if key else b"")

    def covers(self, address: Network, key: bytes) -> bool:
        """Whether a client (a network of one address) that signed with `key` (empty: none) is meant."""
        if self.key and self.key != key:
            return False
        return self.network is None or (
            self.network.version == address.version and self.network.supernet_of(address)  # type: ignore[arg-type]
        )


class Access:
    """All grants: one that covers the client is enough."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._grants = tuple(Grant.parse(text) for text in texts)

    def __bool__(self) -> bool:
        return bool(self._grants)

    def permits(self, address: bytes, key: bytes = b"") -> bool:
        """Whether the client at `address` (4 or 16 bytes) that signed with `key` may transfer."""
        client = ipaddress.ip_network(address)
        mapped = client.network_address.ipv4_mapped if client.version == 6 else None
        if mapped is not None:
            client = ipaddress.ip_network(mapped)
        return any(grant.covers(client, key) for grant in self._grants)

    @property
    def keys(self) -> list[bytes]:
        """Names of the keys that grants ask for."""
        return [grant.key for grant in self._grants if grant.key]


NOBODY = Access()
