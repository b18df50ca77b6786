"""Names on their way in and out: other servers' formats -> record sets -> keys of the records schema, and back."""
