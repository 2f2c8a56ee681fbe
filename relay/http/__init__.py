"""The door: a file per resource. Knows ASGI, and no SQL."""
