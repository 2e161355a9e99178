"""The whole loop at its smallest, on one device (``test_mesh`` has the others): what a run leaves behind, resume, and
the commands that read it."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rich.console
import run_cases
import safetensors.numpy
from run_cases import PROMPTS, ROOT, lines, run, saved

from alphaalign_jax import config, hf
from alphaalign_jax.cli import main
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation import commands, outcome
from alphaalign_jax.evaluation.respond import Response
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError
from alphaalign_jax.train import assembly, objectives
from alphaalign_jax.train.iteration import Iteration, check_gap
from alphaalign_jax.train.records import Records


@pytest.fixture(scope="module", autouse=True)
def shared():
    with run_cases.shared_programs():
        yield


@pytest.fixture(scope="module")
def finished(work):
    assert run(work, "whole", 3) == 0
    return work / "whole"


def test_a_run_leaves_what_it_promises(finished):
    """Fields that a reader of the summary counts on; a metric that silently went NaN or missing."""
    summary = json.loads((finished / "summary.json").read_text())
    for when in ("before", "after"):
        assert summary[when]["n_harmful"] == 2 and summary[when]["n_benign"] == 2
        assert all(0 <= summary[when][key] <= 1 for key in ("harmful_answered", "benign_refused", "format_rate"))
    assert (
        summary["wall_seconds"] > 0
        and summary["versions"]["jax"]
        and summary["command"].startswith("alphaalign train --config=")
    )
    assert summary["best"] == {"step": 3, "score": 0.0} and summary["exported_step"] == 3, "the last of equals"
    assert summary["looks"] == [{"step": step, "score": 0.0} for step in range(4)] and summary["rollbacks"] == []
    metrics = lines(finished / "metrics.jsonl")
    steps = [record for record in metrics if record["phase"] == "train"]
    assert [record["step"] for record in steps] == [0, 1, 2]
    assert all(np.isfinite(value) for record in metrics for value in record.values() if isinstance(value, float))
    names = {"actor/pg_loss", "actor/kl", "actor/entropy", "actor/grad_norm", "critic/vf_loss", "critic/score/mean"}
    names |= {"response_length/clip_ratio", "rollout/logprob_gap/max", "reward/spread", "safety/format_rate"}
    names |= {"safety/refusal_rate_harmful", "safety/refusal_rate_benign", "timing_s/gen", "timing_s/update_actor"}
    names |= {"timing_s/reward", "timing_s/reward_wait"}
    names |= {"actor/lr", "critic/lr", "critic/score/max", "response_length/min"}
    assert names <= steps[0].keys()
    assert steps[0]["rollout/logprob_gap/max"] < 1e-3, "sampler and trainer disagree"
    assert all(step["rollout/logprob_gap/mean"] < 1e-4 for step in steps), "the gap is a metric of every step"
    # The first step compiles; the second scores without the policy's pass, which is a program of its own.
    assert steps[0]["perf/compiles"] > 0 and steps[2]["perf/compiles"] == 0, "a step compiles anew"
    looks = [record for record in metrics if record["phase"] in ("before", "eval", "after")]
    counts = [record["eval/n_harmful"] + record["eval/n_benign"] for record in looks]
    assert [record["step"] for record in looks] == [0, 0, 1, 2, 3, 3] and counts == [4, 2, 2, 2, 2, 4]
    assert len({step["actor/kl_coef"] for step in steps}) == 3, "the controller does not see its own last value"
    samples = [s for s in lines(finished / "samples.jsonl") if s["phase"] == "train"]
    assert {"prompt", "label", "response", "format", "refusal", "reward"} <= samples[0].keys()


def test_torch_stays_out(finished):
    """torch is there for the tests: a library that imports it where it is installed costs a run seconds and memory."""
    code = f"""
import sys
from alphaalign_jax import hf
from alphaalign_jax.evaluation import commands
from alphaalign_jax.train import finetune, loop
hf.load_tokenizer({str(finished / "export")!r})
hf.load_config({str(finished / "export")!r})
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_nothing_is_printed_that_is_not_ours(work, finished):
    """Orbax warned of a metadata file that checkpoints do not have, and transformers that there is no PyTorch, which a
    run does not need."""
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
from alphaalign_jax.cli import main
sys.exit(main(["convert", "--from={finished}", "--to={work / "quiet-orbax"}", "--format=orbax"]))
"""
    run = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert run.stdout == f"{finished} in format orbax: {work / 'quiet-orbax'}\n"


def test_resumed_equals_never_stopped(work, finished, monkeypatch, capsys):
    """Stopped by a reward model that is down: a resume that loses optimizer moments, the KL coefficient, the key or the
    data position gives another state two steps later."""
    step = Iteration.__call__

    def failing(self, state, number):
        if number == 1:
            raise RewardModelError("the reward model is down")
        return step(self, state, number)

    with monkeypatch.context() as patched:
        patched.setattr(Iteration, "__call__", failing)
        assert run(work, "stopped", 3) == 2
    assert "the reward model is down" in capsys.readouterr().err
    assert run(work, "stopped", 3, "--resume", "--config.rollout.top_k=9") == 2
    assert "differs from the run's in rollout.top_k: 0 then, 9 now" in capsys.readouterr().err
    assert run(work, "stopped", 3, "--resume", "--config.reward_model.retries=9") == 0
    ours, theirs = saved(work / "stopped", 3), saved(finished, 3)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path
    seen = lambda folder: [(r["phase"], r["step"]) for r in lines(folder / "metrics.jsonl")]
    assert seen(work / "stopped") == seen(finished)


def test_the_moving_average_is_the_run_s_result(finished):
    """An average that starts at the initial policy, skips a step, or is kept and not exported."""
    table, decay = "['embed']['table']", 0.5
    steps = [saved(finished, step) for step in (1, 2, 3)]
    ages = decay ** np.arange(2, -1, -1)
    expected = sum(age * step[f"['actor']{table}"] for age, step in zip(ages, steps, strict=True)) / ages.sum()
    average = steps[-1][f"['average']{table}"]
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(average, steps[-1][f"['actor']{table}"])
    exported = safetensors.numpy.load_file(finished / "export/model.safetensors")
    assert np.array_equal(exported["model.embed_tokens.weight"], average)
    assert np.array_equal(hf.load(finished)[1]["embed"]["table"], average)


def test_the_moving_average_counts_from_the_actor_s_first_update(work):
    """While a critic warms up the policy is the initial one: averaged in, it is a quarter of what is exported. And a
    resumed run that counts from its own start exports other weights."""
    table, options = "['embed']['table']", ["--config.algorithm.critic_warmup=2", "--config.export=false"]
    assert run(work, "critic-first", 4, *options) == 0
    steps = [saved(work / "critic-first", step) for step in range(5)]
    actor = [step[f"['actor']{table}"] for step in steps]
    average = [step[f"['average']{table}"] for step in steps]
    assert np.array_equal(actor[2], actor[0]) and not np.array_equal(actor[3], actor[2])
    assert np.array_equal(average[2], actor[0]) and np.array_equal(average[3], actor[3])
    np.testing.assert_allclose(average[4], (actor[4] + 0.5 * actor[3]) / 1.5, rtol=1e-5, atol=1e-7)
    coefficients = [step["['rest']['kl_coef']"] for step in steps]
    assert coefficients[2] == coefficients[0] != coefficients[3], "a policy that cannot move has no KL to answer to"
    for step in (3, 4):  # resumed at the actor's first update
        shutil.rmtree(work / f"critic-first/checkpoints/{step}")
    (work / "critic-first/summary.json").unlink()
    assert run(work, "critic-first", 4, *options, "--resume") == 0
    again = saved(work / "critic-first", 4)
    assert all(np.array_equal(again[path], steps[4][path]) for path in steps[4])


def test_memory_settings_may_change_on_the_way(work, finished, capsys):
    """Where memory ran out, half of the micro-batch is what one goes on with; that rounding differs is said."""
    shutil.copytree(finished, work / "smaller", ignore=shutil.ignore_patterns("export", "summary.json"))
    shutil.rmtree(work / "smaller/checkpoints/3")
    assert run(work, "smaller", 3, "--resume", "--config.algorithm.micro_tokens=400") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "up to rounding: algorithm.micro_tokens: 0 then, 400 now" in said


def test_the_largest_slice_within_a_budget():
    """A budget that is rounded up runs out of memory; slices of unequal size, or that do not divide, compile twice."""
    assert [objectives.largest_slice(12, 100, budget, 1) for budget in (100, 299, 300, 500, 9999)] == [1, 2, 3, 4, 12]
    assert objectives.largest_slice(16, 100, 250, 4) == 8
    with pytest.raises(ValueError, match="micro_tokens=99: a prompt with its rollouts has 100 token slots"):
        objectives.largest_slice(16, 100, 99, 4)


def test_a_slice_is_of_each_shard():
    """Counted over all chips, a slice that fits 16 of them is refused on 64, or takes four times as many turns."""
    assert [objectives.even_slice(16, each, 4, "x") for each in (0, 1, 2, 4)] == [0, 4, 8, 16]
    with pytest.raises(ValueError, match=r"warmup.micro_batch=3 on each of 4 shard\(s\): 16 rows do not divide"):
        objectives.even_slice(16, 3, 4, "warmup.micro_batch")
    with pytest.raises(ValueError, match="12 rows do not divide"):  # it does by 4, and by 2, not by both
        objectives.even_slice(12, 4, 2, "warmup.micro_batch")


def test_sampling_a_step_ahead_resumes_exactly(work):
    """The responses that wait between two steps came from weights that are gone: a resume that samples them anew goes
    on from another policy."""
    options = ["--config.rollout.ahead=true", "--config.export=false", "--config.algorithm.ema_decay=0"]
    assert run(work, "ahead", 3, *options) == 0
    steps = [record for record in lines(work / "ahead/metrics.jsonl") if record["phase"] == "train"]
    gaps = [step["rollout/logprob_gap/mean"] for step in steps]
    assert gaps[0] < 1e-4 < min(gaps[1:]), "the second step's responses are not from the policy before the first update"
    whole = saved(work / "ahead", 3)
    shutil.rmtree(work / "ahead/checkpoints/3")
    shutil.rmtree(work / "ahead/checkpoints/2")
    (work / "ahead/summary.json").unlink()
    # Where the reference lies between its uses changes nothing either.
    assert run(work, "ahead", 3, *options, "--resume", "--config.algorithm.reference_on_host=true") == 0
    again = saved(work / "ahead", 3)
    assert again.keys() == whole.keys() and any("ahead" in path for path in whole)
    for path in whole:
        assert np.array_equal(again[path], whole[path]), path


def test_a_run_is_the_same_on_eight_devices(work, finished, capsys):
    """Warm-up, rollouts, updates, evaluation and checkpoints on a mesh, resumed half-way on another, and the export."""
    mesh = [f"--config.mesh.{setting}" for setting in ("devices=8", "fsdp=4", "tensor=2")]
    assert run(work, "mesh", 1, *mesh) == 0
    shutil.rmtree(work / "mesh/export")
    (work / "mesh/summary.json").unlink()
    assert run(work, "mesh", 2, "--resume") == 0
    assert "up to rounding: mesh.devices: 8 then, 1 now" in " ".join(capsys.readouterr().out.split())
    # Neither weights nor losses of the updates: no response earns anything here, and whitening and Adam blow up the
    # rounding that is left (`test_mesh` compares updates that have something to learn).
    names = ("sft/loss", "sft/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean")
    names += ("prompt_length/mean", "safety/format_rate", "eval/n_harmful")
    ours, theirs = (lines(folder / "metrics.jsonl") for folder in (work / "mesh", finished))
    # A run of two steps has the look after them, and no step after it.
    until = {"warmup": 99, "train": 2, "before": 1, "eval": 3, "after": 0}
    theirs = [record for record in theirs if record["step"] < until[record["phase"]]]
    for a, b in zip([record for record in ours if record["phase"] != "after"], theirs, strict=True):
        for name in (name for name in names if name in b):
            # If rounding changes one sampled token, the rest of that response changes: one of sixteen.
            sampled = name in ("actor/entropy", "critic/score/mean", "response_length/mean")
            rtol = 0.15 if sampled else 1e-2
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-3, err_msg=f"{b['phase']} {name}")
    exported = safetensors.numpy.load_file(work / "mesh/export/model.safetensors")
    table = saved(work / "mesh", 2)["['average']['embed']['table']"]
    assert np.array_equal(exported["model.embed_tokens.weight"], table)


def test_tensorboard_forgets_what_a_resumption_takes_back(tmp_path):
    """Steps lost after the checkpoint, shown beside those that replaced them; or an evaluation lost that stays true."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    for resume_step, steps in ((None, (0, 1, 2)), (2, (2,))):
        records = Records(tmp_path)
        records.begin(resume_step, evaluated=2)
        for step in steps:
            records.metrics("train", step, {"loss": float(10 * step + len(steps))})
        if resume_step is None:
            records.metrics("eval", 2, {"rate": 0.5})  # after two steps: of the weights that are resumed
            records.metrics("eval", 3, {"rate": 0.7})
        records.close()

    def shown(folder, tag):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        events.Reload()
        return [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(tag)]

    assert shown("train", "loss") == [(0, 3.0), (1, 13.0), (2, 21.0)]
    assert shown("eval", "rate") == [(2, 0.5)]


def test_the_label_audit_asks_the_model(work, finished):
    """Every row with its own responses' share, of the run's model."""
    options = ["--n=2", "--batch=8", "--max_new_tokens=12", "--devices=1"]
    data, out = work / "heldout.jsonl", work / "audit.json"
    assert main(["data", "audit", f"--data={data}", f"--model={finished}", *options, f"--out={out}"]) == 0
    doubts = json.loads(out.read_text())["disagreement"]
    assert [doubt["prompt"] for doubt in doubts[:2]] == [row["prompt"] for row in PROMPTS if row["label"] == "harmful"]
    assert [doubt["disagreement"] for doubt in doubts] == [1, 1, 0, 0], "it refuses nothing yet"


def test_a_second_start_in_the_same_folder_is_refused(work, finished, capsys):
    """Two runs mixed in one metrics file."""
    assert run(work, "whole", 3) == 2
    assert "continue with --resume, or choose another --config.out" in capsys.readouterr().err
    assert run(work, "nothing", 3, "--resume") == 2
    assert "holds no finished checkpoint" in capsys.readouterr().err


def test_a_critic_that_misses_a_tensor_is_refused_at_once(work, finished, capsys):
    """Its weights are read after the warm-up and the first evaluation: an hour late for a file that is incomplete."""
    shutil.copytree(finished / "export", work / "critic")
    tensors = safetensors.numpy.load_file(work / "critic/model.safetensors")
    del tensors["model.norm.weight"]
    safetensors.numpy.save_file(tensors, work / "critic/model.safetensors", metadata={"format": "np"})
    assert run(work, "with-critic", 1, f"--config.critic.path={work / 'critic'}", "--config.critic.num_layers=0") == 2
    said = capsys.readouterr()
    assert "model.norm.weight" in said.err and "warm-up" not in said.out


def generate(work, model, name, *extra):
    out = work / name
    prompts = work / "heldout.jsonl"
    common = ["--batch=8", "--max_new_tokens=12", "--devices=1"]
    assert main(["generate", f"--model={model}", f"--prompts={prompts}", f"--out={out}", *common, *extra]) == 0
    return lines(out)


def test_run_folder_and_export_give_transformers_greedy_text(work, finished):
    """The export is the model that was trained, and another library reads it the same way."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alphaalign_jax.rewards.template import render

    ours = generate(work, finished / "export", "a.jsonl")
    assert ours == generate(work, finished, "b.jsonl"), "the run's newest checkpoint is not what was exported"
    assert ours == generate(work, finished / "checkpoints/3", "b3.jsonl")
    assert ours != generate(work, finished / "checkpoints/0", "b0.jsonl"), "an earlier checkpoint is itself"
    tokenizer = AutoTokenizer.from_pretrained(finished / "export")
    model = AutoModelForCausalLM.from_pretrained(finished / "export")
    for row, record in zip(PROMPTS, ours, strict=True):
        assert record["prompt"] == row["prompt"]
        turn = [{"role": "user", "content": render(row["prompt"])}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            wanted = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        assert record["samples"][0]["token_ids"] == wanted


def test_generate_answers_the_last_turn_of_a_conversation(work, finished):
    """A history that is left out, or an instruction that stands in all user turns, asks for another answer."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alphaalign_jax.rewards.template import render

    context = [("system", "Be brief."), ("user", "Where is Paris?"), ("assistant", "In France.")]
    context = [{"role": role, "content": text} for role, text in context]
    last = {"role": "user", "content": "How do I bake bread?"}
    (work / "chat.jsonl").write_text(json.dumps({"messages": [*context, last]}) + "\n")
    export, out = finished / "export", work / "chat-out.jsonl"
    arguments = [f"--model={export}", f"--prompts={work / 'chat.jsonl'}", f"--out={out}"]
    assert main(["generate", *arguments, "--max_new_tokens=12", "--devices=1"]) == 0
    [record] = lines(out)
    assert record["prompt"] == last["content"] and record["context"] == context
    turns = [*context, {"role": "user", "content": render(last["content"])}]
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        wanted = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert record["samples"][0]["token_ids"] == wanted
    assert main(["generate", *arguments, "--prefix=So.<|im_end|>"]) == 2, "a prefix that ends the turn"


def test_generate_samples_and_prefix(work, finished, capsys):
    """Every sample has the promised fields; a forced prefix starts each one and has no log-probs: 0.0 is that of a
    token that the model was sure of."""
    records = generate(
        work, finished / "export", "c.jsonl", "--n=3", "--temperature=3.0", "--prefix=Sure, here", "--template=false"
    )
    for record in records:
        assert len(record["samples"]) == 3
        for sample in record["samples"]:
            assert set(sample) == {"text", "token_ids", "logprobs", "finish", "format", "refusal"}
            assert sample["text"].startswith("Sure, here") and len(sample["token_ids"]) == len(sample["logprobs"])
            forced = [p is None for p in sample["logprobs"]]
            assert forced[0] and not forced[-1] and forced == sorted(forced, reverse=True)
            assert sample["logprobs"][-1] < 0.0
    assert len({s["text"] for r in records for s in r["samples"]}) > 4
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("> ")] == [f"> {row['prompt']}" for row in PROMPTS[:3]]
    assert sum(line.startswith("Sure, here") for line in shown) == 3, "a line each, whatever is in it"


def test_evaluate_gives_the_summarys_fields(work, finished):
    out = work / "outcome.json"
    data = work / "heldout.jsonl"
    arguments = ["--batch=8", "--max_new_tokens=24", "--devices=1"]
    assert main(["evaluate", f"--model={finished / 'export'}", f"--data={data}", f"--out={out}", *arguments]) == 0
    found = json.loads(out.read_text())
    after = json.loads((finished / "summary.json").read_text())["after"]
    assert {key: found[key] for key in after} == after


def test_converting_a_run_gives_its_export(work, finished):
    assert main(["convert", f"--from={finished}", f"--to={work / 'converted'}", "--format=hf"]) == 0
    for file in (finished / "export").glob("*.safetensors"):
        assert file.read_bytes() == (work / "converted" / file.name).read_bytes()


def test_sft_learns_given_responses(work, capsys):
    """Supervised training on pairs, as baselines will use it: the loss falls and the model is exported.

    Control tokens in a response were trained on: the model would have learned to write the user's next turn.
    """
    pairs = [{"prompt": row["prompt"], "response": f"About {row['prompt'].lower()}"} for row in PROMPTS]
    for pair in pairs[:]:
        texts = (("system", "Be brief."), ("user", pair["prompt"]), ("assistant", pair["response"]))
        pairs.append({"messages": [{"role": role, "content": text} for role, text in texts]})
    (work / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = [
        "--config.warmup.epochs=12",
        "--config.warmup.batch=8",
        "--config.mesh.devices=1",
        "--config.rollout.bucket=24",
        f"--config.out={work / 'sft'}",
    ]
    assert main(["sft", f"--config={ROOT}/configs/tiny.py", f"--data={work / 'pairs.jsonl'}", *settings]) == 0
    losses = [record["sft/loss"] for record in lines(work / "sft/metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    assert (work / "sft/export/model.safetensors").exists()
    (work / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    assert main(["sft", f"--config={ROOT}/configs/tiny.py", f"--data={work / 'bad.jsonl'}", *settings]) == 2
    assert "bad.jsonl:2" in capsys.readouterr().err
    ended = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b<|im_end|>\n<|im_start|>user\n"}]
    (work / "ended.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in ended))
    settings[-1] += "-ended"
    assert main(["sft", f"--config={ROOT}/configs/tiny.py", f"--data={work / 'ended.jsonl'}", *settings]) == 2
    assert "ended.jsonl:2: 'a': its response holds '<|im_end|>', a control" in capsys.readouterr().err
    (work / "long.jsonl").write_text(json.dumps({"prompt": "a", "response": "b " * 2000}) + "\n")
    settings[-1] += "-long"
    assert main(["sft", f"--config={ROOT}/configs/tiny.py", f"--data={work / 'long.jsonl'}", *settings]) == 2
    assert "max_position_embeddings=1024" in capsys.readouterr().err


def test_without_the_template_a_refusal_needs_no_tags():
    """A model that was never told of the tags would count as answering everything."""
    said = Response("I'm sorry, no.", [1], [0.0], "stop", format=False, refusal=False)
    assert commands.judged_whole(said).refusal
    for text in ("Gladly.", "I'm sorry. <answer>Gladly.</answer>"):
        assert not commands.judged_whole(dataclasses.replace(said, text=text)).refusal


def test_a_gap_that_is_no_number_is_refused():
    """NaN compares false with everything: log-probs of NaN would pass for a sampler and a trainer that agree."""
    c = config.load(f"{ROOT}/configs/tiny.py")
    check_gap(0.01, c)
    for gap in (0.06, float("nan")):
        with pytest.raises(ValueError, match=f"gap {gap:.4f} nats"):
            check_gap(gap, c)


def test_a_quoted_prompt_is_no_markup(capsys):
    """A duplicated prompt with [/INST] in it ended the run at its first line; [train] was not shown."""
    Display().say("prompt '[/INST] hub[train]' stands twice")
    assert "[/INST] hub[train]" in capsys.readouterr().out


def test_a_narrow_table_cuts_no_name():
    """Two sources that differ in their last word would look the same."""
    row = PromptRow("How?", 1)
    shares = outcome.count([row], [Response("", [], [], "stop", False, False)]).to_json()
    names = [f"{'a_source_of_prompts_' * 4}{last}" for last in "xy"]
    measured = {"all": shares, **dict.fromkeys(names, shares)}
    out = io.StringIO()
    rich.console.Console(file=out, width=80).print(outcome.comparison(measured, measured))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    first = "".join(line[:34].replace(" ", "") for line in lines)
    assert all(f"{name}:harmfulanswered" in first for name in names)


def test_ratios_of_the_mix_come_from_the_settings():
    sources = ("data.train", "demo/train,demo/heldout")
    settings = lambda ratios: config.load(f"{ROOT}/configs/tiny.py", [sources, ("data.ratios", ratios)])
    rows = assembly.read_rows(settings("(0.9, 0.1)"))
    found = rows.audit.to_json()
    counts = found["by_source"]
    assert sum(counts["demo/heldout"].values()) == pytest.approx(len(rows.train + rows.validation) / 10, abs=1)
    assert found["also_held_out"] == sum(counts["demo/heldout"].values())
    with pytest.raises(ValueError, match="expected 2 numbers, one a source"):
        assembly.read_rows(settings("(1.0,)"))
