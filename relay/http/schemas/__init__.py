"""The types of requests and responses. Requests are Structs, decoded by msgspec. Responses are TypedDicts, written by
orjson without a conversion. OpenAPI is made from both.
"""
