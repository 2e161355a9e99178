"""Malformed input of every kind, by the thousand: each is taken as it was meant, or refused with a message.

Never a traceback without one, and never a value quietly put in the place of another.
"""

import functools
import json
import math
import pathlib
import struct
import tempfile

import gguf
import numpy as np
import pytest
import test_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphaalign_jax import buckets, cli
from alphaalign_jax import config as config_lib
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.source import as_source
from alphaalign_jax.data.wording import TAG_TEXTS
from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.hf import gguf as gguf_files
from alphaalign_jax.hf import load, load_tokenizer, paths
from alphaalign_jax.hf.safetensors_dir import SafetensorsDir
from alphaalign_jax.models import ModelSpec
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import rule_table
from alphaalign_jax.planning import chips
from alphaalign_jax.rewards import hacking, oracle
from alphaalign_jax.rewards.reward_model.http import HttpRewardModel, retry_after_seconds
from alphaalign_jax.rewards.reward_model.protocol import DTYPES, checked_scores
from alphaalign_jax.rewards.reward_model.wire import parse_reply
from alphaalign_jax.text import printable
from alphaalign_jax.train.finetune import read_pairs
from alphaalign_jax.types import LABELS

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="malformed"))
tried = {}  # cases, by test


def cases(count, *strategies):
    """Runs a test with so many cases drawn from ``strategies``, always the same ones."""

    def decorate(function):
        @functools.wraps(function)
        def counted(*args, **named):
            tried[function.__name__] = tried.get(function.__name__, 0) + 1
            function(*args, **named)

        quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
        how = settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)
        return how(given(*strategies)(counted))

    return decorate


def refused(function, *arguments, **options):
    """What the function returns; None where it refuses its input with a message. Any other error is a fault."""
    try:
        return function(*arguments, **options)
    except (ValueError, FileNotFoundError, ExpectedError) as error:
        assert len(str(error)) > 10, f"{type(error).__name__} without a message"
        assert not isinstance(error, UnicodeError), "a message of the interpreter, which names no file and no fix"
        return None


WORD = st.text(max_size=8)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), WORD)
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3), max_leaves=6
)


@st.composite
def changed(draw, base, values=JSON):
    """A JSON object like ``base`` with a few of its fields gone, or something else."""
    out = dict(base)
    for key in draw(st.lists(st.sampled_from(sorted(base)), min_size=1, max_size=3)):
        if draw(st.booleans()):
            out.pop(key, None)
        else:
            out[key] = draw(values)
    if draw(st.integers(0, 4)) == 0:
        out[draw(WORD)] = draw(values)
    return out


@st.composite
def broken(draw, content):
    """Bytes like ``content`` cut short, with bytes changed, or with others between."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(out) - 1)))
        how = draw(st.integers(0, 3))
        if how == 0:
            del out[place:]
        elif how == 1 and out:
            out[place] = draw(st.integers(0, 255))
        elif how == 2 and out:
            out[place] ^= 1 << draw(st.integers(0, 7))
        else:
            out[place:place] = draw(st.binary(max_size=6))
    return bytes(out)


def file(name, content):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


# Data -----------------------------------------------------------------------------------------------------------------

ROW = {"prompt": "How?", "label": "benign", "answer": "So.", "category": "c", "source": "s"}


@cases(1500, st.lists(changed(ROW), min_size=1, max_size=3))
def test_jsonl_rows(records):
    """Each row is what its line says, or none is read."""
    path = file("rows.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    rows = refused(read, Source(path=str(path)))
    if rows is not None:
        assert [row.prompt for row in rows] == [record["prompt"] for record in records]
        assert [LABELS[row.label] for row in rows] == [str(record["label"]).strip().casefold() for record in records]


TURN = {"role": "user", "content": "How?"}
ROLE = st.sampled_from(["system", "user", "assistant"])


@cases(500, st.lists(changed(TURN) | ROLE.map(lambda role: {"role": role, "content": "So."}), max_size=4) | JSON)
def test_conversations(turns):
    """What is asked is the last turn of the user, after all turns before it, or nothing is."""
    path = file("turns.jsonl", (json.dumps({"messages": turns, "label": "benign"}) + "\n").encode())
    rows = refused(read, Source(path=str(path)))
    if rows is not None:
        [row] = rows
        answered = turns[-1]["role"] == "assistant"
        assert row.messages() == [{"role": t["role"], "content": t["content"]} for t in turns[: len(turns) - answered]]
        assert row.answer == (turns[-1]["content"] if answered else "")


@cases(800, broken(json.dumps(ROW).encode() + b"\n" + json.dumps(ROW).encode() + b"\n"))
def test_jsonl_bytes(content):
    for row in refused(read, Source(path=str(file("bytes.jsonl", content)))) or []:
        assert isinstance(row, PromptRow) and row.prompt.strip()


@cases(800, broken(b'prompt,label,answer\n"How, so?",benign,"So."\nWhy?,harmful,\n'))
def test_csv_bytes(content):
    for row in refused(read, Source(path=str(file("bytes.csv", content)))) or []:
        assert row.prompt.strip() and row.label in (0, 1)


@cases(150, st.data())
def test_parquet_bytes(data):
    import pyarrow
    import pyarrow.parquet

    good = FOLDER / "good.parquet"
    if not good.is_file():
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["How?"], "label": ["benign"]}), good)
    path = file("bytes.parquet", data.draw(broken(good.read_bytes())))
    for row in refused(read, Source(path=str(path))) or []:
        assert row.prompt.strip() and row.label in (0, 1)


@cases(400, st.lists(changed({"prompt": "How?", "response": "So."}), min_size=1, max_size=3))
def test_pairs_of_supervised_training(records):
    path = file("pairs.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    found = refused(read_pairs, str(path))
    if found is not None:
        assert [row.prompt for row in found[0]] == [record["prompt"] for record in records]
        assert found[1] == [record["response"] for record in records]


@cases(300, broken(b'{"prompt": "How?", "response": "So."}\n'))
def test_pairs_bytes(content):
    refused(read_pairs, str(file("pairs-bytes.jsonl", content)))


# Settings -------------------------------------------------------------------------------------------------------------


def keys(section, prefix=""):
    for name, value in section.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def at(section, key):
    for part in key.split("."):
        section = getattr(section, part)
    return section


KEYS = sorted(keys(config_lib.defaults()))
OF = lambda kind: st.sampled_from([key for key in KEYS if type(at(config_lib.Config(), key)) is kind])
VALUE = st.one_of(
    WORD, st.integers(-(2**40), 2**40).map(str), st.floats().map(str), JSON.map(repr), JSON.map(json.dumps)
)


# Numbers that are none, or that the step does not have: float32 holds no more than 3.4e38, and takes 1e-46 for 0.
NO_NUMBER = st.sampled_from(["nan", "inf", "-inf", "1e999", "-1e999", "NaN", "Infinity", "1e39", "1e-46"])
CHANGE = (
    st.tuples(st.sampled_from(KEYS) | WORD, VALUE)
    | st.tuples(OF(float), NO_NUMBER)
    | st.tuples(OF(float), st.floats().map(str) | st.floats(0, 2).map(str))
    | st.tuples(OF(int), st.integers().map(str) | st.integers(-2, 9).map(str))
    | st.tuples(OF(tuple), st.lists(NO_NUMBER | WORD, max_size=3).map(",".join))
)
drawn = set()


@cases(1500, CHANGE)
def test_settings_of_the_command_line(change):
    """What is taken is what was written, in the setting's own type; NaN is no number for any of them."""
    key, text = change
    drawn.add(text)
    config = config_lib.defaults()
    config.model.path, config.reward.helpfulness = "none", "off"

    def load():
        config_lib.override(config, key, text)
        return config_lib.resolve(config)

    found = refused(load)
    if found is None:
        return
    value = at(found, key)
    assert type(value) is type(at(config_lib.Config(), key))
    if isinstance(value, float):
        assert np.isfinite(np.float32(value)) and value == float(text) and (value == 0) == (np.float32(value) == 0)
    elif type(value) is int:
        assert value == int(text) == np.int32(value)
    elif isinstance(value, str):
        assert value == text
    elif key == "data.ratios":
        assert all(isinstance(share, float) and math.isfinite(share) for share in value)


def test_there_were_numbers_among_them_that_are_none():
    """One in a hundred of a thousand keys and words is none at all for most of the keys."""
    if "test_settings_of_the_command_line" not in tried:
        pytest.skip("a part of the file was run")
    assert drawn >= {"nan", "inf", "-inf", "1e999", "1e39", "1e-46"}


SOURCE = {"path": "a.jsonl", "kind": "csv", "where": (("a", "b"),), "ratio": 0.5, "label_map": (("a", "benign"),)}


@cases(400, JSON | changed(SOURCE))
def test_sources_of_a_mix(entry):
    """What is taken has the types that reading counts on, before a row is read."""
    source = refused(as_source, entry)
    if source is not None:
        assert "\0" not in source.path and 0 <= float(source.ratio) <= 1
        assert all(len(pair) == 2 for pair in (*source.where, *source.label_map))


@cases(300, st.floats() | st.floats(0, 2), st.integers() | st.just(0), st.floats() | st.floats(0, 1))
def test_distributions(temperature, top_k, top_p):
    """What float32 or int32 does not hold is an OverflowError of JAX's, or another distribution than was asked for."""
    made = refused(Sampling.create, temperature, top_k, top_p)
    if made is not None:
        assert np.isfinite(made.temperature) and (made.temperature > 0) == (temperature > 0)
        assert made.top_k == top_k and 0 < made.top_p <= 1


@cases(600, st.lists(st.text(st.sampled_from("-=.config sweep_1aé\x1b"), max_size=20), max_size=4))
def test_arguments(arguments):
    axes, rest = cli.swept(arguments)
    pairs = refused(cli.overrides, rest)
    assert pairs is None or len(pairs) + len(axes) >= len({*arguments}) - len(arguments) // 2 - 1


@cases(300, st.lists(st.lists(WORD | st.sampled_from(["mlp", "fsdp", "length", "vocab"]), max_size=3), max_size=3))
def test_rules(overrides):
    table = refused(rule_table, "fsdp_tensor", overrides)
    if table is not None:
        assert all(table[row[0]] == tuple(row[1:]) for row in {row[0]: row for row in overrides}.values())


@cases(300, WORD | st.from_regex(r"\A(v5e|v5p|v6e|v9|cpu):[0-9x-]{0,6}\Z").filter(lambda s: not s.startswith("v5")))
def test_topologies(name):
    """Those that the TPU compiler is asked about are few: it takes seconds."""
    if not name.startswith("v6e"):
        refused(chips.topology, name)


@cases(300, WORD | st.tuples(st.sampled_from(["gs", "file", "", "é"]), st.text(max_size=12)).map("://".join))
def test_bucket_urls(url):
    found = refused(buckets.local, url)
    if found is not None and buckets.remote(url):
        home = pathlib.Path(buckets._HERE).expanduser()
        assert home in found.resolve().parents, "a name that leads out of the folder for buckets"


# Models ---------------------------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "max_position_embeddings": 64,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "layer_types": ["full_attention"],
}


@cases(2000, changed(LLAMA))
def test_model_configs(config):
    """A number that is a string, negative, or missing: not guessed at."""
    spec = refused(ModelSpec.from_hf, config)
    if spec is not None:
        for ours, theirs in (
            ("vocab_size", "vocab_size"),
            ("num_layers", "num_hidden_layers"),
            ("rope_theta", "rope_theta"),
        ):
            if config.get(theirs) is not None:
                assert getattr(spec, ours) == config[theirs]


@cases(500, changed(LLAMA["rope_scaling"]))
def test_rotary_scaling(rope):
    refused(ModelSpec.from_hf, {**LLAMA, "rope_scaling": rope})


@cases(400, broken(json.dumps(LLAMA).encode()))
def test_config_files(content):
    file("model/config.json", content)
    refused(paths.load_spec, FOLDER / "model")


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
TENSORS = struct.pack("<Q", len(HEADER)) + HEADER + np.arange(4, dtype=np.float32).tobytes()


@cases(600, broken(TENSORS))
def test_safetensors(content):
    file("tensors/model.safetensors", content)
    found = refused(SafetensorsDir, FOLDER / "tensors")
    for name in found.names() if found is not None else ():
        if refused(found.dtype, name) is not None:
            found.read(name, tuple(slice(None) for _ in found.shape(name)))


@cases(
    400,
    changed({"metadata": {}, "weight_map": {"w": "model-1.safetensors"}}) | st.fixed_dictionaries({"weight_map": JSON}),
)
def test_indices_of_safetensors(index):
    """A name that leads out of the folder reads a file that is not the model's."""
    file("index/model-1.safetensors", TENSORS)
    file("index/model.safetensors.index.json", json.dumps(index).encode())
    found = refused(SafetensorsDir, FOLDER / "index")
    if found is not None:
        assert set(index["weight_map"].values()) <= {"model-1.safetensors"}


MARK = {
    "kind": "orbax_model",
    "head": "lm",
    "dtype": "float32",
    "steps": "../checkpoints",
    "item": "actor",
    "files": ["a"],
}


@cases(
    400,
    changed(MARK) | st.tuples(st.sampled_from(["steps", "item", "files"]), WORD).map(lambda kv: {**MARK, kv[0]: kv[1]}),
)
def test_markers(said):
    file("marked/alphaalign.json", json.dumps(said).encode())
    found = refused(paths.marker, FOLDER / "marked")
    if found is not None:
        assert found.get("steps") in (None, "../checkpoints") and found.get("item") in (None, "actor", "average")


def small_gguf():
    path = FOLDER / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@cases(500, broken(small_gguf()))
def test_gguf_files(content):
    path = file("bytes.gguf", content)
    gguf_files._parse.cache_clear()
    refused(gguf_files.read_config, path)


NUMBER = st.integers(-3, 70) | st.integers(-(2**31), 2**31 - 1)
ONE = [NUMBER, st.floats(width=32), st.booleans(), WORD]
LISTS = st.one_of(st.lists(one, min_size=1, max_size=6) for one in [*ONE, st.just(["a"])])
METADATA = test_gguf.metadata("llama") | test_gguf.TOKENIZER


@cases(400, changed(METADATA, st.one_of(*ONE, st.integers(2**31, 2**64 - 1), LISTS)))
def test_gguf_metadata(fields):
    """Any type and number under any key: what is taken is what was written."""
    path = FOLDER / "metadata.gguf"
    test_gguf.write_gguf(path, "llama", test_gguf.gguf_tensors(), fields)
    gguf_files._parse.cache_clear()
    loaded, tokenizer = refused(load, path), refused(load_tokenizer, path)
    if loaded is not None:
        spec = loaded[0].spec
        assert fields["llama.attention.head_count"] == spec.num_heads and fields["llama.block_count"] == spec.num_layers
        assert np.float32(fields["llama.rope.freq_base"]) == np.float32(spec.rope_theta)
    if tokenizer is not None:
        assert len(tokenizer) == len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"])
        assert tokenizer.chat_template == fields.get("tokenizer.chat_template")
        assert max(tokenizer("ab<|end|> b")["input_ids"]) < len(tokenizer)


@cases(150, broken((ROOT / "tests/test_malformed.py").read_bytes()[:400]) | JSON.map(lambda x: json.dumps(x).encode()))
def test_tokenizer_files(content):
    file("tokenizer/config.json", json.dumps(LLAMA).encode())
    file("tokenizer/tokenizer.json", content)
    refused(load_tokenizer, FOLDER / "tokenizer")


# Reward models --------------------------------------------------------------------------------------------------------


@cases(1200, JSON.map(lambda x: {"scores": x}) | JSON, st.integers(0, 3))
def test_replies_of_a_reward_server(reply, n):
    """A score that was not given is NaN, one that was is what it was."""
    read = refused(parse_reply, json.dumps(reply).encode(), n, "server")
    if read is not None:
        found, dtype = read
        assert dtype in ("", *DTYPES)
        assert found.shape == (n,) and found.dtype == np.float32 and len(reply["scores"]) == n
        for score, value in zip(found, reply["scores"]):
            given = math.nan if value is None or abs(value) > 3e38 else float(np.float32(value))
            assert score == given or (not math.isfinite(given) and math.isnan(score))


@cases(400, broken(b'{"scores": [1.5, null, -2], "dtype": "bfloat16"}'))
def test_bytes_of_a_reward_server(content):
    refused(parse_reply, content, 3, "server")


@cases(
    600, JSON | st.lists(st.floats() | st.integers() | st.none(), max_size=3) | st.binary(max_size=4), st.integers(0, 3)
)
def test_values_of_a_reward_function(values, n):
    found = refused(checked_scores, values, n)
    assert found is None or (found.shape == (n,) and not np.isinf(found).any())


@cases(
    300,
    WORD
    | st.integers(-(10**6), 10**6).map(str)
    | st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{4,9} \d\d"),
)
def test_retry_after(value):
    assert 0 <= retry_after_seconds(value) < math.inf or value.isdigit()


@cases(400, WORD | st.tuples(st.sampled_from(["http", "https", "ftp", ""]), st.text(max_size=16)).map("://".join))
def test_reward_urls(url):
    """What may hold a secret is refused: the rest of a url is written down with the run."""
    model = refused(HttpRewardModel, url)
    if model is not None:
        assert "?" not in url and "@" not in url.partition("://")[2].partition("/")[0]
        model.close()


# Text of others -------------------------------------------------------------------------------------------------------


@cases(600, st.text(st.characters() | st.sampled_from("\x1b\x07\x9b\u202e\u2028[2J;m"), max_size=40))
def test_text_for_a_terminal(text):
    """What is left of a response cannot command a terminal, and tells all that was there."""
    shown = printable(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert shown == text or not text.isprintable()


TAG = st.sampled_from([*TAG_TEXTS, "\\boxed{", "}", "I cannot", "I can\u2019t", " ", "\n", "\x00", "\udcff"])


@cases(1000, st.lists(TAG | WORD, max_size=12).map("".join))
def test_verifiers_on_the_host(text):
    """Any text at all has a verdict."""
    raw = text.encode("utf-8", errors="surrogatepass")
    found = hacking.signs(raw.decode(errors="replace"))
    assert found.empty in (None, True, False)
    block = oracle.answer_block(raw)
    assert oracle.format_oracle(raw, True, "strict") <= oracle.format_oracle(raw, True, "paper")
    assert not oracle.refusal_oracle(raw) or block is not None


def test_there_were_ten_thousand_of_them():
    """Counted as they ran, not as they were asked for."""
    if len(tried) < 20:
        pytest.skip("a part of the file was run")
    assert sum(tried.values()) >= 10_000, tried
