"""Server-sent events: the text that an EventSource reads (WHATWG HTML, section 9.2)."""

from __future__ import annotations


def encoded(cursor: str, data: bytes) -> bytes:
    """Return one event. Line breaks in the data, which end a field, are sent as further `data` fields.

    The reader joins those with line feeds, so a carriage return in the data arrives as a line feed.

    Args:
        cursor: the event's id, which the reader sends back as `Last-Event-ID`.
        data: UTF-8 text.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"id: %s\ndata: %s\n\n" % (cursor.encode("ascii"), data)


def progress(cursor: str) -> bytes:
    """Return a comment that also sets the reader's last event id, and is no event: it has no data."""
    return b":\nid: %s\n\n" % cursor.encode("ascii")


#: A comment: it keeps a connection in use.
COMMENT = b":\n\n"
