"""Limit what is in flight, by organization and by endpoint. Pure: no I/O and no clock of its own."""
