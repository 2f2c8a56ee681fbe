"""Maintenance: partitions, retention, and the leader that runs them. Imported by app and cli."""
