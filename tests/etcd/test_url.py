"""Source URLs."""

from __future__ import annotations

import pytest

from loader.etcd_url import EtcdUrl, EtcdUrlError, is_etcd_url, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("etcd://a", EtcdUrl(("a:2379",), "/skydns", "skydns", False)),
        ("etcd://a:1/", EtcdUrl(("a:1",), "/skydns", "skydns", False)),
        ("etcd://a:1,b:2/x/y/?schema=records", EtcdUrl(("a:1", "b:2"), "/x/y", "records", False)),
        ("etcds://[::1]:4,127.0.0.1/z", EtcdUrl(("[::1]:4", "127.0.0.1:2379"), "/z", "skydns", True)),
        ("etcd://a/a%20b%23?schema=skydns", EtcdUrl(("a:2379",), "/a b#", "skydns", False)),
    ],
)
def test_good(text: str, expected: EtcdUrl) -> None:
    assert is_etcd_url(text)
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file:x", "not an etcd URL"),
        ("etcd:///p", "an endpoint is empty"),
        ("etcd://a,/p", "an endpoint is empty"),
        ("etcd://a,a/p", "named twice"),
        ("etcd://:1/p", "has no host"),
        ("etcd://a:0/p", "1 to 65535"),
        ("etcd://a:x/p", "1 to 65535"),
        ("etcd://a/p?schemas=x&z=1", "unknown parameter schemas, z, known: schema"),
        ("etcd://a/p?schema=x", "unknown schema 'x'"),
        ("etcd://a/p?schema", "cannot read the parameters"),
        ("etcd://a/p?schema=skydns&schema=records", "given twice"),
        ("etcd://a/p#x", "has no meaning here"),
        ("etcd://a?schema=records", "needs a prefix"),
    ],
)
def test_bad(text: str, complaint: str) -> None:
    with pytest.raises(EtcdUrlError, match="expected etcd://HOST") as caught:
        parse(text)
    assert complaint in str(caught.value)
    assert text in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(EtcdUrlError, match="no user and password") as caught:
        parse("etcd://root:secret@a/p")
    assert "secret" not in str(caught.value)


def test_the_prefix_ends_at_a_slash() -> None:
    assert parse("etcd://a/skydns").key_prefix == "/skydns/"
