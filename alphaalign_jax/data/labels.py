"""Spellings of labels in data files, and maps from them to harmful and benign."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alphaalign_jax.data.row import show
from alphaalign_jax.text import json_of
from alphaalign_jax.types import BENIGN, HARMFUL, LABELS

Pairs = tuple[tuple[Any, Any], ...]  # (value in the file, 'harmful' or 'benign')

_SAFE = ("safe", "harmless", "unharmful", "non-toxic", "nontoxic", "vanilla_benign", "adversarial_benign")
_UNSAFE = ("unsafe", "toxic", "malicious", "jailbreak", "vanilla_harmful", "adversarial_harmful")
_TRUE = ("1", "true", "yes", "y", "t")
_FALSE = ("0", "false", "no", "n", "f")


def _pairs(harmful: tuple[str, ...], benign: tuple[str, ...]) -> Pairs:
    return tuple((text, "harmful") for text in harmful) + tuple((text, "benign") for text in benign)


# True and false have two presets: 1 is harmful in a column ``toxicity``, benign in ``is_safe``.
PRESETS: dict[str, Pairs] = {
    "safe_unsafe": _pairs(_UNSAFE, _SAFE),
    "true_is_harmful": _pairs(_TRUE, _FALSE),
    "true_is_safe": _pairs(_FALSE, _TRUE),
}
EXPECTED_MAP = (
    f"one of {', '.join(map(repr, PRESETS))}, or a dict from values of the label column to 'harmful' or 'benign', "
    "such as {'safe': 'benign', 'unsafe': 'harmful'}"
)
_INTEGRAL = re.compile(r"(-?\d+)\.0+")


def map_of_text(text: str) -> Any:
    """Parse the label_map of a command's option: '' for none, a preset's name, or a JSON object."""
    if not text.lstrip().startswith("{"):
        return text or ()
    try:
        return json_of(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--label_map={text:.200}: not JSON ({error}); expected {EXPECTED_MAP}") from error


def label_codes(label_map: str | Pairs) -> dict[str, int]:
    """Return the codes of all known labels by folded spelling: harmful, benign, and the map's.

    Raise ValueError, without a place, for an invalid map, or one that gives a spelling both labels.
    """
    pairs = PRESETS.get(label_map) if isinstance(label_map, str) else label_map
    if pairs is None:
        raise ValueError(f"label_map={show(label_map)}: expected {EXPECTED_MAP}")
    codes: dict[str, int] = {}
    for value, name in pairs:
        label = name.casefold() if isinstance(name, str) else name
        if label not in LABELS:
            raise ValueError(
                f"label_map={show(label_map)}: {show(value)} maps to {show(name)}; expected {EXPECTED_MAP}"
            )
        if codes.setdefault(_fold(value), LABELS.index(label)) != LABELS.index(label):
            raise ValueError(f"label_map={show(label_map)}: {show(value)} maps to both labels; expected one of them")
    return {"harmful": HARMFUL, "benign": BENIGN} | codes


def read_label(column: str, value: Any, codes: Mapping[str, int], path: str, mapped: bool) -> int:
    """Return the code of a label in a file. Raise ValueError for an unknown label.

    Args:
      column: the label's column, for messages.
      codes: the result of ``label_codes``.
      path: the file's path, for the example in a message.
      mapped: whether the source has a label_map.
    """
    code = codes.get(_fold(value)) if isinstance(value, (str, bool, int, float)) else None
    if code is not None:
        return code
    if mapped:
        known = ", ".join(codes)
        raise ValueError(f"{column} {show(value)} is not in label_map; expected one of {known}, or add it to the map")
    raise ValueError(f"{column} is {show(value)}; expected 'harmful' or 'benign'" + _advice(value, path))


def _advice(value: Any, path: str) -> str:
    """Return advice on mapping an unknown label: an entry of data.train and a command's option."""
    if not isinstance(value, (str, bool, int, float)):
        return ""
    folded = _fold(value)
    names = [name for name, pairs in PRESETS.items() if folded in dict(pairs)]
    entry = {"path": path, "label_map": names[0] if names else {value: "harmful"}}
    other = "'benign'" if not names else repr(names[1]) if len(names) > 1 else ""
    return (
        f"; for other spellings set the source's label_map: {entry!r:.400} in a config, --label_map="
        f"{names[0] if names else 'with a JSON object'} for evaluate and data audit"
        + (f" (or {other}, if {show(value)} means that)" if other else "")
    )


def _fold(value: Any) -> str:
    """Return a spelling for comparison: lower case, and 1 for the 1.0 of a column with gaps."""
    text = str(value).casefold()
    integral = _INTEGRAL.fullmatch(text)
    return integral[1] if integral else text
