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
from minclipo.runs.available import available_memory
from minclipo.runs.console import WIDTH, wrapped
from minclipo.sampler import SLOTS

GIB = 2**30
ESTIMATED = "estimated memory: at most "


@dataclass
class Memory:
    """Bytes. A step samples, contrasts and updates, one after the other: what only one of them holds never meets."""

    weights: int  # what the model computes with
    reference: int  # the frozen copy for the KL penalty
    optimizer: int  # AdamW's moments, and float32 masters of bfloat16 weights
    prefill: int  # sampling: the prompts' own cache, and one block's work on all their tokens at once
    cache: int  # sampling: keys and values of the rollouts that are sampled in parallel
    cache_copy: int  # sampling: one layer of it again, while rows that have ended leave
    sampling_logits: int  # sampling: scores of the next token and what becomes of them
    contrast: int  # contrast: who is compared with whom, and how similar they are, [N, N] each
    gradients: int  # update: their float32 sums
    activations: int  # update: what backward needs of one micro-batch
    head: int  # update: the final norm, the vocabulary for one chunk of tokens, the output head's gradients
    block: int  # update: gradients in the block that backward has got to; its activations if they are computed again

    @property
    def held(self) -> int:
        return self.weights + self.reference + self.optimizer

    @property
    def fixed(self) -> int:
        """What only a smaller model, or no KL penalty, can reduce."""
        return self.held + self.gradients

    @property
    def sampling(self) -> int:
        return self.held + max(self.prefill, self.cache + max(self.cache_copy, self.sampling_logits))

    @property
    def contrasting(self) -> int:
        return self.held + self.contrast

    @property
    def update(self) -> int:
        return self.fixed + self.activations + max(self.head, self.block)

    @property
    def peak(self) -> int:
        return max(self.sampling, self.contrasting, self.update)

    def __str__(self) -> str:
        unit, size = ("GiB", GIB) if self.peak >= GIB else ("MiB", 2**20)
        parts = [f"{name} {value / size:.1f}" for name, value in vars(self).items() if value >= size / 20]
        return wrapped([f"{self.peak / size:.1f} {unit} at the peak, in {unit}", *parts], WIDTH - len(ESTIMATED))


def count_weights(config: GPTConfig) -> int:
    """Number of weights of a model, each counted once, without building it: all blocks have the same number."""

    def count(num_layers: int) -> int:
        with torch.device("meta"):
            return sum(
                weight.numel() for weight in GPT(dataclasses.replace(config, num_layers=num_layers)).parameters()
            )

    return count(0) + config.num_layers * (count(1) - count(0))


def largest_micro_batch(train: TrainConfig, prompt_tokens: int) -> tuple[int, int]:
    """(rows, prompts) of the largest micro-batch when all completions are full. A mini-batch is a random part of the
    rollouts, in the order of their prompts: so a prompt has group_size / num_mini_batches rows in it on average."""
    limit, whole = train.micro_batch_tokens, -(-train.prompts_per_step * train.group_size // train.num_mini_batches)
    prompts = lambda rows: min(train.prompts_per_step, -(-rows * train.num_mini_batches // train.group_size))
    tokens = lambda rows, prompts: prompts * prompt_tokens + rows * train.max_new_tokens
    rows = whole
    while limit and rows > 1 and tokens(rows, prompts(rows)) > limit:
        rows -= 1
    # Rows of one more prompt may come first: those that the micro-batch before had no room for.
    more = min(train.prompts_per_step, prompts(rows) + 1)
    return rows, more if rows < whole and tokens(rows, more) <= limit else prompts(rows)


def block_bytes(config: GPTConfig, tokens: int, rows: int, slots: int, size: int) -> int:
    """What backward needs of one block for `tokens` tokens, those of prompts included, `size` bytes per number.

    Per token: 4 times the MLP's width (gate, its silu, up, their product), 3 times the query heads (rotated; the
    attention's output, in two layouts), keys and values, a float32 number per query head (log of the sum that softmax
    divides by), and what the norms keep. Per completion: the keys and values of its `slots`, those of its prompt and
    its own, repeated for every query head.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    normed = 2 * config.hidden_size + (queries + keys if config.qk_norm else 0)
    token = size * (4 * config.intermediate_size + 3 * queries + 2 * keys) + norm_bytes(normed, size)
    return tokens * (token + 4 * config.num_heads) + rows * slots * 2 * queries * size


def norm_bytes(width: int, size: int) -> int:
    """What backward needs of RMSNorm per token: its input in float32, the normalised input, and its output."""
    return width * (4 + 2 * size)


def contrast_bytes(train: TrainConfig) -> int:
    """The contrast when every rollout is an anchor. Bytes per pair: 4 for candidates and positives, of all rows and of
    the anchors'; 4 for the similarities; 5 each for those of candidates and of positives with their mask; 4 for the
    exponentials that are summed. l2 keeps 8 more, squared distances and roots; supcon_in counts with 4 more."""
    l2, supcon_in = train.contrastive_similarity == "l2", train.contrastive_loss == "supcon_in"
    N = train.prompts_per_step * train.group_size if train.contrastive_weight else 0
    return N**2 * (4 + 4 + 5 + 5 + 4 + 8 * l2 + 4 * supcon_in)


def sampling_bytes(config: GPTConfig, train: TrainConfig, prompt_tokens: int, size: int, device_type: str) -> dict:
    """The fields of `Memory` that sampling holds."""
    rows, multiple = train.prompts_per_step * train.group_size, SLOTS.get(device_type, 1)
    if train.sampling_rows:
        rows = min(rows, max(1, train.sampling_rows // train.group_size) * train.group_size)
    slots = -(-(prompt_tokens + train.max_new_tokens) // multiple) * multiple
    layer = rows * slots * 2 * config.num_kv_heads * config.head_dim * size
    cache = layer * config.num_layers
    # In the MLP: silu(gate), up and their product, beside the block's input, the residual stream since, and its norm.
    work = rows // train.group_size * prompt_tokens * 3 * (config.intermediate_size + config.hidden_size) * size
    return dict(
        prefill=cache // train.group_size + work,
        cache=cache,
        cache_copy=layer,
        sampling_logits=rows * config.vocab_size * (size + 12),  # and log-probs, probabilities, sums of these, float32
    )


def estimate_memory(
    config: GPTConfig,
    train: TrainConfig,
    *,
    prompt_tokens: int,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    device_type: str = "cuda",
) -> Memory:
    """The memory of a training step whose prompts have `prompt_tokens` tokens and whose completions are all full."""
    size, weights, D = dtype.itemsize, count_weights(config), config.hidden_size
    rows, prompts = largest_micro_batch(train, prompt_tokens)
    row_tokens = max(1, train.max_new_tokens - 1)  # the last token predicts nothing
    tokens, slots = prompts * prompt_tokens + rows * row_tokens, prompt_tokens + row_tokens
    block = block_bytes(config, tokens, rows, slots, size)
    mask = rows * row_tokens * slots * size  # additive, for all blocks
    if device_type == "cuda" and slots % 16:  # its kernels read 16 numbers at a time: a wider copy for each block
        block += rows * row_tokens * (slots + 16 - slots % 16) * size
    scores, embedding = rows * train.max_new_tokens * config.vocab_size, config.vocab_size * D * size
    chunk = max(config.vocab_size, min(CHUNK_LOGITS, scores))
    # Three float32 numbers per logit. With several chunks, the head's gradient so far; or two of those and their sum.
    logits = 12 * chunk if scores <= chunk else max(12 * chunk + embedding, 3 * embedding)
    # Gradients of silu(gate), up and their product, whose value is gone, of the block's output, and of a tied head.
    inside = tokens * (2 * config.intermediate_size + D) * size + (embedding if config.tie_embeddings else 0)
    return Memory(
        weights=weights * size,
        reference=weights * size if train.kl_weight else 0,
        optimizer=weights * (12 if size < 4 else 8),
        **sampling_bytes(config, train, prompt_tokens, size, device_type),
        contrast=contrast_bytes(train),
        gradients=weights * 4,  # those of a bfloat16 weight are added to its sum as soon as they arise
        activations=mask + config.num_layers * (tokens * D * size if gradient_checkpointing else block),
        head=tokens * norm_bytes(D, size) + logits,
        block=inside + (block if gradient_checkpointing else 0),
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
    print(f"{ESTIMATED}{estimate}")
    if device.type == "cpu":
        warn_of_little_memory(estimate, available_memory())
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


def warn_of_little_memory(estimate: Memory, available: int | None) -> None:
    """On a CPU a step may still fit: others end, there may be room to swap, completions are seldom all full."""
    if available is None or estimate.peak <= available:
        return
    print(f"WARNING: that is more than the {available / GIB:.1f} GiB of memory that this process can get")
    if estimate.fixed > available:
        print(f"Weights, optimizer and gradients alone take {estimate.fixed / GIB:.1f} GiB: choose a smaller --model")
    else:
        print("Lower it with --micro-batch-tokens, --sampling-rows, --gradient-checkpointing")


def bytes_on_disk(shape: GPTConfig, dtype: torch.dtype, keep_states: int) -> int:
    """What a run needs on the disk at most: keep_states + 1 states of three float32 numbers per weight, two models."""
    return count_weights(shape) * (12 * (keep_states + 1 if keep_states else 0) + 2 * dtype.itemsize)


def check_room(out: Path, needed: int, resume: bool) -> None:
    """OSError now, and not after hours, if the disk of `out` has less than `needed` bytes left. The models and states
    that a resumed run has already written count as available."""
    if resume:
        written = [path for part in ("model", "states", "best") for path in (out / part).rglob("*") if path.is_file()]
        needed -= sum(path.stat().st_size for path in written)
    existing = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{out}: {needed / 2**20:,.1f} MiB are needed for the model and the training states, {free / 2**20:,.1f} "
            "MiB are free. Free some, choose another --out, or keep fewer with --keep-states"
        )


def peak_memory_mib() -> float:
    """Peak memory of this process so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
