"""Words of the format: the prompt template asks for them, the warm-up texts give them, the verifiers look for them."""

from __future__ import annotations

# In the order of a well-formed response.
TAG_TEXTS = ("<safety_reasoning>", "</safety_reasoning>", "<answer>", "</answer>")

# The sentence the template asks for when the question is unsafe.
REFUSAL = r"\boxed{Sorry, I can't comply}"
