"""What of a URL may be told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records import urls

NO_SECRETS = (
    "https://host:8080/a@b.png",
    "http://127.0.0.1:5000",
    "http://[::1]:5000/a@b",
    "s3://bucket/images_0?.zip",
    "s3://bucket/a#1.png",
    "abfs://container@account.dfs.core.windows.net/x.zip",
    "hdfs://user@namenode:8020/x",
    "file:///data/a?b=c",
    "/data/a?b=c@d",
    "user:password@x.png",
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(urls, "_known", set())


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:password@host/x.tar.gz", "https://...@host/x.tar.gz"),
        ("https://token@host/x.tar.gz", "https://...@host/x.tar.gz"),
        ("https://:password@host/x", "https://...@host/x"),
        ("https://user:12345@host/x", "https://...@host/x"),
        ("HTTPS://user:password@host:80/x", "HTTPS://...@host:80/x"),
        ("s3://key:se/cr+et@bucket/x", "s3://...@bucket/x"),
        ("s3://key:p@ss@bucket/x", "s3://...@bucket/x"),
        ("abfs://key:secret@account/x", "abfs://...@account/x"),
        ("https://host/x.zip?X-Amz-Credential=key&X-Amz-Signature=abc", "https://host/x.zip?..."),
        ("az://container/x.zip?sv=2024&sig=a%2Fb", "az://container/x.zip?..."),
        ("https://host/x.zip?secret", "https://host/x.zip?..."),
        ("https://host/x.zip#access_token=a", "https://host/x.zip#..."),
        ("https://user:password@host/x?sig=a?b#c", "https://...@host/x?..."),
        ("zip://a.png::https://user:password@host/x.zip", "zip://...@host/x.zip"),
        ("simplecache::https://host/x.zip?sig=a", "simplecache::https://host/x.zip?..."),
    ],
)
def test_a_url_is_told_without_its_credentials(url, told):
    assert urls.redacted_text(url) == told
    if "::" not in url:
        assert urls.redacted(url) == told
    for text in (f"`images={url}`: no such file", f"found ({url}), '{url}'.", f"URL({url!r})"):
        assert urls.redacted_text(text) == text.replace(url, told)
        assert urls.redacted_text(urls.redacted_text(text)) == text.replace(url, told)


@pytest.mark.parametrize("url", NO_SECRETS)
def test_what_holds_no_credentials_is_told_as_it_is(url):
    assert urls.redacted(url) == url
    assert urls.redacted_text(f"`images={url}`: found ({url}); name another.") == (
        f"`images={url}`: found ({url}); name another."
    )


@given(
    secret=st.text("abcXYZ0189+/=%@:~-_", min_size=6).map("Sec".__add__),
    url=st.sampled_from(
        [
            "https://user:{}@host/x.zip",
            "s3://key:{}@bucket/x",
            "https://host/x.zip?sig={}&a=1",
            "az://c/x?sig={}",
        ]
    ),
    text=st.sampled_from(["{}", "{}: no such file", "a `images={}`.", "two\n{}\nlines", "({}), {}"]),
)
def test_no_text_tells_a_secret(secret, url, text):
    told = urls.redacted_text(text.replace("{}", url.replace("{}", secret)))

    assert secret not in told
    assert urls.redacted_text(told) == told


def test_a_credential_without_its_url_is_not_told_once_the_url_is_known():
    urls.remember("https://me:pa%2Fssword@host/x?sig=ab%2Fcdef")
    urls.remember("s3://key:secret+/@bucket/x")
    urls.remember("https://host/x?dl=1")
    urls.remember("plain.zip")

    told = urls.redacted_text(
        "bucket 'key:secret+/@bucket', pa/ssword, pa%2Fssword, sig=ab/cdef, dl=1, plain.zip"
    )

    assert told == "bucket '...@bucket', ..., ..., ..., dl=1, plain.zip"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("https://host/images_01.tar.gz?sig=a.zip", "https://host/images_01.tar.gz"),
        ("https://host/a.csv#x", "https://host/a.csv"),
        ("az://c/a.csv?sig=a", "az://c/a.csv"),
        ("s3://bucket/a#1.png", "s3://bucket/a#1.png"),
        ("s3://bucket/a?1.png", "s3://bucket/a?1.png"),
        ("/data/a?b=c.png", "/data/a?b=c.png"),
    ],
)
def test_a_name_ends_before_the_query(path, name):
    assert urls.name_of(path) == name


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://h/x?X-Amz-Date=1&X-Amz-Signature=a", "https://h/x?X-Amz-Date=2&X-Amz-Signature=b", True),
        ("https://h/x?sv=1&se=2&sr=b&sp=r&sig=a", "https://h/x?sv=1&se=3&sr=b&sp=r&sig=b", True),
        (
            "https://h/x?Expires=1&Signature=a&Key-Pair-Id=k",
            "https://h/x?Expires=2&Signature=b&Key-Pair-Id=k",
            True,
        ),
        ("https://a:b@h/x", "https://a:c@h/x", True),
        ("https://h/x?id=1&token=a", "https://h/x?id=1&token=b", True),
        ("https://h/x?id=1", "https://h/x?id=2", False),
        ("https://h/x", "https://h/y", False),
        ("s3://b/a?1", "s3://b/a?2", False),
    ],
)
def test_a_url_that_is_signed_anew_is_the_same_and_another_file_is_not(one, other, same):
    assert (urls.unsigned(one) == urls.unsigned(other)) == same
