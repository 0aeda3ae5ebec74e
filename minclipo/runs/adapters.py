"""LoRA in a run: the adapters that its options ask for, and OUT/adapter."""

from pathlib import Path

import torch

from minclipo.checkpoint import Checkpoint
from minclipo.checkpoint.adapter import AdapterConfig, read_adapter, read_adapter_config, save_adapter
from minclipo.extensions.lora import TARGETS, adapter_weights, add_lora, load_adapter
from minclipo.model import GPT
from minclipo.runs.llm_config import LLMConfig
from minclipo.tasks.data_files import without_commands


def load_policy(
    checkpoint: Checkpoint, config: LLMConfig, dtype: torch.dtype, device: torch.device, seed: int | None = None
) -> GPT:
    """The checkpoint's model, with the adapters of --init-adapter or with fresh ones, as the options say.

    seed: of fresh adapters; None, where nothing is trained: there are none. ValueError if an adapter does not fit.
    """
    model, source = checkpoint.model(dtype, device), config.init_adapter
    if not (source or config.lora_rank and seed is not None):
        return model
    generator = torch.Generator().manual_seed(seed or 0)
    add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets.split(), generator)
    own = adapter_weights(model)
    if source:
        load_adapter(model, read_adapter(source, {name: tuple(weight.shape) for name, weight in own.items()}))
        base = without_commands(read_adapter_config(source, TARGETS).base) or "a model that it does not name"
        print(f"adapters from {source}, made for {base}")
    shown = f"LoRA: rank {config.lora_rank}, alpha {config.lora_alpha:g}, beside {config.lora_targets}"
    print(f"{shown}: {sum(weight.numel() for weight in own.values()):,} numbers")
    return model


def write_adapter(model: GPT, directory: Path, config: LLMConfig) -> None:
    """The adapters alone, as a PEFT directory."""
    says = AdapterConfig(config.lora_rank, config.lora_alpha, tuple(config.lora_targets.split()), config.model)
    save_adapter(adapter_weights(model), directory, says)
