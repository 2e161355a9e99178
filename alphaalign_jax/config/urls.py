"""URLs that stand in a run's config, and so in its checkpoints and its summary: none may carry a secret."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit


def checked(url: str) -> SplitResult:
    """The parts of a reward server's URL. Raises ValueError, which does not show the value, for one that is none or
    that may carry a secret."""
    try:
        parts = urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url
        valid = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        valid = False
    # The value is not shown: a URL may carry a password or a key.
    if not valid:
        raise ValueError("HTTP reward model: url must look like http://host:port/path or https://host/path")
    check_secrets(url)
    return parts


def check_secrets(url: str) -> None:
    """Raises ValueError for a URL of any kind, or what is to be one, with a user, a password or a query."""
    host = re.split("[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    if "@" in host:
        raise ValueError("HTTP reward model: no user or password in the url; name the token's variable with token_env")
    if "?" in url:  # it would stand in the run's config, checkpoints and summary
        raise ValueError(
            "HTTP reward model: no query in the url, which is written down with the run's config; a key belongs in "
            "the variable that token_env names"
        )
