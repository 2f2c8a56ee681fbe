"""relay receives events over HTTP, stores them, and delivers them as signed webhooks."""

__version__ = "0.1.0"
