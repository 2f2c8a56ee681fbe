"""The schemas of the operations for operators and their tools."""

from __future__ import annotations

from typing import Literal, TypedDict


class Index(TypedDict):
    """The addresses of the other operations."""

    service: Literal["relay"]
    version: str
    docs: str
    openapi: str
    health: str
    metrics: str


class Health(TypedDict):
    """The service works."""

    status: Literal["healthy"]
    version: str
