"""A GPT of the Llama family in one file: RMSNorm, rotary grouped-query attention, gated MLP, KV cache.

Llama, SmolLM, Mistral, Qwen2/2.5 and Qwen3 are this one class with other values in `GPTConfig`. Modules carry the names
that Hugging Face checkpoints use, so that a state dict needs no translation table.
Left out: dropout, sliding windows, mixture of experts, any parallelism.

B rows (sequences), T tokens of this call, S tokens seen so far (cache included), D width, H heads, K key/value heads,
C width of one head, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def upcast(x: Tensor) -> Tensor:
    """x in float32 if it was in half precision, else as it is: sums over many terms must not round to 8 or 11 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@dataclass
class RopeScaling:
    """How a checkpoint stretches its rotary frequencies to contexts longer than it was first trained on."""

    kind: str  # "linear": every frequency is divided by factor. "llama3": only the slow ones are
    factor: float  # how many times longer the context became
    low_frequency_factor: float = 1.0  # llama3: waves longer than original_context / this are divided by factor
    high_frequency_factor: float = 4.0  # llama3: waves shorter than original_context / this are left alone
    original_context: int = 8192  # llama3: context length before the stretching, in tokens


@dataclass
class GPTConfig:
    vocab_size: int  # V, rows of the token embedding
    hidden_size: int  # D, width of the residual stream
    num_layers: int  # number of blocks
    num_heads: int  # H, query heads
    num_kv_heads: int  # K, key/value heads, each shared by H / K query heads
    intermediate_size: int  # width of the gated MLP
    head_dim: int | None = None  # C, width of one head; None means D / H
    max_positions: int = 2048  # longest sequence the model was trained for, in tokens
    norm_eps: float = 1e-5  # inside the root of RMSNorm
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_scaling: RopeScaling | None = None  # stretched rotary frequencies (Llama 3.1 and later)
    tie_embeddings: bool = True  # the output head is the token embedding
    qkv_bias: bool = False  # bias on the query, key and value projections (Qwen2)
    qk_norm: bool = False  # RMSNorm on every query and key head before the rotation (Qwen3)

    def __post_init__(self):
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, the rotation turns pairs of channels; found {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.rope_scaling is not None and self.rope_scaling.kind not in ("linear", "llama3"):
            raise ValueError(f"rope_scaling.kind must be 'linear' or 'llama3', found {self.rope_scaling.kind!r}")


class KVCache:
    """Keys and values of the tokens seen so far, one row a sequence, rows of different lengths side by side.

    Slot j of a row holds the token at position j, for every row. So one rule, "a query at position p sees the slots
    j <= p", is the causal mask and the padding mask at once: what a shorter row holds beyond its length lies in slots
    that no query sees until a real token has overwritten them.

    Fields: keys, values: one [B, K, S_max, C] tensor a layer; lengths [B]: real tokens in each row.
    """

    def __init__(self, config: GPTConfig, rows: int, max_length: int, *, device=None, dtype=None):
        shape = (rows, config.num_kv_heads, max_length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.used = 0  # slots that the longest row may need: a Python number, so that reading it costs no GPU wait

    def place(self, T: int) -> tuple[Tensor, Tensor]:
        """For the next T tokens of every row: (positions [B, T], visible slots [B, 1, T, S])."""
        if self.used + T > self.keys[0].shape[2]:
            raise ValueError(
                f"KVCache holds {self.keys[0].shape[2]} tokens a row: no room for {T} more after {self.used}"
            )
        self.used += T
        self.positions = self.lengths[:, None] + torch.arange(T, device=self.lengths.device)
        slots = torch.arange(self.used, device=self.lengths.device)
        return self.positions, (slots <= self.positions[:, :, None])[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys, values [B, K, T, C] at the positions of `place`; return all slots in use, [B, K, S, C] each."""
        rows = torch.arange(len(self.positions), device=keys.device)[:, None]  # [B, 1]
        # Indices on both sides of a slice put their own dimensions first: the right-hand side must be [B, T, K, C].
        self.keys[layer][rows, :, self.positions] = keys.transpose(1, 2)
        self.values[layer][rows, :, self.positions] = values.transpose(1, 2)
        return self.keys[layer][:, :, : self.used], self.values[layer][:, :, : self.used]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention of the next tokens, q [B, H, T, C], over everything so far -> [B, H, T, C]."""
        return attend(q, *self.write(layer, k, v), bias)

    def advance(self, lengths: int | Tensor) -> None:
        """The tokens written last now belong to their rows: `lengths` [B] (or one number for all) of them are real."""
        self.lengths = self.lengths + lengths

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` [any number of row indices], in that order; an index may occur several times."""
        for layer in range(len(self.keys)):  # one layer after the other: never a second copy of the whole cache
            self.keys[layer], self.values[layer] = self.keys[layer][rows], self.values[layer][rows]
        self.lengths = self.lengths[rows]


class SharedPrompts:
    """N completions of B prompts as one row of tokens, in which every prompt stands once, whoever continues it.

    What KVCache is to sampling, this is to training: nothing is written in place, so that gradients flow. All layers but
    attention treat a token alike wherever it stands, and see one long row [1, M], M = B * P + N * T. In attention the
    prompts see themselves, and a completion sees its own prompt and itself.

    Arguments: prompts [B, P] and completions [N, T], padded on the right; lengths [B] of the prompts without padding;
    rows [N], which prompt each completion continues.
    """

    def __init__(self, prompts: Tensor, lengths: Tensor, completions: Tensor, rows: Tensor):
        self.tokens = torch.cat([prompts.flatten(), completions.flatten()])[None]  # [1, M]
        self.prompt_shape, self.completion_shape = prompts.shape, completions.shape
        self.lengths, self.rows = lengths, rows

    def place(self, M: int) -> tuple[Tensor, Tensor]:
        """(positions [1, M], visible slots of the completions [N, 1, T, P + T])."""
        (B, P), (N, T) = self.prompt_shape, self.completion_shape
        start, device = self.lengths[self.rows][:, None], self.lengths.device  # [N, 1]
        prompt, own = torch.arange(P, device=device), torch.arange(T, device=device)
        positions = torch.cat([prompt.expand(B, P).flatten(), (start + own).flatten()])
        padding_left_out = (prompt < start)[:, None].expand(N, T, P)
        visible = torch.cat([padding_left_out, (own <= own[:, None]).expand(N, T, T)], 2)
        return positions[None], visible[:, None]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., M, C] of all tokens as prompts [B, ..., P, C] and completions [N, ..., T, C]."""
        B, P = self.prompt_shape
        prompts, completions = x[..., : B * P, :], x[..., B * P :, :]
        return tuple(
            part.unflatten(-2, shape).movedim(-3, 0)
            for part, shape in ((prompts, self.prompt_shape), (completions, self.completion_shape))
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention of all tokens: q [1, H, M, C], k and v [1, K, M, C] -> [1, H, M, C]."""
        (q_prompt, q_own), (k_prompt, k_own), (v_prompt, v_own) = (self.split(x[0]) for x in (q, k, v))
        # index_select, not [rows]: its gradient is added up in the same order every time.
        k_all = torch.cat([k_prompt.index_select(0, self.rows), k_own], 2)  # [N, K, P + T, C]
        v_all = torch.cat([v_prompt.index_select(0, self.rows), v_own], 2)
        outputs = attend(q_prompt, k_prompt, v_prompt, None), attend(q_own, k_all, v_all, bias)
        return torch.cat([y.movedim(0, 1).flatten(1, 2) for y in outputs], 1)[None]

    def advance(self, lengths: int) -> None:
        """Nothing continues a completion."""


Cache = KVCache | SharedPrompts


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), the mean taken in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_frequencies(config: GPTConfig, device=None) -> Tensor:
    """Radians a position by which each pair of channels turns, [C / 2] float32 (RoFormer, Su et al. 2021)."""
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents  # [C / 2]
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # llama3: fast waves stay, slow waves are divided by the factor, those between are blended by how many turns they
    # make within the original context.
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast, 0: slow
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (c, c + C/2) of x [B, H, T, C] by its angle; cos, sin [B, 1, T, C / 2].

    The pairing is the one of Hugging Face checkpoints: first half with second half, not neighbour with neighbour.
    """
    a, b = x.chunk(2, dim=-1)  # [B, H, T, C / 2] each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(C) + bias) v, [B, H, T, C] from q [B, H, T, C] and k, v [B, K, S, C].

    bias [B, 1, T, S]: 0 where a query sees a slot, else -inf; None: plain causal attention. H / K query heads share a
    key/value head; but fast kernels that take a bias want as many of one as of the other.
    """
    B, H, T, C = q.shape
    K = k.shape[1]
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
    if T == 1:  # the queries of a key/value head pose as that many tokens: nothing is copied
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, C), k, v, attn_mask=bias).reshape(B, H, 1, C)
    k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))  # [B, H, S, C]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Causal grouped-query attention: K key/value heads serve H query heads (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, cache: Cache | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # [B, H, T, C]
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # [B, K, T, C]
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, K, T, C]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = attend(q, k, v, bias) if cache is None else cache.attend(self.layer, q, k, v, bias)  # [B, H, T, C]
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # [B, T, D]


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """Token ids in, final-norm hidden states out; `logits` is a separate call, so nobody pays for unread logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # true: keep only each block's input, compute the rest again in backward
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None, lengths: Tensor | None = None) -> Tensor:
        """Final-norm hidden states [B, T, D] of tokens [B, T].

        Rows of different lengths are padded on the right. Padding needs no mask: a causal model never looks right.
        With a cache, the tokens continue its rows; `lengths` [B] then says how many of each row's T tokens are real
        (default: all). Hidden states at padded places are meaningless.
        """
        T = tokens.shape[1]
        if cache is None:
            positions, visible = torch.arange(T)[None], None  # [1, T]; None: plain causal mask
        else:
            positions, visible = cache.place(T)  # [B, T], [B, 1, T, S] (SharedPrompts: of the completions)
        x = self.embed_tokens(tokens)  # [B, T, D]
        # The angles are computed here, in float32, and not stored: model.to(bfloat16) would round a buffer.
        frequencies = rotary_frequencies(self.config, tokens.device)  # [C / 2]
        angles = positions.to(tokens.device)[:, None, :, None] * frequencies  # [B, 1, T, C / 2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        bias = None  # added to the attention's scores: 0 for visible slots, else -inf; made once for all layers
        if visible is not None:
            bias = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill(~visible, -torch.inf)
        for block in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, bias, cache, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, bias, cache)
        if cache is not None:
            cache.advance(T if lengths is None else lengths)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., V], from hidden states [..., D]."""
        return F.linear(hidden, self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight)


def init_weights(model: GPT, generator: torch.Generator | None = None) -> GPT:
    """Fresh weights for training from scratch: matrices normal with std 1 / sqrt(3 fan_in), as wide as PyTorch's
    default for linear layers, token embeddings 0.05, norms 1, biases 0.

    (GPT-2's 0.02 suits a width of 768. At the toy's 64 it is so small that the model learns the sums far later.)
    """
    for name, weight in model.named_parameters():
        if name == "embed_tokens.weight":
            nn.init.normal_(weight, std=0.05, generator=generator)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=(3 * weight.shape[1]) ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return model
