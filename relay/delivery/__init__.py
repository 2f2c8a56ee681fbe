"""Delivery: claims what is due, posts it signed, records what came of it.

Nothing is re-exported: the API imports `endpoints` from here, and must not pay 89 ms for aiohttp with it.
"""
