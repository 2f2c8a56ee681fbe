"""Where a microsecond goes: CPU of an event and of a delivery, piece by piece."""
