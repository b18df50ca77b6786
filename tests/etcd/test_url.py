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
        ("etcd://a/p?namespace=/team-a/", EtcdUrl(("a:2379",), "/p", "skydns", False, namespace="/team-a/")),
        ("etcd+srv://example.org./p", EtcdUrl((), "/p", "skydns", False, domain="example.org")),
        (
            "etcds+srv://example.org/p?schema=records&resolver=[::1]:5300",
            EtcdUrl((), "/p", "records", True, domain="example.org", resolver="[::1]:5300"),
        ),
        (
            "etcd+srv://example.org?resolver=192.0.2.1",
            EtcdUrl((), "/skydns", "skydns", False, domain="example.org", resolver="192.0.2.1:53"),
        ),
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
        ("etcd://a/p?resolver=192.0.2.1", "a resolver is for etcd+srv://"),
        ("etcd+srv://a,b/p", "not one domain"),
        ("etcd+srv://a:2379/p", "not one domain"),
        ("etcd+srv://a/p?resolver=ns.example", "the resolver is ADDR:PORT"),
        ("etcd+srv://a/p?namespace=a&namespace=b", "namespace is given twice"),
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
