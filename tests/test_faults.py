"""What a run does when things go wrong beside it: each fault is brought about, and what a person sees is read."""

import json
import os
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import run_cases
from run_cases import ROOT, answering, lines, run, saved
from test_reward_http import _Server, reply

from alphaalign_jax import hf
from alphaalign_jax.cli import main
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.parallel import notice
from alphaalign_jax.rewards.reward_model import callable as callable_model
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer
from alphaalign_jax.train import checkpoint, iteration, looks, provenance
from alphaalign_jax.train.iteration import Iteration
from alphaalign_jax.train.records import Records
from alphaalign_jax.train.steps import Steps

QUICK = ["--config.warmup.epochs=0", "--config.eval.every=0", "--config.export=false"]


@pytest.fixture(scope="module", autouse=True)
def shared():
    with run_cases.shared_programs():
        yield


@pytest.fixture(scope="module")
def whole(work):
    """A run of three steps that nothing happened to."""
    assert run(work, "whole", 3, *QUICK) == 0
    return work / "whole"


def until(work, whole, name, step):
    """A copy of the run as it was after ``step`` steps."""
    shutil.copytree(whole, work / name, ignore=shutil.ignore_patterns("summary.json"))
    for later in range(step + 1, 4):
        shutil.rmtree(work / name / f"checkpoints/{later}")
    return work / name


def same(ours, theirs, step=3):
    found, wanted = saved(ours, step), saved(theirs, step)
    assert found.keys() == wanted.keys()
    for path in found:
        assert np.array_equal(found[path], wanted[path]), path


def heard(capsys):
    said = capsys.readouterr()
    return " ".join(said.out.split()), " ".join(said.err.split())


def largest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_a_damaged_checkpoint_is_found_and_the_one_before_is_taken(work, whole, capsys):
    """One bit of a stored weight, and a file cut short: Orbax reads the first without a word."""
    folder = until(work, whole, "damaged", 2)
    file = largest(folder / "checkpoints/2/rest")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    file = largest(folder / "checkpoints/1/actor")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run(work, "damaged", 3, "--resume=auto", *QUICK) == 0
    said, _ = heard(capsys)
    assert "checkpoint 2 is damaged" in said and "checkpoint 1 is damaged" in said
    assert "going on from step 0" in said and "resumed at step 0" in said
    assert (folder / "checkpoints/damaged-2").is_dir()
    same(folder, whole)
    steps = [record["step"] for record in lines(folder / "metrics.jsonl") if record["phase"] == "train"]
    assert steps == [0, 1, 2], "records of what was taken back stand beside those that replace them"


def test_a_resumption_is_compared_with_the_life_before_it(work, whole):
    """Compared with the first one, a setting that was changed once counts as changed, and the best so far is forgotten,
    after every later stop."""
    folder = until(work, whole, "lives", 2)
    assert run(work, "lives", 3, "--resume", "--config.eval.limit=3", *QUICK) == 0
    limit = lambda step: json.loads((folder / f"checkpoints/{step}/meta/metadata").read_text())["progress"]["config"]
    assert [limit(step)["eval"]["limit"] for step in (2, 3)] == [2, 3]


def test_a_run_goes_on_with_what_it_began_with(work, whole, capsys, monkeypatch):
    """A file that was edited between two lives lies at the same path: the rest of the run is of other prompts."""
    folder, heldout = until(work, whole, "edited", 2), work / "heldout.jsonl"
    text = heldout.read_text()
    heldout.write_text(text.replace("bake bread", "bake a cake"))
    try:
        assert run(work, "edited", 3, "--resume=auto", *QUICK) == 2
    finally:
        heldout.write_text(text)
    _, said = heard(capsys)
    assert "data.heldout: 4 prompts, sha256 " in said and "data.train" not in said and "put it back" in said
    assert not (folder / "summary.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(callable_model.inspect, "getsourcefile", lambda function: __file__)
        assert run(work, "edited", 3, "--resume=auto", *QUICK) == 2
    assert "reward_model.target: sha256 " in heard(capsys)[1]
    now = provenance.packages()
    monkeypatch.setattr(provenance, "packages", lambda: {**now, "jax": "0.99.9"})
    assert run(work, "edited", 3, "--resume=auto", *QUICK) == 0
    assert f"up to rounding: jax: {now['jax']} then, 0.99.9 now" in heard(capsys)[0]
    same(folder, whole)
    read = json.loads((folder / "summary.json").read_text())["inputs"]
    assert read == json.loads((whole / "summary.json").read_text())["inputs"] and set(read) == {
        "data.train", "data.heldout", "model.path", "model.path's tokenizer", "reward_model.target"
    }  # fmt: skip


def test_hosts_with_other_files_are_refused(monkeypatch):
    """Each host reads its own copy of the data: one that is older trains on other prompts, and nothing shows it."""
    monkeypatch.setattr(provenance.processes, "gather_rows", lambda own: np.stack([own, own, own ^ 1]))
    with pytest.raises(ValueError, match=r"data.train: processes \[2\] read something else than process 0 .*files"):
        provenance._check_alike({"data.train": "4 prompts, sha256 0"})


def test_a_damaged_checkpoint_is_no_model(work, whole, tmp_path):
    """Read without its digests, a run that was damaged after its end is evaluated, converted and served as another."""
    folder = until(work, whole, "as-model", 2)
    hf.convert(str(folder), str(tmp_path / "orbax"), "orbax")
    for place in (folder / "checkpoints/2/average", tmp_path / "orbax/params"):
        hf.load(folder if place.name == "average" else place.parent, param_dtype="bfloat16")
        file = largest(place)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is corrupt .*; use an earlier checkpoint"):
            hf.load(folder if place.name == "average" else place.parent)
    hf.load(folder / "checkpoints/1")
    (folder / "checkpoints/1/meta/metadata").write_text("{}")
    with pytest.raises(ValueError, match="the checkpoint is damaged .*arrays"):
        hf.load(folder / "checkpoints/1")


def test_where_all_checkpoints_are_damaged_nothing_starts_anew(work, whole, capsys):
    """A run that quietly begins again at step 0 takes the place of one of a week."""
    folder = until(work, whole, "lost", 1)
    for step in (0, 1):
        file = folder / f"checkpoints/{step}/meta/metadata"
        file.write_text(file.read_text().replace('"seconds"', '"hours"'))
    assert run(work, "lost", 3, "--resume=auto", *QUICK) == 2
    _, said = heard(capsys)
    assert (
        "no checkpoint in" in said
        and "step 1: meta is corrupt (its digest differs)" in said
        and "start anew with" in said
    )
    assert (folder / "checkpoints/1").is_dir() and not (folder / "summary.json").exists()


def test_storage_that_cannot_be_reached_is_not_damage(work, whole, monkeypatch):
    """Taken for damage, a minute without a network costs the newest checkpoint."""
    folder = until(work, whole, "away", 2)

    reason = checkpoint._reason
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_reason", lambda error: reason(PermissionError("PERMISSION_DENIED: no access")))
        file = folder / "checkpoints/2/meta/metadata"
        text = file.read_text()
        file.write_text(text[:-5])
        with pytest.raises(PermissionError):
            run(work, "away", 3, "--resume=auto", *QUICK)
        file.write_text(text)
    assert not list((folder / "checkpoints").glob("damaged-*"))


def test_a_full_disk_stops_the_run_and_loses_nothing_before(work, whole, capsys, monkeypatch):
    """A save that fails in the background, of which nobody hears until the run is over."""
    folder, step = until(work, whole, "full", 1), Iteration.__call__
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(self, state, number):
        found = step(self, state, number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))  # a stand-in for a disk without room
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Iteration, "__call__", filling)
        try:
            assert run(work, "full", 3, "--resume", *QUICK) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    _, said = heard(capsys)
    assert "a checkpoint could not be written" in said and "the run can go on from step 1 with --resume" in said
    assert "File too large" in said and "Traceback" not in said, "what the system said, and once"
    assert run(work, "full", 3, "--resume", *QUICK) == 0
    same(folder, whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file of a disk without room")
def test_records_that_cannot_be_written_stop_the_run_with_a_message(work, whole, capsys, monkeypatch):
    """What stands in a file's buffer is written once more when it is closed: that error hides the one that says why."""
    folder, begin = until(work, whole, "no-room", 1), Records.begin

    def begun(self, *args):
        said = begin(self, *args)
        self._files["metrics"].close()
        self._files["metrics"] = open("/dev/full", "a")
        return said

    with monkeypatch.context() as patched:
        patched.setattr(Records, "begin", begun)
        assert run(work, "no-room", 3, "--resume", *QUICK) == 2
    _, said = heard(capsys)
    assert "metrics.jsonl could not be written (No space left on device); once there is room" in said
    # And a line that a host left half written when it lost its power does not stand in the way.
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\x00\x00{"phase": "tr\n')
    assert run(work, "no-room", 3, "--resume", *QUICK) == 0
    assert "metrics.jsonl: 1 line(s) that a crash has left half written are taken out" in heard(capsys)[0]
    same(folder, whole)


def test_what_stopped_a_run_in_its_first_step_stops_it_again(work, capsys, monkeypatch):
    """Step 0 is saved before it is made: taken for one that was made, its checks are passed over at the next start,
    which launchers make by themselves; and the look before it stands twice in the records."""
    apart = ["--config.rollout.max_logprob_gap=1e-12"]
    for _ in range(2):
        assert run(work, "apart", 2, *QUICK, *apart, "--resume=auto") == 2
        assert "sampler and trainer disagree" in heard(capsys)[1]
    assert run(work, "apart", 2, *QUICK, "--resume=auto") == 0
    phases = [record["phase"] for record in lines(work / "apart/metrics.jsonl")]
    assert phases == ["before", "train", "train", "after"]
    assert sum(sample["phase"] == "before" for sample in lines(work / "apart/samples.jsonl")) == 4


def test_a_run_that_has_ended_is_not_taken_for_another(work, whole, capsys):
    """Launchers add --resume=auto: a sweep that forgot another folder would read the first run's result every time."""
    assert run(work, "whole", 3, "--resume=auto", *QUICK) == 0
    assert "whole has ended: 3 steps" in heard(capsys)[0]
    assert run(work, "whole", 3, "--resume=auto", *QUICK, "--config.seed=7") == 2
    assert "differs from the run's in seed: 0 then, 7 now" in heard(capsys)[1]


def test_the_best_of_the_last_look_is_kept_when_the_run_is_made_longer(work, monkeypatch):
    """That look is after the last save: forgotten, the best weights are the first that later saves push out."""
    step, done = Iteration.__call__, [0]

    def counted(self, state, number):
        done[0] = number + 1
        return step(self, state, number)

    monkeypatch.setattr(Iteration, "__call__", counted)
    monkeypatch.setattr(outcome.Outcome, "score", property(lambda self: 0.9 if done[0] == 3 else 0.2))
    watch = ["--config.warmup.epochs=0", "--config.export=false", "--config.eval.every=2", "--config.eval.limit=0"]
    watch += ["--config.checkpoint.keep=1", "--config.checkpoint.keep_every=0"]
    assert run(work, "longer", 3, *watch) == 0
    assert run(work, "longer", 5, *watch, "--resume") == 0
    assert {path.name for path in (work / "longer/checkpoints").glob("[0-9]*")} == {"3", "5"}
    assert json.loads((work / "longer/summary.json").read_text())["best"] == {"step": 3, "score": 0.9}


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, notice.PREEMPTED),
        (signal.SIGHUP, notice.PREEMPTED),
        (signal.SIGINT, notice.INTERRUPTED),
    ],
)
def test_a_request_to_end_is_followed_once_the_step_is_saved(work, whole, capsys, monkeypatch, number, status):
    """A preemption's notice, or a terminal that is closed, that ends the run as a crash would; or that the launchers
    take for a run that is done."""
    folder, step = until(work, whole, f"asked-{number}", 0), Iteration.__call__

    def asked(self, state, index):
        for _ in range(2 if number == signal.SIGTERM else 1):  # schedulers, and what stands between, pass it on each
            os.kill(os.getpid(), number)
        return step(self, state, index)

    # A suite that was started in the background passes over Ctrl-C.
    outside = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Iteration, "__call__", asked)
        assert run(work, folder.name, 3, "--resume", "--config.checkpoint.every=0", *QUICK) == status
    _, said = heard(capsys)
    assert "saved after step 1 of 3; continue with --resume=auto" in said
    assert signal.getsignal(number) == before, "the handler outlives the run"
    signal.signal(number, outside)
    assert run(work, folder.name, 3, "--resume=auto", *QUICK) == 0
    same(folder, whole)


def test_a_request_to_end_is_followed_while_the_reward_model_is_slow(work, whole, capsys, monkeypatch):
    """Waited for, a server that takes minutes to give up has the notice's 30 seconds go by, and the state with them."""
    folder = until(work, whole, "slow", 1)
    answering(monkeypatch)
    with monkeypatch.context() as patched:

        def asked(self, questions, answers):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

        patched.setattr(callable_model.CallableRewardModel, "score", asked)
        patched.setattr(AsyncScorer, "CLOSE_SECONDS", 0.1)
        outside, began = signal.signal(signal.SIGTERM, signal.SIG_DFL), time.monotonic()
        assert run(work, "slow", 3, "--resume", *QUICK) == notice.PREEMPTED
        assert time.monotonic() - began < 50
        signal.signal(signal.SIGTERM, outside)
    assert "in step 1, waiting for the reward model" in heard(capsys)[1]
    assert run(work, "slow", 3, "--resume", *QUICK) == 0
    assert [r["step"] for r in lines(folder / "metrics.jsonl") if r["phase"] == "train"] == [0, 1, 2]


def test_a_warm_up_survives_a_stop_in_the_first_look(work, capsys, monkeypatch):
    """Saved only after it, a warm-up of an hour is made again at each start, where chips are taken away in between."""
    stop = lambda *args, **named: (_ for _ in ()).throw(notice.Ended("asked to end", notice.PREEMPTED))
    with monkeypatch.context() as patched:
        patched.setattr(looks, "respond", stop)
        assert run(work, "warm", 1, "--config.export=false") == notice.PREEMPTED
    assert run(work, "warm", 1, "--config.export=false", "--resume=auto") == 0
    said, _ = heard(capsys)
    assert "resumed at step 0" in said and said.count("evaluate (before) 4/4") == 1
    phases = [record["phase"] for record in lines(work / "warm/metrics.jsonl")]
    assert phases.count("warmup") == 3 and phases.count("before") == 1
    assert json.loads((work / "warm/summary.json").read_text())["before"]["n_harmful"] == 2


def test_a_request_to_another_host_ends_this_one_in_an_evaluation_too(monkeypatch):
    """Heard of only after the next step, a notice of 30 seconds is over before a look at 800 prompts is."""
    monkeypatch.setattr(notice.processes, "gather_rows", lambda own: np.array([own, signal.SIGTERM], np.int32))
    with pytest.raises(notice.Ended, match="ended by SIGTERM: in the evaluation") as ended:
        notice.Notice().check("in the evaluation")
    assert ended.value.status == notice.PREEMPTED


def test_a_request_that_comes_while_the_others_are_asked_is_kept(monkeypatch):
    """The processes' answers are waited for: what is heard meanwhile must not be written over with them."""
    heard_of = notice.Notice()

    def gather(own):
        heard_of._signal = signal.SIGTERM
        return own[None]

    monkeypatch.setattr(notice.processes, "gather_rows", gather)
    assert not heard_of.reached() and heard_of.reached()


def test_a_reward_model_s_faults_stop_the_run_with_its_state_saved(work, whole, capsys, monkeypatch):
    """A score that was never given and is trained on: as 0, as the last one, as whatever the reply begins with."""

    answering(monkeypatch)
    http = ["--config.reward_model.kind=http", "--config.reward_model.retries=0"]

    def ended(folder, *faults, delay=0.0, more=()):
        with _Server(*faults, delay=delay) as server:
            target = f"--config.reward_model.target={server.url}"
            return run(work, folder, 2, "--resume=auto", *QUICK, *http, target, *more)

    assert ended("served") == 0
    for fault, says in ((reply(200, b'{"scores": [1]}'), "1 scores for 8 rows"), (reply(500, b""), "status 500")):
        assert ended("faulty", fault) == 2
        assert says in heard(capsys)[1]
    assert ended("faulty", delay=0.5, more=["--config.reward_model.timeout_s=0.1"]) == 2
    assert "timed out" in heard(capsys)[1]
    assert ended("faulty") == 0
    same(work / "faulty", work / "served", step=2)
    # A row that it cannot score is no fault: it is counted, and not trained on.
    assert ended("null", *[reply(200, b'{"scores": [null, 1, NaN, 1, 2, 1, 1, 1]}')] * 2) == 0
    trained = lambda name: [record for record in lines(work / name / "metrics.jsonl") if record["phase"] == "train"]
    for step in trained("null"):
        assert step["reward/unscorable"] == 2 and step["reward/scored"] == 6 and np.isfinite(step["actor/pg_loss"])
        # One of eight stands out in its group of two, by z = 1 / sqrt(2).
        assert step["reward/helpfulness/mean"] == pytest.approx(0.5**0.5 / 8)
    assert ended("mute", *[reply(200, b'{"scores": [null, null, null, null, 1, null, 1, 2]}')]) == 2
    assert "step 0: unscored: the reward model could not score 62% of the answers" in heard(capsys)[1]
    assert len(trained("mute")) == 1 and saved(work / "mute", 1)
    assert len(trained("null")) == 2 and all(step["reward/unscorable"] == 0 for step in trained("served"))


def poisoned(monkeypatch, first):
    """From step ``first`` on a log-prob of the reference is NaN, and with it the KL, the rewards, and so on."""

    class Poisoned(Steps):
        calls = 0

        def __init__(self, *args):
            super().__init__(*args)
            assemble = self.assemble

            def poison(*known):
                *known, scored = known
                Poisoned.calls += 1
                if Poisoned.calls > first:
                    scored = {**scored, "ref_logprob": scored["ref_logprob"].at[0, 0, 0].set(np.nan)}
                return assemble(*known, scored)

            self.assemble = poison

    monkeypatch.setattr(iteration, "Steps", Poisoned)


def test_a_loss_that_is_no_number_moves_nothing_and_stops_the_run(work, whole, capsys, monkeypatch):
    """One NaN in Adam's moments makes every weight one; a run that goes on without learning looks as if it did."""
    with monkeypatch.context() as patched:
        poisoned(patched, first=1)
        assert run(work, "nan", 9, *QUICK, "--config.algorithm.ema_decay=0") == 2
    said, error = heard(capsys)
    assert "step 1: non-finite loss or gradient; update skipped" in said
    assert "in 3 steps in a row" in error and "(guards.skipped=3)" in error and "the state is saved" in error
    assert not (work / "nan/checkpoints/5").exists()
    before, after = saved(work / "nan", 1), saved(work / "nan", 4)
    for path in before:
        if "['actor" in path:  # weights and moments
            assert np.array_equal(before[path], after[path]), path
    with np.load(work / "nan/left_out/step-1.npz") as batch:
        assert np.isnan(batch["ref_logprob"]).sum() == 1 and batch["tokens"].shape == batch["sampled"].shape
    step = next(r for r in lines(work / "nan/metrics.jsonl") if r["phase"] == "train" and r["step"] == 1)
    assert step["actor/skipped"] == step["critic/skipped"] == 1 and step["actor/pg_loss"] is None
    assert step["actor/kl_coef"] > 0, "a coefficient that is once NaN makes all later rewards so"
    alarm = lines(work / "nan/alarms.jsonl")[-1]
    assert alarm["alarm"] == "skipped" and alarm["step"] == 3
    # What is said to help: the run goes on, and the next batch is learned from.
    assert run(work, "nan", 5, "--resume", "--config.guards.stop=", *QUICK, "--config.algorithm.ema_decay=0") == 0
    step = [record for record in lines(work / "nan/metrics.jsonl") if record["phase"] == "train"][-1]
    assert step["step"] == 4 and step["actor/skipped"] == step["critic/skipped"] == 0
    moved = saved(work / "nan", 5)
    assert any(not np.array_equal(moved[path], after[path]) for path in moved if path.startswith("['actor']"))


def test_a_policy_beyond_the_kl_ceiling_is_stopped(work, whole, capsys):
    """Of a run that is far from where it began the last checkpoint is what one goes back from."""
    folder = until(work, whole, "far", 1)
    ceiling = ["--config.guards.kl=1e-9", "--config.guards.stop=kl"]
    for end in (2, 3):  # the same command, started again, is not to pass over it
        assert run(work, "far", 3, "--resume=auto", *QUICK, *ceiling) == 2
        assert f"step {end - 1}: kl: the policy is " in heard(capsys)[1]
        assert [alarm["alarm"] for alarm in lines(folder / "alarms.jsonl")].count("kl") == end - 1
        assert (folder / f"checkpoints/{end}").is_dir()
    assert run(work, "far", 3, "--resume=auto", *QUICK, *ceiling[:1], "--config.guards.stop=") == 0
    assert json.loads((folder / "summary.json").read_text())["alarms"]["kl"] == 2
    same(folder, whole)


def test_a_held_out_score_that_falls_while_the_reward_rises_is_said(work, capsys, monkeypatch):
    """The proxy goes up and what it stands for goes down: nobody looks at two curves at night."""
    step, done = Iteration.__call__, []

    def rewarded(self, state, number):
        state, metrics, sampled = step(self, state, number)
        done.append(number)
        return state, metrics | {"critic/score/mean": float(number)}, sampled

    monkeypatch.setattr(Iteration, "__call__", rewarded)
    monkeypatch.setattr(outcome.Outcome, "score", property(lambda self: 0.3 if len(done) > 1 else 0.9))
    watch = ["--config.eval.every=1", "--config.guards.window=1", "--config.guards.stop=heldout"]
    assert run(work, "hacked", 3, *QUICK, *watch) == 2
    said, error = heard(capsys)
    says = "heldout: the score of looks fell from 0.90 to 0.30 while the reward rose from 0.00 to 1.00"
    assert f"alarm at eval step 2: {says}" in said and f"step 2: {says}" in error and "the state is saved" in error
    assert (work / "hacked/checkpoints/2").is_dir() and not (work / "hacked/checkpoints/3").exists()


@pytest.mark.parametrize("command", ["train", "sft"])
def test_supervised_training_that_learns_nothing_stops(work, capsys, command):
    """Left out step by step to its end, it exports the weights that it began with."""
    diverging = ["--config.warmup.optimizer.learning_rate=1e30", "--config.warmup.epochs=0.5"]
    if command == "train":
        assert run(work, "diverging", 1, *diverging) == 2
    else:
        (work / "pairs.jsonl").write_text('{"prompt": "Two and two?", "response": "Four."}\n' * 32)
        arguments = [f"--config.out={work / 'diverging-sft'}", "--config.mesh.devices=1", "--config.warmup.batch=4"]
        config = f"--config={ROOT}/configs/tiny.py"
        assert main(["sft", config, f"--data={work / 'pairs.jsonl'}", *arguments, *diverging]) == 2
    said, error = heard(capsys)
    phase, folder = ("warmup", "diverging") if command == "train" else ("sft", "diverging-sft")
    assert f"alarm at {phase} step 3: skipped: in 3 steps in a row" in said and "nothing of it is kept" in error
    assert lines(work / folder / "alarms.jsonl")[0]["alarm"] == "skipped" and not (work / folder / "export").exists()


@pytest.mark.parametrize("truncated", ["terminal", "mask"])
def test_a_batch_without_spread_or_ends_moves_nothing(work, capsys, truncated):
    """Every response cut off, every reward the same: whitened, the rounding that is left becomes an advantage of 1. And
    where such responses are masked, there is nothing to divide by."""
    alone = ["--config.algorithm.advantage=grpo", "--config.algorithm.kl_in_reward=0", "--config.algorithm.ema_decay=0"]
    alone += ["--config.algorithm.kl_controller=fixed", "--config.optimizer.weight_decay=0", "--config.guards.window=2"]
    alone += ["--config.algorithm.kl_loss=0", f"--config.algorithm.truncated={truncated}"]
    alone += [f"--config.rollout.{name}=2" for name in ("max_new_tokens", "bucket", "cache")]
    folder = work / f"flat-{truncated}"
    assert run(work, folder.name, 2, *QUICK, *alone) == 0
    steps = [record for record in lines(folder / "metrics.jsonl") if record["phase"] == "train"]
    assert all(step["reward/equal_groups"] == 1 and step["response_length/clip_ratio"] == 1 for step in steps)
    assert all(step["actor/grad_norm"] == 0 and step["actor/skipped"] == 0 for step in steps)
    before, after = saved(folder, 0), saved(folder, 2)
    assert all(np.array_equal(before[path], after[path]) for path in before if path.startswith("['actor']"))
    said, _ = heard(capsys)
    assert "alarm at train step 1: truncated: 100% of the responses are cut off" in said
    assert "alarm at train step 1: flat: the rollouts of 100% of the prompts all earn the same" in said
    assert "alarm at train step 0: no_format: nothing is in format" in said
    assert "alarm at train step 0: no_score: nothing was scored: of the 8 responses to benign prompts" in said
    alarms = json.loads((folder / "summary.json").read_text())["alarms"]
    assert alarms == {"truncated": 1, "flat": 1, "no_format": 1, "no_score": 1}
