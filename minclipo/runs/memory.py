"""The memory of a training step, counted from the shapes, part by part; tests compare it with what is really held.

Left out: what the allocator wastes, what PyTorch and CUDA take for themselves, and the rollouts.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch

from minclipo.config import TrainConfig
from minclipo.extensions.lora import TARGETS, add_lora
from minclipo.logprobs import CHUNK_LOGITS
from minclipo.model import GPT, GPTConfig
from minclipo.runs.console import WIDTH, wrapped
from minclipo.sampler import SLOTS

GIB = 2**30
ESTIMATED = "estimated memory: at most "


@dataclass
class Memory:
    """Bytes. A step samples, contrasts and updates, one after the other: what only one of them holds never meets."""

    weights: int  # what the model computes with; with --shard this process's part of them, as in the next three
    reference: int  # the frozen copy for the KL penalty; with LoRA and no --shard its adapters alone
    optimizer: int  # AdamW's moments, and float32 masters of bfloat16 weights
    adapters: int  # LoRA's, in float32
    gathered: int  # sampling with --shard: all weights, beside the part of them
    prefill: int  # sampling: the prompts' own cache, and one block's work on all their tokens at once
    cache: int  # sampling: keys and values of the rollouts that are sampled in parallel
    cache_copy: int  # sampling: one layer of it again, while rows that have ended leave
    sampling_logits: int  # sampling: scores of the next token and what becomes of them
    contrast: int  # contrast: who is compared with whom, and how similar they are, [N, N] each
    gradients: int  # update: their float32 sums
    activations: int  # update: what backward needs of one micro-batch
    head: int  # update: the final norm, the vocabulary for one chunk of tokens, the output head's gradients
    block: int  # update: gradients in the block that backward has got to; its activations if they are computed again
    unsharded: int  # update with --shard: the root's weights, those of two blocks, gradients that are still whole
    root: int  # update with --shard: what is left of backward when embeddings and output head sum their gradients

    @property
    def held(self) -> int:
        return self.weights + self.reference + self.optimizer + self.adapters

    @property
    def fixed(self) -> int:
        """What only a smaller model, or no KL penalty, can reduce."""
        return self.held + self.gradients

    @property
    def sampling(self) -> int:
        return self.held + self.gathered + max(self.prefill, self.cache + max(self.cache_copy, self.sampling_logits))

    @property
    def contrasting(self) -> int:
        return self.held + self.contrast

    @property
    def update(self) -> int:
        return self.fixed + max(self.activations + max(self.head, self.block) + self.unsharded, self.root)

    @property
    def peak(self) -> int:
        return max(self.sampling, self.contrasting, self.update)

    def __str__(self) -> str:
        unit, size = ("GiB", GIB) if self.peak >= GIB else ("MiB", 2**20)
        parts = [f"{name} {value / size:.1f}" for name, value in vars(self).items() if value >= size / 20]
        return wrapped([f"{self.peak / size:.1f} {unit} at the peak, in {unit}", *parts], WIDTH - len(ESTIMATED))


def count_weights(config: GPTConfig) -> int:
    """Number of weights of a model, each counted once, without building it: all blocks have the same number."""
    root, block = root_and_block(config)
    return root + config.num_layers * block


def root_and_block(config: GPTConfig) -> tuple[int, int]:
    """Number of weights outside the blocks, and of one block."""

    def count(num_layers: int) -> int:
        with torch.device("meta"):
            return sum(
                weight.numel() for weight in GPT(dataclasses.replace(config, num_layers=num_layers)).parameters()
            )

    return count(0), count(1) - count(0)


def count_adapters(config: GPTConfig, rank: int, targets: Collection[str]) -> int:
    """Number of LoRA's own weights, 0 without it (rank 0)."""
    if not rank:
        return 0
    with torch.device("meta"):
        block = add_lora(GPT(dataclasses.replace(config, num_layers=1)), rank, alpha=rank, targets=targets)
    return config.num_layers * sum(weight.numel() for weight in block.parameters() if weight.requires_grad)


def largest_micro_batch(train: TrainConfig, prompt_tokens: int, processes: int = 1) -> tuple[int, int]:
    """(rows, prompts) of the largest micro-batch when all completions are full. A mini-batch is a random part of the
    rollouts, in the order of their prompts: so a prompt has group_size / num_mini_batches rows in it on average. Each
    process passes as many adjacent rows of it."""
    limit, parts = train.micro_batch_tokens, train.num_mini_batches
    whole = -(-train.prompts_per_step * train.group_size // (parts * processes))
    prompts = lambda rows: min(train.prompts_per_step, -(-rows * parts // train.group_size))
    tokens = lambda rows, prompts: prompts * prompt_tokens + rows * train.max_new_tokens
    rows = whole
    while limit and rows > 1 and tokens(rows, prompts(rows)) > limit:
        rows -= 1
    # Rows of one more prompt may come first: those that the micro-batch before, or the process before, had no room for.
    more = min(train.prompts_per_step, prompts(rows) + 1)
    cut = rows < whole or processes > 1
    return rows, more if cut and not 0 < limit < tokens(rows, more) else prompts(rows)


def block_bytes(
    config: GPTConfig, tokens: int, rows: int, slots: int, size: int, lora_rank: int, lora_targets: Collection[str]
) -> int:
    """What backward needs of one block for `tokens` tokens, those of prompts included, `size` bytes per number.

    Per token: 4 times the MLP's width (gate, its silu, up, their product), 3 times the query heads (rotated; the
    attention's output, in two layouts), keys and values, a float32 number per query head (log of the sum that softmax
    divides by), and what the norms keep. Per completion: the keys and values of its `slots`, those of its prompt and
    its own, repeated for every query head.

    Frozen layers do without their inputs, unless an adapter reads them: the norms' outputs, the MLP's product, the
    attention's output in its second layout. An adapter keeps A x, and A and B in the dtype of x, scaled: in
    float32 a copy of B alone, about half.
    """
    queries, keys, D = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.hidden_size
    read = set(lora_targets if lora_rank else TARGETS)
    token = size * (
        (3 + ("down_proj" in read)) * config.intermediate_size + (2 + ("o_proj" in read)) * queries + 2 * keys
    )
    for readers in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}):
        token += norm_bytes(D, size, frozen=lora_rank > 0) - (0 if read & readers else D * size)
    if config.qk_norm:
        token += (queries + keys) * (4 if lora_rank else 4 + 2 * size)
    token += 4 * config.num_heads + (lora_rank * len(read) * size if lora_rank else 0)
    rounded = size * count_adapters(dataclasses.replace(config, num_layers=1), lora_rank, lora_targets)
    return tokens * token + rows * slots * 2 * queries * size + (rounded if size < 4 else rounded // 2)


def norm_bytes(width: int, size: int, frozen: bool = False) -> int:
    """What backward needs of RMSNorm per token: its input in float32, the normalised input unless its weight is frozen,
    and its output."""
    return width * (4 + (1 if frozen else 2) * size)


def contrast_bytes(train: TrainConfig) -> int:
    """The contrast when every rollout is an anchor. Bytes per pair: 4 for candidates and positives, of all rows and of
    the anchors'; 4 for the similarities; 5 each for those of candidates and of positives with their mask; 4 for the
    exponentials that are summed. l2 keeps 8 more, squared distances and roots; supcon_in counts with 4 more."""
    l2, supcon_in = train.contrastive_similarity == "l2", train.contrastive_loss == "supcon_in"
    N = train.prompts_per_step * train.group_size if train.contrastive_weight else 0
    return N**2 * (4 + 4 + 5 + 5 + 4 + 8 * l2 + 4 * supcon_in)


def sampling_bytes(
    config: GPTConfig,
    train: TrainConfig,
    prompt_tokens: int,
    size: int,
    device_type: str,
    processes: int,
    up_adapter: bool,
) -> dict:
    """The fields of `Memory` that sampling holds, on a process that samples its part of the prompts."""
    rows, multiple = -(-train.prompts_per_step // processes) * train.group_size, SLOTS.get(device_type, 1)
    if train.sampling_rows:
        rows = min(rows, max(1, train.sampling_rows // train.group_size) * train.group_size)
    slots = -(-(prompt_tokens + train.max_new_tokens) // multiple) * multiple
    layer = rows * slots * 2 * config.num_kv_heads * config.head_dim * size
    cache = layer * config.num_layers
    # In the MLP: silu(gate), up and their product, beside the block's input, the residual stream since, and its norm.
    # With an adapter on up: silu(gate), up's two parts and their sum.
    width = (3 + up_adapter) * config.intermediate_size + 3 * config.hidden_size
    return dict(
        prefill=cache // train.group_size + rows // train.group_size * prompt_tokens * width * size,
        cache=cache,
        cache_copy=layer,
        sampling_logits=rows * config.vocab_size * (size + 12),  # and log-probs, probabilities, sums of these, float32
    )


def update_bytes(
    config: GPTConfig,
    train: TrainConfig,
    prompt_tokens: int,
    size: int,
    device_type: str,
    processes: int,
    gradient_checkpointing: bool,
    lora_rank: int,
    lora_targets: Collection[str],
) -> dict:
    """The fields of `Memory` that a forward and backward pass holds, besides weights and sums of gradients."""
    D, frozen = config.hidden_size, lora_rank > 0
    rows, prompts = largest_micro_batch(train, prompt_tokens, processes)
    row_tokens = max(1, train.max_new_tokens - 1)  # the last token predicts nothing
    tokens, slots = prompts * prompt_tokens + rows * row_tokens, prompt_tokens + row_tokens
    block = block_bytes(config, tokens, rows, slots, size, lora_rank, lora_targets)
    mask = rows * row_tokens * slots * size  # additive, for all blocks
    if device_type == "cuda" and slots % 16:  # its kernels read 16 numbers at a time: a wider copy for each block
        block += rows * row_tokens * (slots + 16 - slots % 16) * size
    scores, embedding = rows * train.max_new_tokens * config.vocab_size, config.vocab_size * D * size
    chunk = max(config.vocab_size, min(CHUNK_LOGITS, scores))
    # Three float32 numbers per logit. With several chunks, the head's gradient so far; or two of those and their sum.
    logits = 12 * chunk
    if not frozen and scores > chunk:
        logits = max(12 * chunk + embedding, 3 * embedding)
    # Gradients of silu(gate), up and their product, whose value is gone if it was kept, of the block's output, and of a
    # tied head.
    inside = tokens * ((3 if frozen and "down_proj" not in lora_targets else 2) * config.intermediate_size + D) * size
    inside += embedding if config.tie_embeddings and not frozen else 0
    activations = mask + config.num_layers * (tokens * D * size if gradient_checkpointing else block)
    if frozen and not gradient_checkpointing:  # the first norm has nothing to pass back to
        activations -= 4 * tokens * D
    return dict(
        activations=activations,
        head=tokens * norm_bytes(D, size, frozen) + logits,
        block=inside + (block if gradient_checkpointing else 0),
    )


def shard_bytes(config: GPTConfig, size: int, frozen: bool, reference: bool) -> dict:
    """The fields of `Memory` for what FSDP2 gathers from all processes: `fully_shard` on each block, and on the root,
    which is all the rest.

    In a block's backward pass: its weights, those of the block that comes next, and their buffer; its gradients, in the
    model's dtype; and the float32 copy of the gradients of the block before, on their way to the sum over processes.
    """
    root, block = root_and_block(config)
    embeddings = config.vocab_size * config.hidden_size * size
    head = 0 if config.tie_embeddings else embeddings  # its gradient waits for the end; a tied one is counted elsewhere
    whole = root * size * (1 + reference)
    if frozen:
        return dict(unsharded=whole + 3 * block * size, root=whole)
    # Weights and two gradients, with tied embeddings also their sum; or gradients and their float32 copies.
    end = max(root * size + (3 if config.tie_embeddings else 2) * embeddings, root * (size + 4))
    return dict(unsharded=whole + block * (3 * size + size + 4) + head, root=whole - root * size + end)


def estimate_memory(
    config: GPTConfig,
    train: TrainConfig,
    *,
    prompt_tokens: int,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    device_type: str = "cuda",
    lora_rank: int = 0,
    lora_targets: Collection[str] = TARGETS,
    processes: int = 1,
    shard: bool = False,
) -> Memory:
    """The memory of a training step whose prompts have `prompt_tokens` tokens and whose completions are all full.

    lora_rank, lora_targets: adapters of that rank beside these layers; 0: all weights are trained. processes: each has
    a device of its own, and this is what one of them holds; shard: each keeps a part of weights, optimizer, gradients.
    """
    size, weights, adapters = dtype.itemsize, count_weights(config), count_adapters(config, lora_rank, lora_targets)
    everything, part = weights * size + adapters * 4, lambda number: -(-number // processes) if shard else number
    trained, masters = part(adapters or weights), 4 if size < 4 and not lora_rank else 0
    reference, sharding = bool(train.kl_weight), dict(unsharded=0, root=0)
    if shard:
        sharding = shard_bytes(config, size, lora_rank > 0, reference)
    common = config, train, prompt_tokens, size, device_type, processes
    return Memory(
        weights=part(weights) * size,
        # Frozen weights are shared, unless they are spread.
        reference=reference * part(adapters * 4 if lora_rank and not shard else everything),
        optimizer=trained * (8 + masters),
        adapters=part(adapters) * 4,
        gathered=everything if shard else 0,
        **sampling_bytes(*common, up_adapter=lora_rank > 0 and "up_proj" in lora_targets),
        contrast=contrast_bytes(train),
        gradients=trained * 4,  # those of a bfloat16 weight are added to its sum as soon as they arise
        **update_bytes(*common, gradient_checkpointing, lora_rank, lora_targets),
        **sharding,
    )
