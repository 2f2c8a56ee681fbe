"""Load scenarios that are checked against targets, and their report: `make bench`."""
