"""The settings of a run.

A config file (``configs/*.py``) defines ``get_config(arg) -> ConfigDict``, which calls
``defaults()`` and changes fields. The command line can change them again
(``--config.rollout.group=4``). ``resolve`` turns the result into the frozen dataclasses of
``settings``; the rest of the code reads only these.
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
