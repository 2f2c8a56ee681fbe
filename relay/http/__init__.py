"""The HTTP API: operations, their handlers and types. It contains no SQL, and never imports delivery."""
