"""Llama-3.2-3B-Instruct as in the paper (arXiv 2507.14987): PPO, 16 prompts x 8 rollouts, 2,048 tokens,
at most 200 steps.

    alphaalign train --config=configs/llama3_2_3b.py          AlphaAlign
    alphaalign train --config=configs/llama3_2_3b.py:zero     AlphaAlign-Zero: no helpfulness reward
    alphaalign train --config=configs/llama3_2_3b.py:sequence another layout (configs/_layouts.py)

Hardware: planned for 16 v5e chips. Not run yet; no result is claimed.

Before it starts: the model is fetched from the hub (gated: log in first); put the harmful prompts of SCoT, one JSON
object {"prompt": ...} a line, at scot_harmful.jsonl (its authors publish no data set of bare prompts), and a file of
held-out prompts with labels at heldout.jsonl. Both paths are settings: --config.data.train, --config.data.heldout.
"""

from _paper import paper_config


def get_config(arg=""):
    return paper_config("llama3_2_3b", "meta-llama/Llama-3.2-3B-Instruct", arg, layout="fsdp_tensor", heads=4)
