"""docs/contract.md states what binds, so it names every operation that the OpenAPI document has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.api import Api

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"


async def test_every_operation_of_the_openapi_document_is_in_the_contract(api: Api) -> None:
    document = (await api.request("GET", "/openapi.json")).json()
    served = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    stated = re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(stated) == sorted(served)
