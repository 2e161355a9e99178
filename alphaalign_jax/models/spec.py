"""Architecture of a decoder, read from and written to a Hugging Face ``config.json``.

Every number comes from the file; a field that is set to something we do not implement is refused by name, because a
field that is read over silently (``rope_theta``, ``rope_scaling``) gives a model that runs and is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# Tables are built from these numbers before a tensor is looked at (bytes of every token, names of every tensor): a
# damaged file must be refused, and not fill the memory. Each is many times the largest that was published.
MAX_VOCAB = 2**24  # 262,144: Gemma 3
MAX_LAYERS = 2**12  # 126: Llama 3.1 405B
MAX_SIZE = 2**20  # 53,248: the MLP of Llama 3.1 405B
MAX_POSITIONS = 2**31 - 1  # nothing is built from it; positions are int32

Kind = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and whether one is

# Fields that describe nothing the forward pass computes: provenance, tokenizers, training from scratch, generation.
# Those that begin with an underscore are Python's own state of a config object, and ignored too.
_IGNORED = frozenset(
    """architectures model_type transformers_version torch_dtype dtype use_cache initializer_range bos_token_id
    eos_token_id pad_token_id _name_or_path attention_dropout hidden_dropout max_window_layers id2label label2id
    num_labels problem_type pretraining_tp classifier_dropout is_llama_config transformers.js_config
    task_specific_params finetuning_task return_dict output_hidden_states output_attentions torchscript
    chunk_size_feed_forward bos_token eos_token pad_token unk_token tokenizer_class use_bfloat16 prefix
    attn_implementation unsloth_fixed unsloth_version classifier_bias
    gradient_checkpointing model_max_length max_length sep_token_id auto_map is_decoder use_flash_attn
    use_flash_attention use_flash_attention_2 flash_attn fused_attention
    attn_dropout resid_dropout embd_dropout attn_pdrop resid_pdrop embd_pdrop mlp_dropout dropout emb_dropout_prob
    attn_dropout_prob summary_first_dropout
    max_sequence_length max_seq_length max_seq_len seq_length max_new_tokens min_length min_new_tokens do_sample
    early_stopping num_beams num_beam_groups num_return_sequences temperature top_k top_p typical_p min_p
    diversity_penalty repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens decoder_start_token_id
    num_logits_to_keep keys_to_ignore_at_inference summary_type summary_use_proj summary_activation
    summary_proj_to_labels tie_encoder_decoder neftune_noise_alpha loss_type
    tokenizer_padding_side tokenizer_model_max_length padding_side padding_idx""".split()
)
_READ = frozenset(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rope_theta rope_scaling rope_parameters rms_norm_eps attention_bias mlp_bias tie_word_embeddings hidden_act
    max_position_embeddings use_sliding_window sliding_window layer_types partial_rotary_factor
    quantization_config is_causal""".split()
)
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # of transformers, by family
_HEADS = ("ForCausalLM", "ForSequenceClassification")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1 and 3.2 (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Architecture of one decoder. ``num_labels`` is set for sequence classifiers only."""

    family: str
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # C
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    max_positions: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    num_labels: int | None = None

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"model family {self.family!r} is not implemented; implemented: {', '.join(FAMILIES)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads={self.num_heads} is not a multiple of num_key_value_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs of features")

    @property
    def num_parameters(self) -> int:
        """Parameters of the language model (head included once when tied)."""
        d, f, c = self.hidden_size, self.intermediate_size, self.head_dim
        attn = d * c * (2 * self.num_heads + 2 * self.num_kv_heads)
        attn += c * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias + d * self.o_bias + 2 * c * self.qk_norm
        mlp = 3 * d * f + (2 * f + d) * self.mlp_bias
        embed = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attn + mlp + 2 * d) + embed + d

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, num_labels: int | None = None) -> ModelSpec:
        """The spec of a parsed ``config.json``. Raises ValueError that names an unsupported or missing field."""
        family = config.get("model_type")
        if family not in FAMILIES:
            raise ValueError(
                f"config.json: model_type={family!r} is not implemented; implemented: {', '.join(FAMILIES)}"
            )
        for field in FIELDS:
            checked(config, field)
        _refuse_unsupported(config, family)
        need = _Required(config)
        theta, scaling = _rope(config)
        return cls(
            family=family,
            vocab_size=need("vocab_size"),
            hidden_size=need("hidden_size"),
            intermediate_size=need("intermediate_size"),
            num_layers=need("num_hidden_layers"),
            num_heads=need("num_attention_heads"),
            num_kv_heads=config.get("num_key_value_heads") or _kv_heads_default(config, family),
            head_dim=config.get("head_dim") or _head_dim_default(config, family),
            norm_eps=need("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=need("max_position_embeddings"),
            # Qwen2 has biases on q, k, v and none on o, with no field that says so; Llama's field covers all four.
            qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
            o_bias=family != "qwen2" and bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            # Absent means False in every family here: it is PretrainedConfig's default in files of these models.
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            num_labels=num_labels,
        )

    def to_hf(self) -> dict[str, Any]:
        """``config.json`` fields that describe this architecture, as every transformers 4 and 5 release reads them."""
        head = _HEADS[self.num_labels is not None]
        out: dict[str, Any] = {
            "architectures": [_CLASSES[self.family] + head],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
        }
        if self.rope_scaling is not None:
            s = self.rope_scaling
            out["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_positions,
            }
        if self.family in ("llama", "qwen3"):
            out["attention_bias"] = self.o_bias
        if self.family == "llama":
            out["mlp_bias"] = self.mlp_bias
        if self.family == "mistral":
            out["sliding_window"] = None
        if self.family in ("qwen2", "qwen3"):
            out["use_sliding_window"] = False
        if self.num_labels is not None:
            out["id2label"] = {str(i): f"LABEL_{i}" for i in range(self.num_labels)}
            out["label2id"] = {f"LABEL_{i}": i for i in range(self.num_labels)}
        return out


class _Required:
    def __init__(self, config: Mapping[str, Any]):
        self.config = config

    def __call__(self, key: str) -> Any:
        value = self.config.get(key)
        if value is None:
            raise ValueError(f"config.json: field {key!r} is missing; the model cannot be built without it")
        return value


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2.0**63


def whole(most: int) -> Kind:
    return f"a positive whole number up to {most}", lambda value: type(value) is int and 0 < value <= most


_SIZES = "hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim num_labels".split()

FIELDS: dict[str, Kind] = {
    "vocab_size": whole(MAX_VOCAB),
    "num_hidden_layers": whole(MAX_LAYERS),
    "max_position_embeddings": whole(MAX_POSITIONS),
    **dict.fromkeys(_SIZES, whole(MAX_SIZE)),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), ("a positive number", _positive)),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "is_causal"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
    **dict.fromkeys(
        ("rope_scaling", "rope_parameters", "id2label", "label2id"),
        ("an object", lambda value: isinstance(value, dict)),
    ),
    "layer_types": ("a list", lambda value: isinstance(value, list)),
    "architectures": (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
}


def checked(config: Mapping[str, Any], field: str) -> Any:
    """A field of ``config.json``, which is what its name says, or null, which is as good as absent."""
    value, (expected, fits) = config.get(field), FIELDS[field]
    if value is not None and not fits(value):
        raise ValueError(f"config.json: {field} is {value!r:.80}; expected {expected}")
    return value


def _kv_heads_default(config: Mapping[str, Any], family: str) -> int:
    if family != "llama":  # transformers' own default there is a number, 8 or 32
        raise ValueError(f"config.json: field 'num_key_value_heads' is missing; {family} does not derive it from heads")
    return config["num_attention_heads"]


def _head_dim_default(config: Mapping[str, Any], family: str) -> int:
    if family == "qwen3":  # transformers' own default there is 128, not hidden_size / heads: refuse to guess
        raise ValueError("config.json: field 'head_dim' is missing; Qwen3 does not derive it from hidden_size")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads:
        raise ValueError(
            f"config.json: no head_dim, and hidden_size={hidden} does not divide by num_attention_heads={heads}"
        )
    return hidden // heads


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    def refuse(field: str, why: str):
        raise ValueError(f"config.json: {field}={config[field]!r} is not implemented ({why})")

    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "only 'silu'")
    # Qwen files carry sliding_window beside use_sliding_window=false; Mistral's has no switch, and it is on when set.
    if config.get("use_sliding_window"):
        refuse("use_sliding_window", "attention is over the full context")
    if family == "mistral" and "sliding_window" not in config:
        raise ValueError("config.json: field 'sliding_window' is missing, which in Mistral means 4096; set it to null")
    if family == "mistral" and config["sliding_window"] is not None:
        refuse("sliding_window", "attention is over the full context; set it to null if the model was trained without")
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        refuse("layer_types", "only 'full_attention'")
    if config.get("partial_rotary_factor") not in (None, 1.0):
        refuse("partial_rotary_factor", "rotary embedding covers the whole head")
    if config.get("is_causal") is False:
        refuse("is_causal", "attention is causal")
    others = {f"{name}{head}": other for other, name in _CLASSES.items() for head in _HEADS}
    named = {others[name] for name in config.get("architectures") or () if name in others}
    if named - {family}:
        refuse("architectures", f"model_type is {family!r}; correct the one that is wrong")
    if config.get("quantization_config"):
        refuse("quantization_config", "weights must be plain floating point")
    if family == "mistral" and config.get("attention_bias"):
        refuse("attention_bias", "Mistral has no attention bias")
    if family != "llama" and config.get("mlp_bias"):
        refuse("mlp_bias", "only Llama has it")
    if (config.get("pretraining_tp") or 1) != 1:
        refuse("pretraining_tp", "only 1")
    for field, value in config.items():
        # Off, or a multiplier of one. Not ``in``: True == 1 == 1.0, and an unknown switch that is on must be refused.
        neutral = not value or (isinstance(value, float) and value == 1.0)
        known = field in _READ or field in _IGNORED or field.startswith("_")
        if not known and not neutral:
            refuse(field, f"unknown field of a {family} config; remove it if the model does not depend on it")


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Return theta and scaling. transformers 5 writes ``rope_parameters``, 4 wrote ``rope_theta`` and ``rope_scaling``.

    A file may have both; where they disagree, releases of transformers would build two models of it.
    """
    fields = [field for field in ("rope_parameters", "rope_scaling") if config.get(field)]
    thetas = {"rope_theta": config.get("rope_theta")}
    thetas |= {f"{field} rope_theta": config[field].get("rope_theta") for field in fields}
    stated = {name: theta for name, theta in thetas.items() if theta is not None}
    for name, theta in stated.items():
        if not _positive(theta):
            raise ValueError(f"config.json: {name} is {theta!r:.80}; expected a positive number")
    if not stated:
        raise ValueError("config.json: field 'rope_theta' is missing; the model cannot be built without it")
    if len(set(stated.values())) > 1:
        pairs = ", ".join(f"{name}={theta}" for name, theta in stated.items())
        raise ValueError(f"config.json: {pairs} disagree; leave the one that the model was trained with")
    scalings = [_scaling(field, config[field]) for field in fields]
    if len(set(scalings)) > 1:
        raise ValueError("config.json: rope_parameters and rope_scaling disagree; leave one of them")
    return float(next(iter(stated.values()))), scalings[0] if scalings else None


def _scaling(field: str, parameters: Mapping[str, Any]) -> Llama3Scaling | None:
    """Return the scaling of one field of ``config.json``; None if it scales nothing."""
    rope = {key: value for key, value in parameters.items() if key != "rope_theta" and value is not None}
    named = {key: rope.pop(key) for key in ("rope_type", "type") if rope.get(key) is not None}
    for key, value in named.items():
        if not isinstance(value, str):
            raise ValueError(f"config.json: {field} {key} is {value!r:.80}; expected a name")
    kinds = set(named.values())
    if len(kinds) > 1:
        raise ValueError(f"config.json: {field} has rope_type and type, {sorted(kinds)}; leave one of them")
    kind = kinds.pop() if kinds else "default"
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"config.json: {field} sets partial_rotary_factor, which is not implemented")
    if kind in ("linear", "default") and rope == {"factor": 1.0}:  # positions divided by 1
        return None
    if rope.get("attention_factor") == 1.0:  # of the attention's temperature
        rope.pop("attention_factor")
    if kind == "default":
        if rope:
            raise ValueError(f"config.json: {field} has fields {sorted(rope)} that rope_type 'default' does not read")
        return None
    if kind != "llama3":
        raise ValueError(
            f"config.json: {field} rope_type={kind!r} is not implemented; implemented: 'default', 'llama3'"
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name, value in rope.items():
        count = name == names[3]
        if name in names and not (_positive(value) and (not count or value == int(value))):
            raise ValueError(
                f"config.json: {field} {name} is {value!r:.80}; expected a positive {'whole ' if count else ''}number"
            )
    missing, extra = [n for n in names if n not in rope], sorted(set(rope) - set(names))
    if missing or extra:
        raise ValueError(f"config.json: {field} rope_type 'llama3' lacks {missing} and has unknown {extra}")
    return Llama3Scaling(*(rope[n] for n in names[:3]), int(rope[names[3]]))
