"""How much memory will a run take? Counted from the shapes, part by part; tests compare with what is really held.

    python -m minclipo.memory        # a table for models of the Qwen2.5 and Llama families

Left out: what the allocator wastes, and what PyTorch and CUDA take for themselves.
"""

from dataclasses import dataclass

import torch

from minclipo.config import TrainConfig
from minclipo.logprobs import CHUNK_LOGITS
from minclipo.model import GPT, GPTConfig

GIB = 2**30


@dataclass
class Memory:
    """Bytes. A step first samples, then updates: the two never need their memory at the same time."""

    weights: int  # what the model computes with
    reference: int  # the frozen copy for the KL penalty
    optimizer: int  # AdamW's moments, and float32 masters of bfloat16 weights
    cache: int  # sampling: keys and values of the rollouts that grow at the same time
    sampling_logits: int  # sampling: scores of the next token and what becomes of them
    gradients: int  # update
    activations: int  # update: what backward needs of one micro-batch
    chunk_logits: int  # update: the vocabulary for one chunk of tokens

    @property
    def sampling(self) -> int:
        return self.weights + self.reference + self.optimizer + self.cache + self.sampling_logits

    @property
    def fixed(self) -> int:
        """What no option makes smaller, but another model or no KL penalty."""
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
    """Weights of a model, each counted once, without making it."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in GPT(config).parameters())


def layer_bytes(config: GPTConfig, prompts: int, prompt_tokens: int, rows: int, row_tokens: int, size: int) -> int:
    """What backward needs of one block, for `rows` completions of `prompts` prompts, `size` bytes a number.

    Per token: 4 times the MLP's width (gate, its silu, up, their product), 3 times the query heads (rotated; the
    attention's output, in two layouts), keys and values, and the residual stream with the copies that its two norms
    keep, some of them in float32. Per completion: the keys and values of its prompt and itself, with as many heads as
    the queries.
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
    growing = min(rows, max(train.sampling_rows, train.group_size)) if train.sampling_rows else rows
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size  # a token's keys and values

    # A micro-batch: as many whole rows as fit, together with the prompts that they continue.
    updated = -(-rows // train.mini_batches)
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
        cache=growing * (prompt_tokens + T) * kv,
        sampling_logits=growing * V * (12 + size * half),  # scores, log-probs and probabilities, in float32
        gradients=weights * (size + 4 if half else 4),  # and their float32 sum
        activations=activations,
        chunk_logits=chunk * (12 + size * half) + V * config.hidden_size * size,  # and its gradient of the output head
    )


# Shapes as published in each model's config.json: V, D, layers, H, K, MLP, tied.
SHAPES = {
    "SmolLM2-135M": (49152, 576, 30, 9, 3, 1536, True),
    "Qwen2.5-0.5B": (151936, 896, 24, 14, 2, 4864, True),
    "Llama-3.2-1B": (128256, 2048, 16, 32, 8, 8192, True),
    "Qwen2.5-1.5B": (151936, 1536, 28, 12, 2, 8960, True),
    "Qwen2.5-3B": (151936, 2048, 36, 16, 2, 11008, True),
    "Qwen2.5-7B": (152064, 3584, 28, 28, 4, 18944, False),
}


def table() -> str:
    """Peak memory of each published shape, in GiB: bfloat16, 256 + 1024 tokens, no reference model."""
    train = TrainConfig(
        prompts_per_step=16, group_size=16, max_new_tokens=1024, sampling_rows=64, micro_batch_tokens=8192
    )
    lines = ["| model | weights | sampling | update | update, gradient checkpointing |", "|---|---|---|---|---|"]
    for name, (V, D, layers, H, K, mlp, tied) in SHAPES.items():
        config = GPTConfig(V, D, layers, H, K, mlp, tie_embeddings=tied)
        common = dict(prompt_tokens=256, dtype=torch.bfloat16)
        plain = estimate_memory(config, train, **common, gradient_checkpointing=False)
        checkpointed = estimate_memory(config, train, **common, gradient_checkpointing=True)
        cells = [plain.weights, plain.sampling, plain.update, checkpointed.update]
        lines.append(f"| {name} | " + " | ".join(f"{cell / GIB:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
