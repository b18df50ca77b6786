"""What Standoff's processes agree on: bytes, lock, slots, counters."""
