"""Sampling rollouts, and asking a model how likely given completions are.

`sample` prefills each prompt once for its whole group, decodes all rows together, and lets rows leave when they are
done. The log-probs and the pooled hidden states that training needs fall out of the sampling itself.
`completion_logprobs` is the other direction, with gradient: one plain forward pass over prompt + completion.

B prompts, G rollouts a prompt, N = B * G rows (the G rows of a prompt adjacent), T completion tokens (padded on the
right), P prompt tokens, V vocabulary, D width.
"""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def completion_ids(self) -> list[list[int]]:
        """The N completions as ragged lists, without the eos that ended them."""
        lengths = (self.mask.sum(1) - self.finished.long()).tolist()
        return [row[:length] for row, length in zip(self.completions.tolist(), lengths)]


def _checked(prompts, vocab_size: int) -> list[list[int]]:
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
) -> Rollouts:
    """Draw `group_size` completions for each prompt (a list of token ids), of at most `max_new_tokens` tokens each.

    A completion ends with the first token of `eos_ids` (which belongs to it) or when it is full. The same generator
    state gives the same rollouts. Raises ValueError for arguments that make no sense, and FloatingPointError when the
    model's logits are not finite.
    """
    prompts = _checked(prompts, model.config.vocab_size)
    _check_sampling(group_size, max_new_tokens, temperature, top_k, top_p)
    if any(not 0 <= eos < model.config.vocab_size for eos in eos_ids):
        raise ValueError(f"eos_ids must lie in 0..{model.config.vocab_size - 1}, found {eos_ids}")
    longest, limit = max(len(prompt) for prompt in prompts) + max_new_tokens, model.config.max_positions
    if longest > limit:
        raise ValueError(f"prompt + max_new_tokens is {longest} tokens, more than the model's max_positions {limit}")
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
        logits = model.logits(hidden)  # [rows, V]
        if not logits.isfinite().all():
            raise FloatingPointError(f"the model's logits are not finite at completion token {t}")
        distribution = sampling_logprobs(logits, temperature, top_k, top_p)
        token = torch.multinomial(distribution.exp(), 1, generator=generator)  # [rows, 1]
        completions[active, t] = token[:, 0]
        mask[active, t] = True
        logprobs[active, t] = distribution.gather(-1, token)[:, 0]
        # The token is fed even if it is eos, so that the pooled state covers the whole completion.
        hidden = model(token, cache)[:, 0]  # [rows, D]
        pooled_sum[active] += upcast(hidden)
        ended = torch.isin(token[:, 0], eos)
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


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state over the masked tokens, [N, D] float32 or wider, from hidden [N, T, D] and mask [N, T].

    Summed in float32: in bfloat16 a long sum stagnates (tests/test_golden.py shows how far off it ends).
    """
    return (upcast(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def completion_hidden(model: GPT, prompts: list[list[int]], completions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Plain forward pass over prompt + completion, row by row: (predicting, own) hidden states, [N, T, D] each.

    `predicting[:, t]` is the state that predicts completion token t, `own[:, t]` the state at that token.
    prompts: N ragged lists, one a row; completions [N, T], padded on the right; mask [N, T] bool.
    """
    if completions.shape != mask.shape or len(prompts) != len(completions):
        raise ValueError(
            f"prompts, completions and mask must agree: found {len(prompts)} prompts, "
            f"completions {tuple(completions.shape)}, mask {tuple(mask.shape)}"
        )
    prompts = _checked(prompts, model.config.vocab_size)
    places = torch.arange(mask.shape[1], device=mask.device)
    if mask.dtype != torch.bool or not torch.equal(mask, places < mask.sum(1, keepdim=True)):
        raise ValueError(f"mask must be bool and true for the first tokens of each row only; its type is {mask.dtype}")
    chosen = completions[mask]
    if len(chosen) and not (0 <= chosen.min() and chosen.max() < model.config.vocab_size):
        raise ValueError(f"completions has a token id outside 0..{model.config.vocab_size - 1}")
    lengths = mask.sum(1).tolist()
    rows = [prompt + row[:length] for prompt, row, length in zip(prompts, completions.tolist(), lengths)]
    tokens, _ = pad_right(rows, completions.device)  # [N, P + T]
    hidden = model(tokens)  # [N, P + T, D]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=completions.device)
    own = starts[:, None] + torch.arange(completions.shape[1], device=completions.device)  # [N, T]
    own = own.clamp(max=tokens.shape[1] - 1)  # padded places read some state that nobody uses
    index = torch.arange(len(rows), device=completions.device)[:, None]
    return hidden[index, own - 1], hidden[index, own]


def completion_logprobs(
    model: GPT, prompts: list[list[int]], completions: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probs of given completions at `temperature`, with gradient, and the entropy of each prediction, without.

    Returns (logprobs [N, T], entropy [N, T] in nats), float32, 0 at padding. Arguments as in `completion_hidden`.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, found {temperature}")
    predicting, _ = completion_hidden(model, prompts, completions, mask)  # [N, T, D]
    distribution = sampling_logprobs(model.logits(predicting), temperature)  # [N, T, V]
    logprobs = distribution.gather(-1, completions[..., None])[..., 0]  # [N, T]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)  # [N, T]
    return logprobs.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)
