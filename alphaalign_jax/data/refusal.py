"""How a refusal is worded: the prompt template asks for it and the warm-up texts give it."""

from __future__ import annotations

# The sentence the template asks for when the question is unsafe.
REFUSAL = r"\boxed{Sorry, I can't comply}"
