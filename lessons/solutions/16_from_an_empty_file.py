"""Solution of exercise 16: GRPO and CLIPO in one file of plain PyTorch. Compare the files
of minclipo."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        heads = lambda y: y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key = rotate(heads(self.q_proj(x))), rotate(heads(self.k_proj(x)))
        scores = query @ key.mT / query.shape[-1] ** 0.5  # [B, H, T, T]
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)  # [T, T]
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        y = weights @ heads(self.v_proj(x))  # [B, H, T, C]
        return self.o_proj(y.transpose(1, 2).flatten(2))  # [B, T, D]


def rotate(x: Tensor) -> Tensor:
    """Turn the channel pairs (c, c + C/2) of x [B, H, T, C] by position * 10000^(-2c /
    C)."""
    half = x.shape[-1] // 2
    speeds = 10000.0 ** (-torch.arange(half) / half)  # [C / 2]
    angles = torch.arange(x.shape[2])[:, None] * speeds  # [T, C / 2]
    cos, sin, (a, b) = angles.cos(), angles.sin(), x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class MLP(nn.Module):
    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_width: int):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(width), Attention(width, num_heads)
        self.post_attention_layernorm, self.mlp = RMSNorm(width), MLP(width, mlp_width)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    def __init__(self, vocab_size, width, num_layers, num_heads, mlp_width):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, width)
        blocks = (Block(width, num_heads, mlp_width) for _ in range(num_layers))
        self.layers, self.norm = nn.ModuleList(blocks), RMSNorm(width)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)  # [B, T, D]
        for block in self.layers:
            x = block(x)
        return self.norm(x)

    def logits(self, hidden):
        return hidden @ self.embed_tokens.weight.T


@torch.no_grad()
def sample(model, prompts, group_size, max_new_tokens, eos_id, temperature, generator):
    tokens, drawn = prompts.repeat_interleave(group_size, 0), []  # [N, P]
    for _ in range(max_new_tokens):
        logits = model.logits(model(tokens)[:, -1])  # [N, V]
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)  # [N, 1]
            drawn.append(torch.zeros_like(logits[:, :1]))
        else:
            distribution = (logits / temperature).log_softmax(-1)
            token = torch.multinomial(distribution.exp(), 1, generator=generator)
            drawn.append(distribution.gather(1, token))
        tokens = torch.cat([tokens, token], 1)
    completions = tokens[:, prompts.shape[1] :]  # [N, T]
    ends = (completions == eos_id).long()
    mask = ends.cumsum(1) - ends == 0  # no eos before this token
    hidden = model(tokens)[:, prompts.shape[1] :]  # [N, T, D], at each token's own place
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # [N, D]
    return completions, mask, torch.cat(drawn, 1), pooled


def verify(prompt: str, completion: str, finished: bool) -> bool:
    answer = sum(int(word) for word in prompt.split()[::2])  # at 1, 3, ... , or =
    return finished and completion.split()[-2:] == ["#", str(answer)]


def advantages(rewards: Tensor, group_size: int) -> Tensor:
    groups = rewards.view(-1, group_size)  # [B, G]
    equal = (groups == groups[:, :1]).all(1, keepdim=True)  # [B, 1]
    found = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    return found.masked_fill(equal, 0.0).flatten()


def score(model: GPT, prompts: Tensor, completions: Tensor) -> Tensor:
    tokens = torch.cat([prompts, completions], 1)  # [N, P + T]
    hidden = model(tokens)[:, prompts.shape[1] - 1 : -1]  # [N, T, D], one place earlier
    distribution = model.logits(hidden).log_softmax(-1)  # [N, T, V]
    return distribution.gather(-1, completions[..., None])[..., 0]


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()  # [N, T]
    A = advantages[:, None]  # [N, 1]
    objective = torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    return -(objective * mask).sum() / mask.sum()


@torch.no_grad()
def contrastive_rewards(pooled, correct, group_size, weight):
    groups = pooled.unflatten(0, (-1, group_size))  # [B, G, D]
    z = F.normalize((groups - groups.mean(1, keepdim=True)).flatten(0, 1), dim=-1)
    prompt = torch.arange(len(z)) // group_size  # [N]
    others = ~torch.eye(len(z), dtype=torch.bool)  # [N, N]
    positive = others & correct[:, None] & correct & (prompt[:, None] == prompt)
    scores = (z @ z.T / 0.5)[positive.any(1)]  # [anchors, N]
    log_sum = lambda chosen: scores.masked_fill(
        ~chosen[positive.any(1)], -torch.inf
    ).logsumexp(1)
    loss = log_sum(others) - log_sum(positive)  # [anchors]
    rewards = torch.zeros_like(pooled[:, 0])
    rewards[positive.any(1)] = (-weight * loss).clamp(min=-0.5)
    return rewards


def train(
    model,
    draw,
    steps,
    group_size,
    max_new_tokens,
    eos_id,
    weight,
    learning_rate,
    generator,
):
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)
    for _ in range(steps):
        prompts, judge = draw()
        completions, mask, old_logprobs, pooled = sample(
            model, prompts, group_size, max_new_tokens, eos_id, 1.0, generator
        )
        correct = judge(completions, mask)  # [N]
        rewards = correct.float()
        if weight:
            rewards = rewards + contrastive_rewards(pooled, correct, group_size, weight)
        A = advantages(rewards, group_size)  # [N]
        for _ in range(2):
            new = score(model, prompts.repeat_interleave(group_size, 0), completions)
            loss = policy_loss(new, old_logprobs, A, mask, 0.2)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
