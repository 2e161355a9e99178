"""A Python function as reward model, named ``module:function`` or ``path/file.py:function`` in the config.

def score(questions: list[str], answers: list[str]) -> Sequence[float | None]    # None or NaN = could not score
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alphaalign_jax.rewards.reward_model.protocol import RewardModelError, checked_scores, checked_texts
from alphaalign_jax.text import inline


def resolve(target: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/file.py:function`` names.

    Raises:
        ValueError: malformed name, module that does not import, no such function, not callable, a coroutine function,
            or one that does not take (questions, answers).
    """
    module_name, colon, name = target.rpartition(":") if isinstance(target, str) else ("", "", "")
    is_file = module_name.endswith(".py")
    if not (colon and name.isidentifier() and (is_file or all(map(str.isidentifier, module_name.split("."))))):
        raise ValueError(
            f"reward function {target!r} is not of the form 'module:function' or 'path/file.py:function', e.g. "
            "'my_rewards:score' or './my_rewards.py:score'"
        )
    try:
        module = _load_file(pathlib.Path(module_name).expanduser()) if is_file else _import_module(module_name)
    except (Exception, SystemExit) as error:  # a syntax error in the user's file is as much a failure as a missing file
        raise ValueError(
            f"reward function {target!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; give a "
            "module in the current folder or on Python's path, or a file as path/file.py:function"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if callable(value)], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"reward function {target!r}: {module_name} has no {name!r}{hint}")
    if not callable(function):
        raise ValueError(f"reward function {target!r} is a {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise ValueError(
            f"reward function {target!r} is async; give a plain one (it already runs while the device computes)"
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ValueError(f"reward function {target!r} must take (questions, answers): {error}") from error
    except ValueError:
        pass  # a builtin without a signature: nothing to check
    return function


def _import_module(name: str) -> types.ModuleType:
    """A module on Python's path or in the current folder, which the console script's path leaves out."""
    _add_to_path(pathlib.Path.cwd())
    return importlib.import_module(name)


def _load_file(file: pathlib.Path) -> types.ModuleType:
    """The module in ``file``, which may import others beside it."""
    _add_to_path(file.parent.resolve())
    spec = importlib.util.spec_from_file_location(f"alphaalign_reward_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add_to_path(folder: pathlib.Path) -> None:
    """At the end: what lies there must not take the place of an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _source(function: Callable[..., Any]) -> str:
    """A digest of the file that the function stands in; empty for one of C, or of no file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
        return f"sha256 {hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]}" if file else ""
    except (TypeError, OSError):
        return ""


class CallableRewardModel:
    """Scores with a plain Python function; an exception in it stops the run and is shown with its cause."""

    def __init__(self, target: str, dtype: str = "float32"):
        """``dtype``: what the function computes in, one of ``DTYPES``."""
        self.target = target
        self._dtype = dtype
        self._function = resolve(target)
        self.identity = _source(self._function)

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """float32 [n]; RewardModelError if the function raises or returns anything but n numbers."""
        questions, answers = checked_texts(questions, answers)
        n = len(questions)
        try:
            values = self._function(questions, answers)
        except (Exception, SystemExit) as error:
            reason = inline(f"{type(error).__name__}: {error}")
            raise RewardModelError(f"reward function {self.target} failed on {n} rows: {reason}") from error
        return checked_scores(values, n, f"reward function {self.target}", self._dtype)

    def close(self) -> None:
        """Nothing to free."""
