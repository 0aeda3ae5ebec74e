"""Sampling rollouts.

`sample` prefills each prompt once for its whole group, decodes all rows together, and lets rows leave when they are
done. The log-probs and the pooled hidden states that training needs fall out of the sampling itself. On a GPU decoding
goes in rounds, in which nothing waits for the host: see `Decoder`.

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

ROUND = {"cuda": 32}  # tokens per round by type of device; elsewhere 1
SLOTS = {"cuda": 256}  # slots of the cache come in multiples of this; elsewhere of 1


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

    compiles = False  # shapes change too often

    def __init__(self, config: GPTConfig, rows: int, max_length: int, *, device=None, dtype=None):
        self.multiple = SLOTS.get(torch.device(device or "cpu").type, 1)
        slots = -(-max_length // self.multiple) * self.multiple
        shape = (rows, config.num_kv_heads, slots, config.head_dim)  # [B, K, S_max, C]
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]  # one per layer
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # [B], real tokens in each row
        self.longest = self.room = self.used = 0  # Python numbers: the host never has to ask the GPU for them

    def grow(self, tokens: int) -> None:
        """Make room for the next `tokens` tokens of every row: shapes change here, and not while those come."""
        self.longest, self.room = self.longest + tokens, tokens
        assert self.longest <= self.keys[0].shape[2], f"no room for {tokens} more tokens in a cache of this max_length"
        self.used = -(-self.longest // self.multiple) * self.multiple  # slots that queries look at

    def place(self, tokens: Tensor) -> Tensor:
        """Positions [B, T] of the next T tokens of every row. Whoever passes padding sets `lengths` afterwards."""
        T = tokens.shape[1]
        if self.room < T:
            self.grow(T)
        self.room -= T
        self.layer = 0  # the next one to attend
        self.positions = self.lengths[:, None] + torch.arange(T, device=tokens.device)  # [B, T]
        visible = torch.arange(self.used, device=tokens.device) <= self.positions[:, :, None]  # [B, T, S]
        self.mask = additive_mask(visible[:, None], self.keys[0].dtype)
        self.lengths += T
        return self.positions

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k, v [B, K, T, C] at their positions; attention of q [B, H, T, C] over everything so far."""
        keys, values, self.layer = self.keys[self.layer], self.values[self.layer], self.layer + 1
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
    uniform: Tensor | None = None,
    sampling_rows: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Rollouts:
    """Draw `group_size` completions for each prompt (a list of token ids), of at most `max_new_tokens` tokens each.

    A completion ends with the first token of `eos_ids`, which belongs to it, or when it is full. The same generator
    state gives the same rollouts. With `uniform` [N, max_new_tokens], random numbers in [0, 1) for each row, a row does
    not depend on those beside it. At most `sampling_rows` rows (0: all), but no fewer than a group, are sampled in
    parallel, which bounds the memory for keys and values; `progress` may wrap those parts in a progress bar. Raises
    ValueError for sequences longer than the model's positions, FloatingPointError for logits that are not finite.
    """
    assert prompts and all(prompts), "prompts must not be empty: give each at least one token (a bos token, say)"
    assert group_size >= 1 and max_new_tokens >= 1, f"must be at least 1: {group_size=}, {max_new_tokens=}"
    assert temperature == 0 or 1e-6 <= temperature < float("inf"), f"temperature 0 or at least 1e-6, not {temperature}"
    assert top_k is None or top_k >= 1, f"top_k must be at least 1 (None: off), found {top_k}"
    assert top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1 (None: off), found {top_p}"
    longest, limit = max(map(len, prompts)) + max_new_tokens, model.config.max_positions
    if longest > limit:
        raise ValueError(f"prompt + max_new_tokens is {longest} tokens, more than the model's max_positions {limit}")
    at_once = max(1, sampling_rows // group_size) if sampling_rows else len(prompts)  # prompts
    parts = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
    draw = partial(draw_token, temperature=temperature, top_k=top_k, top_p=top_p)
    decoder = partial(Decoder, model, group_size=group_size, max_new_tokens=max_new_tokens, eos_ids=eos_ids, draw=draw)
    numbers = [None] * len(parts) if uniform is None else uniform.split(at_once * group_size)
    made = [decoder(prompts=part).run(generator, own) for part, own in zip(progress(parts), numbers)]
    return made[0] if len(made) == 1 else Rollouts.join(made)


def draw_token(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """A token for each row of logits [N, V], and its log-prob: [N] each. Inverse-CDF sampling: the first token whose
    cumulative probability reaches uniform [N], which is in (0, 1]: never 0, so that a first token of probability 0 is
    not drawn. (torch.multinomial draws V random numbers per row: 35 ms instead of 1.)"""
    distribution = sampling_logprobs(logits, temperature, top_k, top_p)
    cumulative = distribution.exp().cumsum(-1)  # [N, V]; the last sum need not be 1, by rounding
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:])  # [N, 1]
    token = token.clamp(max=logits.shape[-1] - 1)  # NaN would be past the end
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


class Decoder:
    """The rollouts of some prompts, N rows side by side, one token of each per `step`.

    Within a round of steps every shape is fixed, what changes changes in place, and the host reads nothing. So on a GPU
    the kernels of one step are recorded as a CUDA graph and replayed, in a fraction of the time that launching them one
    by one takes. Rows that have ended stay until the round is over and leave no trace. A CPU gains nothing by that:
    there a round is one token. `draw` gives tokens for logits [rows, V] and random numbers [rows].
    """

    def __init__(self, model: GPT, prompts: list[list[int]], group_size: int, max_new_tokens: int, eos_ids, draw):
        self.model, self.draw, self.padding = model, draw, eos_ids[0] if eos_ids else 0
        self.prompts, self.group_size = prompts, group_size
        self.cache, self.hidden = prefill(model, prompts, group_size, max_new_tokens)  # [N, D], predicts token 0
        N, device, wide = len(self.hidden), self.hidden.device, upcast(self.hidden).dtype
        self.completions = torch.full((N, max_new_tokens), self.padding, device=device)
        self.mask = torch.zeros_like(self.completions, dtype=torch.bool)
        self.logprobs = torch.zeros_like(self.completions, dtype=wide)
        self.pooled_sum = torch.zeros_like(self.hidden, dtype=wide)  # [N, D]
        self.eos = torch.tensor(eos_ids, dtype=torch.long, device=device)
        self.rows = torch.arange(N, device=device)  # the rollouts still here: `hidden` and `cache` hold just these
        self.alive = torch.ones(N, dtype=torch.bool, device=device)  # which of those have not ended
        self.t = torch.zeros(1, dtype=torch.long, device=device)  # tokens so far
        self.finite = torch.ones(1, dtype=torch.bool, device=device)
        self.round_tokens, self.capture = ROUND.get(device.type, 1), CAPTURE.get(device.type)
        self.uniform = torch.zeros(self.round_tokens, N, dtype=wide, device=device)  # random numbers of a round
        self.graph, self.shapes = None, (0, 0)

    def run(self, generator: torch.Generator | None, numbers: Tensor | None = None) -> Rollouts:
        """Round after round until every row has ended or is full. numbers [N, T]: see `uniform` of `sample`."""
        width = self.completions.shape[1]
        for start in range(0, width, self.round_tokens):
            own = None if numbers is None else numbers[self.rows, start : start + self.round_tokens].T  # [tokens, rows]
            alive = self.round(min(self.round_tokens, width - start), generator, own)
            if not alive:
                break
            self.leave(alive)
        lengths, finished = self.mask.sum(1), (self.mask & torch.isin(self.completions, self.eos)).any(1)  # [N]
        pooled, width = self.pooled_sum / lengths[:, None], int(lengths.max())  # every row has at least one token
        tokens = (x[:, :width] for x in (self.completions, self.mask, self.logprobs))
        return Rollouts(self.prompts, self.group_size, *tokens, pooled, finished)

    def step(self) -> None:
        """One token for every row. A replay repeats the kernels alone, so no Python number may change in here."""
        logits, uniform = self.model.logits(self.hidden), self.uniform[self.t % self.round_tokens, : len(self.rows)]
        token, logprob = self.draw(logits, uniform[0])  # [rows] each
        here, ended = (self.rows, self.t), ~self.alive
        self.finite &= (logits.amax(-1).isfinite() | ended).all()  # NaN and inf show in the maximum
        self.completions[here] = token.masked_fill(ended, self.padding)
        self.mask[here] = self.alive
        self.logprobs[here] = logprob.masked_fill(ended, 0)
        # The token is fed even if it is eos, so that the pooled state covers the whole completion.
        self.hidden.copy_(self.model(token[:, None], self.cache)[:, 0])  # [rows, D]
        self.pooled_sum[self.rows] += upcast(self.hidden).masked_fill(ended[:, None], 0)
        self.alive &= (token[:, None] != self.eos).all(-1)
        self.t += 1

    def round(self, tokens: int, generator: torch.Generator | None, numbers: Tensor | None = None) -> int:
        """That many steps. Returns how many rows go on: the one thing that the host waits for."""
        self.cache.grow(tokens)
        uniform = self.uniform[:, : len(self.rows)]
        if numbers is None:
            numbers = torch.rand(uniform.shape, generator=generator, device=uniform.device, dtype=uniform.dtype)
        uniform[: len(numbers)] = 1 - numbers  # in (0, 1]
        shapes = len(self.rows), self.cache.used
        for t in range(tokens):
            if self.capture and t == 1 and shapes != self.shapes:  # at new shapes, step 0 has warmed the libraries up
                self.graph, self.shapes = self.capture(self.step, self.graph), shapes
            self.graph.replay() if shapes == self.shapes else self.step()
        alive, finite = torch.cat([self.alive.sum()[None], self.finite]).tolist()
        if not finite:
            raise FloatingPointError("the model's logits are not finite")
        return alive

    def leave(self, alive: int) -> None:
        """Rows that have ended leave; where rounds are long, only once half of the rows can: each number of rows takes
        a graph of its own."""
        rows = self.cache.alive = alive  # runs/progress.py shows it
        if self.round_tokens > 1:
            rows = len(self.rows) >> (len(self.rows) // alive).bit_length() - 1  # halved as often as it can be
        if rows < len(self.rows):
            going = (~self.alive).long().argsort(stable=True)[:rows]
            self.rows, self.alive, self.hidden = self.rows[going], self.alive[going], self.hidden[going]
            self.cache.keep(going)


def cuda_graph(step: Callable[[], None], earlier):
    """Record the kernels of a step, without running them, in the memory of an earlier graph that has done its work."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=earlier.pool() if earlier else None):
        step()
    return graph


CAPTURE = {"cuda": cuda_graph}  # by type of device; elsewhere a step runs as it is
