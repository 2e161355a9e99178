"""Launchers of pods, against stand-ins for the programs that they call, which note each call and give set answers."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
RUN = ["train", "--config=configs/qwen2_5_7b.py", "--config.out=gs://bucket/a run"]
OPTIONS = {
    "tpu_vm": ["--name=q", "--type=v5litepod-64", "--zone=us-west4-a"],
    "gke": ["--name=q", "--type=v5litepod-64", "--zone=us-west4-a", "--cluster=c", "--project=p"],
    "sky": ["--name=q", "--type=v5litepod-64"],
}
FAKE = f"""#!{sys.executable}
import fcntl, json, os, pathlib, shlex, subprocess, sys
folder, words = pathlib.Path(os.environ["FAKE"]), [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with open(folder / "calls", "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps(words) + "\\n")
    file.flush()
    answers = json.loads((folder / "answers.json").read_text())
    for key, queue in answers.items():
        if key in " ".join(words):
            status, text = queue.pop(0) if len(queue) > 1 else queue[0]
            break
    else:
        status, text = 0, ""
    (folder / "answers.json").write_text(json.dumps(answers))
if text.startswith("$ "):
    sys.exit(subprocess.call(["bash", "-c", text[2:], *words]))
print(text, file=sys.stderr if status else sys.stdout)
sys.exit(status)
"""
GONE, ACTIVE, TAKEN = (1, "ERROR: NOT_FOUND: Resource q was not found"), (0, "ACTIVE"), (0, "SUSPENDED")
DONE = (0, "step 1\n\nthe run ended with 0")


class World:
    """``answers``: of the calls whose words contain the key, one after the other; the last stays."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.answers = folder, {}
        for name in ("gcloud", "xpk", "kubectl", "sky"):
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / name).write_text(FAKE)
            (folder / "bin" / name).chmod(0o755)

    def start(self, launcher: str, *arguments: str, **environment: str) -> subprocess.Popen:
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "tmp").mkdir(exist_ok=True)
        known = dict(os.environ, FAKE=str(self.folder), POLL="0.05", TMPDIR=str(self.folder / "tmp"), **environment)
        known["PATH"] = f"{self.folder / 'bin'}:{known['PATH']}"
        command = ["bash", str(ROOT / f"launch/{launcher}.sh"), *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # A suite that was started in the background ignores SIGINT, and so would a shell that it starts.
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, env=known, preexec_fn=heed, **pipes)

    def run(self, launcher: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        started = self.start(launcher, *(arguments or [*OPTIONS[launcher], *RUN]), **environment)
        out, error = started.communicate(timeout=60)
        return started.returncode, out, error

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def verbs(self) -> str:
        """What was asked of gcloud, without looks at the state, in order."""
        names = {"create": "c", "scp": "s", "--worker=all": "a", "--worker=0": "f", "delete": "d"}
        called = [
            word for call in self.calls() for word in names if word in call and ("scp" not in call or word == "scp")
        ]
        return "".join(names[word] for word in called)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def left_behind(world) -> list[str]:
    return [path.name for path in (world.folder / "tmp").iterdir()]


# Cloud TPU VMs --------------------------------------------------------------------------------------------------------


def test_tpu_vm_runs_to_its_end_and_is_deleted(world):
    world.answers = {
        "describe": [GONE, (0, "WAITING_FOR_RESOURCES"), (0, "PROVISIONING"), ACTIVE, GONE],
        "--follow": [DONE],
    }
    status, out, error = world.run("tpu_vm", *OPTIONS["tpu_vm"], "--spot", *RUN)
    assert status == 0, error
    assert world.verbs() == "csafd" and "step 1" in out and "WAITING_FOR_RESOURCES" in out
    create, start = (next(call for call in world.calls() if word in call) for word in ("create", "--worker=all"))
    assert {"--spot", "--accelerator-type=v5litepod-64", "--runtime-version=v2-alpha-tpuv5-lite"} <= {*create}
    start = next(call for call in world.calls() if "ssh" in call)
    assert start[-1].endswith(
        "--start train --config=configs/qwen2_5_7b.py '--config.out=gs://bucket/a run' --resume=auto"
    )
    assert not left_behind(world)


def test_tpu_vm_goes_on_after_a_preemption(world):
    """The chips go while it runs; then, of the next ones, before the run starts."""
    world.answers = {
        "describe": [GONE, ACTIVE, TAKEN, GONE, (0, "PROVISIONING"), TAKEN, GONE, ACTIVE, GONE],
        "--follow": [(255, "Connection closed"), DONE],
    }
    status, out, error = world.run("tpu_vm")
    assert status == 0, error
    assert world.verbs() == "csafd" + "cd" + "csafd"


def test_tpu_vm_asks_again_where_the_run_was_asked_to_end(world):
    """Its status says so before the chips are gone: taken for an error, the run would end there."""
    world.answers = {
        "describe": [GONE, ACTIVE, GONE, ACTIVE, GONE],
        "--follow": [(0, "the run ended with 75"), DONE],
    }
    status, _, error = world.run("tpu_vm")
    assert (status, world.verbs()) == (0, "csafd" + "csafd"), error


def test_tpu_vm_follows_again_after_a_cut_line(world):
    world.answers = {"describe": [GONE, ACTIVE], "--follow": [(0, "step 1"), (255, ""), DONE], "delete": [(0, "")]}
    world.answers["describe"] += [ACTIVE] * 16 + [GONE]
    status, out, error = world.run("tpu_vm")
    assert (status, world.verbs()) == (0, "csafffd"), error


def test_tpu_vm_does_not_ask_again_for_what_somebody_deleted(world):
    world.answers = {"describe": [GONE, ACTIVE, (0, "DELETING"), GONE], "--follow": [(255, "")]}
    status, _, error = world.run("tpu_vm")
    assert (status, world.verbs()) == (1, "csafd") and "somebody has deleted it" in error


def test_tpu_vm_ends_with_the_run_s_own_status(world):
    """One that is refused for its arguments is not looked at further."""
    for ended, looks in ((2, 1), (3, 9)):
        world.answers = {
            "describe": [GONE, *[ACTIVE] * looks, GONE],
            "--follow": [(0, f"the run ended with {ended}")],
        }
        status, _, error = world.run("tpu_vm")
        assert (status, world.verbs()) == (ended, "csafd"), error
        (world.folder / "calls").unlink()


def test_tpu_vm_starts_again_where_a_host_failed(world):
    """The chips are there and the run is not: deleted for that, a pod that was waited for since yesterday is gone."""
    failed = (0, "the run ended with 1")
    for ends, looks, status, verbs in (
        ([failed, DONE], 9, 0, "csaf" + "saf" + "d"),
        ([failed], 33, 1, "csaf" + "saf" * 3 + "d"),
    ):
        world.answers = {"describe": [GONE, *[ACTIVE] * looks, GONE], "--follow": ends}
        found, out, error = world.run("tpu_vm")
        assert (found, world.verbs()) == (status, verbs), error
        assert "the run ended with 1; starting it again (1 of 3)" in out
        (world.folder / "calls").unlink()


def test_a_host_that_shuts_down_leaves_the_run_s_status(tmp_path):
    """All processes of a host are asked to end at once: the run saves, and its status must not be lost."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name in ("host.sh", "environment.sh", "constraints.txt"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    run = "#!/usr/bin/env bash\ntrap 'sleep 1; echo saved; exit 75' TERM\necho runs\nwhile true; do sleep 0.05; done\n"
    for name, text in (("python", "#!/bin/sh\nexit 0\n"), ("alphaalign", run)):
        (tmp_path / "venv/bin" / name).write_text(text)
        (tmp_path / "venv/bin" / name).chmod(0o755)
    (tmp_path / "venv/.installed-tpu,gcs").touch()
    (tmp_path / "setup.py").touch()
    os.utime(tmp_path / "setup.py", (0, 0))
    os.utime(tmp_path / "launch/constraints.txt", (0, 0))
    host = ["bash", str(tmp_path / "launch/host.sh")]
    known = dict(os.environ, VENV=str(tmp_path / "venv"))
    subprocess.run([*host, "--start", "train"], env=known, check=True, timeout=20)
    log, group = tmp_path / "runs/host.log", int((tmp_path / "runs/host.pid").read_text())
    deadline = time.monotonic() + 20
    while "runs" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(group, signal.SIGTERM)
    follow = subprocess.run([*host, "--follow"], env=known, capture_output=True, text=True, timeout=20)
    assert follow.returncode == 75 and "saved" in follow.stdout, follow.stdout + follow.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_tpu_vm_that_is_interrupted_deletes(world, sent):
    world.answers = {"describe": [GONE, ACTIVE, GONE], "--follow": [(0, "$ sleep 30")]}
    started = world.start("tpu_vm", *OPTIONS["tpu_vm"], *RUN)
    deadline = time.monotonic() + 30
    while "f" not in world.verbs():
        assert time.monotonic() < deadline, "the run was never followed"
        time.sleep(0.05)
    began = time.monotonic()
    started.send_signal(sent)
    started.communicate(timeout=30)
    assert time.monotonic() - began < 10  # not when the run ends
    assert started.returncode == 128 + sent and world.verbs() == "csafd" and not left_behind(world)


def test_tpu_vm_says_what_may_be_billed(world):
    world.answers = {"describe": [GONE, ACTIVE], "--follow": [DONE], "delete": [(1, "no network")]}
    status, _, error = world.run("tpu_vm")
    assert status == 1 and "gcloud compute tpus queued-resources delete q --force --zone=us-west4-a" in error


def test_tpu_vm_failures_before_the_run(world):
    for answers, verbs, said in (
        ({"describe": [GONE, (0, "FAILED"), (0, "no capacity"), GONE]}, "cd", ""),
        ({"describe": [GONE, GONE], "create": [(1, "QUOTA")]}, "cd", "QUOTA"),
        ({"describe": [(1, "no credentials")]}, "", "no credentials"),
        ({"describe": [ACTIVE]}, "", "q is there already (ACTIVE)"),
        ({"describe": [GONE, *[ACTIVE] * 7, GONE], "scp": [(255, "no route")]}, "cssssssd", "could not be reached"),
    ):
        world.answers = answers
        status, out, error = world.run("tpu_vm")
        assert status in (1, 2) and world.verbs() == verbs and said in error, (status, world.verbs(), error)
        (world.folder / "calls").unlink()


def test_tpu_vm_attaches(world):
    """To a run that was started, or to chips that the launcher before did not come to use."""
    for there, verbs in ((0, "ffd"), (1, "fsafd")):
        world.answers = {"describe": [ACTIVE, ACTIVE, GONE], "host.pid": [(there, "")], "--follow": [DONE]}
        status, _, error = world.run("tpu_vm", *OPTIONS["tpu_vm"], "--attach", *RUN)
        assert (status, world.verbs()) == (0, verbs), error
        (world.folder / "calls").unlink()


def test_tpu_vm_runs_on_every_host_of_every_slice(world):
    """The hosts are folders here, and what is sent to them runs: the files, the variables, the log, the status."""
    host = 'mkdir "$FAKE/${7%:}" && cp "$5" "$6" "$FAKE/${7%:}"'
    shell = 'for word; do [[ $word != --command=* ]] || command=${word#*=}; done; cd "$FAKE/$5" && eval "$command"'
    world.answers = {"describe": [GONE, *[ACTIVE] * 9, GONE], "scp": [(0, f"$ {host}")], "ssh": [(0, f"$ {shell}")]}
    venv = world.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    for name, text in (("python", "exit 0"), ("alphaalign", 'echo "$TOKEN runs $ALPHAALIGN_PROCESSES:" "$@"; exit 5')):
        (venv / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (venv / "bin" / name).chmod(0o755)
    (venv / ".installed-tpu,gcs").touch()
    options = [*OPTIONS["tpu_vm"], "--slices=2", "--env=TOKEN"]
    status, out, error = world.run("tpu_vm", *options, *RUN, TOKEN="a secret $x", VENV=str(venv))
    assert status == 5, out + error
    assert (
        "a secret $x runs auto: train --config=configs/qwen2_5_7b.py --config.out=gs://bucket/a run --resume=auto"
        in out
    )
    for node in ("q-0", "q-1"):
        host = world.folder / node / "alphaalign_jax"
        assert (host / "setup.py").read_text() == (ROOT / "setup.py").read_text()
        assert (host / "runs/host.env").stat().st_mode & 0o077 == 0
    assert world.verbs() == "cssaafd" and "secret" not in json.dumps(world.calls())
    assert {"--node-count=2", "--node-prefix=q"} <= {*world.calls()[1]}


# GKE and SkyPilot -----------------------------------------------------------------------------------------------------


NOT_FOUND = (1, "Error from server (NotFound)")


def test_gke_runs_until_the_workload_ends(world):
    """The first start's pod is taken away: the log of the next is shown."""
    world.answers = {
        "logs": [(0, "step 1"), (1, "no pod yet"), (0, "step 2")],
        "jobset q": [NOT_FOUND, (0, ""), (0, ""), (0, "Completed")],
    }
    status, out, error = world.run("gke")
    assert status == 0 and "step 1" in out and "step 2" in out, error
    made = next(call for call in world.calls() if "create" in call)
    assert {
        "--max-restarts=50",
        "--restart-on-exit-codes=1,75",
        "--termination-grace-period-seconds=300",
        "--tpu-type=v5litepod-64",
        "--num-slices=1",
    } <= {*made}
    assert made[-1].startswith("--command=bash launch/host.sh train ") and made[-1].endswith("--resume=auto")
    assert world.calls()[-1][:3] == ["xpk", "workload", "delete"] and not left_behind(world)


def test_gke_leaves_the_workload_of_another(world):
    world.answers = {"jobset q": [(0, "q")]}
    status, _, error = world.run("gke")
    assert status == 2 and "is there already" in error and not any("xpk" in call for call in world.calls())


@pytest.mark.parametrize(
    "answers",
    [
        {"jobset q": [NOT_FOUND, (0, "Failed")]},
        {"jobset q": [NOT_FOUND], "workload create": [(1, "no such cluster")]},
        {"jobset q": [NOT_FOUND]},
    ],
)
def test_gke_failures_leave_no_workload(world, answers):
    world.answers = answers
    status, _, error = world.run("gke")
    assert status == 1 and world.calls()[-1][:3] == ["xpk", "workload", "delete"], error


def test_sky_launches_and_cancels(world):
    status, _, error = world.run("sky", *OPTIONS["sky"], "--region=us-west4", "--env=TOKEN", *RUN, TOKEN="t")
    (call,) = world.calls()
    assert status == 0 and call[:4] == ["sky", "jobs", "launch", "launch/sky.yaml"], error
    assert {"--infra=gcp/us-west4", "--gpus=tpu-v5litepod-64:1", "--use-spot", "--secret=TOKEN", "--yes"} <= {*call}
    assert call[-2] == f"--env=COMMAND={RUN[0]} {RUN[1]} '{RUN[2]}' --resume=auto"
    world.answers = {"jobs launch": [(130, "")]}  # interrupted
    assert world.run("sky")[0] == 130 and world.calls()[-1][:3] == ["sky", "jobs", "cancel"]
    assert world.calls()[-1][3] in world.calls()[-2] and world.calls()[-1][3].startswith("--name=q-")


def test_the_sky_task_runs_its_command(tmp_path):
    """As SkyPilot would run it, in the folder that it copies, with the variable that the launcher sets."""
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text())
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/host.sh").write_text('printf "<%s>" "$@"')
    known = dict(os.environ, COMMAND=f"{RUN[0]} {RUN[1]} '{RUN[2]}'")
    run = subprocess.run(["bash", "-c", task["run"]], env=known, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "".join(f"<{word}>" for word in RUN), run.stderr
    assert task["workdir"] == "." and [*task["envs"]] == ["COMMAND"]


@pytest.mark.slow  # installs SkyPilot in an environment of its own
def test_the_sky_task_is_valid(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    subprocess.run([tmp_path / "bin/pip", "install", "--quiet", "skypilot", "jsonschema"], check=True)
    check = "import sys, yaml, jsonschema; from sky.utils import schemas as s; t = yaml.safe_load(open(sys.argv[1]));"
    check += "r = t.pop('resources'); jsonschema.validate(t, s.get_task_schema());"
    check += "jsonschema.validate(r, s.get_resources_schema())"
    run = [tmp_path / "bin/python", "-c", check, ROOT / "launch/sky.yaml"]
    subprocess.run(run, check=True, env={**os.environ, "HOME": str(tmp_path)})


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", OPTIONS)
def test_a_dry_run_prints_what_a_run_calls(world, launcher):
    """The same commands in the same order, and none of them called."""
    stage = lambda text: re.sub(r"q-\d{4}-\d{6}", "q-TIME", re.sub(r"/\S*/tmp\.\w+", "STAGE", text))
    status, out, error = world.run(launcher, "--dry-run", *OPTIONS[launcher], *RUN)
    assert status == 0 and not world.calls(), error
    printed = [stage(line) for line in out.splitlines() if line.startswith(("gcloud", "xpk", "kubectl", "sky"))]
    world.answers = {"describe": [GONE, ACTIVE, GONE], "--follow": [DONE], "jobset q": [NOT_FOUND, (0, "Completed")]}
    assert world.run(launcher)[0] == 0
    words = [stage(" ".join(call)) for call in world.calls()]
    unquoted = [line.replace("'\\''", "\0").replace("'", "").replace("\0", "'") for line in printed]
    looks = [word for word in words if "describe" in word or word == "kubectl get jobset q"]
    assert [word for word in words if word not in looks] == [line for line in unquoted if line not in looks]


@pytest.mark.parametrize("launcher", OPTIONS)
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda options: options[1:] + RUN, "--name=... is needed"),
        (lambda options: options, "what shall run?"),
        (lambda options: [*options, "--colour=red", *RUN], "--colour=red is not known"),
        (lambda options: [*options, "--name", *RUN], "--name is not known, or lacks its value"),
        (lambda options: [*options, *RUN[:2]], "needs --config.out=gs://BUCKET/RUN"),
        (lambda options: [*options, "--env=NOWHERE", *RUN], "NOWHERE is not set"),
    ],
)
def test_bad_arguments_are_refused(world, launcher, change, said):
    status, _, error = world.run(launcher, *change(OPTIONS[launcher]))
    assert status == 2 and said in error and not [call for call in world.calls() if "describe" not in call], error


def test_a_wrong_type_and_number_are_refused(world):
    options = OPTIONS["tpu_vm"]
    assert "expected v5litepod-N" in world.run("tpu_vm", options[0], options[2], "--type=h100", *RUN)[2]
    assert "expected a number" in world.run("tpu_vm", *options, "--slices=two", *RUN)[2]
