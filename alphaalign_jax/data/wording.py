"""Texts of the response format, shared by the prompt template, the warm-up and the verifiers."""

from __future__ import annotations

# In the order of a well-formed response.
TAG_TEXTS = ("<safety_reasoning>", "</safety_reasoning>", "<answer>", "</answer>")

# The sentence the template asks for when the question is unsafe.
REFUSAL = r"\boxed{Sorry, I can't comply}"
