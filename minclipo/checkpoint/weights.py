"""A model as a Hugging Face directory: config.json, model.safetensors and the files of its tokenizer.

The GPT's modules carry Hugging Face's names, so a tensor only needs the prefix "model." before all but the output head.
What `save_model` writes, other tools that read that format load as a Llama, Qwen2, Qwen3 or SmolLM3.
Everything is checked: a model that is loaded almost right trains almost as well, and nobody notices.
Left out: pickled weights, quantised weights, writing shards.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minclipo.checkpoint.config_json import config_from_json, config_to_json
from minclipo.checkpoint.files import read_object, replacing, write_json
from minclipo.checkpoint.hub import model_directory
from minclipo.checkpoint.tokenizer import Tokenizer, read_tokenizer
from minclipo.model import GPT, GPTConfig

FLOATS = ("F64", "F32", "F16", "BF16")


class Checkpoint:
    """A model directory or hub id, "org/name" or "org/name@revision". Each of its files is read and checked once.

    What is wrong with it is a ValueError or FileNotFoundError naming the file, and the key or tensor. The weights of a
    hub id are downloaded only when `weights` or `model` asks for them.
    """

    def __init__(self, source: str | Path):
        self.source, self.directory = source, model_directory(source, weights=False)

    @cached_property
    def json(self) -> dict:
        """What config.json says."""
        if (self.directory / "adapter_config.json").is_file() and not (self.directory / "config.json").is_file():
            raise ValueError(
                f"{self.directory} holds a LoRA adapter, not a whole model: train_llm.py takes its base with --model, and "
                "this directory with --init-adapter"
            )
        return read_object(self.directory / "config.json")

    @cached_property
    def config(self) -> GPTConfig:
        """The shape of the model."""
        says = self.json
        try:
            return config_from_json(says)
        except ValueError as error:
            raise ValueError(f"{self.directory / 'config.json'}: {error}") from error

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, with the chat template if there is one."""
        return read_tokenizer(self.directory, self.json)

    @cached_property
    def weights(self) -> Path:
        """model.safetensors, or the index of its shards. The weights of a hub id are downloaded now."""
        directory = model_directory(self.source)
        if directory != self.directory:
            raise ValueError(f"{self.source} has changed on the hub since {self.directory} was downloaded: start again")
        return weights_file(directory)

    def model(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> GPT:
        """The model with its weights, in `dtype` on `device`.

        ValueError if a tensor is missing, left over or not as config.json says. Weights are read one by one to where
        they stay: there is never a second copy of the model.
        """
        config, path = self.config, self.directory / "config.json"
        stored = stored_tensors(self.weights)
        model = _empty_model(config, len(stored), path)
        _check_weights(stored, model, self.weights)
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"{self.directory / 'tokenizer.json'}: its {self.tokenizer.vocab_size} tokens are more than the "
                f"vocab_size {config.vocab_size} of config.json, the rows of the embedding"
            )
        weights = {name: stored[_published(name)].read(dtype, device) for name, _ in model.named_parameters()}
        copy = stored.get("lm_head.weight")
        if config.tie_embeddings and copy and not torch.equal(copy.read(dtype, device), weights["embed_tokens.weight"]):
            raise ValueError(f"{copy.path}: lm_head.weight differs from the embedding, but tie_word_embeddings is true")
        model.load_state_dict(weights, assign=True)
        return model


def load_model(
    directory_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> GPT:
    """The model of a directory or hub id, in `dtype` on `device`; errors as in Checkpoint."""
    return Checkpoint(directory_or_hub_id).model(dtype, device)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that is either whole or not there: written under another name, then renamed."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # how the library reports a full disk
            raise _system_error(error) from error


def save_model(model: GPT, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write model and tokenizer to `directory` (made if need be)."""
    directory, weights = Path(directory), model.state_dict()
    assert not any(".lora_" in name for name in weights), "the model has adapters: save `merged(model)`"
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors({_published(name): weight for name, weight in weights.items()}, directory / "model.safetensors")
    config = config_to_json(model.config, model.embed_tokens.weight.dtype)
    write_json(directory / "config.json", config | tokenizer.special_ids())
    tokenizer.save(directory)


def _system_error(error: SafetensorError) -> OSError:
    """What the system said: "... (os error 28)" is Rust's way of writing errno."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None or os.name == "nt":  # Windows has numbers of its own
        return OSError(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


@dataclass
class StoredTensor:
    """A tensor of a safetensors file of which only the header has been read."""

    name: str
    path: Path
    file: safe_open
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, BF16, I8, ...

    def read(self, dtype: torch.dtype, device: str | torch.device) -> Tensor:
        try:
            tensor = self.file.get_tensor(self.name)
        except SafetensorError as error:
            raise ValueError(f"{self.path}: {self.name} cannot be read: {error}") from error
        tensor = tensor.to(device, dtype, copy=True)  # always a copy: the file is only mapped into memory
        if not torch.stack(tensor.aminmax()).isfinite().all():  # NaN shows in aminmax, which needs no memory
            raise ValueError(f"{self.path}: {self.name} holds values that are not finite in {dtype}")
        return tensor


def _published(name: str) -> str:
    """Hugging Face's name of one of the GPT's parameters."""
    return name if name.startswith("lm_head") else f"model.{name}"


def _empty_model(config: GPTConfig, num_tensors: int, path: Path) -> GPT:
    """The model without memory for its weights, on torch's meta device."""
    if config.num_layers > num_tensors:  # otherwise building it could take hours
        raise ValueError(f"{path}: num_hidden_layers {config.num_layers} for a file of only {num_tensors} tensors")
    try:
        with torch.device("meta"):
            return GPT(config)
    except RuntimeError as error:
        raise ValueError(f"{path} asks for a model that cannot be built: {error}") from error


def weights_file(directory: Path) -> Path:
    """model.safetensors, or the index of its shards."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds neither model.safetensors nor model.safetensors.index.json")


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, or of the shards that an index lists, by name."""
    tensors = _open_shards(path) if path.suffix == ".json" else _open_tensors(path)
    # Early Llama files also hold the rotary frequencies, which follow from config.json.
    return {tensor.name: tensor for tensor in tensors if not tensor.name.endswith(".rotary_emb.inv_freq")}


def _open_tensors(path: Path) -> list[StoredTensor]:
    try:
        open(path, "rb").close()  # a file without permission to read does not exist, safe_open would say
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}
        return [StoredTensor(name, path, file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _open_shards(index: Path) -> list[StoredTensor]:
    """The tensors of all shards, each in the shard where the index says it is, and in no other."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map must say for each tensor which file holds it; found {weight_map!r}")
    for name, shard in weight_map.items():
        _check_shard_name(index, name, shard)
    tensors = [tensor for shard in sorted(set(weight_map.values())) for tensor in _open_tensors(index.parent / shard)]
    held = {(tensor.name, tensor.path.name) for tensor in tensors}
    listed = set(weight_map.items())
    if held != listed:
        name, shard = min(listed - held or held - listed)
        problem = "does not hold it" if (name, shard) in listed else "also holds it"
        raise ValueError(f"{index}: {name} is listed in {weight_map.get(name)!r}, but {shard} {problem}")
    return tensors


def _check_shard_name(index: Path, name: str, shard) -> None:
    """ValueError or FileNotFoundError unless `shard` is a safetensors file of this directory."""
    if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard or "\\" in shard:
        raise ValueError(f"{index}: {name} must be in a safetensors file of this directory, found {shard!r}")
    if not (index.parent / shard).is_file():
        raise FileNotFoundError(f"{index.parent / shard} does not exist, but {index} says that it holds {name}")


def _check_weights(stored: dict[str, StoredTensor], model: GPT, path: Path) -> None:
    """ValueError unless these are the weights of the model."""
    shapes = {_published(name): tuple(weight.shape) for name, weight in model.named_parameters()}
    if model.config.tie_embeddings:  # a second copy of the embedding has a place; `load_model` compares them
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    optional = {"lm_head.weight"} if model.config.tie_embeddings else set()
    check_tensors(stored, shapes, path, says="config.json", optional=optional)


def check_tensors(
    stored: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
    path: Path,
    *,
    says: str,
    optional: Collection[str] = (),
) -> None:
    """ValueError naming the tensors that are missing, left over, misshapen or not floating-point. says: what asks for
    these shapes."""
    problems = {
        "missing": [name for name in shapes if name not in stored and name not in optional],
        f"without a place in the model of {says}": [name for name in stored if name not in shapes],
        f"misshapen for {says}": [
            f"{name} {stored[name].shape}, not {shape}"
            for name, shape in shapes.items()
            if name in stored and stored[name].shape != shape
        ],
        f"not of type {', '.join(FLOATS)}": [
            f"{name} {tensor.dtype}" for name, tensor in stored.items() if tensor.dtype not in FLOATS
        ],
    }
    for problem, found in problems.items():
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ValueError(f"{path}: tensors {problem}: {'; '.join(found[:5])}{more}")
