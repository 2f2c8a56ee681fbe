"""Settings: what the operator says, read once."""
