"""Endpoints: what an organization configures as its webhook destinations. Imported by http and cli."""
