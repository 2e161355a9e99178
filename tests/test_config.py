"""Configs: every file resolves, every mistake is named, every field is read by something."""

import dataclasses
import io
import pathlib
import re

import pytest
import rich.console
from jax.sharding import AbstractMesh

from alphaalign_jax import config as config_lib
from alphaalign_jax.algorithms import advantages, kl, losses
from alphaalign_jax.cli import main
from alphaalign_jax.config import checks
from alphaalign_jax.models import ModelSpec, Network, published
from alphaalign_jax.models.transformer import REMAT
from alphaalign_jax.parallel import Layout, rule_table
from alphaalign_jax.parallel.mesh import MESH_AXES
from alphaalign_jax.planning import chips as described
from alphaalign_jax.planning import command, sweep
from alphaalign_jax.planning.programs import Tokens
from alphaalign_jax.rewards import helpfulness, oracle
from alphaalign_jax.rewards.reward_model import factory
from alphaalign_jax.train import assembly, resumption

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
    for text in ("0.75,0.25", "(0.75, 0.25)", "[0.75,0.25]"):
        assert tiny(("data.ratios", text)).data.ratios == (0.75, 0.25)
    (one,) = tiny(("data.ratios", "1")).data.ratios
    assert one == 1.0 and isinstance(one, float)


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
        ("reward_model.target", "", "reward_model.target is empty, and reward_model.kind='callable' needs one: a fun"),
        ("reward_model.dtype", "float64", "expected one of float32, bfloat16, float16"),
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
        ("guards.stop", "rollbacks", "no alarm 'rollbacks'"),
        ("guards.look_on", "overrefusal", "no alarm 'overrefusal'"),
        ("checkpoint.keep_best", "false", "needs looks that see a collapse, and a best checkpoint to go back to"),
        ("guards.collapse", "0", "needs looks that see a collapse, and a best checkpoint to go back to"),
        ("guards.rollbacks", "-1", "0 or more"),
        ("guards.rollback_scale", "0", "a factor above 0 and at most 1"),
        ("data.validation", "0.6", "a share of the training prompts from 0 to 0.5"),
        ("eval.every", "0", "eval.every=0 never looks at them"),
        ("algorithm.anchor", "0", "positive"),
        ("algorithm.max_kl", "-1", "0 or more"),
        ("optimizer.b1", "1", "from 0 to below 1"),
        ("optimizer.b2", "0.9999999999", "from 0 to below 1"),
        ("critic.optimizer.b1", "-0.1", "from 0 to below 1"),
        ("critic.optimizer.b2", "1", "from 0 to below 1"),
        ("warmup.optimizer.b2", "2", "from 0 to below 1"),
        ("optimizer.eps", "0", "positive"),
        ("critic.optimizer.eps", "0", "positive"),
        ("warmup.optimizer.eps", "-1e-8", "positive"),
        ("optimizer.eps", "1e-46", "expected a finite number: 0, or"),
        ("reward_model.batch", "0", "positive"),
        ("reward_model.tensor", "0", "positive"),
        ("reward_model.max_length", "0", "positive"),
        ("reward_model.timeout_s", "0", "positive"),
        ("reward_model.retries", "-1", "0 or more"),
        ("reward_model.label", "-2", "-1 for the only one"),
        ("rollout.max_logprob_gap", "0", "positive"),
        ("rollout.top_p", "0", "above 0 and at most 1"),
        ("rollout.top_p", "1.5", "above 0 and at most 1"),
        ("rollout.temperature", "1e-50", "expected a finite number: 0, or"),
        ("reward.r_f", "-0.5", "0 or more"),
        ("reward.r_a", "-1", "0 or more"),
        ("reward_model.dtype", "float8", "float32, bfloat16, float16"),
        ("algorithm.clip_low", "-0.2", "must be in (0, 1]"),
        ("algorithm.clip_high", "-0.2", "positive"),
        ("algorithm.kl_target", "0", "positive"),
        ("algorithm.kl_horizon", "0", "positive"),
        ("mesh.tensor", "0", "or -1 for what the other axes leave"),
        ("mesh.fsdp", "-2", "or -1 for what the other axes leave"),
        ("rollout.top_k", "2147483648", "expected a number from -2147483648 to 2147483647"),
        ("seed", "9223372036854775808", "expected a number from -2147483648 to 2147483647"),
        ("seed", "-1", "0 or more"),
        ("steps", "2147483647", "are 4294967294 updates: expected at most 2147483647"),
        ("data.ratios", "0.5,half", "expected tuple"),
        ("data.ratios", "(0.5, 'half')", "expected float"),
        ("data.ratios", "0.5,nan", "expected a finite number"),
        ("data.train", "('a.jsonl')", "expected tuple"),
        ("data.train", f"({'-' * 20_000}1,)", "expected tuple"),
        ("data.train", f"({'not ' * 20_000}1,)", "expected tuple"),
        ("data.train", "(" * 20_000, "expected tuple"),
        ("model.path", "a\0b", "has a NUL in it"),
    ],
)
def test_mistakes_are_named(key, value, words):
    """A number out of its range is NaN or nothing at all many compiled steps later, or an error of another's code."""
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        tiny((key, value))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["heldout", "collapse"])
def test_alarms_of_looks_need_looks(name):
    """An alarm that is to end the run, and cannot come on."""
    without = [("eval.every", "0"), ("data.validation", "0"), ("guards.rollbacks", "0")]
    with pytest.raises(ValueError, match=f"'{name}' needs eval.every, which is 0"):
        tiny(*without, ("guards.stop", name))


def numbers(section, *kinds, prefix=""):
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, *kinds, prefix=f"{prefix}{field.name}.")
        elif type(value) in kinds:
            yield f"{prefix}{field.name}"


def test_every_number_has_a_range():
    """A setting that is added, and read once everything is compiled: none of them may be -7."""
    for key in numbers(config_lib.Config(), int, float):
        with pytest.raises(ValueError, match=rf"{key.rpartition('.')[2]}=-7"):
            tiny((key, "-7"))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "1e39"])
def test_no_setting_is_nan_or_infinite(text):
    """From the command line or a file: a clip, a floor or a time-out that is NaN compares false with everything, and
    what float32 cannot hold is infinite in the step."""
    keys = list(numbers(config_lib.Config(), float))
    assert len(keys) > 45
    for key in keys:
        config = config_lib.defaults()
        config.update_from_flattened_dict({key: float(text)})
        with pytest.raises(ValueError, match=f"config.{key}=.*: expected a finite number"):
            config_lib.resolve(config)
        with pytest.raises(ValueError, match=f"config.{key}=.*: expected a finite number"):
            tiny((key, text))


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
        ({"reward_model.target": "elsewhere/lexical.py:other"}, ValueError("reward_model.target:")),
        ({"reward_model.target": "elsewhere/lexical.py:score", "data.train": "a.csv", "model.path": "b"}, ""),
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


DEFAULTS = "from alphaalign_jax.config import defaults\n"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("run.json", "{}", "run.json: expected a Python file with get_config(argument)"),
        ("README.md", "# A run", "README.md: expected a Python file"),
        ("a.py", "x = 1", "a.py: no get_config in it; define get_config(argument)"),
        ("a.py", "get_config = 5", "a.py: no get_config in it"),
        ("a.py", "def get_config(arg:\n", "a.py: the config cannot be read (SyntaxError:"),
        ("a.py", "x = '\0'", "a.py: the config cannot be read ("),
        ("a.py", "\n1 / 0", "a.py:2: the config cannot be read (ZeroDivisionError: division by zero); correct it"),
        ("a.py", "import nowhere_at_all", "a.py:1: the config cannot be read (ModuleNotFoundError:"),
        ("a.py", "raise SystemExit(0)", "a.py:1: the config cannot be read (SystemExit: 0)"),
        ("a.py", "def get_config(arg):\n    return {}[arg]", "a.py:2: the config cannot be read (KeyError:"),
        ("a.py", "def get_config(arg):\n    raise ValueError('one\\ntwo')", "(ValueError: one two)"),
        ("a.py", "def get_config(arg):\n    raise ValueError('a.py:: no such')", "a.py:: no such"),
        ("a.py", "def get_config():\n    pass", "a.py: the config cannot be read (TypeError: get_config() takes 0"),
        ("a.py", "def get_config(arg):\n    pass", "a.py: get_config returns NoneType; return the ConfigDict"),
        (
            "a.py",
            "def get_config(arg):\n    return {'steps': 3}",
            "a.py: get_config returns dict; return the ConfigDict",
        ),
        (
            "a.py",
            f"{DEFAULTS}def get_config(arg):\n    c = defaults()\n    c.rollout.gruop = 4\n    return c",
            'Did you mean "group" instead of "gruop"?',
        ),
        (
            "a.py",
            "from ml_collections import FrozenConfigDict\ndef get_config(arg):\n    return FrozenConfigDict()",
            "a.py: get_config returns FrozenConfigDict",
        ),
        (
            "a.py",
            "from ml_collections import ConfigDict\ndef get_config(arg):\n    return ConfigDict({'rollout': 5})",
            "config.rollout=5: expected a section with prompts,",
        ),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, name, text, words):
    """An AttributeError of importlib, or the traceback of somebody's typing error."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        config_lib.load(f"{tmp_path / name}")
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700
    assert ("cannot be read" in words) <= (error.value.__cause__ is not None)


def test_a_name_that_is_too_long_is_no_file():
    with pytest.raises(ValueError, match="no such file"):
        config_lib.load("x" * 5000)


@pytest.mark.parametrize(
    "text, words",
    [
        ("(5,)", "data source 5: expected a path, or a dict with one"),
        ("(None,)", "data source None: expected a path"),
        ("({},)", "data source {}: expected a path"),
        ("({'kind': 'csv'},)", "expected a path, or a dict with one"),
        ("({'path': 5},)", "data source 5: path=5: expected a text"),
        ("({'path': 'a.csv', 'where': 5},)", "where=5: expected columns and their values, such as {'split': 'train'}"),
        ("({'path': 'a.csv', 'where': (('a', 'b', 'c'),)},)", "expected columns and their values"),
        ("({'path': 'a.csv', 'where': (([], 'b'),)},)", "expected columns and their values"),
        ("({'path': 'a.csv', 'label_map': 'ab'},)", "label_map='ab': expected one of 'safe_unsafe'"),
        ("({'path': 'a.csv', 'label_map': {'ab': 'cd'}},)", "'ab' maps to 'cd'; expected one of"),
        ("({'path': 'a.csv', 'label_map': {'A': 'benign', 'a': 'harmful'}},)", "'a' maps to both labels"),
        ("({'path': 'a.csv', 'label_key': 5},)", "label_key=5: expected the name of a column, such as 'is_safe'"),
        ("({'path': 'a.csv', 'ratio': 'x'},)", "ratio='x': expected a share"),
        ("({'path': 'a.csv', 'ratio': 1e999},)", "ratio=inf: expected a share"),
        (f"({{'path': 'a.csv', 'ratio': {'9' * 400}}},)", "expected a share: 0, or positive and at most 1"),
        ("({'path': 'a.csv', 'split': None},)", "split=None: expected a text"),
        ("({'path': 'a.csv', 5: 'x', 'y': 6},)", "no field 5; the fields are"),
        ("({'path': 'a\\0.csv'},)", "path contains a NUL or a lone surrogate"),
        ("('a\\0.csv',)", "path contains a NUL or a lone surrogate"),
        ("('\\ud800.csv',)", "path contains a NUL or a lone surrogate"),
    ],
)
def test_sources_that_are_none_are_refused(text, words):
    """A TypeError from the middle of a file's reading, or a label map of the letters of a word."""
    for key in ("data.train", "data.heldout"):
        with pytest.raises(ValueError, match=re.escape(words)):
            assembly.read_rows(tiny((key, text)))


@pytest.mark.parametrize("text", ["(5,)", "mlp,vocab", "(('mlp', 5),)", "((),)", "({'mlp': 'fsdp'},)"])
def test_rules_that_are_none_are_refused(text):
    """A word is a row of letters."""
    with pytest.raises(ValueError, match="rule .*: expected .logical axis, mesh axis"):
        assembly.layouts(tiny(("mesh.train_overrides", text)))


@pytest.mark.parametrize(
    "kind, target, words",
    [
        ("http", "http://me:SECRET@host/score", "no user or password in the url"),
        ("http", "http://SECRET@host/score", "no user or password in the url"),
        ("http", "https://host/score?key=SECRET", "no query in the url"),
        ("http", "me:SECRET@host/score", "no user or password in the url"),
        ("http", "http://SECRET host/", "url must look like http://host:port/path"),
        ("http", "http://SECRET:99999/", "url must look like http://host:port/path"),
        ("none", "http://me:SECRET@host/score", "no user or password in the url"),
        ("classifier", "gs://me:SECRET@bucket/model", "no user or password in the url"),
        ("callable", "https://host/score?key=SECRET", "no query in the url"),
        ("http", "http://host:8123/score", ""),
        ("classifier", "gs://bucket/model", ""),
        ("classifier", "org/a@b", ""),
    ],
)
@pytest.mark.parametrize("helpfulness", ["off", "raw"])
def test_a_target_holds_no_secret(kind, target, words, helpfulness):
    """It is written into every checkpoint and summary, also of a run that does not read it."""
    settings = [("reward_model.kind", kind), ("reward_model.target", target), ("reward.helpfulness", helpfulness)]
    if kind == "none":
        settings[2] = ("reward.helpfulness", "off")
    if not words:
        assert tiny(*settings).reward_model.target == target
        return
    with pytest.raises(ValueError, match=f"config.reward_model.target: .*{words}") as error:
        tiny(*settings)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--sweep.nope=1"], "--sweep.nope: unknown config key"),
        (["--sweep.rollout.gruop=4,8"], "did you mean --sweep.rollout.group?"),
        (["--sweep.rollout=1"], "--sweep.rollout: is a section"),
        (["--sweep.mesh.tensor=1,two"], "--sweep.mesh.tensor=two: expected int"),
        (["--sweep", "--config.nope=1"], "--config.nope: unknown config key"),
        (["--sweep", "--config=none.py"], "--config=none.py: no such file"),
        (["--price=nan"], "--price=nan: expected dollars"),
        (["--price=inf"], "--price=inf: expected dollars"),
        (["--price=-1"], "--price=-1.0: expected dollars"),
        (["--topology=cpu:0"], "cpu:0: expected a positive number of devices"),
        (["--topology=v6e:0x0"], "v6e does not come in this shape"),
        (["--topology=v6e:998x998"], "v6e does not come in this shape"),
        (["--prompt_tokens=-1"], "prompts of 140 + -1 tokens"),
        (["--prompt_tokens=1099511627776"], "prompts of 140 + 1099511627776 tokens"),
        (["--prefix_tokens=-1"], "prompts of -1 + 513 tokens"),
        (["--prefix_tokens=1099511627776", "--prompt_tokens=1"], "prompts of 1099511627776 + 1 tokens"),
    ],
)
def test_plans_of_nothing_are_refused(arguments, words, tmp_path, capsys):
    """A misspelt setting was a sweep of refused layouts, which exits with 0."""
    common = [f"--config={ROOT}/configs/tiny.py", f"--out={tmp_path}/plan.json"]
    assert main(["plan", *common, "--topology=cpu:1", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["v6e:1x1", "v6e:3x3"])
def test_a_shape_that_there_is_not_is_not_for_want_of_a_compiler(name):
    pytest.importorskip("libtpu")
    with pytest.raises(ValueError, match="v6e does not come in this shape .*try 2x2"):
        described.topology(name)


def test_a_setting_that_looks_like_markup_is_shown(tmp_path, capsys):
    """rich takes [/x] for the end of a style that nobody began."""
    common = [f"--config={ROOT}/configs/tiny.py", f"--out={tmp_path}/plan.json", "--topology=cpu:1"]
    assert main(["plan", *common, "--sweep.mesh.train_rules=[/x],[red]y"]) == 0
    said = capsys.readouterr().out
    assert "[/x]" in said and "[red]y" in said
    layouts, shown = [sweep.Layout({"mesh.train_rules": "[/x]"}, None, "")], io.StringIO()
    table = command.sweep_table(layouts, [], described.CHIPS["cpu"], "[/y].py")
    rich.console.Console(file=shown, width=80, force_terminal=True).print(table)
    assert "[/x]" in shown.getvalue() and "[/y].py" in shown.getvalue()


def test_prompts_of_a_plan_are_those_that_the_config_lets_in():
    config = tiny()
    room = config.data.max_prompt_tokens - 140
    assert Tokens.of(config, 140, None).prompt >= room and Tokens.of(config, 140, room) == Tokens.of(config, 140, None)
    with pytest.raises(ValueError, match="together no more than that"):
        Tokens.of(config, 140, room + 1)


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
