"""Claim due deliveries, post them as signed webhooks, and record the outcome.

Nothing is re-exported: importing this package must not load aiohttp, which takes 89 ms.
"""
