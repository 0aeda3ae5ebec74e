"""A GPT of the Llama family in one file: RMSNorm, rotary grouped-query attention, gated MLP.

Llama, SmolLM, SmolLM3, Mistral, Qwen2/2.5 and Qwen3 are this one class with different values in `GPTConfig`. Modules
carry the names that Hugging Face checkpoints use, so that a state dict needs no translation table.
Left out: dropout, sliding windows, mixture of experts, any parallelism.

B rows, T tokens of this call, S tokens to attend to, D width, H heads, K key/value heads, C width of a head, V words.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# cuDNN's attention, the first choice on recent GPUs, plans anew for each new shape. Rows that leave and micro-batches
# make new shapes all the time: 59 ms per token instead of 18 on an H200.
torch.backends.cuda.enable_cudnn_sdp(False)


def upcast(x: Tensor) -> Tensor:
    """x in float32 if it was in half precision, else as it is: sums over many terms must not round to 8 or 11 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


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
    rope_scaling: object | None = None  # stretches rotary frequencies: one of the classes of checkpoint/rope.py
    unrotated_layers: tuple[int, ...] = ()  # numbers of the layers that do not turn queries and keys (SmolLM3)
    tie_embeddings: bool = True  # the output head is the token embedding
    qkv_bias: bool = False  # bias on the query, key and value projections (Qwen2)
    qk_norm: bool = False  # RMSNorm on every query and key head before the rotation (Qwen3)

    def __post_init__(self):
        if self.head_dim is None:
            assert self.hidden_size % self.num_heads == 0, "hidden_size is no multiple of num_heads: give head_dim"
            self.head_dim = self.hidden_size // self.num_heads
        assert self.head_dim % 2 == 0, f"head_dim must be even, rotation turns pairs of channels; found {self.head_dim}"
        assert self.num_heads % self.num_kv_heads == 0, "num_heads is no multiple of num_kv_heads"


class Causal:
    """The plain layout: each row starts at position 0, and a token sees itself and what precedes it in its row.

    A layout says where tokens stand and who sees whom: the model asks it for positions once per forward pass, then for
    the attention of each layer in turn. The other two are `KVCache` (sampler.py), for decoding token by token, and
    `SharedPrompts` (logprobs.py), for completions that share a prompt.
    """

    compiles = False  # true: the blocks of a compiled model run compiled under this layout

    def place(self, tokens: Tensor) -> Tensor:
        """Positions [1, T] (or [B, T]) of tokens [B, T]."""
        return torch.arange(tokens.shape[1], device=tokens.device)[None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the next layer: q [B, H, T, C], k and v [B, K, T, C] -> [B, H, T, C]."""
        return attention(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(C) + mask) v, [B, H, T, C] from q [B, H, T, C] and k, v [B, K, S, C].

    mask [B, 1, T, S]: see `additive_mask`; None: causal. H / K query heads share a key/value head, but fused kernels
    with a mask need H key/value heads, so k and v are repeated.
    """
    (B, H, T, C), K = q.shape, k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **({} if H == K else {"enable_gqa": True}))
    if T == 1:  # the query heads of a key/value head pose as that many tokens: nothing is copied
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, C), k, v, attn_mask=mask).reshape(B, H, 1, C)
    k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))  # [B, H, S, C]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible` is true, else -inf: attention adds it to its scores. Made once, used by every layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -torch.inf)


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
    """Radians per position by which each pair of channels turns, [C / 2] float32 (RoFormer, Su et al. 2021)."""
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents  # [C / 2]
    return config.rope_scaling.stretch(frequencies, config.rope_theta) if config.rope_scaling else frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of x [B, H, T, C] by its angle; cos, sin [B, 1, T, C / 2].

    As in Hugging Face checkpoints, channel c is paired with c + C/2, not with c + 1.
    """
    a, b = x.chunk(2, dim=-1)  # [B, H, T, C / 2] each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention: K key/value heads serve H query heads (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # [B, H, T, C]
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # [B, K, T, C]
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, K, T, C]
        y = layout.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)  # [B, H, T, C]
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

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layout)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """Token ids in, final-norm hidden states out. `logits` is a separate call: logits nobody reads cost nothing."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # true: keep only each block's input, compute the rest again in backward
        self.compiled = False  # true: what training runs often is compiled at its first use
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, layout=Causal()) -> Tensor:
        """Final-norm hidden states [B, T, D] of tokens [B, T]. Shorter rows are padded on the right: that needs no
        mask, as a causal model never looks right. Hidden states at padded places are meaningless."""
        x = self.embed_tokens(tokens)  # [B, T, D]
        positions = layout.place(tokens)  # [B, T]
        # The angles are computed here, in float32, and not stored: model.to(bfloat16) would round a buffer.
        angles = positions[:, None, :, None] * rotary_frequencies(self.config, tokens.device)  # [B, 1, T, C / 2]
        scale = self.config.rope_scaling.attention_factor if self.config.rope_scaling else 1.0
        turned = (scale * angles.cos()).to(x.dtype), (scale * angles.sin()).to(x.dtype)
        unturned = torch.ones_like(turned[0]), torch.zeros_like(turned[1])
        run = compiled(Block.forward) if self.compiled and layout.compiles else Block.__call__
        for i, block in enumerate(self.layers):
            cos, sin = unturned if i in self.config.unrotated_layers else turned
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, block, x, cos, sin, layout, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(block, x, cos, sin, layout)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., V], from hidden states [..., D]."""
        return F.linear(hidden, self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight)


@cache
def compiled(function):
    """The function as fused kernels (torch.compile), shared by all blocks and all sizes of a batch. What compiles anew,
    such as a batch of one row or a pass without gradients, multiplies: the default limit of 8 would end a run."""
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(function, dynamic=True, fullgraph=True)


def init_weights(model: GPT, generator: torch.Generator | None = None) -> GPT:
    """Fresh weights: matrices normal with std 1 / sqrt(3 fan_in), as wide as PyTorch's default for linear layers, token
    embeddings 0.05, norms 1, biases 0. (GPT-2's 0.02 suits a width of 768; at the toy's 64 it slows learning a lot.)"""
    for name, weight in model.named_parameters():
        if name == "embed_tokens.weight":
            nn.init.normal_(weight, std=0.05, generator=generator)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=(3 * weight.shape[1]) ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return model
