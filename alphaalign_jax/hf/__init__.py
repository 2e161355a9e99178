"""Hugging Face, GGUF and Orbax models, in and out."""

from alphaalign_jax.hf.chat import ChatSettings, control_texts, end_of_turn, reads_date
from alphaalign_jax.hf.convert import Model, convert, read_model
from alphaalign_jax.hf.export import export
from alphaalign_jax.hf.load import check, load
from alphaalign_jax.hf.orbax_model import CRITIC_CONFIG, describe_run, save_model
from alphaalign_jax.hf.paths import (
    chat_settings,
    is_classifier,
    load_config,
    load_generation_config,
    load_spec,
    read_json,
    resolve,
    spec_of,
)
from alphaalign_jax.hf.staging import check_target
from alphaalign_jax.hf.tokenizer import load_tokenizer, stop_ids, token_ids

__all__ = [
    "CRITIC_CONFIG",
    "ChatSettings",
    "Model",
    "check",
    "check_target",
    "control_texts",
    "convert",
    "describe_run",
    "end_of_turn",
    "export",
    "is_classifier",
    "load",
    "load_config",
    "load_generation_config",
    "load_spec",
    "load_tokenizer",
    "read_json",
    "read_model",
    "reads_date",
    "resolve",
    "spec_of",
    "save_model",
    "chat_settings",
    "stop_ids",
    "token_ids",
]
