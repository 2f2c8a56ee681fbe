"""Small pure things: no I/O, no clock but the one passed in."""
