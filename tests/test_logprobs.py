"""Log-probs of given completions: the same as one plain forward pass per row, in value and gradient, and cheaper."""

import pytest
import torch
from conftest import small_gpt
from torch.utils._python_dispatch import TorchDispatchMode

import minclipo.logprobs as module
from minclipo.extensions.micro_batches import micro_batches
from minclipo.logprobs import MicroBatch, batch_logprobs, completion_logprobs
from minclipo.sampler import Rollouts, sample

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
OWNER = torch.tensor([0, 0, 1, 2, 1, 0])  # rows that share a prompt are not all adjacent
LENGTHS = [4, 1, 6, 3, 6, 5]


def batch(seed: int = 0):
    completions = torch.randint(0, 31, (6, 6), generator=torch.Generator().manual_seed(seed))
    return PROMPTS, completions, torch.arange(6) < torch.tensor(LENGTHS)[:, None], OWNER


def slow_logprobs(model, prompts, completions, mask, owner, temperature):
    """Each row by itself, whole, without any cache: [N, T]."""
    rows = []
    for b, completion, length in zip(owner, completions, mask.sum(1).tolist()):
        prompt = prompts[b]
        tokens = torch.cat([torch.tensor(prompt), completion[:length]])
        logits = model.logits(model(tokens[None]))[0, len(prompt) - 1 : -1] / temperature
        chosen = logits.log_softmax(-1).gather(-1, completion[:length, None])[:, 0]
        rows.append(torch.nn.functional.pad(chosen, (0, 6 - length)))
    return torch.stack(rows)


def gradients(model, loss) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_equal_a_slow_loop(temperature, tied):
    """Float64. Catches: a completion that reads another's prompt or its padding, a prompt without its completions'
    gradient, positions that start anew after the prompt."""
    model = small_gpt(tie_embeddings=tied, qk_norm=True, qkv_bias=True).double()
    weights = torch.randn(6, 6, dtype=torch.float64)
    got, _ = completion_logprobs(model, *batch(), temperature=temperature)
    wanted = slow_logprobs(model, *batch(), temperature)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    ours, theirs = (gradients(model, (weights * values).sum()) for values in (got, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_without_owner_each_row_has_its_own_prompt():
    """Catches: rows paired with the prompts of others where nobody says whose they are."""
    model, (prompts, completions, mask, owner) = small_gpt().double(), batch()
    repeated = [prompts[b] for b in owner]
    got, wanted = completion_logprobs(model, repeated, completions, mask), completion_logprobs(model, *batch())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_some_rows_of_rollouts_are_scored_under_their_own_prompts():
    """Rows in any order, padded to the longest of them. Catches: a prompt that is lost, or counted from another row."""
    model = small_gpt()
    made = sample(model, [[1, 2, 3], [4], [5, 6]], 3, 8, eos_ids=[0, 1, 2, 3, 4])
    rows = torch.tensor([7, 2, 0, 6, 1])
    got, _ = batch_logprobs(model, MicroBatch.some(made, rows))
    assert got.shape[1] == made.mask[rows].sum(1).max()
    torch.testing.assert_close(got, made.logprobs[rows, : got.shape[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk, checkpointing", [(1, False), (31 * 4, False), (2**25, True), (31 * 4, True)])
def test_chunks_and_gradient_checkpointing_change_nothing(monkeypatch, chunk, checkpointing):
    """Catches: chunks put together in the wrong order, a block that is computed again with another prompt's keys."""
    model = small_gpt().double()
    wanted, wanted_entropy = completion_logprobs(model, *batch())
    wanted_gradient = gradients(model, wanted.square().sum())
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    model.gradient_checkpointing = checkpointing
    got, entropy = completion_logprobs(model, *batch())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, wanted_entropy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(model, got.square().sum()), wanted_gradient, rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Watches every operation, of forward and backward, for the largest floating-point tensor it makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.numel())
        return result


def largest_tensor(rows: int) -> int:
    model = small_gpt(vocab_size=3000, hidden_size=8, num_heads=2, num_kv_heads=1)
    completions, mask = torch.randint(0, 3000, (rows, 16)), torch.ones(rows, 16, dtype=torch.bool)
    with Largest() as largest:
        logprobs, _ = completion_logprobs(model, [[1, 2]], completions, mask, torch.zeros(rows, dtype=torch.long))
        logprobs.sum().backward()
    return largest.numel


def test_memory_for_the_vocabulary_does_not_grow_with_the_batch(monkeypatch):
    """64 x 512 tokens of a 152k vocabulary would be 20 GB of logits. Catches: a tensor [N, T, V], in backward too."""
    monkeypatch.setattr(module, "CHUNK_LOGITS", 3000 * 20)
    assert largest_tensor(4) <= 3000 * 20
    assert largest_tensor(32) <= 3000 * 20 < 32 * 16 * 3000


def test_gradient_checkpointing_keeps_less():
    """Catches: an option that does nothing. Counts what autograd keeps for backward."""

    def kept(checkpointing: bool) -> int:
        model, sizes = small_gpt(num_layers=6), {}
        model.gradient_checkpointing = checkpointing

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            keep = completion_logprobs(model, *batch())
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert keep[0].requires_grad
        return sum(size for place, size in sizes.items() if place not in weights)

    assert kept(True) < 0.5 * kept(False)


def rollouts(lengths: list[int], prompt_lengths: list[int]) -> Rollouts:
    N, T = len(lengths), max(lengths)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    prompts = [[1] * length for length in prompt_lengths]
    zeros = torch.zeros(N, T)
    return Rollouts(prompts, N // len(prompts), zeros.long(), mask, zeros, zeros, torch.ones(N, dtype=torch.bool))


def test_micro_batches_hold_every_row_once_and_no_more_tokens_than_allowed():
    """Catches: a row left out or twice, padding or prompts not counted, a row longer than the limit lost."""
    made = rollouts([3, 9, 2, 2, 5, 30, 1, 1], [4, 7])  # group size 4
    rows = torch.tensor([7, 0, 5, 2, 4, 1, 6])  # not row 3
    parts = [part.rows for part in micro_batches(made, rows, 24)]
    assert sorted(torch.cat(parts).tolist()) == sorted(rows.tolist())
    for part in parts:
        prompts = {row // 4 for row in part.tolist()}
        longest = made.mask[part].sum(1).max().item()
        tokens = len(prompts) * max(len(made.prompts[p]) for p in prompts) + len(part) * longest
        assert tokens <= 24 or part.tolist() == [5]
    assert len(parts) == 4  # 0 1 | 2 4 | 5 | 6 7
    assert [part.rows.tolist() for part in micro_batches(made, rows, 0)] == [rows.tolist()]


def test_rows_of_a_prompt_come_together():
    """Catches: a shuffled mini-batch cut up as it comes, which computes every prompt again in every part."""
    parts = micro_batches(rollouts([2] * 8, [10, 10]), torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]), 18)
    assert [part.rows.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_gradients_are_the_same_every_time_with_two_threads():
    """Catches: rows[indices], whose gradient PyTorch adds up in the order in which its threads come; then a resumed run
    would differ from an uninterrupted one. The rows are shuffled: two threads meet at every prompt."""
    model = small_gpt(hidden_size=64, num_kv_heads=4)
    owner, prompts = torch.randperm(256) % 8, [[1 + b] * 8 for b in range(8)]
    completions, mask = torch.randint(0, 31, (256, 12)), torch.ones(256, 12, dtype=torch.bool)
    weights = torch.randn(256, 12)
    torch.set_num_threads(2)
    try:
        found = [
            gradients(model, (weights * completion_logprobs(model, prompts, completions, mask, owner)[0]).sum())
            for _ in range(6)
        ]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(gradient, found[0]) for gradient in found)
