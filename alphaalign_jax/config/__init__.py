"""The settings of a run.

A config file (``configs/*.py``) has ``get_config(arg) -> ConfigDict``: it calls ``defaults()`` and changes fields. The
command line changes them again (``--config.rollout.group=4``). ``resolve`` turns the result into the frozen dataclasses
of ``settings``, which is all that the code reads.
"""

from alphaalign_jax.config.loading import defaults, load, override, read, resolve
from alphaalign_jax.config.settings import Algorithm, Checkpoint, Config, Critic, Optimizer, Rollout, Warmup

__all__ = [
    "Algorithm",
    "Checkpoint",
    "Config",
    "Critic",
    "Optimizer",
    "Rollout",
    "Warmup",
    "defaults",
    "load",
    "override",
    "read",
    "resolve",
]
