"""Plans against what runs: a step's memory and products, collectives counted in loops, layouts ranked and refused."""

import dataclasses
import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
import rich.console

from alphaalign_jax import cli, config
from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.parallel import build_mesh
from alphaalign_jax.planning import chips, command, compiled, estimate, hlo, plan, sweep
from alphaalign_jax.planning.chips import CHIPS, topology
from alphaalign_jax.planning.compiled import Compiled
from alphaalign_jax.planning.programs import Job, Program, Tokens
from alphaalign_jax.types import TrainState

MODEL = dict(
    model_type="llama",
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
TOKENS = Tokens(prefix=16, prompt=32)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Arguments of a config of PPO on a tiny model, of which there is a config.json and no weights."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "plan.py").write_text(
        "from alphaalign_jax.config import defaults\n"
        "def get_config(arg=''):\n"
        "    c = defaults()\n"
        f"    c.model.path = {str(folder)!r}\n"
        "    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens, c.rollout.cache = 8, 2, 32, 16\n"
        "    c.algorithm.minibatches, c.reward.helpfulness, c.steps = 2, 'off', 10\n"
        "    return c\n"
    )
    return folder / "plan.py"


def layers_in_a_loop(devices, *, rows, width, dtype):
    """The text of a program with a loop of 7 turns, which sums [rows, width / 2] over four devices, in one of as many
    turns as its caller says."""
    mesh = build_mesh(tensor=4, fsdp=1, devices=devices)
    place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
    weights = jax.ShapeDtypeStruct((7, width, width // 2), dtype, sharding=place(None, "tensor", None))
    x = jax.ShapeDtypeStruct((rows, width), dtype, sharding=place(None, "tensor"))

    def layers(x, weights):
        one = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tile(x @ w, 2), place(None, "tensor")), None)
        return jax.lax.scan(one, x, weights)[0]

    def tokens(x, weights, stop):
        return jax.lax.while_loop(lambda c: c[0] < stop, lambda c: (c[0] + 1, layers(c[1], weights)), (0, x))[1]

    return jax.jit(tokens).lower(x, weights, 3).compile().as_text()


def test_collectives_in_loops_are_counted_as_often_as_they_run():
    """The compiler's cost analysis counts a body once: a layer's sum over chips would be missed for all layers but one,
    and for all tokens but one."""
    text = layers_in_a_loop(jax.devices()[:4], rows=8, width=64, dtype=jnp.float32)
    (sums,) = hlo.collectives(text, turns=5)
    # float32 [8, 32] is summed over four chips, in one or two stages: by a ring a chip sends 2 * 3/4 of it, or 2 * 1/2
    # of it and then of the half that it keeps.
    assert sums.kind == "all-reduce" and sums.count in (7 * 5, 2 * 7 * 5)
    assert sums.bytes == 7 * 5 * 8 * 32 * 4 * 2 * 3 / 4
    # Each chip multiplies [8, 16] by [16, 32].
    assert hlo.product_flops(text, turns=5) == 7 * 5 * 2 * 8 * 16 * 32


def test_collectives_of_a_tpu_program_are_read(tpu_devices):
    """Its text names no number of turns, and sums that are then cut are calls of a name."""
    found = hlo.collectives(layers_in_a_loop(tpu_devices, rows=256, width=1024, dtype=jnp.bfloat16), turns=5)
    # Pairs of chips sum [256, 512] and keep half, then sum that with the other pair: 2 bytes each.
    assert {c.kind: (c.count, c.bytes) for c in found} == {
        "reduce-scatter": (35, 35 * 256 * 512 * 2 / 2),
        "all-reduce": (35, 35 * 256 * 256 * 2),
    }


OVERLAPPED = """HloModule jit_f

%fused_computation.1 (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

%async_collective_fusion.2 (q: bf16[2,8]) -> bf16[8,8] {
  %q = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: bf16[2,8]) -> bf16[8,8] {
  %x = bf16[2,8]{1,0} parameter(0)
  %start = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %during = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %kernel = bf16[8,8]{1,0} custom-call(%during), custom_call_target="tpu_custom_call", frontend_attributes={kernel={
"block": 512
}}, backend_config={}
  %sum.1 = bf16[8,8]{1,0} all-reduce(%kernel), channel_id=4, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %sum.2 = bf16[8,8]{1,0} all-reduce(%sum.1), channel_id=4, replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def test_a_gather_that_runs_beside_products_is_one():
    """As libtpu writes it: pieces of a gather in each fusion that it runs beside, lines of a kernel's attributes that
    look like a computation's end, and two sums that share a channel."""
    found = {c.kind: (c.count, c.bytes) for c in hlo.collectives(OVERLAPPED, turns=1)}
    assert found == {"all-gather": (1, 8 * 8 * 2 * 3 / 4), "all-reduce": (2, 2 * 8 * 8 * 2 * 2 * 3 / 4)}


def test_of_branches_the_one_that_sends_least_is_counted():
    """Sampling without top_k sends nothing, and would be planned with the sort of a vocabulary over all chips."""
    mesh = build_mesh(fsdp=4, devices=jax.devices()[:4])
    place = jax.NamedSharding(mesh, jax.P("fsdp"))
    x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=place)
    lay = lambda x: jax.lax.with_sharding_constraint(x, place)
    branches = lambda x, sort: jax.lax.cond(sort, lambda x: lay(jnp.sort(x)), lambda x: lay(x + 1), x)
    compiled = lambda f, *x: jax.jit(f).lower(*x).compile().as_text()
    assert hlo.collectives(compiled(lambda x: lay(jnp.sort(x)), x), turns=1)
    assert not hlo.collectives(compiled(branches, x, jax.ShapeDtypeStruct((), jnp.bool_)), turns=1)


def test_planned_memory_and_flops_are_those_of_the_step_that_runs(settings, capsys):
    """A part of the state that is forgotten, counted whole where it is sharded, or products that nobody counted."""
    _, devices = topology("cpu:8")
    c = config.load(str(settings), [("mesh.tensor", "2")])
    job = Job(c, ModelSpec.from_hf(MODEL), devices, TOKENS)
    params, critic = (
        jax.jit(n.init, out_shardings=job.layout.tree_shardings(n.axes))(jax.random.key(0))
        for n in (job.actor, job.critic)
    )
    state: TrainState = job.steps.init_state(params, critic)
    shards = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    assert job.held() == {name: shards(getattr(state, name)) for name in job.held()}

    executables = {}

    def compile(program):
        executables[program.name] = program.lowered.compile()
        return Compiled.of(executables[program.name], 0.0)

    costs = {p.name: estimate.estimate(job, CHIPS["cpu"], p, made) for p, made in job.programs(compile)}
    assert set(costs) == {"reshard", "prefill", "decode", "score", "update_critic", "update_actor"}
    assert costs["update_actor"].memory.arguments >= job.held()["actor"] + job.held()["actor_opt"]
    assert costs["update_actor"].memory.resident == sum(job.held()[k] for k in ("critic", "critic_opt", "reference"))
    error = {}
    for name in ("prefill", "decode", "score", "update_critic", "update_actor"):
        turns = c.rollout.max_new_tokens if name == "decode" else 1.0
        run = hlo.product_flops(executables[name].as_text(), turns=turns)
        error[name] = 100 * (costs[name].run_flops / run - 1)
    with capsys.disabled():
        print(" FLOPs planned above compiled, %:", {name: round(value, 1) for name, value in error.items()})
    # A plan counts the pairs that causal attention keeps, and a program computes all; it leaves out, in turn, what the
    # compiler sees to be of no use.
    assert max(map(abs, error.values())) < 10


def test_a_plan_for_a_tpu_says_whether_it_fits(settings, tmp_path, capsys, tpu_devices):
    """The command, from a config to an exit status, with no TPU: what fits, and by how much what does not."""
    out = tmp_path / "plan.json"
    arguments = ["plan", f"--config={settings}", "--topology=v5e:2x2", "--prefix_tokens=16", "--prompt_tokens=32"]
    assert cli.main([*arguments, f"--out={out}", "--check", "--price=2"]) == 0
    found = json.loads(out.read_text())
    assert found["fits"] and found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert [p["name"] for p in found["programs"]][-1] == "update_actor"
    kinds = {c["kind"] for p in found["programs"] if p["name"] == "update_actor" for c in p["collectives"]}
    assert "all-gather" in kinds or "all-reduce" in kinds
    assert found["dollars"] == pytest.approx(2 * found["chip_hours"])
    shown = capsys.readouterr().out
    assert " MiB of 16.0 GiB a chip" in shown and " 0.0 " not in shown
    step = re.search(r"a step takes at least ([\d.]+) (\S+): ", shown)
    assert float(step[1]) / {"s": 1, "ms": 1e3, "µs": 1e6}[step[2]] == pytest.approx(found["step_seconds"], rel=0.01)


def test_layouts_are_ranked_and_what_cannot_be_is_said(settings, tmp_path):
    """A refused layout ends in its reason, not in an error; one that cannot hold its weights is not compiled."""
    axes = {"mesh.tensor": ["2", "8"], "mesh.rollout_rules": ["tensor", "fsdp_tensor"]}
    chip, devices = topology("cpu:8")
    seen = []
    options = dict(dollars_hour=None, on_layout=seen.append)
    tokens = lambda _: TOKENS
    compile = compiled.compiler(devices, None, "fast")
    found = sweep.run(str(settings), [], axes, chip, devices, tokens, compile, **options)
    assert len(seen) == 4 and [layout.plan is None for layout in found] == [False, False, True, True]
    assert found[0].plan.step_seconds <= found[1].plan.step_seconds and found[0] in sweep.front(found)
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(command.sweep_table(found, sweep.front(found), chip, "layouts"))
    shown = console.export_text().splitlines()
    assert shown[2].split() == ["#", "tensor", "rollout_rules", "KiB", "ms", "tokens/s", "$"]
    numbered = [[str(number), *layout.settings.values()] for number, layout in enumerate(found, 1)]
    assert [line.split()[-7:-4] for line in shown[4:8]] == numbered
    assert shown[4].split()[0] == "*" and shown[7].split()[-4:] == ["-"] * 4
    # Whole on each chip, the rollout's weights take more memory than laid over all.
    sizes = {layout.settings["mesh.rollout_rules"]: layout.plan.costs[2].memory.arguments for layout in found[:2]}
    assert sizes["fsdp_tensor"] < sizes["tensor"]
    assert all("of size 4 does not divide over mesh axes {'tensor': 8}" in layout.why for layout in found[2:])
    small = dataclasses.replace(chip, hbm_bytes=1e5)
    (pruned,) = sweep.run(str(settings), [], {"mesh.tensor": ["2"]}, small, devices, tokens, compile, **options)
    assert pruned.plan is None and "weights and optimizers alone take" in pruned.why


def test_what_was_compiled_once_is_read_back(settings, tmp_path):
    """A second look that compiles again, or that finds another program's figures."""
    chip, devices = topology("cpu:8")
    c = config.load(str(settings), [("mesh.tensor", "2")])
    job = Job(c, ModelSpec.from_hf(MODEL), devices, TOKENS)
    first = plan.plan(job, chip, compiled.compiler(devices, tmp_path))
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == len(first.costs) == 6
    assert plan.plan(job, chip, compiled.compiler(devices, tmp_path)) == first
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    four = Job(c, ModelSpec.from_hf(MODEL), devices[:4], TOKENS)
    assert plan.plan(four, chip, compiled.compiler(devices[:4], tmp_path)).peak > first.peak


WHOLE = "Ran out of memory in memory space hbm. Used 21.43G of 15.75G hbm. Exceeded by 5.68G."
TEMPORARIES = (
    "Ran out of memory on HBM, the total memory required for HLO temporaries (21.43G) exceeds available HBM (15.75G)."
)


@pytest.mark.parametrize(("kept", "said"), [(True, WHOLE), (False, WHOLE), (True, TEMPORARIES)])
def test_a_program_that_the_compiler_gives_up_on_is_said(tmp_path, kept, said):
    """Also where it is read back. libtpu 0.0.42.1 says it in both of these forms."""
    message = f"RESOURCE_EXHAUSTED: {said}"

    class Lowered:
        as_text = staticmethod(lambda: "a program")
        tried = 0

        def compile(self, compiler_options):
            self.tried += 1
            raise jax.errors.JaxRuntimeError(message)

    lowered = Lowered()
    for _ in range(2):
        with pytest.raises(compiled.TooLarge, match="decode takes at least 21.4 GiB") as error:
            compiled.compiler([], tmp_path if kept else None)(Program("decode", lowered, 0.0, 1.0))
        assert error.value.bytes == pytest.approx(21.43 * 2**30)
    assert lowered.tried == 2 - kept


def test_slices_have_the_names_and_chips_of_cloud_tpu(tpu_devices):
    """README's own pod type was no known topology. The number of v5p counts TensorCores, of which a chip has two."""
    for name, kind, count in (("v5litepod-16", "v5e", 16), ("v5p-16", "v5p", 8), ("v6e-8", "v6e", 8)):
        chip, devices = topology(name)
        assert chip.name == kind and len(devices) == count
    assert chips.SLICES["v5p-32"] == "v5p:2x2x4" and chips.SLICES["v5p-12288"] == "v5p:16x16x24"
    assert chips.SLICES["v5litepod-256"] == "v5e:16x16" and chips.SLICES["v6e-32"] == "v6e:4x8"
    for name, hint in (
        ("v5litepod16", "did you mean v5litepod-16?"),
        ("V6E:4x4", "did you mean v6e:4x4?"),
        ("v5e-16", "the slices of v5litepod are v5litepod-4, "),
        ("v5p-24", "the slices of v5p are v5p-8, v5p-16, "),
    ):
        with pytest.raises(ValueError, match=hint):
            topology(name)


@pytest.mark.parametrize("name", ["v4:2x2", "v4-8", "v5e", "v5e:8", "cpu:99", "v5e:0x3"])
def test_topologies_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match="--topology="):
        topology(name)
