"""Policy-gradient mathematics: pure, jittable functions of arrays that see no model, tokenizer or config."""
