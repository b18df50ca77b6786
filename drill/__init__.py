"""Failure drills: `standoff drill` breaks a throw-away instance on purpose and measures what clients see."""
