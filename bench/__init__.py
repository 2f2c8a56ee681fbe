"""Load scenarios that check the targets, and the report they end in: `make bench`."""
