"""The memory estimate, part by part, against what is really held."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

from minclipo.config import TrainConfig
from minclipo.extensions.float32_adamw import Float32AdamW
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.runs.machine import count_weights, estimate_memory
from minclipo.sampler import KVCache, sample

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from memory_table import SHAPES, table  # noqa: E402

B, G, P, T = 2, 4, 24, 40
CONFIG = dict(vocab_size=50, hidden_size=64, num_layers=5, num_heads=4, num_kv_heads=2, intermediate_size=200)
TRAIN = dict(prompts_per_step=B, group_size=G, max_new_tokens=T, num_mini_batches=1)


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
    sum(weight.sum() for weight in model.parameters()).backward()
    gradients = [
        weight.grad for weight in [*model.parameters(), *optimizer.masters.values()] if weight.grad is not None
    ]
    gradients = bytes_of({gradient.data_ptr(): gradient for gradient in gradients}.values())
    optimizer.step()
    masters = bytes_of(optimizer.masters.values()) if dtype == torch.bfloat16 else 0
    held = bytes_of(t for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    found = estimate(dtype)
    assert found.weights == bytes_of(model.parameters())
    assert found.optimizer == held + masters
    assert found.gradients == gradients


@pytest.mark.parametrize("sampling_rows, rows", [(0, B * G), (4, 4), (1, G)])
def test_the_cache_is_exact(monkeypatch, sampling_rows, rows):
    """Catches: rows counted that are not sampled in parallel, a group counted as if it could be cut."""
    sizes, original = [], KVCache.keep

    def watched(cache, chosen):
        original(cache, chosen)
        sizes.append(bytes_of(cache.keys) + bytes_of(cache.values))

    monkeypatch.setattr(KVCache, "keep", watched)
    model = init_weights(GPT(GPTConfig(**CONFIG)))
    prompts = [[1] * P, [2] * P]
    sample(model, prompts, G, T, eos_ids=[], sampling_rows=sampling_rows)
    assert max(sizes) == estimate(sampling_rows=sampling_rows).cache
    assert estimate(sampling_rows=sampling_rows).sampling_logits == rows * 50 * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_right_within_three_percent(dtype):
    """Catches: a part of the block forgotten. Counts what autograd keeps; the vocabulary's chunk is not in it."""
    model, sizes, hold = init_weights(GPT(GPTConfig(**CONFIG))).to(dtype), {}, []

    def pack(tensor):
        hold.append(tensor)  # otherwise a freed place could be counted as another tensor's
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    prompts, owner = [[b + 1] * P for b in range(B)], torch.arange(B * G) // G
    completions, mask = torch.randint(0, 50, (B * G, T)), torch.ones(B * G, T, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = completion_logprobs(model, prompts, completions, mask, owner)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = sum(size for place, size in sizes.items() if place not in weights)
    assert keep[0].requires_grad and estimate(dtype).activations == pytest.approx(kept, rel=0.03)


def test_every_memory_option_saves_memory():
    """Catches: an estimate that ignores an option made to save memory."""
    whole = estimate()
    assert estimate(checkpointing=True).activations < 0.5 * whole.activations
    assert estimate(micro_batch_tokens=200).activations < 0.6 * whole.activations
    assert estimate(num_mini_batches=2).activations < 0.6 * whole.activations
    assert estimate(sampling_rows=4).cache == whole.cache // 2
    assert whole.reference == 0 and estimate(kl_weight=0.1).reference == whole.weights
    assert whole.peak == max(whole.sampling, whole.update)


def test_published_shapes_have_the_published_number_of_weights():
    """SmolLM2-135M has 134,515,008 weights by its own file. Catches: a wrong shape in the table of memory."""
    V, D, layers, H, K, mlp, tied = SHAPES["SmolLM2-135M"]
    assert count_weights(GPTConfig(V, D, layers, H, K, mlp, tie_embeddings=tied)) == 134_515_008


def test_a_model_too_large_to_build_is_counted():
    """A config.json may claim anything. Catches: a count that builds every block, and hangs before any error."""
    config = GPTConfig(100, 8, 10**9, 2, 2, 16)
    assert count_weights(config) - count_weights(dataclasses.replace(config, num_layers=10**9 - 1)) < 1000


def test_the_table_of_memory_is_what_the_estimate_says():
    """Catches: a table in runs/README.md that is older than the estimate."""
    page = (ROOT / "minclipo" / "runs" / "README.md").read_text()
    assert re.search(re.escape(table()), page)
