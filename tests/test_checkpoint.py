"""Models to disk and back, in Hugging Face's layout; and every way we know in which a directory can be wrong."""

import fnmatch
import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, small_gpt
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minclipo.checkpoint import Checkpoint, load_model, load_tokenizer, save_model, save_tensors
from minclipo.checkpoint import weights as checkpoint
from minclipo.checkpoint.config_json import config_from_json, config_to_json
from minclipo.checkpoint.files import read_json, write_json
from minclipo.checkpoint.rope import Linear, Llama3, Yarn
from minclipo.model import GPTConfig, rotary_frequencies
from minclipo.sampler import sample
from minclipo.toy import toy_tokenizer

PARITY, MALFORMED = FIXTURES / "parity", FIXTURES / "parity" / "malformed"
CHECKPOINTS = sorted(path.name for path in PARITY.iterdir() if path.name != "malformed")
CASES = json.loads((MALFORMED / "MALFORMED.json").read_text())
APPLIED = [case for case in CASES if "or apply" in case["expect"]]  # this model has what they ask for
REFUSED = [case for case in CASES if "refuse" in case["expect"] and case not in APPLIED]
LOADED = [case for case in CASES if case["dir"].startswith("ok_")] + APPLIED
LLAMA3 = Llama3(8.0, 1.0, 4.0, 64)
SHAPES = [
    {},
    dict(tie_embeddings=False),
    dict(qkv_bias=True),
    dict(qk_norm=True, head_dim=6),
    dict(rope_scaling=LLAMA3, rope_theta=500000.0, norm_eps=1e-6),
    dict(rope_scaling=Linear(4.0)),
    dict(rope_scaling=Yarn(4.0, 64)),
    dict(rope_scaling=Yarn(4.0, 64, truncate=False, attn_factor=0.7), qk_norm=True),
    dict(unrotated_layers=(1,)),
]


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("changes", SHAPES)
def test_a_saved_model_comes_back_the_same(changes, tmp_path):
    """Catches: a config field that is not written or not read."""
    model = small_gpt(vocab_size=122, **changes)
    save_model(model, toy_tokenizer(), tmp_path)
    loaded, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    tokens = torch.tensor([tokenizer.encode("7 , +5 , -3 =")])
    assert loaded.config == model.config and tokenizer.eos_ids == toy_tokenizer().eos_ids
    assert torch.equal(loaded.logits(loaded(tokens)), model.logits(model(tokens)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_are_saved_as_they_were_published(name, tmp_path):
    """Names, shapes and values. Catches: a layout that only we can read."""
    save_model(load_model(PARITY / name), load_tokenizer(PARITY / name), tmp_path)
    published = {}
    for path in (PARITY / name).glob("model*.safetensors"):
        published |= load_file(path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[key], published[key].float()) for key in saved)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_configs_survive_the_round_trip(name):
    """What we write of a config.json that others wrote means the same. Catches: rope settings lost on save."""
    config = config_from_json(read_json(PARITY / name / "config.json"))
    assert config_from_json(config_to_json(config, torch.float32)) == config


def test_a_saved_directory_is_complete(tmp_path):
    """The files and keys that transformers reads. Catches: a chat model that no longer stops, or no longer chats."""
    name = "llama_sharded_fp16"
    save_model(load_model(PARITY / name, dtype=torch.bfloat16), load_tokenizer(PARITY / name), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config, published = read_json(tmp_path / "config.json"), read_json(PARITY / name / "config.json")
    assert config["eos_token_id"] == read_json(tmp_path / "generation_config.json")["eos_token_id"] == [435, 438]
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    differ = {key for key in config if config[key] != published.get(key)}
    assert differ == {"dtype", "torch_dtype", "eos_token_id"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama_untied_fp32", "llama_sharded_fp16", "smollm2_like_bf16"])
def test_weights_come_in_the_type_that_was_asked_for(name, dtype):
    """Catches: half precision kept by accident, in which small updates vanish."""
    assert {parameter.dtype for parameter in load_model(PARITY / name, dtype=dtype).parameters()} == {dtype}


def test_parameters_of_a_loaded_model_learn():
    """Catches: tensors assigned as plain data, which no optimizer would change."""
    assert all(parameter.requires_grad for parameter in load_model(PARITY / "smollm2_like_bf16").parameters())


def test_no_memory_is_taken_before_the_weights_are_read(monkeypatch):
    """Catches: random float32 weights made first and thrown away, twice the memory of a large model."""
    devices = []

    class Watched(checkpoint.GPT):
        def __init__(self, config):
            super().__init__(config)
            devices.extend(parameter.device.type for parameter in self.parameters())

    monkeypatch.setattr(checkpoint, "GPT", Watched)
    load_model(PARITY / "smollm2_like_bf16")
    assert set(devices) == {"meta"}


def test_weights_stay_where_they_were_read_to(monkeypatch):
    """Catches: a second copy of the model when the weights are put into it."""
    read, places = checkpoint.StoredTensor.read, set()

    def watched(self, dtype, device):
        tensor = read(self, dtype, device)
        places.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(checkpoint.StoredTensor, "read", watched)
    model = load_model(PARITY / "llama_sharded_fp16")
    assert {parameter.data_ptr() for parameter in model.parameters()} == places


def test_loaded_weights_do_not_hang_on_the_file(tmp_path):
    """Catches: weights that are a view of the mapped file, which changes when another program writes to it."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path)
    model = load_model(tmp_path)
    before = model.norm.weight.clone()
    path = tmp_path / "model.safetensors"
    with open(path, "rb+") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(model.norm.weight, before)


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    """Catches: writing over good weights in place. The disk is full in the middle of the save."""
    path = tmp_path / "model.safetensors"
    save_tensors({"x": torch.ones(3)}, path)

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"x": torch.zeros(3)}, path)
    assert torch.equal(load_file(path)["x"], torch.ones(3))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Catches: a rename that survives a power cut while the contents do not."""
    synced, fsync, replace = set(), os.fsync, os.replace

    def watched_fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def watched_replace(source, target):
        assert os.stat(source).st_ino in synced, target
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_model(load_model(PARITY / "smollm2_like_bf16"), load_tokenizer(PARITY / "smollm2_like_bf16"), tmp_path)
    assert {path.stat().st_ino for path in [tmp_path, *tmp_path.iterdir()]} == synced  # the names in the folder, too


# ---------------------------------------------------------------- directories that are wrong


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["dir"])
def test_malformed_directories_are_refused_by_name(case):
    """Catches: a checkpoint that is loaded nearly right, and an error that does not say what is wrong where."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(MALFORMED / case["dir"])
    for name in [*case["error_should_name"], str(MALFORMED / case["dir"])]:
        assert name in str(error.value)


@pytest.mark.parametrize("case", LOADED, ids=lambda case: case["dir"])
def test_untidy_but_valid_directories_load(case):
    """Catches: being stricter than right, a rotary scaling or a window that is ignored."""
    reference, model = load_file(MALFORMED / case["dir"] / "reference.safetensors"), load_model(MALFORMED / case["dir"])
    tokens = reference["input_ids"][:, : model.config.max_positions]  # no longer than a window: it is not felt
    expected = reference["logits"][:, : model.config.max_positions]
    torch.testing.assert_close(model.logits(model(tokens)), expected, atol=3e-5, rtol=1e-5)


def test_a_sequence_that_a_sliding_window_would_cut_is_refused():
    """Catches: the window of 4 tokens ignored. In transformers the fifth position no longer sees the first."""
    model = load_model(MALFORMED / "sliding_window_active")
    sample(model, [[5, 6]], 1, 2, eos_ids=[])
    with pytest.raises(ValueError, match="prompt . max_new_tokens is 5 tokens, more than .* max_positions 4"):
        sample(model, [[5, 6]], 1, 3, eos_ids=[])


@pytest.mark.parametrize("name", ["chat_template_escape", "chat_template_syntax"])
def test_broken_chat_templates_do_not_stop_the_model_but_the_chat(name):
    load_model(MALFORMED / name)
    with pytest.raises(ValueError, match=rf"{MALFORMED / name}/tokenizer_config.json: chat_template"):
        load_tokenizer(MALFORMED / name).chat([{"role": "user", "content": "hi"}])


def test_every_malformed_directory_is_tested():
    """Catches: a case that none of the tests above takes up."""
    chats = [case for case in CASES if case["dir"].startswith("chat_template_")]
    assert len(REFUSED + LOADED + chats) == len(CASES) and {case["dir"] for case in CASES} == {
        path.name for path in MALFORMED.iterdir() if path.is_dir()
    }


def message_of(directory: Path) -> str:
    """The error that loading gives; nothing but these two classes will do."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(directory)
    assert type(error.value) in (ValueError, FileNotFoundError)
    return str(error.value)


def toy_directory(tmp_path: Path, **changes) -> Path:
    save_model(small_gpt(vocab_size=122, **changes), toy_tokenizer(), tmp_path)
    return tmp_path


def rewrite_config(directory: Path, **changes) -> None:
    """Change keys of config.json; the value "absent" removes the key."""
    config = read_json(directory / "config.json") | changes
    write_json(directory / "config.json", {key: value for key, value in config.items() if value != "absent"})


def llama3(**changes) -> dict:
    """A valid rope_scaling with some keys changed."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64} | changes
    return {key: value for key, value in scaling.items() if value != "absent"}


def yarn(**changes) -> dict:
    """A valid rope_scaling with some keys changed."""
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64} | changes


SIZES = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
]
DEFAULTS = ("num_key_value_heads", "head_dim")  # may be left out


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -4, "16", 16.0, True, [16], 10**12])
def test_sizes_that_are_no_positive_integers_are_refused(key, value, tmp_path):
    """Catches: true read as 1, an error from deep inside torch, a model of 10^12 layers built until the memory ends."""
    rewrite_config(toy_directory(tmp_path), **{key: value})
    assert re.search(rf"config.json: {key} ", message_of(tmp_path))


@pytest.mark.parametrize("key", [*(key for key in SIZES if key not in DEFAULTS), "rms_norm_eps"])
@pytest.mark.parametrize("value", [None, "absent"])
def test_keys_without_a_sensible_default_are_asked_for(key, value, tmp_path):
    """Catches: a norm epsilon made up."""
    rewrite_config(toy_directory(tmp_path), **{key: value})
    assert f"config.json: {key} is missing" in message_of(tmp_path)


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1e-5, "1e-5", True, float("inf"), float("nan")])
def test_numbers_that_are_not_positive_are_refused(key, value, tmp_path):
    rewrite_config(toy_directory(tmp_path), **{key: value})
    assert f"config.json: {key} must be a positive number" in message_of(tmp_path)


@pytest.mark.parametrize(
    "changes, names",
    [
        (
            dict(model_type="gemma2"),
            "model_type must be one of llama, qwen2, qwen3, mistral, ministral, smollm3; found 'gemma2'",
        ),
        (dict(model_type="gemma3_text"), "model_type must be one of .*; found 'gemma3_text'"),
        (dict(model_type=None), "model_type .*None"),
        (dict(model_type=["llama"]), r"model_type .*\['llama'\]"),
        (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
        (dict(hidden_act=None), "hidden_act None"),
        (dict(head_dim="absent", hidden_size=18), "hidden_size 18 is not a multiple"),
        (dict(head_dim=5), "head_dim must be even"),
        (dict(num_key_value_heads=3), "num_key_value_heads 3 does not divide num_attention_heads 4"),
        (dict(num_key_value_heads=8), "num_key_value_heads 8 does not divide"),
        (dict(num_hidden_layers=1000), "num_hidden_layers 1000"),
        (dict(tie_word_embeddings="false"), "tie_word_embeddings must be true or false, found 'false'"),
        (dict(tie_word_embeddings=0), "tie_word_embeddings must be true or false"),
        (dict(attention_bias=True), "attention_bias True"),
        (dict(mlp_bias=True), "mlp_bias True"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
        (dict(final_logit_softcapping=30.0), "final_logit_softcapping 30.0"),
        (dict(quantization_config={"quant_method": "fp8"}), "quantization_config .*fp8"),
        (dict(vocab_size=2**31 - 1, hidden_size=2**31 - 1, head_dim=4), "cannot be built|misshapen"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types .*'sliding_attention'"),
        (dict(layer_types=["full_attention"]), "layer_types must be 2 times"),
        (dict(layer_types="full_attention"), "layer_types"),
        (dict(layer_types=["full_attention", "chunked_attention"]), "layer_types .*'chunked_attention'"),
        (dict(model_type="mistral", sliding_window=0), "sliding_window must be an integer of at least 1, found 0"),
        (dict(model_type="mistral", sliding_window="8"), "sliding_window must be an integer of at least 1, found '8'"),
        (dict(model_type="smollm3", no_rope_layers=[1]), r"no_rope_layers must be 2 times 0 or 1, found \[1\]"),
        (dict(model_type="smollm3", no_rope_layers=[1, 2]), "no_rope_layers must be 2 times"),
        (dict(model_type="smollm3", no_rope_layers="10"), "no_rope_layers must be 2 times"),
        (dict(model_type="smollm3", no_rope_layer_interval=0), "no_rope_layer_interval must be an integer"),
        (dict(model_type="qwen3", use_sliding_window="yes"), "use_sliding_window must be true or false"),
        (dict(rope_scaling="llama3"), "rope_scaling must be an object"),
        (dict(rope_parameters=[]), "rope_parameters must be an object"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "original_max_position_embeddings is missing"),
        (dict(rope_scaling=yarn(factor=None)), "factor is missing"),
        (dict(rope_scaling=yarn(beta_slow=32)), "beta_slow 32.0 must be below beta_fast 32.0"),
        (dict(rope_scaling=yarn(truncate="no")), "truncate must be true or false, found 'no'"),
        (dict(rope_scaling=yarn(mscale="1")), "mscale must be a positive number, found '1'"),
        (dict(rope_scaling=yarn(low_freq_factor=1.0)), "does not know low_freq_factor"),
        (
            dict(rope_scaling=yarn(attn_factor=0.9, attention_factor=0.9)),
            "attention_factor 0.9 and attn_factor 0.9 contra",
        ),
        (dict(rope_scaling=yarn(), rope_theta=1.0), "rope_theta must be above 1, found 1.0"),
        (dict(rope_scaling={"type": "longrope", "factor": 2.0}), "rope_scaling .*'longrope'"),
        (dict(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling .*'dynamic'"),
        (dict(rope_scaling={"type": "mrope", "rope_type": "default"}), "rope_scaling .*'mrope'"),
        (dict(rope_scaling={"rope_type": None, "factor": 2.0}), "rope_scaling .*None"),
        (dict(rope_scaling={"factor": 2.0}), "rope_scaling .*does not know factor"),
        (dict(rope_scaling={"rope_type": "linear"}), "factor is missing"),
        (dict(rope_scaling={"rope_type": "linear", "factor": 0}), "factor must be a positive number, found 0"),
        (dict(rope_scaling={"rope_type": "linear", "factor": "4"}), "factor must be a positive number, found '4'"),
        (dict(rope_scaling=llama3(factor="absent")), "factor is missing"),
        (dict(rope_scaling=llama3(low_freq_factor="absent")), "low_freq_factor is missing"),
        (dict(rope_scaling=llama3(low_freq_factor=4.0)), "low_freq_factor 4.0 must be below high_freq_factor 4.0"),
        (dict(rope_scaling=llama3(original_max_position_embeddings="absent")), "original_max_position.* is missing"),
        (dict(rope_scaling=llama3(attention_factor=1.5)), "does not know attention_factor"),
        (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25}), "partial_rotary_factor 0.25"),
        (dict(rope_parameters={"full_attention": {"rope_theta": 1e4}}), "does not know full_attention"),
        (dict(rope_parameters={"rope_theta": 5e5}), "rope_theta is given twice"),
        (dict(rope_scaling=llama3(), rope_parameters=llama3(factor=2.0)), "contradict each other"),
        (dict(rope_scaling=llama3(), rope_parameters={"rope_type": "default"}), "contradict each other"),
        (dict(rope_scaling={"type": "yarn"}, rope_parameters={"rope_type": "default"}), "rope_scaling must be of type"),
        (dict(original_max_position_embeddings=64, rope_scaling=llama3()), "original_max_position_embeddings 64"),
    ],
)
def test_settings_that_this_model_does_not_have_are_refused_by_name(changes, names, tmp_path):
    """Catches: another model than the published one, which looks as if it worked."""
    rewrite_config(toy_directory(tmp_path), **changes)
    assert re.search(f"{tmp_path}.*(?:{names})", message_of(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        dict(model_type="qwen2", sliding_window=8, use_sliding_window=False),
        dict(model_type="qwen2", sliding_window=8),  # switched off unless switched on
        dict(model_type="qwen3", sliding_window=8, use_sliding_window=True, max_window_layers=2),
        dict(model_type="qwen2", use_sliding_window=True, max_window_layers=0, layer_types=["full_attention"] * 2),
        dict(model_type="qwen2", attention_bias=False),  # has its biases whatever this says
        dict(model_type="mistral", sliding_window=None),
        dict(sliding_window=8),  # no Llama has a window
        dict(attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0, quantization_config=None),
        dict(rope_theta="absent", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        dict(rope_scaling={}, rope_theta="absent"),
        dict(tie_word_embeddings="absent"),
    ],
)
def test_settings_that_change_nothing_are_accepted(changes, tmp_path):
    """Catches: refusing published checkpoints for a key that has no effect."""
    kind = changes.get("model_type")
    flags = dict(qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3", tie_embeddings="tie_word_embeddings" not in changes)
    rewrite_config(toy_directory(tmp_path, **flags), **changes)
    config = load_model(tmp_path).config
    assert config.rope_theta == 10000.0 and config.max_positions == 64


def test_a_qwen3_that_does_not_say_its_head_width_has_128(tmp_path):
    """As in transformers, where the other families have width / heads."""
    rewrite_config(toy_directory(tmp_path, qk_norm=True, head_dim=128), head_dim="absent")
    assert load_model(tmp_path).config.head_dim == 128


# What config.json of a small model says at least.
SHAPE = dict(model_type="llama", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, rope_theta=5e5)
SHAPE |= dict(max_position_embeddings=32768, tie_word_embeddings=False)
SLIDING = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    "changes, positions",
    [
        (dict(model_type="mistral", sliding_window=4096), 4096),  # Mistral 7B v0.1, Zephyr
        (dict(model_type="mistral", sliding_window=32768), 32768),  # Ministral 8B
        (dict(model_type="mistral", sliding_window=65536), 32768),
        (dict(model_type="mistral", sliding_window=None), 32768),  # Mistral 7B from v0.2 on
        (dict(model_type="mistral"), 4096),
        (dict(model_type="mistral", sliding_window=512, layer_types=["full_attention"] * 2), 512),
        (dict(model_type="ministral", sliding_window=512), 512),
        (dict(model_type="ministral", sliding_window=512, layer_types=SLIDING), 512),
        (dict(model_type="ministral", sliding_window=512, layer_types=["full_attention"] * 2), 32768),
        (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1), 4096),
        (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=2), 32768),
        (dict(model_type="qwen3", use_sliding_window=True, sliding_window=512, max_window_layers=0), 512),
        (dict(model_type="qwen3", use_sliding_window=True, sliding_window=512, layer_types=SLIDING), 512),
        (dict(model_type="qwen2", use_sliding_window=True, num_hidden_layers=28, max_window_layers=None), 32768),
        (dict(model_type="qwen2", use_sliding_window=True, num_hidden_layers=29, max_window_layers=None), 4096),
        (dict(model_type="smollm3", use_sliding_window=True, sliding_window=512), 512),
        (dict(model_type="smollm3", use_sliding_window=False, sliding_window=512), 32768),
        (dict(model_type="smollm3", use_sliding_window=True), 32768),
        (dict(model_type="llama", sliding_window=512), 32768),
        (dict(model_type="llama", sliding_window=512, use_sliding_window=True, max_window_layers=0), 32768),
    ],
)
def test_a_sliding_window_limits_the_positions(changes, positions):
    """The window is what transformers computes with. Catches: a model refused although no sequence would feel its
    window, and a window that is taken for switched off."""
    assert config_from_json(SHAPE | changes).max_positions == positions


@pytest.mark.parametrize(
    "changes, unrotated",
    [
        (dict(num_hidden_layers=9), (3, 7)),  # every fourth, as in SmolLM3-3B
        (dict(num_hidden_layers=5, no_rope_layer_interval=2), (1, 3)),
        (dict(num_hidden_layers=3, no_rope_layers=[0, 1, 0], no_rope_layer_interval=2), (0, 2)),
        (dict(num_hidden_layers=2, no_rope_layers=[1, 1, 0]), ()),
    ],
)
def test_the_layers_of_a_smollm3_that_do_not_rotate(changes, unrotated):
    """Catches: 1 taken for "no rotation", counting from 1, the interval preferred to the list."""
    assert config_from_json(SHAPE | {"model_type": "smollm3"} | changes).unrotated_layers == unrotated


def test_a_smollm3_that_says_nothing_is_tied_and_has_its_own_theta():
    """As in transformers, where the other families are untied and have 10000."""
    config = {key: value for key, value in SHAPE.items() if key not in ("rope_theta", "tie_word_embeddings")}
    small = config_from_json(config | {"model_type": "smollm3"})
    assert small.tie_embeddings and small.rope_theta == 2e6
    assert not config_from_json(config).tie_embeddings and config_from_json(config).rope_theta == 10000.0


def test_yarn_stretches_qwen_as_its_authors_say():
    """Qwen2.5 with factor 4. Waves up to number 23 make more than 32 turns in 32768 tokens, those from 40 on less than
    one: 64 ln(32768 / (2 pi 32)) / ln(10^6) = 23.6 and 64 ln(32768 / (2 pi)) / ln(10^6) = 39.7.

    Catches: the blend over the turns, as in Llama 3, or over all waves; fast and slow exchanged.
    """
    changes = dict(model_type="qwen2", head_dim=128, rope_theta=1e6)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    plain = rotary_frequencies(config_from_json(SHAPE | changes))
    config = config_from_json(SHAPE | changes | {"rope_scaling": scaling})
    share = rotary_frequencies(config) / plain
    assert torch.equal(share[:24], torch.ones(24))
    assert torch.equal(share[40:], torch.full((24,), 0.25))
    torch.testing.assert_close(share[23:41], torch.linspace(1, 0.25, 18))
    assert config.rope_scaling.attention_factor == pytest.approx(1.13863)  # 0.1 ln 4 + 1


@pytest.mark.parametrize(
    "changes, factor",
    [
        ({}, 1.13863),
        (dict(factor=0.5), 1.0),  # nothing was stretched
        (dict(attention_factor=0.9), 0.9),
        (dict(attn_factor=0.8782488562869419), 1.0),  # DeepSeek-R1-0528-Qwen3-8B
        (dict(mscale=1.0, mscale_all_dim=1.0), 1.0),
        (dict(mscale=1.0, mscale_all_dim=0.707), 1.13863 / 1.09801),
        (dict(mscale=1.0), 1.13863),  # one alone has no effect
    ],
)
def test_the_attention_factor_of_yarn(changes, factor):
    """As in transformers, except that it ignores attn_factor. In the code of YaRN's authors and in vLLM it multiplies,
    and 0.878 times 1.139 is 1: so we judge that DeepSeek wanted 1.

    Catches: attn_factor taken for the whole factor, or ignored.
    """
    scaling = config_from_json(SHAPE | {"rope_scaling": yarn(**changes)}).rope_scaling
    assert scaling.attention_factor == pytest.approx(factor, rel=1e-5)


def test_what_is_saved_of_yarn_means_the_same_to_others():
    """Catches: a trained model that transformers, which knows no attn_factor, would compute with another factor."""
    config = config_from_json(SHAPE | {"rope_scaling": yarn(attn_factor=0.5)})
    saved = config_to_json(config, torch.float32)
    assert saved["rope_scaling"]["attn_factor"] == 0.5  # for vLLM
    assert saved["rope_scaling"]["attention_factor"] == pytest.approx(0.5 * 1.13863, rel=1e-5)  # for transformers
    assert config_from_json(saved) == config


def test_short_rope_parameters_beside_a_full_rope_scaling():
    """Catches: two descriptions of which one says less taken for a contradiction."""
    scaling = llama3(factor=32.0, original_max_position_embeddings=8192)
    short = {"rope_type": "llama3", "rope_theta": 5e5}
    config = config_from_json(SHAPE | dict(rope_scaling=scaling, rope_parameters=short))
    assert config == config_from_json(SHAPE | dict(rope_scaling=scaling))
    assert config.rope_scaling == Llama3(32.0, 1.0, 4.0, 8192) and config.rope_theta == 5e5


@pytest.mark.parametrize("changes", [dict(qkv_bias=True, qk_norm=True), dict(qkv_bias=True, unrotated_layers=(1,))])
def test_a_model_of_no_family_is_not_saved(changes):
    """Catches: a config.json with which other tools would leave out a part of the model."""
    with pytest.raises(ValueError, match="no model family has qkv_bias, .* together"):
        config_to_json(GPTConfig(8, 16, 2, 2, 2, 8, **changes), torch.float32)


def test_both_styles_of_config_mean_the_same(tmp_path):
    """rope_scaling beside rope_theta, and rope_parameters that hold both."""
    rewrite_config(toy_directory(tmp_path), rope_scaling=llama3(), rope_theta=5e5)
    old = load_model(tmp_path).config
    rewrite_config(tmp_path, rope_scaling="absent", rope_theta="absent", rope_parameters=llama3(rope_theta=5e5))
    assert load_model(tmp_path).config == old and old.rope_scaling == LLAMA3 and old.rope_theta == 5e5


@pytest.mark.parametrize(
    "file, content, names",
    [
        ("config.json", b"", "is not valid JSON"),
        ("config.json", b"[1]", "must hold an object, found list"),
        ("config.json", b'{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' occurs twice"),
        ("config.json", b"\xff\xfe", "is not valid JSON"),
        ("config.json", b'{"a": ' * 100_000, "is not valid JSON"),
        ("tokenizer.json", b"{", "cannot be read"),
        ("tokenizer_config.json", b"{", "is not valid JSON"),
        ("generation_config.json", b"7", "must hold an object, found int"),
        ("model.safetensors", b"12", "cannot be read"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused_by_name(file, content, names, tmp_path):
    (toy_directory(tmp_path) / file).write_bytes(content)
    assert re.search(f"{tmp_path / file}.*{names}", message_of(tmp_path))


def test_a_tokenizer_one_token_larger_than_the_embedding_is_refused(tmp_path):
    """Catches: an index error in the middle of a run, at the first prompt with that token."""
    save_model(small_gpt(vocab_size=121), toy_tokenizer(), tmp_path)
    assert "its 122 tokens are more than the vocab_size 121" in message_of(tmp_path)


def test_an_empty_directory_is_refused(tmp_path):
    assert f"{tmp_path / 'config.json'} does not exist" in message_of(tmp_path)


def test_a_file_in_place_of_a_directory_is_refused(tmp_path):
    toy_directory(tmp_path)
    assert "config.json is a file; give the directory" in message_of(tmp_path / "config.json")


# ---------------------------------------------------------------- tensors that are wrong

GATE, NORM, HEAD = "model.layers.1.mlp.gate_proj.weight", "model.norm.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "name, change",
    [
        (GATE, lambda tensor: None),
        (GATE, lambda tensor: tensor[:0]),
        (GATE, lambda tensor: tensor[None]),
        (NORM, lambda tensor: tensor.bool()),
        (NORM, lambda tensor: tensor.to(torch.float8_e4m3fn)),
        (NORM, lambda tensor: tensor.to(torch.complex64)),
        (NORM, lambda tensor: tensor / 0),
        (NORM, lambda tensor: tensor.double() * 1e300),  # finite as it is stored, not in float32
        (HEAD, lambda tensor: tensor + 1),  # tied by config.json, but not the embedding
        (HEAD, lambda tensor: tensor[:-1]),
        ("model.layers.1.self_attn.q_proj.bias", lambda tensor: torch.zeros(16)),
        ("model.layers.0.self_attn.rotary_emb.inv_freqs", lambda tensor: torch.zeros(2)),
        ("embed_tokens.weight", lambda tensor: torch.zeros(122, 16)),
    ],
)
def test_wrong_tensors_are_refused_by_name(name, change, tmp_path):
    """Catches: missing weights left random, extra ones left out, broadcasting, numbers of another type."""
    path = toy_directory(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
    tensors[name] = change(tensors.get(name))
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    message = message_of(tmp_path)
    assert f"{path}:" in message and name in message


def test_overflow_in_the_type_asked_for_is_refused(tmp_path):
    """Catches: a bfloat16 weight of 1e30 turned into infinity by float16."""
    path = toy_directory(tmp_path) / "model.safetensors"
    save_file(load_file(path) | {NORM: torch.full((16,), 1e30)}, path)
    assert torch.isfinite(load_model(tmp_path).norm.weight).all()
    with pytest.raises(ValueError, match=rf"{NORM} holds values that are not finite in torch.float16"):
        load_model(tmp_path, dtype=torch.float16)


def shards(tmp_path: Path) -> tuple[Path, dict]:
    """A directory of two shards, and its index."""
    tensors = load_file(toy_directory(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    first = {name: tensors.pop(name) for name in list(tensors)[:5]}
    save_file(first, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "b.safetensors")
    index = {"weight_map": dict.fromkeys(first, "a.safetensors") | dict.fromkeys(tensors, "b.safetensors")}
    write_json(tmp_path / "model.safetensors.index.json", index)
    return tmp_path / "model.safetensors.index.json", index


def test_shards_load(tmp_path):
    shards(tmp_path)
    expected = small_gpt(vocab_size=122).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in load_model(tmp_path).state_dict().items())


def test_one_whole_file_wins_over_an_index(tmp_path):
    """Catches: old shards loaded from a directory into which a trained model was saved."""
    shards(tmp_path)
    save_model(small_gpt(seed=1, vocab_size=122), toy_tokenizer(), tmp_path)
    assert torch.equal(load_model(tmp_path).embed_tokens.weight, small_gpt(1, vocab_size=122).embed_tokens.weight)


@pytest.mark.parametrize(
    "shard", ["../b.safetensors", "sub/b.safetensors", "b.bin", "", "..", 3, None, "..\\b.safetensors"]
)
def test_an_index_cannot_point_anywhere_else(shard, tmp_path):
    """Catches: reading files outside the directory, and unpickling."""
    path, index = shards(tmp_path / "model")
    (tmp_path / "model" / "sub").mkdir()
    for copy in (
        tmp_path / "b.safetensors",
        tmp_path / "model" / "sub" / "b.safetensors",
        tmp_path / "model" / "b.bin",
    ):
        copy.write_bytes((tmp_path / "model" / "b.safetensors").read_bytes())
    write_json(path, {"weight_map": index["weight_map"] | {NORM: shard}})
    message = message_of(tmp_path / "model")
    assert str(path) in message and NORM in message and repr(shard) in message


def test_an_index_cannot_point_to_an_absolute_path(tmp_path):
    path, index = shards(tmp_path)
    write_json(path, {"weight_map": index["weight_map"] | {NORM: str(tmp_path / "b.safetensors")}})
    assert "must be in a safetensors file of this directory" in message_of(tmp_path)


def test_weights_may_be_links(tmp_path):
    """Catches: a user's own links to a large disk refused; one whole file treated in another way than shards."""
    shards(tmp_path / "model")
    (tmp_path / "model" / "b.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (tmp_path / "model" / "b.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    load_model(tmp_path / "model")


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    """Catches: a refusal of the way in which huggingface_hub itself stores models."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    shards(snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / f"hash of {path.name}")
        path.symlink_to(Path("../../blobs") / f"hash of {path.name}")
    load_model(snapshot)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Catches: one of two versions of a weight taken by chance."""
    shards(tmp_path)
    save_file(load_file(tmp_path / "a.safetensors") | {NORM: torch.zeros(16)}, tmp_path / "a.safetensors")
    assert re.search(f"{NORM} is listed in 'b.safetensors', but a.safetensors also holds it", message_of(tmp_path))


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path):
    path, index = shards(tmp_path)
    write_json(path, {"weight_map": {name: shard for name, shard in index["weight_map"].items() if name != NORM}})
    assert NORM in message_of(tmp_path)


def test_a_tensor_that_only_the_index_knows_is_refused(tmp_path):
    path, index = shards(tmp_path)
    write_json(path, {"weight_map": index["weight_map"] | {"model.layers.0.ghost": "a.safetensors"}})
    assert "ghost is listed in 'a.safetensors', but a.safetensors does not hold it" in message_of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a.safetensors"]}'])
def test_an_index_without_a_weight_map_is_refused(content, tmp_path):
    path, _ = shards(tmp_path)
    path.write_text(content)
    assert str(path) in message_of(tmp_path)


def test_a_truncated_shard_is_refused_by_name(tmp_path):
    shards(tmp_path)
    path = tmp_path / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} cannot be read" in message_of(tmp_path)


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch):
    """Stands for the Hugging Face hub: records what is asked of it and has one model."""
    calls = []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        calls.append(dict(repo_id=repo_id, revision=revision, allow_patterns=allow_patterns))
        if repo_id != "org/name":
            raise ConnectionError("no network")
        return str(PARITY / "smollm2_like_bf16")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_downloaded_and_loaded(hub):
    assert load_model("org/name").config == load_model(PARITY / "smollm2_like_bf16").config
    assert load_tokenizer("org/name").chat_template is not None
    assert {(call["repo_id"], call["revision"]) for call in hub} == {("org/name", None)}


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123abc", "refs/pr/1"])
def test_a_hub_id_may_name_a_revision(hub, revision):
    """Catches: results that change when the model's author uploads another version."""
    load_model(f"org/name@{revision}")
    assert {call["revision"] for call in hub} == {revision}


def test_a_model_that_changes_while_it_is_loaded_is_refused(monkeypatch):
    """Catches: the shape of one version and the weights of the next."""
    versions = iter([PARITY / "smollm2_like_bf16", PARITY / "llama_untied_fp32"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(next(versions)))
    with pytest.raises(ValueError, match="org/name has changed on the hub"):
        load_model("org/name")


def test_weights_are_downloaded_last(hub):
    """Catches: gigabytes downloaded before a setting that does not fit the model is refused."""
    opened = Checkpoint("org/name")
    assert opened.config.num_layers > 0 and opened.tokenizer.eos_ids
    asked_for_weights = lambda: any(fnmatch.fnmatch("model.safetensors", p) for c in hub for p in c["allow_patterns"])
    assert not asked_for_weights()
    opened.model()
    assert asked_for_weights()


def test_only_harmless_files_are_downloaded(hub):
    """Catches: pickles, which run code when they are read, and gigabytes of other formats."""
    load_model("org/name")
    wanted = ["config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    wanted += ["model.safetensors.index.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
    unwanted = ["pytorch_model.bin", "x.pt", "x.pth", "x.pkl", "x.ckpt", "model.onnx", "x.gguf", "tokenizer.pickle"]
    unwanted += ["modeling_x.py", "consolidated.safetensors", "model.h5", "model.msgpack"]
    patterns = {pattern for call in hub for pattern in call["allow_patterns"]}
    found = [name for name in wanted + unwanted if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert found == wanted


def test_for_a_tokenizer_no_weights_are_downloaded(hub):
    load_tokenizer("org/name")
    assert not any(fnmatch.fnmatch("model.safetensors", pattern) for pattern in hub[0]["allow_patterns"])


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_failed_download_says_what_to_do(hub, load):
    with pytest.raises(FileNotFoundError, match="org/other is no local.*at revision v2.*no network.*local directory"):
        load("org/other@v2")


@pytest.mark.parametrize(
    "source",
    ["./org/name", "../name", "/org/name", "~/name", "runs/seed0/model", "runs", "org/name/", "", Path("org/name")],
)
def test_a_path_that_does_not_exist_is_no_hub_id(hub, source, tmp_path, monkeypatch):
    """Catches: a mistyped path answered with an error about the network."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="config.json does not exist" if source == "" else "does not exist: give"
    ):
        load_model(source)
    assert hub == []


def test_a_path_may_begin_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    toy_directory(tmp_path / "model")
    assert load_model("~/model").config.vocab_size == 122


def test_a_directory_wins_over_a_hub_id(hub, tmp_path, monkeypatch):
    toy_directory(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert load_model("org/name").config.vocab_size == 122 and hub == []
