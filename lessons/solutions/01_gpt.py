"""Solution of exercise 1. Compare RMSNorm, rotate and attention in minclipo/model.py."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, g: Tensor, eps: float) -> Tensor:
    # bfloat16 overflows no sooner than float32, but its 8 bits are too few for a sum over the width.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    size = (wide.square().mean(-1, keepdim=True) + eps).sqrt()  # [..., 1]
    return g * (wide / size).to(x.dtype)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    speeds = theta ** (
        -torch.arange(half, dtype=torch.float32, device=x.device) / half
    )  # [C / 2]; 2c / C = c / half
    angles = (
        positions[:, None, :, None] * speeds
    )  # [B, 1, T, C / 2]: the 1 stands where x has its heads
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # rounded only now
    first, second = x.split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    (T, C), (K, S) = q.shape[-2:], k.shape[1:3]
    grouped = q.unflatten(
        1, (K, -1)
    )  # [B, K, H / K, T, C]: neighbours share, and no key is copied
    scores = grouped @ k[:, :, None].mT / C**0.5  # [B, K, H / K, T, S]
    # Query t stands at place S - T + t. A triangle from the top left corner would hide the past from the first queries.
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (weights @ v[:, :, None]).flatten(1, 2)
