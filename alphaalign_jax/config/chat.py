"""Settings of a chat template: a fixed date, and arguments that the template defines."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

DEFAULT_DATE = "2024-07-26"
# Common spellings of JSON's false, true and null. A template would treat the text "False" as true.
_WORDS = {"false": False, "true": True, "none": None, "null": None, "no": False, "yes": True, "off": False, "on": True}
# Variables that every template receives.
_OWN_ARGUMENTS = ("messages", "add_generation_prompt", "tools", "documents", "date_string", "strftime_now")


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """Settings of a chat template.

    Attributes:
      date: ISO date that the template gets as today's date. With the clock's date, a template would
        write another prompt tomorrow, and a run resumed after midnight would train on other tokens.
        The default is the fallback date of Llama 3's own template.
      args: arguments of the template, as ``name=value``. JSON values (``3``) are parsed, and so are
        false, no, off and similar words in any case. Other values are text. Example for Qwen3:
        ``enable_thinking=false``.
    """

    date: str = DEFAULT_DATE
    args: tuple[str, ...] = ()

    def __post_init__(self):
        try:
            canonical = datetime.date.fromisoformat(self.date).isoformat() == self.date
        except (TypeError, ValueError):
            canonical = False
        if not canonical:
            raise ValueError(f"chat_date={self.date!r}: expected a date such as {DEFAULT_DATE}")
        if not isinstance(self.args, (tuple, list)):
            raise ValueError(f"chat_args={self.args!r}: expected name=value pairs, such as enable_thinking=false")
        for pair in self.args:
            name, equals, _ = pair.partition("=") if isinstance(pair, str) else ("", "", "")
            if not equals or not name.isidentifier() or name in _OWN_ARGUMENTS:
                raise ValueError(
                    f"chat_args: {pair!r:.80} is not an argument of a chat template; expected name=value, such as "
                    f"enable_thinking=false, with a name other than {', '.join(_OWN_ARGUMENTS)}"
                )
        names = [pair.partition("=")[0] for pair in self.args]
        if len(set(names)) != len(names):
            raise ValueError(f"chat_args: {', '.join(self.args)!r:.200} gives a name twice; leave one")

    @classmethod
    def of(cls, recorded: dict[str, Any]) -> ChatSettings:
        """Return the settings that ``to_json`` recorded. Raise ValueError for anything else."""
        if not isinstance(recorded, dict) or recorded.keys() != {"date", "args"}:
            raise ValueError(f"{recorded!r:.80}: expected date and args")
        args = recorded["args"]
        return cls(recorded["date"], tuple(args) if isinstance(args, list) else args)

    def to_json(self) -> dict[str, Any]:
        return {"date": self.date, "args": list(self.args)}

    def variables(self) -> dict[str, Any]:
        """Return the variables to pass to the template."""
        found: dict[str, Any] = {}
        for pair in self.args:
            name, _, value = pair.partition("=")
            try:
                found[name] = _WORDS[value.lower()] if value.lower() in _WORDS else json.loads(value)
            except ValueError:
                found[name] = value
        return found | {"date_string": self.day.strftime("%d %b %Y")}

    @property
    def day(self) -> datetime.datetime:
        """Midnight of the date."""
        return datetime.datetime.fromisoformat(self.date)
