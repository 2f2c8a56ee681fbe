"""relay: takes events in over HTTP, keeps them, and delivers them as signed webhooks."""

__version__ = "0.1.0"
