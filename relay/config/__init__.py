"""The settings of an installation: environment variables, read once."""
