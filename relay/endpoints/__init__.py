"""Endpoints: the webhook destinations of an organization. Imported by http and cli."""
