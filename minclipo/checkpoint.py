"""A model as a Hugging Face directory: config.json, model.safetensors, tokenizer.json.

The GPT's modules carry Hugging Face's names, so a state dict only needs the prefix "model." before all but the output
head. What `save_model` writes, other tools that read that format load as a Llama, Qwen2 or Qwen3 model.
Left out so far: shards, downloads, half precision on load.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minclipo.model import GPT, GPTConfig, RopeScaling
from minclipo.tokenizer import Tokenizer

# What distinguishes the families, as far as this model goes: model_type -> (qkv_bias, qk_norm)
FAMILIES = {"llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that is either whole or not there: written under another name, then renamed."""
    temporary = path.with_name(path.name + ".partial")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"}
    )
    os.replace(temporary, path)


def save_model(model: GPT, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write model and tokenizer to `directory` (made if need be)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    prefixed = {
        name if name.startswith("lm_head") else f"model.{name}": weight for name, weight in model.state_dict().items()
    }
    save_tensors(prefixed, directory / "model.safetensors")
    write_json(
        directory / "config.json", config_to_json(model.config, tokenizer.eos_ids, model.embed_tokens.weight.dtype)
    )
    tokenizer.save(directory)


def load_model(directory: str | Path) -> tuple[GPT, Tokenizer]:
    """Read what `save_model` wrote. Errors name the file, and the tensors that are missing, extra or misshapen."""
    directory = Path(directory)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} does not exist: {directory} is no model directory")
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{directory / 'config.json'} must hold an object, found {type(config).__name__}")
    eos = config.get("eos_token_id")
    if eos is None:
        raise ValueError(f"{directory / 'config.json'}: eos_token_id is missing")
    model = GPT(config_from_json(config))
    try:
        tensors = load_file(directory / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{directory / 'model.safetensors'} cannot be read: {error}") from error
    try:
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(
            f"{directory / 'model.safetensors'} does not fit {directory / 'config.json'}: {error}"
        ) from error
    return model, Tokenizer.from_file(directory / "tokenizer.json", eos if isinstance(eos, list) else [eos])


def config_to_json(config: GPTConfig, eos_ids: list[int], dtype: torch.dtype) -> dict:
    """config.json in the keys that published checkpoints have."""
    families = {flags: name for name, flags in reversed(FAMILIES.items()) if name in ARCHITECTURES}
    flags = (config.qkv_bias, config.qk_norm)
    if flags not in families:
        raise ValueError(f"no model family has qkv_bias {config.qkv_bias} together with qk_norm {config.qk_norm}")
    scaling = config.rope_scaling
    if scaling is not None:
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        values = (scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.original_context)
        scaling = {"rope_type": scaling.kind, "factor": scaling.factor} | dict(zip(names, values))
    return {
        "architectures": [ARCHITECTURES[families[flags]]],
        "model_type": families[flags],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def config_from_json(config: dict) -> GPTConfig:
    """The GPTConfig that a config.json asks for."""
    if config.get("model_type") not in FAMILIES:
        raise ValueError(
            f"config.json: model_type must be one of {', '.join(FAMILIES)}; found {config.get('model_type')!r}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act must be 'silu', found {config['hidden_act']!r}")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ValueError(
            f"config.json: sliding_window {config['sliding_window']} is active, which this model does not have"
        )
    qkv_bias, qk_norm = FAMILIES[config["model_type"]]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        return GPTConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            head_dim=config.get("head_dim"),
            max_positions=config["max_position_embeddings"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope),
            tie_embeddings=config.get("tie_word_embeddings", False),
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
        )
    except KeyError as error:
        raise ValueError(f"config.json: key {error} is missing") from error


def _rope_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    scaling = RopeScaling(kind, rope["factor"])
    if kind == "llama3":
        scaling.low_frequency_factor = rope["low_freq_factor"]
        scaling.high_frequency_factor = rope["high_freq_factor"]
        scaling.original_context = rope["original_max_position_embeddings"]
    return scaling


def write_json(path: Path, value) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
