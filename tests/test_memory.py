"""The memory estimate, part by part, against what is really held."""

import pytest
import torch

from minclipo.config import TrainConfig
from minclipo.logprobs import completion_logprobs
from minclipo.memory import SHAPES, count_weights, estimate_memory
from minclipo.model import GPT, GPTConfig, KVCache, init_weights
from minclipo.optimizer import Float32AdamW
from minclipo.sampler import sample

B, G, P, T = 2, 4, 24, 40
CONFIG = dict(vocab_size=50, hidden_size=64, num_layers=5, num_heads=4, num_kv_heads=2, intermediate_size=200)
TRAIN = dict(prompts_per_step=B, group_size=G, max_new_tokens=T, mini_batches=1)


def estimate(dtype=torch.float32, checkpointing=False, **changes):
    train = TrainConfig(**TRAIN | changes)
    return estimate_memory(
        GPTConfig(**CONFIG), train, prompt_tokens=P, dtype=dtype, gradient_checkpointing=checkpointing
    )


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_optimizer_and_gradients_are_exact(dtype):
    """Catches: masters forgotten, moments counted in the model's dtype, tied weights counted twice."""
    model = init_weights(GPT(GPTConfig(**CONFIG))).to(dtype)
    optimizer = Float32AdamW(model, 1e-3, 0.0)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    own = bytes_of(weight.grad for weight in model.parameters())
    optimizer.collect_gradients()
    sums = bytes_of(m.grad for m in optimizer.masters.values()) if dtype == torch.bfloat16 else 0
    optimizer.adamw.step()
    masters = bytes_of(optimizer.masters.values()) if dtype == torch.bfloat16 else 0
    held = bytes_of(t for state in optimizer.adamw.state.values() for t in state.values() if t.numel() > 1)
    found = estimate(dtype)
    assert found.weights == bytes_of(model.parameters())
    assert found.optimizer == held + masters
    assert found.gradients == own + sums


@pytest.mark.parametrize("sampling_rows, rows", [(0, B * G), (4, 4), (1, G)])
def test_the_cache_is_exact(monkeypatch, sampling_rows, rows):
    """Catches: rows that do not grow at the same time counted, a group counted as if it could be cut."""
    sizes, original = [], KVCache.select

    def watched(cache, chosen):
        original(cache, chosen)
        sizes.append(bytes_of(cache.keys) + bytes_of(cache.values))

    monkeypatch.setattr(KVCache, "select", watched)
    model = init_weights(GPT(GPTConfig(**CONFIG)))
    prompts = [[1] * P, [2] * P]
    sample(model, prompts, G, T, eos_ids=[], rows_at_once=sampling_rows or None)
    assert max(sizes) == estimate(sampling_rows=sampling_rows).cache
    assert estimate(sampling_rows=sampling_rows).sampling_logits == rows * 50 * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_right_within_three_percent(dtype):
    """Catches: a part of the block forgotten. Counts what autograd keeps; the vocabulary's chunk is not in it."""
    model, sizes, hold = init_weights(GPT(GPTConfig(**CONFIG))).to(dtype), {}, []

    def pack(tensor):
        hold.append(tensor)  # else a freed place could be counted as another tensor's
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    prompts = [[b + 1] * P for b in range(B) for _ in range(G)]
    completions, mask = torch.randint(0, 50, (B * G, T)), torch.ones(B * G, T, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = completion_logprobs(model, prompts, completions, mask)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = sum(size for place, size in sizes.items() if place not in weights)
    assert keep[0].requires_grad and estimate(dtype).activations == pytest.approx(kept, rel=0.03)


def test_every_memory_option_saves_memory():
    """Catches: an estimate that ignores an option made to save memory."""
    whole = estimate()
    assert estimate(checkpointing=True).activations < 0.5 * whole.activations
    assert estimate(micro_batch_tokens=200).activations < 0.6 * whole.activations
    assert estimate(mini_batches=2).activations < 0.6 * whole.activations
    assert estimate(sampling_rows=4).cache == whole.cache // 2
    assert whole.reference == 0 and estimate(kl_weight=0.1).reference == whole.weights
    assert whole.peak == max(whole.sampling, whole.update)


def test_published_shapes_have_the_published_number_of_weights():
    """SmolLM2-135M has 134,515,008 weights by its own file. Catches: a wrong shape in the README's table."""
    V, D, layers, H, K, mlp, tied = SHAPES["SmolLM2-135M"]
    assert count_weights(GPTConfig(V, D, layers, H, K, mlp, tie_embeddings=tied)) == 134_515_008
