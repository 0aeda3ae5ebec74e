"""AdamW in float32 under a bfloat16 model."""

import torch
from conftest import small_gpt

from minclipo.optimizer import Float32AdamW
from minclipo.state import load_moments, moments


def gradient_step(model, optimizer, seed: int) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    optimizer.collect_gradients()
    optimizer.step()


def test_small_steps_add_up_in_bfloat16():
    """300 steps of 1e-5 in one direction. Catches: weights trained in bfloat16, which would not move at all."""
    model = small_gpt().bfloat16()
    before = model.norm.weight.detach().clone()  # all 1: the next bfloat16 below is 0.0039 away
    optimizer = Float32AdamW(model, learning_rate=1e-5, weight_decay=0.0)
    for _ in range(300):
        model.norm.weight.grad = torch.ones_like(model.norm.weight)
        optimizer.collect_gradients()
        optimizer.step()
    assert model.norm.weight.dtype == torch.bfloat16
    assert (optimizer.masters["norm.weight"] < 0.9975).all()
    assert (model.norm.weight < before).all()


def test_a_float32_model_is_its_own_master():
    """No second copy of the weights, and exactly what torch's AdamW does."""
    model, other = small_gpt(), small_gpt()
    ours = Float32AdamW(model, learning_rate=1e-3, weight_decay=0.1)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    assert all(ours.masters[name] is weight for name, weight in model.named_parameters())
    for seed in range(3):
        gradient_step(model, ours, seed)
        generator = torch.Generator().manual_seed(seed)
        for weight in other.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_gradients_of_micro_batches_are_summed_in_float32():
    """256 parts of 1/256 beside one of 1: in bfloat16 the sum stays 1. Catches: gradients summed where they arise."""
    model = small_gpt().bfloat16()
    optimizer = Float32AdamW(model, learning_rate=1e-3, weight_decay=0.0)
    for value in [1.0] + [1 / 256] * 256:
        model.norm.weight.grad = torch.full_like(model.norm.weight, value)
        optimizer.collect_gradients()
    assert model.norm.weight.grad is None
    assert (optimizer.masters["norm.weight"].grad == 2.0).all()
    norm = optimizer.clip_gradients(1.0)
    torch.testing.assert_close(norm, torch.tensor(2.0 * 16**0.5))
    assert optimizer.masters["norm.weight"].grad.norm() < 1.001


def test_moments_go_to_disk_and_back_by_name():
    """Catches: moments given to the wrong weight, a step count that starts anew (then Adam's first steps are too long)."""
    for dtype in (torch.float32, torch.bfloat16):
        models = [small_gpt().to(dtype) for _ in range(2)]
        first, second = (Float32AdamW(model, 1e-2, 0.01) for model in models)
        for seed in range(3):
            gradient_step(models[0], first, seed)
        saved = {name: tensor.clone() for name, tensor in moments(first.adamw, first.masters).items()}
        second.load({name: master.detach().clone() for name, master in first.masters.items()}, saved)
        for seed in (3, 4):
            gradient_step(models[0], first, seed)
            gradient_step(models[1], second, seed)
        assert all(torch.equal(first.masters[name], second.masters[name]) for name in first.masters)
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_an_optimizer_that_has_not_stepped_has_no_moments():
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    assert moments(optimizer, {"w": weight}) == {}
    load_moments(optimizer, {"w": weight}, {})
