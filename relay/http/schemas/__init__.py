"""Bodies, queries and responses, as they are validated and documented."""
