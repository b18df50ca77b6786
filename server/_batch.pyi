from collections.abc import Callable

from server._answer import Terms
from server._counters import Counters
from server._limits import Networks, RateLimiter
from shm._table import Table

class Batch:
    def __init__(
        self,
        terms: Terms,
        reference: Callable[[bytes, Table | None, bytes, int, bool], bytes | None],
        counters: Counters,
        limiter: RateLimiter | None = None,
        refuse: Networks | None = None,
        drop: Networks | None = None,
        turn: int = 0,
        random_turns: bool = False,
    ) -> None: ...
    def receive(self, fd: int, packet_info: bool = False) -> int: ...
    @property
    def error(self) -> int: ...
    def answer(self, table: Table | None) -> None: ...
    def send(self, fd: int) -> int: ...
