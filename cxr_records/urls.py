"""What of a URL may be told, and what it names: rules on its text alone.

A URL may carry credentials: before its host (https://user:password@host) or in its query, which signs it
(https://host/x.zip?X-Amz-Signature=...). Storage needs them; no file, log or message of ours may hold them.
"""

import re
from urllib.parse import unquote

HIDDEN = "..."  # stands for what is not told
_WEB = ("http", "https", "ftp", "ftps")
# Of these, what stands alone before the @ is a container or a user's name, and not a secret.
_NAMED_BEFORE_AT = ("abfs", "abfss", "wasb", "wasbs", "az", "adl", "hdfs", "hf", "github")
_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30})://(?P<rest>[^\s\"<>]*)")
# Some paste a secret with a / or @ as it is: up to the last @, unless what follows the colon is a port.
_USER_AND_PASSWORD = re.compile(r"[^/?#@:\[\]]*:(?!\d*(?:[/?#]|$)).*@")
_USER = re.compile(r"[^/?#@]+@")
_HIDDEN = re.compile(r"[?#]\.\.\.")
_END_OF_SENTENCE = re.compile(r"[.,:;!)\]}'`]*$")
# AWS and Google, Azure, CloudFront; token and access_token are anybody's.
_OF_SIGNATURES = re.compile(
    "x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy|"
    "s[vretipks]|sig|sip|spr|srt?|ss|sdd|skoid|sktid|skt|ske|sks|skv|token|access_token",
    re.IGNORECASE,
)
_known: set[str] = set()  # credentials of the URLs that this process was given


def redacted(url: str) -> str:
    """Returns a URL without its credentials, as it may be told and written; a local path as it is.

    What stands before the host and what follows the name is replaced by "...":
    https://...@host/x.zip?...
    """
    if match := re.match(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", url, re.DOTALL):
        return _redacted(match["scheme"], match["rest"])
    return url


def redacted_text(text: str) -> str:
    """Returns a text, of a message or a log, in which no URL has credentials.

    Credentials of URLs that `remember` was told are replaced wherever they stand.
    """
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "\0")  # which is no mark of a sentence

    def replace(match: re.Match[str]) -> str:
        hidden, end = _HIDDEN.search(match["rest"]), _END_OF_SENTENCE.search(match["rest"])
        place = hidden.end() if hidden else end.start() if end else len(match["rest"])
        return _redacted(match["scheme"], match["rest"][:place]) + match["rest"][place:]

    return _URL.sub(replace, text).replace("\0", HIDDEN)


def remember(url: str) -> None:
    """Tells `redacted_text` of a URL: libraries quote parts of one, which look like anything."""
    _, mark, rest = url.partition("://")
    if not mark or redacted(url) == url:
        return
    secrets = []
    if before := _before_host(url.partition("://")[0], rest):
        # Some storages take a secret apart at the / in it.
        secrets += [before, before.partition(":")[2], *re.split("[:/@]", before)]
    query = rest.removeprefix(f"{before}@").partition("?")[2]
    secrets += [query, unquote(query), *map(unquote, secrets)]
    # A short one would be found in words that have nothing to do with it.
    _known.update(secret for secret in secrets if len(secret) >= 6 and secret != HIDDEN)


def name_of(path: str) -> str:
    """Returns a path or URL without the query and fragment of a web address: its ending tells the kind."""
    scheme, mark, _ = path.partition("://")
    return re.split("[?#]", path, maxsplit=1)[0] if mark and _has_query(scheme, path) else path


def unsigned(url: str) -> str:
    """Returns what of a URL stays the same when it is signed anew, to be hashed: it may not be told.

    Two files have two of these: what is left out are parts of signatures, whose names are known.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    rest = rest.removeprefix(f"{_before_host(scheme, rest)}@")
    if not _has_query(scheme, rest):
        return f"{scheme}://{rest}"
    name, _, query = rest.partition("?")
    kept = [part for part in query.split("&") if not _OF_SIGNATURES.fullmatch(part.partition("=")[0])]
    return f"{scheme}://{name}?{'&'.join(kept)}"


def credentials_before_host(url: str) -> bool:
    """Tells whether a URL has a user, a password or the like before its host."""
    scheme, mark, rest = url.partition("://")
    return bool(mark and _before_host(scheme, rest))


def _redacted(scheme: str, rest: str) -> str:
    if scheme.lower() == "file":  # a local path
        return f"{scheme}://{rest}"
    if before := _before_host(scheme, rest):
        rest = HIDDEN + rest[len(before) :]
    if _has_query(scheme, rest):
        rest = re.sub(r"([?#]).*", rf"\1{HIDDEN}", rest, count=1, flags=re.DOTALL)
    return f"{scheme}://{rest}"


def _before_host(scheme: str, rest: str) -> str:
    """What may be credentials before the @ of a URL's host; "" where there is nothing."""
    match = _USER_AND_PASSWORD.match(rest)
    if not match and scheme.lower() not in _NAMED_BEFORE_AT:
        match = _USER.match(rest)
    return match[0].removesuffix("@") if match else ""


def _has_query(scheme: str, text: str) -> bool:
    """Elsewhere than on the web, ? and # may stand in names, and ? for any letter."""
    return scheme.lower() in _WEB or "=" in text.partition("?")[2]
