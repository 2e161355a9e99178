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
    # Rematerialisation. Activations of a layer kept for the backward pass: none (all), dots (matrix
    # products), full (only the layer's input).
    remat: str = "none"
    # plain (matrix products, XLA), splash (TPU kernel), triton (GPU kernel), or auto (by device).
    attention: str = "auto"
    # The date given to chat templates that print today's date. The clock is not used, because
    # prompts would then change from day to day. Empty: the date saved with the model, or
    # 2024-07-26.
    chat_date: str = ""
    # Arguments of the chat template, as name=value, such as enable_thinking=false. Empty: the
    # arguments saved with the model.
    chat_args: tuple = ()


@_section
class Mesh:
    devices: int = 0  # use only the first N devices; 0: all
    # Memory limit per device in GiB, for the estimate made before compilation; 0: the device's own.
    memory_gb: float = 0.0
    data: int = 1  # data-parallel devices
    fsdp: int = -1  # devices that shard the weights; -1: all devices left by the other axes
    tensor: int = 1  # tensor-parallel devices
    train_rules: str = "fsdp_tensor"  # sharding rule table of the trainer
    rollout_rules: str = "tensor"  # sharding rule table of the sampler
    train_overrides: tuple = ()  # rows (logical axis, mesh axis, ...) that replace rows of the table
    rollout_overrides: tuple = ()  # the same for the sampler's table


@_section
class Data:
    train: tuple = ("demo/train",)  # demo/..., a .jsonl/.csv/.parquet file, or a data.Source as a dict
    # Share of each train source in the mix, in the same order, summing to 1. Empty: the ratios set
    # in the sources.
    ratios: tuple[float, ...] = ()
    heldout: tuple = ("demo/heldout",)  # evaluation prompts, given in the same ways as train
    # Share of the training prompts, at most 0.5, set aside for the periodic evaluations of
    # eval.every and never trained on. The seed draws the same share of each label and kind. The
    # best state is chosen on these prompts, so that the held-out prompts of the before/after tables
    # have no influence on the choice. 0: periodic evaluations use the held-out prompts.
    validation: float = 0.0
    harmful_fraction: float = -1.0  # of every training batch; -1: by chance, at the mix's shares
    # Share of the training labels to flip, for experiments with wrong labels. Held-out labels are
    # never flipped.
    label_noise: float = 0.0
    max_prompt_tokens: int = 512  # limit for training prompts, chat template included
    # For longer training prompts: error, or drop (dropped prompts are counted). Held-out prompts
    # are never dropped.
    on_long: str = "error"
    bucket: int = 32  # prompt widths are padded to a multiple of this


@_section
class Optimizer:
    learning_rate: float = 1e-6
    warmup_steps: int = 0  # updates over which the learning rate rises linearly from 0
    # Final share of the run's updates, over which the learning rate falls linearly to 0.
    decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global gradient norm; 0: off


@_section
class Warmup:
    epochs: float = 0.0  # passes over the warm-up examples; 0: no warm-up
    batch: int = 16  # examples per step
    micro_batch: int = 0  # examples per shard in a gradient-accumulation slice; 0: all at once
    # Texts that teach the format: texts (sentences of this project and the rows' reference answers)
    # or self (written by the model itself).
    source: str = "texts"
    thought_tokens: int = 32  # source=self: longest text about a question
    answer_tokens: int = 48  # source=self: longest answer to it
    temperature: float = 0.7  # source=self: sampling temperature
    refusal_rate: float = 0.3  # share of refusals, the same for harmful and benign examples
    max_examples: int = 0  # 0: all
    # The learning rate falls to 0 over the warm-up. At a constant rate the result depends on the
    # last few steps, and the refusal rate swings by far more than the loss.
    optimizer: Optimizer = dataclasses.field(
        default_factory=lambda: Optimizer(learning_rate=1e-4, warmup_steps=5, decay=1.0)
    )


@_section
class Rollout:
    prompts: int = 16  # prompts per step
    group: int = 8  # rollouts per prompt
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    # Response slots of the sampler's first key/value cache, which doubles when full. 0: allocate
    # all slots at once.
    cache: int = 128
    # Finished rows leave the decoding batch, but the batch never has fewer rows than this
    # (rollout.engine.InFlight). 0: rows never leave.
    fewest_rows: int = 8
    # Decode all layers with one scanned program. False: each layer has its own program, so that no
    # layer is copied out of a stack at every token.
    scan_layers: bool = True
    bucket: int = 32  # response widths in the trainer are padded to a multiple of this
    # Sample the next step's responses before this step's update. The reward model then has a whole
    # step to score them; otherwise everything waits for it. The responses are one update off
    # policy. Correct for that with algorithm.old_logprob=sampler (ratio to the policy that sampled)
    # or with algorithm.sampler_cap (importance weights).
    ahead: bool = False
    # Mean log-prob gap in nats between trainer and sampler. A run that starts with a larger gap is
    # stopped.
    max_logprob_gap: float = 0.05


@_section
class Reward:
    format_mode: str = "strict"  # how the format is checked: strict or paper
    # Weights of the format (r_f) and the decision (r_a) in the safety reward. The paper gives none.
    # r_a must outweigh r_f, or a policy that always complies in the right format beats one that
    # still gets the format wrong while it learns to refuse. With r_f=0 the format would decay.
    r_f: float = 0.5
    r_a: float = 1.0
    helpfulness: str = "normalised"  # or raw (the ablation), off (AlphaAlign-Zero)
    # In units of the reward model's score: a group with a std of at most this earns no helpfulness
    # reward. The same holds for a group with a std of at most two units in the last place of its
    # largest score, in reward_model.dtype.
    std_floor: float = 0.01


@_section
class RewardModel:
    kind: str = "none"  # none, classifier, http, callable
    # classifier: Hugging Face directory or hub id; http: URL; callable: module:function or path/file.py:function
    target: str = ""
    batch: int = 32  # rows per classifier call or HTTP request
    max_length: int = 2048  # classifier: tokens of question and answer together
    # Compute dtype of the scores: float32, bfloat16 or float16. A classifier runs in it. For http
    # and callable, set the dtype that your model computes in: differences in its last place are
    # treated as rounding, not as preferences.
    dtype: str = "float32"
    label: int = -1  # classifier: index of the label whose score is the reward; -1: the only label
    on_host: bool = False  # classifier: keep the weights in host memory except while scoring
    # classifier: size of the tensor axis over this host's devices; the fsdp axis takes the rest.
    tensor: int = 1
    token_env: str = ""  # http: environment variable that holds the bearer token
    timeout_s: float = 60.0  # http: seconds for a complete response
    # http: attempts after the first. Pauses grow from 0.5 to 30 s, so that all take minutes.
    retries: int = 12


@_section
class Critic:
    path: str = ""  # model whose body the critic starts from; empty: the initial policy
    num_layers: int = 0  # keep only the first n layers; 0: all
    value_clip: float = 0.5  # PPO's clip range of the value loss; 0: off
    optimizer: Optimizer = dataclasses.field(default_factory=lambda: Optimizer(learning_rate=1e-5))


@_section
class Algorithm:
    # gae (PPO, with a critic), grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_batch, anchored
    advantage: str = "gae"
    gamma: float = 1.0
    lam: float = 1.0
    std_floor: float = 1e-3  # grpo: smallest divisor, in units of the reward
    # anchored: imagined pairs of rollouts, one refusal and one answer, in each group's baseline.
    anchor: float = 4.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0  # 0: off
    # Source of the old log-probs: trainer, or sampler (those recorded while sampling, which saves a
    # forward pass if both run in float32).
    old_logprob: str = "trainer"
    ratio: str = "token"  # or sequence: GSPO, with aggregation=seq-mean-token-mean and dual_clip=0
    # token-mean, seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm
    # (losses.aggregate)
    aggregation: str = "token-mean"
    # Weight each token by its probability under the trainer over that under the sampler, capped at
    # this (2 is usual). 0: off.
    sampler_cap: float = 0.0
    entropy_coef: float = 0.0
    kl_in_reward: float = 0.0  # coefficient of the k1 KL estimate in the token rewards
    kl_loss: float = 0.0  # coefficient of the KL loss term
    kl_kind: str = "k3"  # estimator of the KL loss: k2 or k3
    kl_controller: str = "fixed"  # of kl_in_reward: fixed or adaptive
    kl_target: float = 0.1  # adaptive controller: nats per token
    kl_horizon: int = 10000  # adaptive controller: responses
    reference: bool = True  # keep the initial policy, to log the KL to it; the KL terms need it
    reference_on_host: bool = False  # keep its weights in host memory except for its forward pass
    # Damp the label whose prompts push the refusal rate away from the share of harmful prompts
    # (advantages.balanced_labels).
    balance_labels: bool = False
    # Largest move of the policy per optimizer step, in nats per response. Longer steps are scaled
    # down to it. Costs one more forward pass per update. 0: off.
    max_kl: float = 0.0
    epochs: int = 1  # passes over a step's rollouts
    minibatches: int = 1  # optimizer steps per pass
    # Decay of a moving average of the policy's weights over the steps since its first update. The
    # average is then evaluated and exported, because the refusal rate swings from step to step. It
    # covers about 1 / (1 - ema_decay) steps. 0: off.
    ema_decay: float = 0.0
    # Gradient-accumulation slice: prompts per shard of the batch. 0: the whole mini-batch at once.
    micro_batch: int = 0
    # Alternative to micro_batch: token slots per shard of a slice, with all rollouts and padding.
    micro_tokens: int = 0
    truncated: str = "terminal"  # or bootstrap, mask (advantages.trained_slots)
    logprob_chunk: int = 64  # response slots whose logits are in memory at a time
    critic_warmup: int = 0  # first steps, which train only the critic


@_section
class Evaluation:
    # Steps between periodic evaluations ("looks") on data.validation, or on the held-out prompts if
    # that is 0. The initial and the final policy are evaluated too. 0: no periodic evaluations.
    every: int = 0
    batch: int = 32  # prompts per batch
    max_new_tokens: int = 0  # 0: rollout.max_new_tokens
    # Prompts of each periodic evaluation; 0: all. The evaluations before and after training always
    # use all held-out prompts.
    limit: int = 0
    temperature: float = 0.0


@_section
class Checkpoint:
    # Steps between checkpoints; 0: only at the end. A checkpoint is postponed while the one before
    # it is still being written, so that training never waits for it.
    every: int = 0
    keep: int = 2  # number of newest checkpoints to keep
    # Also keep a checkpoint of every this many steps. Training waits for the writer, if it is busy,
    # so that none is postponed. 0: none.
    keep_every: int = 0
    # Also keep the best state of the periodic evaluations, and export it. The score is min(harmful
    # refused, benign complied) on their prompts; among equal scores the latest state wins.
    keep_best: bool = True
    # In units of the score: evaluations that score at most this below the highest one count as
    # equal to it. With few prompts a smaller difference is noise, and the latest state has trained
    # longest.
    best_within: float = 0.0


@_section
class Guards:
    """Limits on a run's metrics. Most metrics are averaged over ``window`` steps.

    An alarm comes on when its metric is above its limit, or when its count of steps in a row
    reaches it; 0 turns it off. ``stop`` names the alarms that end the run.
    """

    window: int = 10  # steps that metrics are averaged over
    # Alarms, by the names of the settings below, that end the run after its state is saved. Other
    # alarms are only shown, counted and recorded.
    stop: tuple = ("skipped", "unscored")
    # Steps in a row with an optimizer step skipped for a non-finite loss or gradient.
    skipped: int = 3
    # Share of a step's answers to benign prompts, without refusals, that the reward model could not
    # score. These rows are not trained on, but refusals are, because their reward needs no score.
    # The remaining rows are then a biased sample.
    unscored: float = 0.5
    no_format: int = 1  # steps in a row without any response in format
    no_score: int = 1  # steps in a row without any scored response to a benign prompt
    over_refusal: float = 0.9  # share of the responses to benign prompts that refuse
    echo: float = 0.3  # share of responses that repeat the template's instruction
    empty: float = 0.3  # share of reasoning blocks with fewer than two words
    tags: float = 0.3  # share of responses that repeat a tag
    length: float = 3.0  # mean response length over that of the run's first steps
    truncated: float = 0.9  # share of responses cut off at the length limit
    flat: float = 0.9  # share of prompts whose rollouts all earn the same: nothing to learn from
    kl: float = 0.0  # nats per token to the initial policy, newest step; needs algorithm.reference
    # Drop of the periodic evaluations' score below its best while the training reward has risen.
    heldout: float = 0.1
    # Drop of a periodic evaluation's score below the best one that counts as a collapse. With 64
    # prompts, 32 per label, the score's standard deviation is at most 0.09: a drop of about twice
    # that is not noise.
    collapse: float = 0.2
    # Number of times that a collapsed run goes back to its best checkpoint and continues from there
    # with other prompts and smaller steps. After that, a collapse is an ordinary alarm. Needs
    # eval.every and checkpoint.keep_best.
    rollbacks: int = 0
    rollback_scale: float = 0.5  # factor on the learning rates of actor and critic at each rollback
    # Alarms that trigger an early evaluation, if the last one is at least ``window`` steps old and
    # a rollback or a stop by "collapse" could follow. Only the evaluation can tell a collapse:
    # "flat" also comes on for a policy that gets everything right.
    look_on: tuple = ("over_refusal", "flat", "no_format", "truncated", "length")


@_section
class Config:
    name: str = "run"
    out: str = ""  # run folder, also gs://BUCKET/...; empty: runs/<name>
    seed: int = 0
    steps: int = 200  # rollout-and-update steps
    samples: int = 8  # responses written to samples.jsonl per step
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
        """The run's folder, as the user named it: a path or a bucket URL."""
        return self.out or f"runs/{self.name}"

    @property
    def run_dir(self) -> pathlib.Path:
        """The run's folder on this machine; for a bucket, its local mirror."""
        return buckets.local(self.location)

    @property
    def checkpoints_dir(self) -> str:
        """The checkpoints' folder, which every process writes to and reads from."""
        return f"{self.location}/checkpoints"

    @property
    def export_dir(self) -> pathlib.Path:
        return self.run_dir / "export"
