"""Sampling rollouts.

`sample` prefills each prompt once for its whole group, decodes all rows together, and lets rows leave when they are
done. The log-probs and the pooled hidden states that training needs fall out of the sampling itself.

B prompts, G rollouts a prompt, N = B * G rows (the G rows of a prompt adjacent), T completion tokens (padded on the
right), P prompt tokens, V vocabulary, D width.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minclipo.model import GPT, KVCache, upcast


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

    def select(self, prompts: list[int]) -> "Rollouts":
        """The rollouts of some of the prompts, given by their places in `prompts`."""
        G, device = self.group_size, self.completions.device
        rows = torch.tensor([p * G + i for p in prompts for i in range(G)], dtype=torch.long, device=device)
        tensors = (self.completions, self.mask, self.logprobs, self.pooled, self.finished)
        return Rollouts([self.prompts[p] for p in prompts], G, *(x.index_select(0, rows) for x in tensors))

    def completion_ids(self) -> list[list[int]]:
        """The N completions as ragged lists, without the eos that ended them."""
        lengths = (self.mask.sum(1) - self.finished.long()).tolist()
        return [row[:length] for row, length in zip(self.completions.tolist(), lengths)]


def checked_prompts(prompts, vocab_size: int) -> list[list[int]]:
    """The prompts as plain lists of ids, whatever sequences (tensors, say) they came as."""
    try:
        prompts = [[operator.index(token) for token in prompt] for prompt in prompts]  # refuses 1.5, takes tensors
    except TypeError as error:
        raise ValueError(f"prompts must be sequences of whole numbers, one sequence a prompt: {error}") from error
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give at least one prompt")
    for b, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts[{b}] is empty: a prompt needs at least one token (a bos token, say)")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(f"prompts[{b}] has a token id outside 0..{vocab_size - 1}: {min(prompt)}..{max(prompt)}")
    return prompts


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


def _check_sampling(
    group_size: int, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if group_size < 1 or max_new_tokens < 1:
        raise ValueError(f"group_size and max_new_tokens must be at least 1, found {group_size} and {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or positive, found {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 (None: off), found {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (None: off), found {top_p}")


def join(parts: list[Rollouts]) -> Rollouts:
    """The rollouts of several calls as one, padded to the longest; all with one group size."""
    width = max(part.mask.shape[1] for part in parts)
    rows = lambda name: torch.cat([getattr(part, name) for part in parts])
    padded = lambda name: torch.cat(
        [F.pad(x, (0, width - x.shape[1])) for x in (getattr(part, name) for part in parts)]
    )
    prompts = [prompt for part in parts for prompt in part.prompts]
    tokens = (padded(name) for name in ("completions", "mask", "logprobs"))
    return Rollouts(prompts, parts[0].group_size, *tokens, rows("pooled"), rows("finished"))


def _prefill(model: GPT, prompts: list[list[int]], group_size: int, max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """Run every prompt once; copy its cache row and its last hidden state for the G rollouts: (N-row cache, [N, D])."""
    weight = model.embed_tokens.weight
    tokens, lengths = pad_right(prompts, weight.device)  # [B, P], [B]
    cache = KVCache(
        model.config, len(prompts), tokens.shape[1] + max_new_tokens, device=weight.device, dtype=weight.dtype
    )
    rows = torch.arange(len(prompts), device=weight.device)
    last = model(tokens, cache, lengths)[rows, lengths - 1]  # [B, D]
    copies = rows.repeat_interleave(group_size)  # [N]
    cache.select(copies)
    return cache, last[copies]


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
    rows_at_once: int | None = None,
) -> Rollouts:
    """Draw `group_size` completions for each prompt (a list of token ids), of at most `max_new_tokens` tokens each.

    A completion ends with the first token of `eos_ids` (which belongs to it) or when it is full. The same generator
    state gives the same rollouts. At most `rows_at_once` of them grow at the same time (but never less than a group):
    that bounds the memory for keys and values. Raises ValueError for arguments that make no sense, and
    FloatingPointError when the model's logits are not finite.
    """
    prompts = checked_prompts(prompts, model.config.vocab_size)
    _check_sampling(group_size, max_new_tokens, temperature, top_k, top_p)
    if any(not 0 <= eos < model.config.vocab_size for eos in eos_ids):
        raise ValueError(f"eos_ids must lie in 0..{model.config.vocab_size - 1}, found {eos_ids}")
    longest, limit = max(len(prompt) for prompt in prompts) + max_new_tokens, model.config.max_positions
    if longest > limit:
        raise ValueError(f"prompt + max_new_tokens is {longest} tokens, more than the model's max_positions {limit}")
    at_once = len(prompts) if rows_at_once is None else max(1, rows_at_once // group_size)
    draw = lambda logits: _draw(logits, temperature, top_k, top_p, generator)
    starts = range(0, len(prompts), at_once)
    parts = [
        _grow(model, prompts[start : start + at_once], group_size, max_new_tokens, eos_ids, draw)
        for start in tqdm(starts, desc="sampling", leave=False, disable=None if len(starts) > 1 else True)
    ]
    return join(parts) if len(parts) > 1 else parts[0]


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for each row of logits [N, V], and its log-prob: [N] each.

    The token is the first whose cumulated probability reaches a uniform number: one random number a row, where
    torch.multinomial draws one a word (at 49k words and 32 rows, 1 ms against 35).
    """
    if not logits.amax(-1).isfinite().all():  # NaN and inf show in the maximum
        raise FloatingPointError("the model's logits are not finite")
    distribution = sampling_logprobs(logits, temperature, top_k, top_p)
    cumulated = distribution.exp().cumsum(-1)  # [N, V]
    # In (0, 1], never 0, so that a first token of probability 0 is not drawn. The last sum need not be 1, by rounding.
    uniform = 1 - torch.rand((len(logits), 1), generator=generator, device=logits.device, dtype=cumulated.dtype)
    token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:])  # [N, 1]
    return token[:, 0], distribution.gather(-1, token)[:, 0]


def _grow(
    model: GPT,
    prompts: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    eos_ids: list[int],
    draw: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Rollouts:
    """All rollouts of these prompts, side by side, until each has ended; `draw` gives tokens for logits."""
    cache, hidden = _prefill(model, prompts, group_size, max_new_tokens)  # N rows; hidden [N, D] predicts token 0
    N, device = len(hidden), hidden.device

    completions = torch.full((N, max_new_tokens), eos_ids[0] if eos_ids else 0, device=device)
    mask = torch.zeros((N, max_new_tokens), dtype=torch.bool, device=device)
    logprobs = torch.zeros((N, max_new_tokens), device=device, dtype=upcast(hidden).dtype)
    pooled_sum = torch.zeros((N, model.config.hidden_size), device=device, dtype=upcast(hidden).dtype)
    finished = torch.zeros(N, dtype=torch.bool, device=device)
    eos = torch.tensor(eos_ids, dtype=torch.long, device=device)
    active = torch.arange(N, device=device)  # rows still growing; `hidden` and `cache` hold just these

    for t in range(max_new_tokens):
        token, logprob = draw(model.logits(hidden))  # [rows] each
        completions[active, t] = token
        mask[active, t] = True
        logprobs[active, t] = logprob
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
            cache.select(going)

    width = int(mask.sum(1).max())
    pooled = pooled_sum / mask.sum(1, keepdim=True)  # [N, D]; every row has at least one token
    return Rollouts(prompts, group_size, completions[:, :width], mask[:, :width], logprobs[:, :width], pooled, finished)
