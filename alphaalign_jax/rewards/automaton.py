"""Byte machines, lifted to tokens and run on device.

A machine reads bytes. A token is a string of bytes, so it acts on the machine as one function from states to states;
tokens that act alike share a row. Reading a response is then one table look-up per token, inside jit, whatever the
tokenizer split or merged.

    bytes machine          a   b                tokens            class   state 0  1  2
      0 -a-> 1         0   1   0                "x", "bb"            0          0  0  2
      1 -b-> 2         1   1   2     lifted     "a", "ba"   ->       1          1  1  2
      2 (found)        2   2   2                "ab"                 2          2  2  2
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.types import Array

MAX_STATES = 30_000  # keeps a state in an int16, the table's dtype
_CHUNK = 4096  # transition functions composed at a time; bounds host memory


class ByteMachine(NamedTuple):
    """A finite machine over bytes, written as a small function.

    ``step(state, byte)`` gives the next state (any hashable value); ``output(state)`` is what the machine says when the
    text ends there, a small int.
    """

    start: Hashable
    step: Callable[[Hashable, int], Hashable]
    output: Callable[[Hashable], int]


@flax.struct.dataclass
class TokenAutomaton:
    """A byte machine over token ids. Leaves are host arrays; place them (replicated) once if they are used often."""

    token_class: Array  # int32 [V + 1], row V is for ids outside the vocabulary
    table: Array  # int16 [classes, states], next state; class 0 leaves every state as it is
    output: Array  # int32 [states]; state 0 is the start

    @classmethod
    def build(cls, machine: ByteMachine, token_bytes: Sequence[bytes]) -> TokenAutomaton:
        """Explores, minimises and lifts ``machine`` to the vocabulary ``token_bytes`` (id -> bytes).

        Raises ValueError when the machine has more than ``MAX_STATES`` states.
        """
        delta, output = minimise(*explore(machine))
        token_class, table = lift(delta, token_bytes)
        return cls(token_class=token_class, table=table, output=output)

    def run(self, tokens: Array, live: Array) -> jax.Array:
        """What the machine says after the live tokens of each row.

        Args:
            tokens: int32 [..., T]. Ids outside the vocabulary have no bytes.
            live: bool [..., T]. Slots that are not live are not read, whatever they hold.

        Returns: int32 [...], the output of the final state. Pure and jittable; T sequential steps.
        """
        vocab = self.token_class.shape[0] - 1
        known = (tokens >= 0) & (tokens < vocab)
        classes = jnp.asarray(self.token_class)[jnp.where(known, tokens, vocab)]
        classes = jnp.where(live, classes, 0)
        table = jnp.asarray(self.table)

        def read(state: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
            return table[row, state], None

        start = jnp.zeros(tokens.shape[:-1], table.dtype)
        final, _ = jax.lax.scan(read, start, jnp.moveaxis(classes, -1, 0))
        return jnp.asarray(self.output)[final]


def explore(machine: ByteMachine) -> tuple[np.ndarray, np.ndarray]:
    """Visits every reachable state, breadth first.

    Returns: delta int32 [states, 256] with the start state as row 0, and output int32 [states].
    All 256 bytes are tried in every state, so nothing about the machine is taken on trust.
    """
    number: dict[Hashable, int] = {machine.start: 0}
    states, delta = [machine.start], []
    for state in states:  # grows while it is walked
        row = np.empty(256, np.int32)
        for byte in range(256):
            target = machine.step(state, byte)
            if target not in number:
                number[target] = len(states)
                states.append(target)
            row[byte] = number[target]
        delta.append(row)
        if len(states) > MAX_STATES:
            raise ValueError(f"byte machine has more than {MAX_STATES} states; use fewer or shorter patterns")
    return np.stack(delta), np.array([machine.output(state) for state in states], np.int32)


def minimise(delta: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest machine with the same outputs, by partition refinement (Moore 1956).

    Args and returns: delta int32 [states, 256], output int32 [states]; state 0 is the start, before and after.
    """
    columns = np.unique(delta, axis=1)  # bytes that act alike need looking at once
    block = np.unique(output, return_inverse=True)[1].reshape(-1)
    while True:
        signature = np.concatenate([block[:, None], block[columns]], axis=1)
        finer = np.unique(signature, axis=0, return_inverse=True)[1].reshape(-1)
        if finer.max() == block.max():  # refinement only ever splits: as many blocks means the same blocks
            break
        block = finer
    # Number blocks by their first member, so that the start state stays 0.
    _, first, block = np.unique(block, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keep = first[order]
    return rank[block.reshape(-1)][delta[keep]].astype(np.int32), output[keep]


def lift(delta: np.ndarray, token_bytes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Transition functions of tokens, shared by the tokens that act alike.

    All tokens advance together, one byte a round, and carry only the number of the function they have composed so far.
    A round composes each distinct (function, kind of byte) once, so the cost follows the number of distinct functions
    and not vocabulary x states.

    Args:
        delta: int32 [states, 256].
        token_bytes: V byte strings.

    Returns: token_class int32 [V + 1] (last: an id outside the vocabulary), table int16 [classes, states]. Class 0 is
    the identity.
    """
    num_states = delta.shape[0]
    columns, kind = np.unique(delta.astype(np.int16), axis=1, return_inverse=True)
    kind, num_kinds = kind.reshape(-1), columns.shape[1]

    text = np.frombuffer(b"".join(token_bytes), np.uint8)
    size = np.array([len(piece) for piece in token_bytes], np.int64)
    offset = np.cumsum(size) - size

    identity = np.arange(num_states, dtype=np.int16)
    functions = [identity]
    number = {identity.tobytes(): 0}
    # The function of each token's bytes so far; the extra row stays the identity.
    reached = np.zeros(len(size) + 1, np.int64)
    active = np.flatnonzero(size)
    depth = 0
    while active.size:
        key = reached[active] * num_kinds + kind[text[offset[active] + depth]]
        distinct, inverse = np.unique(key, return_inverse=True)
        target = np.empty(distinct.size, np.int64)
        for low in range(0, distinct.size, _CHUNK):
            before, byte = np.divmod(distinct[low : low + _CHUNK], num_kinds)
            composed = columns[np.stack([functions[i] for i in before]), byte[:, None]]
            for i, function in enumerate(composed, start=low):
                name = function.tobytes()
                if name not in number:
                    number[name] = len(functions)
                    functions.append(function.copy())
                target[i] = number[name]
        reached[active] = target[inverse.reshape(-1)]
        depth += 1
        active = active[size[active] > depth]
    # Functions of mere prefixes are dropped. The extra row keeps the identity in use, and np.unique keeps it first.
    used, token_class = np.unique(reached, return_inverse=True)
    return token_class.reshape(-1).astype(np.int32), np.stack([functions[i] for i in used])
