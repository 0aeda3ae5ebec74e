"""Sampling rollouts.

`sample` prefills each prompt once for its whole group, decodes all rows together, and lets rows leave when they are
done. The log-probs and the pooled hidden states that training needs fall out of the sampling itself.

B prompts, G rollouts per prompt, N = B * G rows (the G rows of a prompt adjacent), T completion tokens (padded on the
right), P prompt tokens, V vocabulary, D width; in the cache K key/value heads, S slots, C width of one head.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minclipo.model import GPT, GPTConfig, additive_mask, attention, upcast


@dataclass
class Rollouts:
    """What sampling returns and what every later stage reads."""

    prompts: list[list[int]]  # B ragged lists of token ids
    group_size: int  # G
    completions: Tensor  # [N, T] token ids; eos included where it was reached, then padding
    mask: Tensor  # [N, T] bool, true for the tokens that were sampled: by length, since pad and eos may be one id
    logprobs: Tensor  # [N, T] float32 at least, under exactly the distribution sampled from; 0 at padding
    pooled: Tensor  # [N, D] float32 at least, mean final-norm hidden state over the completion's own tokens
    finished: Tensor  # [N] bool, true where eos was reached

    @property
    def group(self) -> Tensor:
        """Index of each row's prompt, [N]."""
        return torch.arange(len(self.completions), device=self.completions.device) // self.group_size

    def completion_ids(self) -> list[list[int]]:
        """The N completions as ragged lists, without eos."""
        lengths = (self.mask.sum(1) - self.finished.long()).tolist()
        return [row[:length] for row, length in zip(self.completions.tolist(), lengths)]

    @staticmethod
    def join(parts: "list[Rollouts]") -> "Rollouts":
        """The rollouts of several calls as one, padded to the longest; all with one group size."""
        width = max(part.mask.shape[1] for part in parts)
        prompts = [prompt for part in parts for prompt in part.prompts]
        rows = lambda name: torch.cat([getattr(part, name) for part in parts])
        pad = lambda x: F.pad(x, (0, width - x.shape[1]))
        padded = lambda name: torch.cat([pad(getattr(part, name)) for part in parts])
        tokens = [padded(name) for name in ("completions", "mask", "logprobs")]
        return Rollouts(prompts, parts[0].group_size, *tokens, rows("pooled"), rows("finished"))


class KVCache:
    """The layout of sampling: keys and values of the tokens seen so far, rows of different lengths side by side.

    Slot j of a row holds the token at position j, for every row. So one rule, "a query at position p sees the slots
    j <= p", is the causal mask and the padding mask at once: what a shorter row holds beyond its length is in slots
    that no query sees until a real token has overwritten them.
    """

    def __init__(self, config: GPTConfig, rows: int, max_length: int, *, device=None, dtype=None):
        shape = (rows, config.num_kv_heads, max_length, config.head_dim)  # [B, K, S_max, C]
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]  # one per layer
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # [B], real tokens in each row
        self.used = 0  # slots that the longest row may need: a Python number, so that reading it costs no GPU wait

    def place(self, tokens: Tensor) -> Tensor:
        """Positions [B, T] of the next T tokens of every row. Whoever passes padding sets `lengths` afterwards."""
        T, slots = tokens.shape[1], self.keys[0].shape[2]
        assert self.used + T <= slots, f"KVCache has {slots} slots per row: no room for {T} more after {self.used}"
        self.used += T
        self.positions = self.lengths[:, None] + torch.arange(T, device=tokens.device)  # [B, T]
        visible = torch.arange(self.used, device=tokens.device) <= self.positions[:, :, None]  # [B, T, S]
        self.mask = additive_mask(visible[:, None], self.keys[0].dtype)
        self.lengths = self.lengths + T
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k, v [B, K, T, C] at their positions; attention of q [B, H, T, C] over everything so far."""
        keys, values = self.keys[layer], self.values[layer]
        rows = torch.arange(len(q), device=q.device)[:, None]  # [B, 1]
        # Indices on both sides of a slice put their own dimensions first: the right-hand side must be [B, T, K, C].
        keys[rows, :, self.positions] = k.transpose(1, 2)
        values[rows, :, self.positions] = v.transpose(1, 2)
        return attention(q, keys[:, :, : self.used], values[:, :, : self.used], self.mask)

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows` [any number of row indices], in that order; an index may occur several times."""
        for layer in range(len(self.keys)):  # one layer after the other: never a second copy of the whole cache
            self.keys[layer], self.values[layer] = self.keys[layer][rows], self.values[layer][rows]
        self.lengths = self.lengths[rows]


def pad_right(rows: list[list[int]], device=None) -> tuple[Tensor, Tensor]:
    """Ragged lists of ids -> (tokens [B, P] padded with 0 on the right, lengths [B])."""
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    return tokens.to(device), torch.tensor([len(row) for row in rows], device=device)


def sampling_logprobs(
    logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Log-probs [N, V] (float32 at least) of the distribution that `sample` draws from, given logits [N, V].

    Temperature first, then top-k, then top-p (the smallest set of most likely tokens whose probability reaches top_p);
    what is cut gets -inf and the rest is normalised again. Temperature 0 puts all probability on the most likely token.
    """
    logits = upcast(logits)
    if temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]  # [N, 1]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # A token stays while the probability of those before it is still below top_p: the first one always stays.
        cut = ordered.cumsum(-1) - ordered >= top_p
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits.log_softmax(-1)


@torch.no_grad()
def sample(
    model: GPT,
    prompts: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_ids: list[int],
    generator: torch.Generator | None = None,
    sampling_rows: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Rollouts:
    """Draw `group_size` completions for each prompt (a list of token ids), of at most `max_new_tokens` tokens each.

    A completion ends with the first token of `eos_ids`, which belongs to it, or when it is full. The same generator
    state gives the same rollouts. At most `sampling_rows` of them (0: all), but no fewer than a group, are sampled in
    parallel, which bounds the memory for keys and values; `progress` may wrap those parts in a progress bar. Raises
    ValueError for sequences longer than the model's positions, FloatingPointError for logits that are not finite.
    """
    assert prompts and all(prompts), "prompts must not be empty: give each at least one token (a bos token, say)"
    assert group_size >= 1 and max_new_tokens >= 1, f"must be at least 1: {group_size=}, {max_new_tokens=}"
    assert 0 <= temperature < float("inf"), f"temperature must be 0 (greedy) or positive, found {temperature}"
    assert top_k is None or top_k >= 1, f"top_k must be at least 1 (None: off), found {top_k}"
    assert top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1 (None: off), found {top_p}"
    longest, limit = max(map(len, prompts)) + max_new_tokens, model.config.max_positions
    if longest > limit:
        raise ValueError(f"prompt + max_new_tokens is {longest} tokens, more than the model's max_positions {limit}")
    at_once = max(1, sampling_rows // group_size) if sampling_rows else len(prompts)  # prompts
    parts = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
    draw = partial(draw_token, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    made = [decode(model, part, group_size, max_new_tokens, eos_ids, draw) for part in progress(parts)]
    return made[0] if len(made) == 1 else Rollouts.join(made)


def draw_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for each row of logits [N, V], and its log-prob: [N] each. Inverse-CDF sampling: the first token whose
    cumulative probability reaches u. (torch.multinomial draws V random numbers per row: 35 ms instead of 1.)"""
    if not logits.amax(-1).isfinite().all():  # NaN and inf show in the maximum
        raise FloatingPointError("the model's logits are not finite")
    distribution = sampling_logprobs(logits, temperature, top_k, top_p)
    cumulative = distribution.exp().cumsum(-1)  # [N, V]
    # In (0, 1], never 0, so that a first token of probability 0 is not drawn. The last sum need not be 1, by rounding.
    uniform = 1 - torch.rand((len(logits), 1), generator=generator, device=logits.device, dtype=cumulative.dtype)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])  # [N, 1]
    return token[:, 0], distribution.gather(-1, token)[:, 0]


def prefill(model: GPT, prompts: list[list[int]], group_size: int, max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """Run every prompt once; copy its cache row and its last hidden state for the G rollouts: (N-row cache, [N, D])."""
    weight = model.embed_tokens.weight
    tokens, lengths = pad_right(prompts, weight.device)  # [B, P], [B]
    max_length = tokens.shape[1] + max_new_tokens
    cache = KVCache(model.config, len(prompts), max_length, device=weight.device, dtype=weight.dtype)
    rows = torch.arange(len(prompts), device=weight.device)
    last = model(tokens, cache)[rows, lengths - 1]  # [B, D]
    cache.lengths = lengths  # without the padding, which completions will overwrite
    copies = rows.repeat_interleave(group_size)  # [N]
    cache.keep(copies)
    return cache, last[copies]


def decode(
    model: GPT,
    prompts: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    eos_ids: list[int],
    draw: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Rollouts:
    """All rollouts of these prompts, side by side, until each has ended; `draw` gives tokens for logits."""
    cache, hidden = prefill(model, prompts, group_size, max_new_tokens)  # N rows; hidden [N, D] predicts token 0
    N, device, wide = len(hidden), hidden.device, upcast(hidden).dtype
    completions = torch.full((N, max_new_tokens), eos_ids[0] if eos_ids else 0, device=device)
    mask = torch.zeros_like(completions, dtype=torch.bool)
    logprobs = torch.zeros_like(completions, dtype=wide)
    pooled_sum = torch.zeros_like(hidden, dtype=wide)  # [N, D]
    finished = torch.zeros(N, dtype=torch.bool, device=device)
    eos = torch.tensor(eos_ids, dtype=torch.long, device=device)
    active = torch.arange(N, device=device)  # rows still growing; `hidden` and `cache` hold just these
    for t in range(max_new_tokens):
        token, logprob = draw(model.logits(hidden))  # [rows] each
        completions[active, t], mask[active, t], logprobs[active, t] = token, True, logprob
        # The token is fed even if it is eos, so that the pooled state covers the whole completion.
        hidden = model(token[:, None], cache)[:, 0]  # [rows, D]
        pooled_sum[active] += upcast(hidden)
        ended = torch.isin(token, eos)
        finished[active] = ended
        if ended.any():
            going = (~ended).nonzero()[:, 0]
            if len(going) == 0:
                break
            active, hidden = active[going], hidden[going]
            cache.keep(going)
    width = int(mask.sum(1).max())
    pooled = pooled_sum / mask.sum(1, keepdim=True)  # [N, D]; every row has at least one token
    return Rollouts(prompts, group_size, completions[:, :width], mask[:, :width], logprobs[:, :width], pooled, finished)
