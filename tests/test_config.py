"""Configs: every file resolves, every mistake is named, every field is read by something."""

import dataclasses
import pathlib
import re

import pytest
from jax.sharding import AbstractMesh

from alphaalign_jax import config as config_lib
from alphaalign_jax.algorithms import advantages, kl, losses
from alphaalign_jax.cli import main
from alphaalign_jax.config import checks
from alphaalign_jax.models import ModelSpec, Network, published
from alphaalign_jax.models.transformer import REMAT
from alphaalign_jax.parallel import Layout, rule_table
from alphaalign_jax.parallel.mesh import MESH_AXES
from alphaalign_jax.rewards import helpfulness, oracle
from alphaalign_jax.rewards.reward_model import factory
from alphaalign_jax.train import resumption

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(ROOT.glob("configs/[!_]*.py"))


@pytest.mark.parametrize("argument", ["", ":zero"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_config_resolves(file, argument):
    """A config that is only read when a pod has been paid for."""
    config = config_lib.load(f"{file}{argument}")
    assert (config.reward.helpfulness == "off") == bool(argument)
    assert config.name.endswith("-zero") == bool(argument)


PUBLISHED = ("qwen2_5_3b", "qwen2_5_7b", "llama3_2_3b")


def check_on_chips(config, chips):
    m, r = config.mesh, config.rollout
    assert m.fsdp == -1
    mesh = AbstractMesh((m.data, chips // m.tensor // m.data, m.tensor), MESH_AXES)
    network = Network(ModelSpec.from_hf(published.config_of(config.model.path)))
    for table in (m.train_rules, m.rollout_rules):
        layout = Layout(mesh, rule_table(table))
        layout.tree_shardings(network.axes, network.shapes())
        for rows in (r.prompts, r.prompts // config.algorithm.minibatches, config.eval.batch):
            layout.check("rows", (rows,), ("batch",))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_models_lie_on_the_chips_their_headers_name(name):
    """A batch or a head count that does not divide is found out when the pod is up."""
    file = ROOT / f"configs/{name}.py"
    chips = int(re.search(r"planned for (\d+) v5e chips", file.read_text())[1])
    check_on_chips(config_lib.load(str(file)), chips)


@pytest.mark.parametrize("layout", ["fsdp", "fsdp_tensor", "hybrid", "fsdp_rollout", "sequence"])
def test_every_layout_suits_the_papers_models(layout):
    """On 16 chips, as zero too; and a name that is none is refused with those that are."""
    for name in PUBLISHED:
        config = config_lib.load(f"{ROOT}/configs/{name}.py:zero,{layout}")
        assert config.name == f"{name}-zero-{layout}" and config.reward.helpfulness == "off"
        check_on_chips(config, 16)
        with pytest.raises(ValueError, match=f"expected zero, one of the layouts .*{layout}"):
            config_lib.load(f"{ROOT}/configs/{name}.py:{layout},fsdp")


def tiny(*overrides):
    return config_lib.load(str(ROOT / "configs/tiny.py"), overrides)


def test_overrides_are_typed():
    """'0.5' as text, or 1 where 1.0 is meant, would reach the step as the wrong type."""
    config = tiny(
        ("algorithm.lam", "1"), ("rollout.group", "4"), ("export", "false"), ("data.train", "a.jsonl,b.jsonl")
    )
    assert config.algorithm.lam == 1.0 and isinstance(config.algorithm.lam, float)
    assert (config.rollout.group, config.export, config.data.train) == (4, False, ("a.jsonl", "b.jsonl"))
    nested = tiny(("mesh.train_overrides", "(('mlp', 'fsdp'),)"))
    assert nested.mesh.train_overrides == (("mlp", "fsdp"),)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("rollout.gruop", "4", "did you mean --config.rollout.group?"),
        ("learning_rate", "1", "did you mean --config.optimizer.learning_rate?"),
        ("rollout", "4", "is a section"),
        ("rollout.group", "four", "expected int"),
        ("export", "maybe", "expected bool"),
        ("algorithm.advantage", "ppo", "expected one of gae"),
        ("algorithm.lam", "1.5", "from 0 to 1"),
        ("steps", "0", "positive"),
        ("algorithm.sampler_cap", "0.5", "at least 1"),
        ("algorithm.old_logprob", "sampled", "expected one of trainer, sampler"),
        ("algorithm.kl_controller", "adaptive", "which is 0"),
        ("algorithm.micro_batch", "-4", "0 or more"),
        ("warmup.epochs", "-1", "0 or more"),
        ("algorithm.minibatches", "3", "does not divide"),
        ("reward_model.kind", "none", "needs a reward model"),
        ("rollout.temperature", "0", "training samples"),
        ("algorithm.truncated", "drop", "terminal, bootstrap, mask"),
        ("algorithm.ema_decay", "1", "from 0 to below 1"),
        ("data.harmful_fraction", "-0.5", "or -1 to leave it to the mix"),
        ("rollout.group", "1", "compares rollouts of one prompt"),
        (
            "guards.stop",
            "overrefusal",
            "no alarm 'overrefusal'; expected some of skipped, unscored",
        ),
        ("guards.window", "0", "positive"),
        ("guards.echo", "3", "from 0 to 1"),
        ("guards.kl", "-1", "0 or more"),
        ("guards.stop", "kl", "guards.kl=0 turns that alarm off"),
        ("guards.stop", "heldout", "needs eval.every"),
    ],
)
def test_mistakes_are_named(key, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        tiny((key, value))


def test_a_kl_ceiling_needs_a_reference():
    with pytest.raises(ValueError, match="needs algorithm.reference=True"):
        tiny(("algorithm.reference", "false"), ("guards.kl", "0.5"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"steps": "60", "guards.stop": "", "eval.limit": "5", "checkpoint.keep": "9"}, ""),
        ({"algorithm.micro_batch": "4"}, "algorithm.micro_batch: 0 then, 4 now"),
        ({"steps": "49"}, ValueError("steps=49, but the run is already at step 50")),
        ({"steps": "60", "optimizer.decay": "0.5"}, ValueError("steps: 200 then, 60 now, and the learning rate's")),
        ({"seed": "3", "rollout.top_k": "9"}, ValueError("rollout.top_k: 0 then, 9 now; seed: 0 then, 3 now")),
        ({"reward_model.target": "http://b/"}, ValueError("reward_model.target:")),
    ],
)
def test_what_a_resumption_may_change(changes, expected):
    """A run that goes on as another one; or one that cannot go on, with more steps or on other chips."""
    settings = {"steps": "200", "optimizer.decay": "0.0", "algorithm.micro_batch": "0"}
    then = resumption.plain(dataclasses.asdict(tiny(*settings.items())))
    now = tiny(*(settings | changes).items())
    if not isinstance(expected, ValueError):
        resumption.check(then, now, step=50)
        assert "; ".join(resumption.rounding(then, now)) == expected
        return
    with pytest.raises(ValueError, match=re.escape(str(expected))):
        resumption.check(then, now, step=50)


def test_an_unknown_field_in_a_file_is_an_error():
    config = config_lib.defaults()
    with pytest.raises(AttributeError):
        config.rollout.gruop = 4
    with config.unlocked():
        config.rollout.gruop = 4
    with pytest.raises(ValueError, match="did you mean config.rollout.group"):
        config_lib.resolve(config)


def test_a_mistake_ends_in_one_line(capsys):
    assert main(["train", f"--config={ROOT}/configs/tiny.py", "--config.stepz=3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean --config.steps" in error
    assert main(["train", "--config=configs/none.py"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_choices_are_those_of_the_rooms_that_read_them():
    """config is below those rooms and cannot ask them; a choice added there and not here could not be chosen."""
    choices = checks.CHOICES
    assert choices["algorithm.advantage"] == tuple(advantages.ADVANTAGES)
    assert choices["algorithm.truncated"] == advantages.TRUNCATIONS
    assert choices["algorithm.aggregation"] == losses.AGGREGATIONS
    assert set(choices["algorithm.kl_kind"]) == set(kl.KL_KINDS) - {"k1"}
    assert choices["algorithm.kl_controller"] == kl.KL_CONTROLLERS
    assert choices["reward.helpfulness"] == helpfulness.HELPFULNESS_MODES
    assert choices["reward.format_mode"] == oracle.FORMAT_MODES
    assert choices["reward_model.kind"] == factory.KINDS
    assert choices["model.remat"] == tuple(REMAT)


# Where a section is handed on whole, as ``settings``.
HANDED_ON = {
    "guards": ("train/guards.py",),
    "optimizer": ("train/optimizer.py",),
    "reward": ("train/steps.py",),
    "algorithm": ("train/steps.py", "train/objectives.py"),
    "critic": ("train/objectives.py",),
    "checkpoint": ("train/checkpoint.py",),
}


def test_every_field_is_read():
    """A field that nothing reads is a promise that is not kept. ``rollout.bucket`` is read as that, as ``r.bucket``, or
    as ``settings.bucket`` in a file that the section is handed to."""
    package = ROOT / "alphaalign_jax"
    files = {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob("*.py")}
    everywhere = "".join(text for name, text in files.items() if not name.startswith("config/"))
    everywhere += files["config/settings.py"].split("def run_dir")[1]

    def unread(section, name="config"):
        handed = "".join(files[file] for file in HANDED_ON.get(name, ()))
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                yield from unread(value, field.name)
            elif not re.search(rf"\b({name}|{name[0]})\.{field.name}\b", everywhere) and not re.search(
                rf'\b_?settings\.{field.name}\b|"{field.name}": _Rule', handed
            ):
                yield f"{name}.{field.name}"

    assert list(unread(config_lib.Config())) == []
