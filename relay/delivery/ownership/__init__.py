"""Which process delivers to which endpoints."""
