"""Which checkpoints are kept, when one is put off, and what their digests see."""

import dataclasses
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alphaalign_jax.config import Checkpoint
from alphaalign_jax.parallel.digest import digests
from alphaalign_jax.train import checkpoint
from alphaalign_jax.train.checkpoint import CheckpointError, Checkpoints, Progress
from alphaalign_jax.types import TrainState


def state(step):
    empty = dict.fromkeys(("average", "actor_opt", "critic", "critic_opt", "reference", "ahead"))
    scalar = lambda value, dtype: jax.device_put(np.asarray(value, dtype))
    return TrainState(
        step=scalar(step, np.int32),
        actor={"w": jnp.full((3, 5), step, jnp.float32)},
        kl_coef=scalar(0, np.float32),
        **empty,
    )


def progress(best=None):
    return Progress(config={}, inputs={}, computed_by={}, initial="", best=best)


def test_the_newest_the_best_and_every_so_many_are_kept(tmp_path):
    """A best checkpoint that two later saves push out; a period that keeps step 0 for ever."""
    kept = Checkpoints(tmp_path / "checkpoints", Checkpoint(keep=2, keep_every=4))
    best = {0: None, 3: {"step": 3, "score": 0.5}}
    for step in range(8):
        assert kept.save(state(step), progress(best[3 if step >= 3 else 0]), wait=True)
    kept.wait()
    assert kept.steps() == [7, 6, 4, 3]
    assert kept.save(state(8), progress({"step": 8, "score": 0.6}), wait=True)
    kept.close()
    again = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    assert again.steps() == [8, 7, 4], "the former best has had its time"
    again.close()


def test_a_save_that_is_due_waits_for_the_writer_and_the_step_does_not(tmp_path, monkeypatch):
    """A slow disk would add a write to every step; a save that is called done and was not made is lost."""
    kept = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    assert kept.save(state(0), progress(), wait=True)
    busy = True
    monkeypatch.setattr(kept._open(), "is_saving_in_progress", lambda: busy)
    assert not kept.save(state(1), progress())
    assert kept.save(state(2), progress(), wait=True)
    busy = False
    assert kept.save(state(3), progress())
    kept.wait()
    assert kept.steps() == [3, 2]
    kept.close()


def test_a_write_that_fails_in_the_background_is_heard_of_at_the_next_step(tmp_path):
    """Heard of at the next save, it is of fifty steps ago; and the one before it, which is whole, is called gone."""
    kept = Checkpoints(tmp_path / "checkpoints", Checkpoint(keep=1))
    assert kept.save(state(1), progress(), wait=True)
    kept.wait()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="the run can go on from step 1 with --resume"):
            kept.save(state(2), progress())
            while kept._manager.is_saving_in_progress():
                time.sleep(0.01)
            kept.check_written()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    kept.close()


def test_digests_see_any_bit_and_any_place_on_any_mesh():
    """Two values exchanged have the same sum; a digest that depends on the mesh refuses every resumption on another."""
    rng = np.random.default_rng(0)
    for values in (
        rng.normal(size=(8, 12)).astype(np.float32),
        rng.integers(0, 2**31, (4, 2, 6)).astype(np.int32),
        rng.integers(0, 2, (16, 3)).astype(bool),
        np.float32(rng.normal(size=(8, 4))).astype(jnp.bfloat16),
        np.float32(3.0),
    ):
        whole = digests({"x": jnp.asarray(values)})["['x']"]
        devices = np.array(jax.devices()[:8]).reshape(4, 2)
        for spec in (PartitionSpec(), PartitionSpec("a"), PartitionSpec("b", "a"), PartitionSpec(None, "b")):
            fits = len(spec) <= values.ndim and all(n % 4 == 0 for n in values.shape[: len(spec)])
            if fits:
                sharding = NamedSharding(Mesh(devices, ("a", "b")), spec)
                assert digests({"x": jax.device_put(values, sharding)})["['x']"] == whole, spec
        raw = np.atleast_1d(values)
        for _ in range(20):
            changed = raw.copy()
            bits = changed.view(np.uint8).reshape(-1) if changed.dtype != bool else None
            place = rng.integers(raw.size)
            if bits is None:
                changed.reshape(-1)[place] ^= True
            else:
                bits[rng.integers(bits.size)] ^= 1 << rng.integers(8)
            assert digests({"x": jnp.asarray(changed.reshape(values.shape))})["['x']"] != whole
    a = np.array([1.0, 2.0], np.float32)
    assert digests([jnp.asarray(a)]) != digests([jnp.asarray(a[::-1])])
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert digests([jnp.asarray(square)]) != digests([jnp.asarray(square.T)])
    assert digests([jnp.float32(0.0)]) != digests([jnp.float32(-0.0)])


def test_a_checkpoint_of_another_version_is_not_called_damaged(tmp_path, monkeypatch):
    """Set aside as damaged, the one before it would be tried, and the next: a run's whole past renamed."""
    kept = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    kept.save(state(1), progress(), wait=True)
    kept.wait()
    monkeypatch.setattr(checkpoint, "Progress", dataclasses.make_dataclass("Progress", ["config", "before"]))
    with pytest.raises(ValueError, match="checkpoint 1 of .* is another version's: .*inputs"):
        kept.restore(lambda step: state(step))
    kept.close()
