"""Redis URLs: what each part means, and what is refused without saying the password."""

import pytest

from policies.errors import Rejected
from streaming.adapters.redis_address import RedisAddress, parse_redis


def test_one_server() -> None:
    assert parse_redis("redis://127.0.0.1") == RedisAddress("redis", (("127.0.0.1", 6379),))
    assert parse_redis("redis://r.example:7000/3?prefix=one&timeout_ms=50") == RedisAddress(
        "redis", (("r.example", 7000),), db=3, prefix="one", timeout_seconds=0.05
    )
    assert parse_redis("redis://[::1]:7000").hosts == (("::1", 7000),)


def test_logins_are_unquoted_and_never_shown() -> None:
    found = parse_redis("rediss://app:p%40ss%2Fword@r.example/0?ca=/etc/ca.pem")
    assert (found.username, found.password, found.tls, found.ca) == ("app", "p@ss/word", True, "/etc/ca.pem")
    assert "p@ss" not in repr(found)
    assert parse_redis("redis://:only@r.example").username is None
    assert parse_redis("redis://app@r.example", password="elsewhere").password == "elsewhere"
    assert parse_redis("redis://app:here@r.example", password="elsewhere").password == "here"


def test_a_service_behind_sentinels() -> None:
    found = parse_redis("redis+sentinel://:secret@s1,s2:26380/service/2?tls=1&sentinel_password=other")
    assert (found.hosts, found.service, found.db) == ((("s1", 26379), ("s2", 26380)), "service", 2)
    assert (found.password, found.sentinel_password, found.tls) == ("secret", "other", True)
    assert "other" not in repr(found)


def test_a_cluster() -> None:
    assert parse_redis("redis+cluster://n1:7000,n2").hosts == (("n1", 7000), ("n2", 6379))


@pytest.mark.parametrize(
    "url",
    [
        "memcached://:secret@host",
        "redis://",
        "redis://:secret@host:port",
        "redis://:secret@host:99999999",
        "redis://:secret@one,two",
        "redis://:secret@host/zero",
        "redis://:secret@host/0/1",
        "redis+sentinel://:secret@host",
        "redis+cluster://:secret@host/1",
        "redis://:secret@host?retries=3",
        "redis://:secret@host?timeout_ms=-1",
        "redis://:secret@host?timeout_ms=inf",
    ],
)
def test_what_is_wrong_is_named(url: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_redis(url, "SLATEWISE_STATE")
    assert refused.value.at == "SLATEWISE_STATE"
    assert "secret" not in str(refused.value)


def test_a_client_takes_every_part_as_it_is() -> None:
    """No network: a pool makes its connections when it is asked for one."""
    client = parse_redis("rediss://app:secret@r.example:7000/3?timeout_ms=50").opener()()
    wire = client.connection_pool.make_connection()
    assert (wire.host, wire.port, wire.db, wire.username, wire.password) == ("r.example", 7000, 3, "app", "secret")
    assert (wire.socket_timeout, wire.socket_connect_timeout, wire.retry.get_retries()) == (0.05, 0.05, 0)
    assert type(wire).__name__ == "SSLConnection"
