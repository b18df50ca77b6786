"""An endless loop, to keep a core busy: `python -m tests.support.spin`, until it is killed."""

from __future__ import annotations

if __name__ == "__main__":
    while True:
        pass
