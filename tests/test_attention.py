"""Attention kernels against plain attention: interpreted, on a mesh, and compiled for what they are made for."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphaalign_jax.models.attention import HOMES, Segment, attend, triton
from alphaalign_jax.models.attention.segments import Packed
from alphaalign_jax.parallel import Layout, build_mesh, compiled, rule_table

KERNELS = [kind for kind, home in HOMES.items() if home]
# Sizes that no block divides, a prompt with padding, and heads that share keys.
B, G, T, H, K, C, P, S = 2, 3, 70, 4, 2, 24, 37, 45
SHAPES = {  # of one head layout each: axes for a mesh
    "q": ((B, G, T, H, C), ("batch", None, None, "heads", None)),
    "k": ((B, G, K, C, T), ("batch", None, "kv_heads", None, None)),
    "v": ((B, G, K, T, C), ("batch", None, "kv_heads", None, None)),
    "k_prefix": ((K, C, P), ("kv_heads", None, None)),
    "v_prefix": ((K, P, C), ("kv_heads", None, None)),
    "k_prompt": ((B, K, C, S), ("batch", "kv_heads", None, None)),
    "v_prompt": ((B, K, S, C), ("batch", "kv_heads", None, None)),
}


def loss(x, kind, precision=jax.lax.Precision.HIGHEST):
    visible = jnp.arange(S) < jnp.array([S, 20])[:, None]
    segments = (
        Segment(x["k_prefix"], x["v_prefix"]),
        Segment(x["k_prompt"], x["v_prompt"], visible),
        Segment(x["k"], x["v"], causal=True),
    )
    out = attend(x["q"], segments, precision, kind)
    weight = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    return jnp.sum(out.astype(jnp.float32) * weight), out


def gradient(kind, layout=None):
    function = jax.grad(functools.partial(loss, kind=kind), has_aux=True)
    return jax.jit(function) if layout is None else compiled(function, layout)


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, (shape, _) in SHAPES.items()}


@functools.cache
def wanted():
    return gradient("plain")(inputs())


MESHES = {
    "one device": None,
    "heads": (dict(fsdp=2, tensor=2), "fsdp_tensor", ()),
    "more devices than key/value heads": (dict(fsdp=2, tensor=4), "fsdp_tensor", (("kv_heads",),)),
    "rollouts": (dict(fsdp=2, tensor=3), "fsdp_rollout", ()),
}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_equal_plain_attention(kind, mesh):
    """A block skipped that a query may see, a neighbour's response read, padding attended to, keys' gradients of one
    query head of those that share them, or all prompts on each device: in the output or in a gradient."""
    layout, x = None, inputs()
    if mesh:
        sizes, *rules = mesh
        devices = jax.devices()[: math.prod(sizes.values())]
        layout = Layout(build_mesh(**sizes, devices=devices), rule_table(*rules))
        x = {name: jax.device_put(x[name], layout.sharding(*axes)) for name, (_, axes) in SHAPES.items()}
    found, out = gradient(kind, layout)(x)
    np.testing.assert_allclose(out, wanted()[1], atol=2e-6)
    for name in found:
        np.testing.assert_allclose(found[name], wanted()[0][name], atol=1e-5, err_msg=name)


def test_attention_to_one_token_of_each_row_is_plain():
    """A decoded token has keys of its own row in a cache: packed responses would not know them."""
    x = inputs()
    cache = Segment(x["k"], x["v"], jnp.arange(T) < 9)
    segments = (
        Segment(x["k_prefix"], x["v_prefix"]),
        cache,
        Segment(x["k"][..., :1], x["v"][..., :1, :], causal=True),
    )
    one = lambda kind: attend(x["q"][:, :, :1], segments, jax.lax.Precision.HIGHEST, kind)
    assert all(np.array_equal(one(kind), one("plain")) for kind in KERNELS)


@pytest.mark.parametrize("dtype, precision", [("bfloat16", "DEFAULT"), ("float32", "HIGHEST")])
def test_the_gpu_kernel_lowers(dtype, precision):
    """What the interpreter takes and Triton does not: a block that is no power of two, a division, a dynamic slice."""
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    out = lambda *x: triton.attend(Packed(*x), 128, jax.lax.Precision[precision], interpret=False)
    total = lambda *x: out(*x).astype(jnp.float32).sum()
    x = shaped(2, 4, 384, 64), shaped(2, 2, 512, 64), shaped(2, 2, 512, 64), jax.ShapeDtypeStruct((2, 512), bool)
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        lowered = jax.jit(jax.grad(total, (0, 1, 2))).trace(*x).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 3  # forward, queries, keys and values


@pytest.mark.parametrize("dtype, precision", [("bfloat16", "DEFAULT"), ("float32", "HIGHEST")])
def test_attention_compiles_for_a_tpu(dtype, precision, tpu_devices):
    """What the interpreter takes and Mosaic does not; or a layout that leaves XLA nothing but to gather everything."""
    layout = Layout(build_mesh(fsdp=2, tensor=2, devices=tpu_devices), rule_table("fsdp_tensor"))
    x = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(*axes))
        for name, (shape, axes) in SHAPES.items()
    }
    function = jax.grad(lambda x: loss(x, "auto", jax.lax.Precision[precision])[0])
    program = compiled(function, layout).lower(x).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 3
    # What is summed over devices are the gradients of the one prefix that all prompts share.
    assert "all-gather" not in program and program.count("all-to-all") == 0
