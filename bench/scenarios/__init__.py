"""The scenarios: a file each, what it takes to run one, and their order."""
