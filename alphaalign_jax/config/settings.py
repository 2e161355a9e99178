"""Every setting of a run, with its default, its unit and why it has that value."""

from __future__ import annotations

import dataclasses
import pathlib

from alphaalign_jax import buckets


def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _field(cls):
    return dataclasses.field(default_factory=cls)


@_section
class Model:
    path: str = ""  # Hugging Face directory or hub id, GGUF file, or package:NAME
    dtype: str = "float32"  # compute dtype of the trainer; master weights are float32
    rollout_dtype: str = "float32"  # compute and weight dtype of the sampler
    remat: str = "none"  # what the backward pass keeps of a layer: none (all), dots, full (its input only)
    # plain (matrix products, XLA), splash (TPU kernel), triton (GPU kernel), or auto: what suits the device.
    attention: str = "auto"
    # Today's date for a chat template that asks for one: read from the clock, prompts would change from day to day.
    # Empty: as the model was saved with, or 2024-07-26.
    chat_date: str = ""
    # Arguments of the chat template, as name=value: enable_thinking=false. Empty: as the model was saved with.
    chat_args: tuple = ()


@_section
class Mesh:
    devices: int = 0  # use the first so many; 0 is all
    # GiB of one device that a run may take, by the estimate made before it compiles; 0: what the device has.
    memory_gb: float = 0.0
    data: int = 1
    fsdp: int = -1  # -1: what the other axes leave
    tensor: int = 1
    train_rules: str = "fsdp_tensor"
    rollout_rules: str = "tensor"
    train_overrides: tuple = ()  # rows (logical axis, mesh axis, ...) that replace rows of the table
    rollout_overrides: tuple = ()


@_section
class Data:
    train: tuple = ("demo/train",)  # demo/..., a .jsonl/.csv/.parquet file, or a data.Source as a dict
    # Shares of the sources of train, in their order, summing to 1; empty: as the sources say.
    ratios: tuple[float, ...] = ()
    heldout: tuple = ("demo/heldout",)
    # Share of the training prompts, at most 0.5, that is set aside for the looks of eval.every: never trained on, drawn
    # by the seed from each label and kind alike. The best state is chosen by them, so that the held-out prompts, which
    # the before and after tables report, have no part in the choice. 0: looks take the held-out prompts.
    validation: float = 0.0
    harmful_fraction: float = -1.0  # of every training batch; -1: chance decides, at the shares of the mix
    label_noise: float = 0.0  # share of the training labels to turn round, to see what wrong labels do; held out: none
    max_prompt_tokens: int = 512
    on_long: str = "error"  # or drop (counted) for a training prompt longer than that; evaluation never drops
    bucket: int = 32  # prompt slots are a multiple of it


@_section
class Optimizer:
    learning_rate: float = 1e-6
    warmup_steps: int = 0  # updates of a linear rise from 0
    decay: float = 0.0  # share of the run's updates, at its end, over which the learning rate falls linearly to 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global norm; 0 is off


@_section
class Warmup:
    epochs: float = 0.0  # of the warm-up examples; 0 is off
    batch: int = 16  # examples a step
    micro_batch: int = 0  # examples a shard of the batch in a gradient-accumulation slice; 0 is all at once
    # What it teaches the form with: texts (this project's sentences, and the rows' answers) or self (the model's own).
    source: str = "texts"
    thought_tokens: int = 32  # of self: the most that the model writes about a question,
    answer_tokens: int = 48  # and in answer to it
    temperature: float = 0.7  # of self
    refusal_rate: float = 0.3  # of harmful and of benign examples alike
    max_examples: int = 0  # 0 is all
    # A constant rate leaves the policy wherever its last steps threw it, and a rate of refusals swings by far more than
    # the loss: here it falls to 0 over the run.
    optimizer: Optimizer = dataclasses.field(
        default_factory=lambda: Optimizer(learning_rate=1e-4, warmup_steps=5, decay=1.0)
    )


@_section
class Rollout:
    prompts: int = 16  # prompts a step
    group: int = 8  # rollouts a prompt
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    cache: int = 128  # response slots of the sampler's first key/value cache, which doubles when full; 0: all at once
    fewest_rows: int = 8  # rows that are done are dropped, down to so many (rollout.engine.InFlight); 0: never
    # Decode all layers by one program; without, each has its own, and none is copied out of a stack at every token.
    scan_layers: bool = True
    bucket: int = 32  # response slots of the trainer are a multiple of it
    # Sample the next step's responses before this step's update: the reward model has a whole step to score them, where
    # otherwise all wait for it. They are then one update off policy, which algorithm.old_logprob=sampler (a ratio to
    # the policy that sampled) or algorithm.sampler_cap (weights by it) accounts for.
    ahead: bool = False
    max_logprob_gap: float = 0.05  # nats, mean: a run whose trainer and sampler differ by more at its start is stopped


@_section
class Reward:
    format_mode: str = "strict"  # or paper
    # The paper gives no values. Correctness must outweigh form, or a policy that always complies in good form (r_f)
    # beats one that still gets the form wrong while it learns to refuse; and form must pay at all, or it decays.
    r_f: float = 0.5
    r_a: float = 1.0
    helpfulness: str = "normalised"  # or raw (the ablation), off (AlphaAlign-Zero)
    # Units of the reward model's score: a group whose std is no larger earns nothing. Nor does one whose std is at most
    # two units in the last place of its largest score, in the type that reward_model.dtype names.
    std_floor: float = 0.01


@_section
class RewardModel:
    kind: str = "none"  # none, classifier, http, callable
    # classifier: Hugging Face directory or hub id; http: URL; callable: module:function or path/file.py:function
    target: str = ""
    batch: int = 32  # rows the classifier scores at a time, or an HTTP request carries
    max_length: int = 2048  # classifier: tokens of question and answer
    # What its scores are computed in: float32, bfloat16 or float16. The classifier here computes in it. For http and
    # callable it is for you to say: differences in the last place of this type are taken for rounding, not preferences.
    dtype: str = "float32"
    label: int = -1  # classifier: which of its labels is the reward; -1: the only one
    on_host: bool = False  # classifier: its weights lie in the host's memory but while it scores
    tensor: int = 1  # classifier: devices of this host that share one copy of its weights, which the others divide
    token_env: str = ""  # http: environment variable that holds the bearer token
    timeout_s: float = 60.0  # http: for the whole of an answer
    retries: int = 12  # http: after the first try, with pauses from half a second to 30: minutes in all


@_section
class Critic:
    path: str = ""  # its body; empty: the policy's own initial weights
    num_layers: int = 0  # keep only the first n layers; 0 is all
    value_clip: float = 0.5  # 0 is off
    optimizer: Optimizer = dataclasses.field(default_factory=lambda: Optimizer(learning_rate=1e-5))


@_section
class Algorithm:
    # gae (PPO, with a critic), grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_batch, anchored
    advantage: str = "gae"
    gamma: float = 1.0
    lam: float = 1.0
    std_floor: float = 1e-3  # of grpo, in units of the reward
    # Of anchored: imagined pairs of rollouts, one refusing and one answering, in the baseline of each group.
    anchor: float = 4.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0  # 0 is off
    old_logprob: str = "trainer"  # or sampler: those recorded in sampling, which saves a pass where both run in float32
    ratio: str = "token"  # or sequence: GSPO, with aggregation=seq-mean-token-mean and dual_clip=0
    aggregation: str = "token-mean"
    sampler_cap: float = 0.0  # weighs tokens by trainer's over sampler's probability up to this (2 is usual); 0 is off
    entropy_coef: float = 0.0
    kl_in_reward: float = 0.0  # coefficient of k1 in the token rewards
    kl_loss: float = 0.0  # coefficient of the KL loss term
    kl_kind: str = "k3"  # of the KL loss: k2 or k3
    kl_controller: str = "fixed"  # or adaptive, of kl_in_reward
    kl_target: float = 0.1  # adaptive: nats a token
    kl_horizon: int = 10000  # adaptive: responses
    reference: bool = True  # keep the initial policy, to log the KL to it; the KL terms need it
    reference_on_host: bool = False  # its weights lie in the hosts' memory but for the pass that needs them
    # Damp the label whose prompts push the rate of refusals away from the share of harmful prompts
    # (advantages.balanced_labels).
    balance_labels: bool = False
    # Nats a response that one optimizer step may move the policy; a longer step is shortened to that. 0 is off. Takes
    # one more forward pass an update.
    max_kl: float = 0.0
    epochs: int = 1  # passes over a step's rollouts
    minibatches: int = 1  # optimizer steps a pass
    # Of the moving average of the policy's weights over the steps since its first update, which is then what is
    # evaluated and exported: how often a policy refuses at all swings from step to step. Its memory is
    # 1 / (1 - ema_decay) steps; 0 is off.
    ema_decay: float = 0.0
    # A gradient-accumulation slice: prompts of each shard of the batch; 0 is the whole mini-batch.
    micro_batch: int = 0
    micro_tokens: int = 0  # or as many as have so many token slots a shard with their rollouts, padding included
    truncated: str = "terminal"  # or bootstrap, mask
    logprob_chunk: int = 64  # response slots whose logits are held at a time
    critic_warmup: int = 0  # first steps that train the critic alone


@_section
class Evaluation:
    # Steps between looks at data.validation, or else at the held-out prompts; one at the initial policy and one at the
    # end are among them. 0: none.
    every: int = 0
    batch: int = 32  # prompts at a time
    max_new_tokens: int = 0  # 0: rollout.max_new_tokens
    limit: int = 0  # prompts of a look; 0 is all. Before and after always take all held-out prompts
    temperature: float = 0.0


@_section
class Checkpoint:
    # Steps; 0: only at the end. One that is due waits until the one before it is written, and no step waits for it.
    every: int = 0
    keep: int = 2  # the newest so many
    keep_every: int = 0  # and those of every so many steps, which are saved whatever it takes; 0: none
    # And the best of those that eval.every looks at: min(harmful refused, benign complied) of the prompts it takes; of
    # equal ones the latest. It is what the run exports.
    keep_best: bool = True


@_section
class Guards:
    """Figures of the last ``window`` steps that make an alarm, and what ends the run. 0 turns one off."""

    window: int = 10  # steps
    # Names of alarms that end the run, with its state saved; the others are said, counted, and written down. Names are
    # the settings below.
    stop: tuple = ("skipped", "unscored")
    # Steps in a row in which an optimizer step was left out: its loss or gradient was no finite number.
    skipped: int = 3
    # Share of a step's answers, refusals apart, that the reward model could not score. They are left out, and refusals,
    # whose reward needs no score, are not: the remaining rows are then a biased sample.
    unscored: float = 0.5
    no_format: int = 1  # steps in a row without any response in format
    no_score: int = 1  # steps in a row in which no response to a benign prompt was scored
    over_refusal: float = 0.9  # share of the responses to benign prompts that refuse
    echo: float = 0.3  # share of responses that repeat the template's instruction
    empty: float = 0.3  # share of the reasoning blocks that have fewer than two words
    tags: float = 0.3  # share of responses that have a tag more than once
    length: float = 3.0  # mean response length over that of the run's first steps
    truncated: float = 0.9  # share of responses without an end
    flat: float = 0.9  # share of prompts whose rollouts all earn the same: nothing to learn from
    kl: float = 0.0  # nats a token, to the initial policy; needs algorithm.reference
    heldout: float = 0.1  # fall of a look's score below its best, while the reward of training is up
    # Fall of a look's score below the best look's that is a collapse. A look at 64 prompts, 32 of a label, is off by
    # 0.09 (one standard deviation) at worst: twice that is no noise.
    collapse: float = 0.2
    # Times that a run that collapses goes back to its best checkpoint and on from there, with other prompts and smaller
    # steps. After as many, a collapse is an alarm like others. Needs eval.every and checkpoint.keep_best.
    rollbacks: int = 0
    rollback_scale: float = 0.5  # factor on the learning rates of actor and critic, each time
    # Alarms that bring a look forward if it is ``window`` steps since the last one, and a rollback or a stop by
    # "collapse" could follow. The look decides: "flat" is also what a policy that gets everything right looks like.
    look_on: tuple = ("over_refusal", "flat", "no_format", "truncated", "length")


@_section
class Config:
    name: str = "run"
    out: str = ""  # run folder, also gs://BUCKET/...; empty: runs/<name>
    seed: int = 0
    steps: int = 200  # rollout-and-update steps
    samples: int = 8  # responses dumped a step
    export: bool = True  # write a Hugging Face directory at the end
    model: Model = _field(Model)
    mesh: Mesh = _field(Mesh)
    data: Data = _field(Data)
    warmup: Warmup = _field(Warmup)
    rollout: Rollout = _field(Rollout)
    reward: Reward = _field(Reward)
    reward_model: RewardModel = _field(RewardModel)
    algorithm: Algorithm = _field(Algorithm)
    optimizer: Optimizer = _field(Optimizer)
    critic: Critic = _field(Critic)
    eval: Evaluation = _field(Evaluation)
    checkpoint: Checkpoint = _field(Checkpoint)
    guards: Guards = _field(Guards)

    @property
    def location(self) -> str:
        """The run's folder as users know it."""
        return self.out or f"runs/{self.name}"

    @property
    def run_dir(self) -> pathlib.Path:
        """The run's folder on this machine; of one in a bucket, what stands for it."""
        return buckets.local(self.location)

    @property
    def checkpoints_dir(self) -> str:
        """Which every process writes to and reads from."""
        return f"{self.location}/checkpoints"

    @property
    def export_dir(self) -> pathlib.Path:
        return self.run_dir / "export"
