"""Named layouts: how a model's weights and a step's work lie on the chips. Not a config itself.

``--config=configs/llama3_2_3b.py:sequence`` takes one; ``alphaalign plan`` says what it costs. ``-1`` is what the other
axes leave, ``HEADS`` what a model's key/value heads divide over (4, or 2 of Qwen2.5-3B); tables of rules are those of
``alphaalign_jax/parallel/rules.py``.
"""

HEADS = "heads"

# fmt: off
LAYOUTS = {
    #                    data  fsdp  tensor  training       rollout
    # Every weight in parts over all chips, in sampling too: gathered at each token, so only where nothing else fits.
    "fsdp":             (1,    -1,   1,      "fsdp_tensor",  "fsdp_tensor"),
    # Heads and feed-forward over chips that are neighbours, the rest of a weight over the others.
    "fsdp_tensor":      (1,    -1,   HEADS,  "fsdp_tensor",  "tensor"),
    # Two slices (or halves of one) with a copy of the weights each: between them only gradients are sent.
    "hybrid":           (2,    -1,   HEADS,  "fsdp_tensor",  "tensor"),
    # Trained without a product cut in parts: the chips that share heads in sampling share a prompt's rollouts instead.
    "fsdp_rollout":     (1,    -1,   HEADS,  "fsdp_rollout", "tensor"),
    # As fsdp_tensor, with layers' inputs cut along the responses: for long ones.
    "sequence":         (1,    -1,   HEADS,  "sequence",     "tensor"),
}
# fmt: on


def take(arg, path):
    """What stands behind a config's colon, ``zero``, a layout's name, or both with a comma: (zero, layout or "")."""
    parts = [part for part in arg.split(",") if part]
    layouts = [part for part in parts if part in LAYOUTS]
    if len(layouts) > 1 or len(set(parts)) < len(parts) or set(parts) - {"zero", *LAYOUTS}:
        raise ValueError(f"{path}:{arg}: expected zero, one of the layouts {', '.join(LAYOUTS)}, or both with a comma")
    return "zero" in parts, layouts[0] if layouts else ""


def lay_out(config, name, heads):
    """Sets the mesh and the rule tables of a layout, for a model that divides over ``heads`` chips."""
    m = config.mesh
    m.data, m.fsdp, tensor, m.train_rules, m.rollout_rules = LAYOUTS[name]
    m.tensor = heads if tensor == HEADS else tensor
