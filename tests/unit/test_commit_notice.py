"""Notifications between API processes."""

from __future__ import annotations

from uuid import uuid4

from relay.values import commit_notice

ME, OTHER = uuid4(), uuid4()


def test_organizations_are_named() -> None:
    ids = {uuid4() for _ in range(3)}
    notice = commit_notice.read(commit_notice.committed(OTHER, ids))
    assert notice.organization_ids is not None
    assert set(notice.organization_ids) == ids
    assert notice.is_from(OTHER)
    assert not notice.is_from(ME)


def test_many_organizations_are_not_named_and_every_payload_fits() -> None:
    ids = [uuid4() for _ in range(341)]
    assert commit_notice.read(commit_notice.committed(OTHER, ids)).organization_ids is None
    assert len(commit_notice.committed(OTHER, ids[:340])) < 8000
    assert commit_notice.read(commit_notice.committed(OTHER, ids[:340])).organization_ids == ids[:340]


def test_presence_names_nobody() -> None:
    notice = commit_notice.read(commit_notice.present(OTHER))
    assert notice.says_present
    assert notice.organization_ids == ()


def test_what_is_not_understood_may_concern_anyone() -> None:
    for payload in ("", "x", "x *", "x ???", "x YWJj", "x ü"):
        assert commit_notice.read(payload).organization_ids is None, payload
