"""Device, memory and disk: what the machine has, and what a run will need.

Memory is counted from the shapes, part by part; tests compare it with what is really held.
Left out: what the allocator wastes, and what PyTorch and CUDA take for themselves.
"""

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from minclipo.config import TrainConfig
from minclipo.logprobs import CHUNK_LOGITS
from minclipo.model import GPT, GPTConfig

GIB = 2**30


@dataclass
class Memory:
    """Bytes. A step samples first and updates then: the two never need their memory at the same time."""

    weights: int  # what the model computes with
    reference: int  # the frozen copy for the KL penalty
    optimizer: int  # AdamW's moments, and float32 masters of bfloat16 weights
    cache: int  # sampling: keys and values of the rollouts that are sampled in parallel
    sampling_logits: int  # sampling: scores of the next token and what becomes of them
    gradients: int  # update
    activations: int  # update: what backward needs of one micro-batch
    chunk_logits: int  # update: the vocabulary for one chunk of tokens

    @property
    def sampling(self) -> int:
        return self.weights + self.reference + self.optimizer + self.cache + self.sampling_logits

    @property
    def fixed(self) -> int:
        """What only a smaller model, or no KL penalty, can reduce."""
        return self.weights + self.reference + self.optimizer + self.gradients

    @property
    def update(self) -> int:
        return self.fixed + self.activations + self.chunk_logits

    @property
    def peak(self) -> int:
        return max(self.sampling, self.update)

    def __str__(self) -> str:
        unit, size = ("GiB", GIB) if self.peak >= GIB else ("MiB", 2**20)
        parts = ", ".join(f"{name} {value / size:.1f}" for name, value in vars(self).items() if value)
        return f"{self.peak / size:.1f} {unit} at the peak ({parts})"


def count_weights(config: GPTConfig) -> int:
    """Number of weights of a model, each counted once, without building it: all blocks have the same number."""

    def count(num_layers: int) -> int:
        with torch.device("meta"):
            return sum(
                weight.numel() for weight in GPT(dataclasses.replace(config, num_layers=num_layers)).parameters()
            )

    return count(0) + config.num_layers * (count(1) - count(0))


def layer_bytes(config: GPTConfig, prompts: int, prompt_tokens: int, rows: int, row_tokens: int, size: int) -> int:
    """What backward needs of one block, for `rows` completions of `prompts` prompts, `size` bytes per number.

    Per token: 4 times the MLP's width (gate, its silu, up, their product), 3 times the query heads (rotated; the
    attention's output, in two layouts), keys and values, and the residual stream with the copies that its two norms
    keep, some of them in float32. Per completion: the keys and values of its prompt and itself, repeated for every
    query head.
    """
    D, I = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    token = size * (4 * I + 3 * queries + 2 * keys) + (24 if size == 4 else 16) * D
    attended = size * (prompt_tokens + row_tokens) * 2 * queries
    return (prompts * prompt_tokens + rows * row_tokens) * token + rows * attended


def estimate_memory(
    config: GPTConfig, train: TrainConfig, *, prompt_tokens: int, dtype: torch.dtype, gradient_checkpointing: bool
) -> Memory:
    """The memory of a training step whose prompts have `prompt_tokens` tokens and whose completions are all full."""
    size = dtype.itemsize
    half = size < 4
    weights, V, T = count_weights(config), config.vocab_size, train.max_new_tokens
    rows = train.prompts_per_step * train.group_size
    parallel = min(rows, max(train.sampling_rows, train.group_size)) if train.sampling_rows else rows
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size  # a token's keys and values

    # A micro-batch: as many whole rows as fit, together with the prompts that they continue.
    updated = -(-rows // train.num_mini_batches)
    if train.micro_batch_tokens:
        group = prompt_tokens + train.group_size * T
        whole = train.group_size * (train.micro_batch_tokens // group)
        updated = min(updated, max(1, whole or (train.micro_batch_tokens - prompt_tokens) // T))
    prompts = -(-updated // train.group_size)
    layer = layer_bytes(config, prompts, prompt_tokens, updated, T, size)
    activations = layer * config.num_layers
    if gradient_checkpointing:
        tokens = prompts * prompt_tokens + updated * T
        activations = layer + config.num_layers * tokens * config.hidden_size * size + prompts * prompt_tokens * kv
    chunk = max(V, min(CHUNK_LOGITS, updated * T * V))
    return Memory(
        weights=weights * size,
        reference=weights * size if train.kl_weight else 0,
        optimizer=weights * (12 if half else 8),
        cache=parallel * (prompt_tokens + T) * kv,
        sampling_logits=parallel * V * (12 + size * half),  # scores, log-probs and probabilities, in float32
        gradients=weights * 4,  # float32 sums; those of a bfloat16 weight are added to its sum as soon as they arise
        activations=activations,
        chunk_logits=chunk * (12 + size * half) + V * config.hidden_size * size,  # and its gradient of the output head
    )


def pick_device(name: str) -> torch.device:
    """The device that --device names; auto: cuda, else mps, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch finds no CUDA device")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this PyTorch finds no MPS device")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype names; auto: bfloat16 on cuda, else float32."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def check_memory(estimate: Memory, device: torch.device) -> None:
    """Say what a step will take if prompts and completions are as long as they may be; ValueError if it cannot fit."""
    print(f"estimated memory: at most {estimate}")
    if device.type != "cuda":
        return
    available = torch.cuda.get_device_properties(device).total_memory
    if estimate.fixed > available:
        raise ValueError(
            f"weights, optimizer and gradients alone take {estimate.fixed / GIB:.0f} GiB, this GPU has "
            f"{available / GIB:.0f}: choose a smaller --model"
        )
    if estimate.peak > available:
        print("that is more than this GPU has: try --micro-batch-tokens, --sampling-rows, --gradient-checkpointing")


def bytes_on_disk(shape: GPTConfig, dtype: torch.dtype, keep_states: int) -> int:
    """What a run needs on the disk at most: keep_states + 1 states of three float32 numbers per weight, two models."""
    return count_weights(shape) * (12 * (keep_states + 1 if keep_states else 0) + 2 * dtype.itemsize)


def check_room(out: Path, needed: int, resume: bool) -> None:
    """OSError now, and not after hours, if the disk of `out` has less than `needed` bytes left. What a resumed run has
    already written counts as available."""
    if resume:
        needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    existing = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{out}: {needed / GIB:.1f} GiB are needed for the model and the training states, {free / GIB:.1f} GiB "
            "are free. Free some, choose another --out, or keep fewer with --keep-states"
        )


def peak_memory_mib() -> float:
    """Peak memory of this process so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
