"""Checks of URLs in a config, which is saved in checkpoints and summaries: no secrets allowed."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit


def checked(url: str) -> SplitResult:
    """Return the parts of a reward server's URL.

    Raise ValueError, without the value, if it is not a URL or may hold a secret.
    """
    try:
        parts = urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url
        valid = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        valid = False
    # The message leaves out the value, which may hold a password or a key.
    if not valid:
        raise ValueError("HTTP reward model: url must look like http://host:port/path or https://host/path")
    check_secrets(url)
    return parts


def check_secrets(url: str) -> None:
    """Raise ValueError if a URL, of any scheme or none, has a user, a password or a query."""
    host = re.split("[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    if "@" in host:
        raise ValueError("HTTP reward model: no user or password in the url; name the token's variable with token_env")
    if "?" in url:  # the query would be saved in the run's config, checkpoints and summary
        raise ValueError(
            "HTTP reward model: no query in the url, which is written down with the run's config; a key belongs in "
            "the variable that token_env names"
        )
