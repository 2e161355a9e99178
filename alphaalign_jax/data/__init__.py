"""Prompts: reading, mixing, auditing, tokenizing, ordering, and the built-in demo set."""
