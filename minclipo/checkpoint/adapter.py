"""Adapters (LoRA) as a directory of the PEFT library: adapter_config.json and adapter_model.safetensors.

As everywhere here, whatever would be a different adapter is refused by name. The file of tensors must hold A and B of every
target in every layer, and nothing else.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minclipo.checkpoint.files import read_object, write_json
from minclipo.checkpoint.hub import HUB_ID
from minclipo.checkpoint.weights import check_tensors, save_tensors, stored_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model."  # PEFT's two wrappers around the model, and transformers' name of all but the head

# Keys of which only some values leave the adapter what we compute. Where one is missing, it has the first of these.
HARMLESS = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others, such as pissa, change the base's weights
}
# Keys that say nothing about what the finished adapter computes, or only beside others that are refused.
IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "megatron_core",
}
IGNORED |= {"peft_version", "qalora_group_size", "revision"}
USED = {"lora_alpha", "r", "target_modules", "use_rslora"}
LARGEST = 10**6  # of r and lora_alpha


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says: y = W x + (alpha / rank) B A x beside the linear layers `targets` of each block."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str  # the model it was trained on, as whoever wrote the file called it; may be ""


def save_adapter(weights: dict[str, Tensor], directory: str | Path, config: AdapterConfig) -> None:
    """Write a PEFT directory (made if need be). weights: {"layers.0.self_attn.q_proj.lora_A.weight": A, ...}. The base is
    a directory or a hub id, with a revision or without."""
    directory, local = Path(directory), Path(config.base).expanduser().is_dir()
    hub_id = None if local else HUB_ID.fullmatch(config.base)
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors({PREFIX + name: weight for name, weight in weights.items()}, directory / WEIGHTS)
    alpha = int(config.alpha) if config.alpha % 1 == 0 else config.alpha  # PEFT's own are integers
    text = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id[1] if hub_id else config.base,
        "revision": hub_id[2] if hub_id else None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": alpha,
        "target_modules": list(config.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    write_json(directory / CONFIG, text)


def read_adapter_config(directory: str | Path, known: Collection[str]) -> AdapterConfig:
    """What a PEFT directory says of its adapters; known: the linear layers of a block.

    ValueError or FileNotFoundError naming the file, and the key that is missing, wrong or not supported.
    """
    path = Path(directory).expanduser() / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the directory of a LoRA adapter, as PEFT writes it")
    says = read_object(path)
    try:
        return _config_from(says, known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _config_from(says: dict, known: Collection[str]) -> AdapterConfig:
    for key, harmless in HARMLESS.items():
        if says.get(key, harmless[0]) not in harmless:
            raise ValueError(f"{key} {says[key]!r} is not supported, only {' or '.join(map(repr, harmless))}")
    for key in says.keys() - HARMLESS.keys() - IGNORED - USED:  # of any version: what is off is null, false or empty
        if says[key]:
            raise ValueError(f"{key} {says[key]!r} is not supported")
    rank, alpha, rslora = (says.get(key) for key in ("r", "lora_alpha", "use_rslora"))
    if type(rank) is not int or not 1 <= rank <= LARGEST:
        raise ValueError(f"r must be an integer from 1 to {LARGEST}, found {rank!r}")
    if type(alpha) not in (int, float) or not 0 < alpha <= LARGEST:
        raise ValueError(f"lora_alpha must be a number above 0 and at most {LARGEST}, found {alpha!r}")
    if rslora not in (None, False, True):
        raise ValueError(f"use_rslora must be true or false, found {rslora!r}")
    # Kalajdzievski 2023, arXiv 2312.03732: alpha / sqrt(r) instead of alpha / r
    alpha = alpha * math.sqrt(rank) if rslora else float(alpha)
    base = says.get("base_model_name_or_path")
    return AdapterConfig(
        rank, alpha, _targets(says.get("target_modules"), known), base if isinstance(base, str) else ""
    )


def _targets(named, known: Collection[str]) -> tuple[str, ...]:
    """The linear layers that target_modules names: a list of names or of ends of names, or "all-linear"."""
    if named == "all-linear":
        return tuple(known)
    if isinstance(named, str):
        raise ValueError(f"target_modules {named!r} is a pattern: write it as a list of {', '.join(known)}")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise ValueError(f"target_modules must be a list of names, found {named!r}")
    last = {name.rpartition(".")[2] for name in named}
    if last - set(known):
        raise ValueError(f"target_modules {sorted(last - set(known))} are not supported, only {', '.join(known)}")
    return tuple(name for name in known if name in last)


def read_adapter(directory: str | Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A and B of every adapter, float32 on the CPU. shapes: what there must be, by the names of `save_adapter`.

    ValueError or FileNotFoundError naming the file, and the tensors that are missing, left over, misshapen or not finite.
    """
    path = Path(directory).expanduser() / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: an adapter's weights must be safetensors")
    stored = stored_tensors(path)
    published = {PREFIX + name: shape for name, shape in shapes.items()}
    check_tensors(stored, published, path, says=f"{CONFIG} and the base model")
    return {name: stored[PREFIX + name].read(torch.float32, "cpu") for name in shapes}
