"""Server-sent events, read back as a browser reads them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from relay.values import server_sent_events as sse


def read(text: bytes) -> list[tuple[str | None, bytes]]:
    """Events as (last event id, data), by the rules of WHATWG HTML, section 9.2.6."""
    found: list[tuple[str | None, bytes]] = []
    last_id: str | None = None
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", text):
        if not line:
            if data:
                found.append((last_id, b"\n".join(data)))
            data = []
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"id":
                last_id = value.decode()
            elif field == b"data":
                data.append(value)
    return found


def test_the_id_stands_before_the_data() -> None:
    assert sse.encoded("abc", b'{"a":1}') == b'id: abc\ndata: {"a":1}\n\n'


def test_every_kind_of_line_break_is_split_over_data_lines() -> None:
    assert sse.encoded("c", b"[1,\r\n2,\n3,\r4]") == b"id: c\ndata: [1,\ndata: 2,\ndata: 3,\ndata: 4]\n\n"


@given(st.lists(st.binary(), max_size=5))
def test_what_is_read_back_differs_in_line_breaks_only(payloads: list[bytes]) -> None:
    text = b"".join([sse.encoded(str(number), b"x" + payload) for number, payload in enumerate(payloads)])
    normal = [b"x" + payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for payload in payloads]
    assert read(text) == [(str(number), payload) for number, payload in enumerate(normal)]


def test_progress_sets_the_id_and_is_no_event() -> None:
    assert read(sse.progress("p") + sse.COMMENT + b"data: 1\n\n") == [("p", b"1")]
