"""Models to disk and back, in Hugging Face's layout."""

import json

import pytest
import torch
from conftest import FIXTURES, small_gpt
from safetensors.torch import load_file

from minclipo.checkpoint import config_from_json, config_to_json, load_model, save_model, save_tensors
from minclipo.model import RopeScaling
from minclipo.toy import toy_tokenizer

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
SHAPES = [
    {},
    dict(tie_embeddings=False),
    dict(qkv_bias=True),
    dict(qk_norm=True, head_dim=6),
    dict(rope_scaling=LLAMA3, rope_theta=500000.0, norm_eps=1e-6),
]


@pytest.mark.parametrize("changes", SHAPES)
def test_a_saved_model_comes_back_the_same(changes, tmp_path):
    """Catches: a config field that is not written or not read."""
    model = small_gpt(vocab_size=122, **changes)
    save_model(model, toy_tokenizer(), tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    tokens = torch.tensor([tokenizer.encode("7 , +5 , -3 =")])
    assert loaded.config == model.config and tokenizer.eos_ids == toy_tokenizer().eos_ids
    assert torch.equal(loaded.logits(loaded(tokens)), model.logits(model(tokens)))


@pytest.mark.parametrize("changes", SHAPES)
def test_tensor_names_are_those_of_hugging_face(changes, tmp_path):
    """The names and shapes of a published layout. Catches: a layout that only we can read."""
    save_model(small_gpt(vocab_size=122, **changes), toy_tokenizer(), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    like = {
        "qkv_bias": "qwen2_tied_qkv_bias",
        "qk_norm": "qwen3_qk_norm_head_dim",
        "tie_embeddings": "llama_untied_fp32",
    }
    reference = next((like[name] for name in changes if name in like), None)
    if reference:
        assert names == set(load_file(FIXTURES / "parity" / reference / "model.safetensors"))
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert ("lm_head.weight" in names) == (changes.get("tie_embeddings") is False)


@pytest.mark.parametrize("name", sorted(path.name for path in (FIXTURES / "parity").iterdir()))
def test_published_configs_survive_the_round_trip(name):
    """What we write of a config.json that others wrote means the same. Catches: rope settings lost on save."""
    config = config_from_json(json.loads((FIXTURES / "parity" / name / "config.json").read_text()))
    assert config_from_json(config_to_json(config, [0], torch.float32)) == config


def broken(tmp_path, change) -> str:
    """The error that loading gives after `change(directory)`."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(tmp_path)
    return str(error.value)


def rewrite_config(**changes):
    def change(directory):
        path = directory / "config.json"
        path.write_text(
            json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "absent"})
        )

    return change


def drop_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_tensors(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda d: (d / "model.safetensors").write_bytes(b"12"), "model.safetensors cannot be read"),
        (lambda d: (d / "config.json").write_text("[1]"), "config.json must hold an object, found list"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
        (rewrite_config(eos_token_id=None), "eos_token_id is missing"),
        (drop_tensor, "norm.weight"),
        (rewrite_config(num_hidden_layers=3), "layers.2.self_attn"),
        (rewrite_config(intermediate_size=48), "mlp.gate_proj.weight"),
        (rewrite_config(model_type="mamba"), "model_type must be one of llama.*'mamba'"),
        (rewrite_config(hidden_act="gelu"), "hidden_act .*'gelu'"),
        (rewrite_config(hidden_size="absent"), "key 'hidden_size' is missing"),
        (rewrite_config(model_type="mistral", sliding_window=8), "sliding_window 8 is active"),
        (rewrite_config(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "'yarn'"),
    ],
)
def test_broken_directories_are_refused_by_name(change, names, tmp_path):
    import re

    message = broken(tmp_path, change)
    assert re.search(names, message, re.DOTALL), message


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    """Catches: writing over good weights in place. The disk is full in the middle of the save."""
    path = tmp_path / "model.safetensors"
    save_tensors({"x": torch.ones(3)}, path)

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minclipo.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"x": torch.zeros(3)}, path)
    assert torch.equal(load_file(path)["x"], torch.ones(3))
