"""The cache of verified keys."""

from __future__ import annotations

from uuid import UUID

from relay.auth import Tenant
from relay.auth.cache import KeyCache
from relay.values.uuid7 import Uuid7Clock

IDS = Uuid7Clock()


def tenant(expires_at: float | None = None, key_id: UUID | None = None) -> Tenant:
    return Tenant(IDS.new(), key_id or IDS.new(), "free", frozenset({"ingest"}), expires_at)


def kept(cache: KeyCache, key: bytes, whose: Tenant, version: int = 0) -> bool:
    return cache.put(cache.fingerprint(key), whose, version)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock | None = None, capacity: int = 10_000) -> KeyCache:
    cache = KeyCache(clock or Clock(), capacity)
    cache.resume()
    return cache


def test_a_kept_key_is_found_and_another_is_not() -> None:
    cache, whose = opened(), tenant()

    kept(cache, b"one", whose)

    assert cache.find(b"one") is whose
    assert cache.find(b"two") is None


def test_a_key_is_refused_from_the_moment_it_ends() -> None:
    clock = Clock()
    cache = opened(clock)
    kept(cache, b"one", tenant(expires_at=10.0))

    clock.now = 9.999
    assert cache.find(b"one") is not None
    clock.now = 10.0
    assert cache.find(b"one") is None


def test_the_cache_is_bounded_and_forgets_what_is_not_used() -> None:
    cache = opened(capacity=100)
    kept(cache, b"busy", tenant())

    for number in range(1_000):
        kept(cache, b"%d" % number, tenant())
        assert cache.find(b"busy") is not None
        assert len(cache) <= 100

    assert cache.find(b"0") is None
    assert cache.find(b"999") is not None


def test_a_row_read_before_the_version_that_is_followed_is_not_kept() -> None:
    cache = opened()
    cache.follow(7)

    assert not kept(cache, b"one", tenant(), version=6)
    assert cache.find(b"one") is None
    assert kept(cache, b"one", tenant(), version=7)
    assert cache.find(b"one") is not None


def test_a_renewal_updates_and_forgets_the_keys_asked_about_and_leaves_later_ones() -> None:
    cache = opened()
    ended, changed, later = tenant(), tenant(), tenant()
    kept(cache, b"ended", ended)
    kept(cache, b"changed", changed)
    asked = cache.follow(1)
    kept(cache, b"later", later, version=1)

    cache.renew(asked, {changed.key_id: tenant(expires_at=5.0, key_id=changed.key_id)})

    assert cache.find(b"ended") is None
    found = cache.find(b"changed")
    assert found is not None
    assert found.expires_at == 5.0
    assert cache.find(b"later") is later


def test_a_suspended_cache_finds_nothing_and_remembers_everything() -> None:
    cache, whose = opened(), tenant()
    kept(cache, b"one", whose)

    cache.suspend()
    assert cache.find(b"one") is None
    assert cache.has(cache.fingerprint(b"one"))
    cache.resume()
    assert cache.find(b"one") is whose


def test_a_dropped_key_is_forgotten() -> None:
    cache = opened()
    kept(cache, b"one", tenant())

    cache.drop(cache.fingerprint(b"one"))

    assert not cache.has(cache.fingerprint(b"one"))


def test_no_key_lies_in_the_cache_and_its_hash_differs_from_process_to_process() -> None:
    assert opened().fingerprint(b"one") != opened().fingerprint(b"one")
    assert len(opened().fingerprint(b"one")) == 16


def test_what_is_found_or_kept_is_noted_as_used_once_and_what_is_refused_is_not() -> None:
    clock = Clock()
    cache = opened(clock)
    used, idle, ended = tenant(), tenant(), tenant(expires_at=1.0)
    for key, whose in ((b"used", used), (b"idle", idle), (b"ended", ended)):
        kept(cache, key, whose)
    assert cache.used() == {used.key_id, idle.key_id, ended.key_id}

    clock.now = 2.0
    for key in (b"used", b"used", b"ended", b"unknown"):
        cache.find(key)

    assert cache.used() == {used.key_id}
    assert cache.used() == set()
    cache.suspend()
    cache.find(b"used")
    assert cache.used() == set()
