"""How likely are given completions? With gradient: this is what every policy loss differentiates.

Each prompt is computed once, however many completions continue it. Logits exist for one chunk of tokens at a time.

B prompts, N rows (completions), T completion tokens (padded on the right), P prompt tokens, V vocabulary, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minclipo.model import GPT, additive_mask, attention, compiled
from minclipo.sampler import Rollouts, pad_right, sampling_logprobs

CHUNK_LOGITS = 2**25  # logits that exist at a time, 128 MiB in float32: memory does not grow with the batch


@dataclass
class MicroBatch:
    """Completions with the prompts that they continue, for one forward pass. All of it is on the device: to make one,
    the host may have to wait for a GPU; to use it, never."""

    prompts: Tensor  # [B, P], padded on the right
    lengths: Tensor  # [B], of the prompts without padding
    owner: Tensor  # [N], which prompt each completion continues
    completions: Tensor  # [N, T], padded on the right
    mask: Tensor  # [N, T] bool, true for the tokens of each row
    real: Tensor  # [M], where those tokens stand in the flattened [N * T]
    rows: Tensor  # [N], which rollouts they are
    counts: int = 1  # 0: passed only because every process must make as many passes, see extensions/processes.py

    @staticmethod
    def of(prompts: list[list[int]], completions: Tensor, mask: Tensor, owner: Tensor | None = None, rows=None):
        """From B ragged prompts, completions [N, T] and a mask [N, T]; owner [N]: default, each its own prompt."""
        assert completions.shape == mask.shape and mask.dtype == torch.bool, (
            "completions and a bool mask must be [N, T]"
        )
        assert not (mask[:, 1:] & ~mask[:, :-1]).any(), "mask must be true for the first tokens of each row only"
        assert all(prompts), "prompts must not be empty: give each at least one token (a bos token, say)"
        owner = torch.arange(len(prompts), device=mask.device) if owner is None else owner
        assert owner.shape == mask.shape[:1], (
            f"owner must name a prompt for each of {len(mask)} rows; found {len(owner)}"
        )
        completions, real = completions.masked_fill(~mask, 0), mask.flatten().nonzero()[:, 0]
        return MicroBatch(*pad_right(prompts, mask.device), owner, completions, mask, real, rows)

    @staticmethod
    def some(rollouts: Rollouts, rows: Tensor) -> "MicroBatch":
        """Some rows [any number] of the rollouts, as wide as the longest of them."""
        mask = rollouts.mask[rows]
        width = int(mask.sum(1).max())
        place: dict[int, int] = {}  # prompt -> its place among the prompts of these rows
        owner = [place.setdefault(prompt, len(place)) for prompt in (rows // rollouts.group_size).tolist()]
        prompts, owner = [rollouts.prompts[prompt] for prompt in place], torch.tensor(owner, device=mask.device)
        return MicroBatch.of(prompts, rollouts.completions[rows, :width], mask[:, :width], owner, rows)


class SharedPrompts:
    """The layout of training: N completions of B prompts as one row of tokens, in which every prompt stands once.

    All layers but attention treat a token alike wherever it stands, and see one long row [1, M], M = B * P + N * T. In
    attention the prompts see themselves, and a completion sees its own prompt and itself.

    Arguments: prompts [B, P] and completions [N, T], padded on the right; lengths [B] of the prompts without padding;
    owner [N], which prompt each completion continues; dtype that the model computes in.
    """

    compiles = True

    def __init__(self, prompts: Tensor, lengths: Tensor, completions: Tensor, owner: Tensor, dtype: torch.dtype):
        self.tokens = torch.cat([prompts.flatten(), completions.flatten()])[None]  # [1, M]
        self.prompts, self.completions, self.owner = prompts, completions, owner
        (B, P), (N, T), device = prompts.shape, completions.shape, owner.device
        start = lengths.index_select(0, owner)[:, None]  # [N, 1], the position of a completion's first token
        prompt, own = torch.arange(P, device=device), torch.arange(T, device=device)
        self.positions = torch.cat([prompt.expand(B, P).flatten(), (start + own).flatten()])[None]  # [1, M]
        no_padding, causal = prompt < start, own <= own[:, None]  # [N, P], [T, T]
        visible = torch.cat([no_padding[:, None].expand(N, T, P), causal.expand(N, T, T)], 2)
        self.mask = additive_mask(visible[:, None], dtype)  # [N, 1, T, P + T]

    def place(self, tokens: Tensor) -> Tensor:
        return self.positions

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., M, C] of all tokens as prompts [B, ..., P, C] and completions [N, ..., T, C]."""
        M = self.prompts.numel()
        prompts = x[..., :M, :].unflatten(-2, self.prompts.shape)
        return prompts.movedim(-3, 0), x[..., M:, :].unflatten(-2, self.completions.shape).movedim(-3, 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all tokens: q [1, H, M, C], k and v [1, K, M, C] -> [1, H, M, C]."""
        (q_prompt, q_own), (k_prompt, k_own), (v_prompt, v_own) = (self.split(x[0]) for x in (q, k, v))
        # index_select, not [owner]: its gradient is added up in the same order every time.
        k_all = torch.cat([k_prompt.index_select(0, self.owner), k_own], 2)  # [N, K, P + T, C]
        v_all = torch.cat([v_prompt.index_select(0, self.owner), v_own], 2)
        outputs = attention(q_prompt, k_prompt, v_prompt), attention(q_own, k_all, v_all, self.mask)
        return torch.cat([y.movedim(0, 1).flatten(1, 2) for y in outputs], 1)[None]


def completion_hidden(model: GPT, batch: MicroBatch) -> Tensor:
    """The hidden states [N, T, D] that predict the completions' tokens, with gradient; each prompt is computed once."""
    places = torch.arange(len(batch.prompts), device=batch.mask.device)
    if batch.mask.shape[1] == 1:  # one token each, which the end of the prompt predicts
        return model(batch.prompts)[places, batch.lengths - 1].index_select(0, batch.owner)[:, None]  # [N, 1, D]
    inputs = batch.completions[:, :-1]  # the last token predicts nothing
    layout = SharedPrompts(batch.prompts, batch.lengths, inputs, batch.owner, model.embed_tokens.weight.dtype)
    prompt_hidden, hidden = layout.split(model(layout.tokens, layout)[0])  # [B, P, D], [N, T - 1, D]
    first = prompt_hidden[places, batch.lengths - 1].index_select(0, batch.owner)[:, None]  # [N, 1, D]
    return torch.cat([first, hidden], 1)  # [N, T, D]


def batch_logprobs(model: GPT, batch: MicroBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completions at `temperature`, with gradient, and the entropy of each prediction, without.

    Returns (logprobs [N, T], entropy [N, T] in nats), float32, 0 at padding.
    """
    assert 0 < temperature < float("inf"), f"temperature must be positive, found {temperature}"
    hidden = completion_hidden(model, batch).flatten(0, 1).index_select(0, batch.real)  # [M, D], M real tokens
    tokens = batch.completions.flatten().index_select(0, batch.real)  # [M]
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    score = compiled(token_logprobs) if model.compiled else token_logprobs
    parts = [
        checkpoint(score, model, *part, temperature, use_reentrant=False, preserve_rng_state=False)
        for part in zip(hidden.split(chunk), tokens.split(chunk))
    ]
    logprobs, entropy = (torch.cat(values) for values in zip(*parts))  # [M] each
    padded = lambda x: x.new_zeros(batch.mask.numel()).index_copy(0, batch.real, x).view(batch.mask.shape)
    return padded(logprobs), padded(entropy)


def token_logprobs(model: GPT, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-prob of each token [M], entropy of its prediction [M]) from hidden states [M, D] and tokens [M]."""
    distribution = sampling_logprobs(model.logits(hidden), temperature)  # [M, V]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)  # [M]
    return distribution.gather(-1, tokens[:, None])[:, 0], entropy


def completion_logprobs(model: GPT, *texts, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`batch_logprobs` of prompts, completions, mask and, if prompts are shared, owner: see `MicroBatch.of`."""
    return batch_logprobs(model, MicroBatch.of(*texts), temperature=temperature)
