"""AdamW in float32 under a bfloat16 model."""

import copy

import pytest
import torch
from conftest import small_gpt

from minclipo.extensions.float32_adamw import Float32AdamW


def backward(model, gradients: dict[str, torch.Tensor]) -> None:
    """A backward pass that gives these weights these gradients, and the others none."""
    weights = dict(model.named_parameters())
    sum((weights[name] * gradient).sum() for name, gradient in gradients.items()).backward()


def gradient_step(model, optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda weight: torch.randn(weight.shape, generator=generator).to(weight.dtype)
    optimizer.zero_grad()
    backward(model, {name: draw(weight) for name, weight in model.named_parameters()})
    optimizer.step()


def test_small_steps_add_up_in_bfloat16():
    """300 steps of 1e-5 in one direction. Catches: weights trained in bfloat16, which would not move at all."""
    model = small_gpt().bfloat16()
    before = model.norm.weight.detach().clone()  # all 1: the next bfloat16 below is 0.0039 away
    optimizer = Float32AdamW(model, learning_rate=1e-5, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        backward(model, {"norm.weight": torch.ones_like(model.norm.weight)})
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
        gradient_step(other, theirs, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_gradients_of_micro_batches_are_summed_in_float32():
    """256 parts of 1/256 beside one of 1: in bfloat16 the sum stays 1. Catches: gradients summed where they arise."""
    model = small_gpt().bfloat16()
    optimizer = Float32AdamW(model, learning_rate=1e-3, weight_decay=0.0)
    for value in [1.0] + [1 / 256] * 256:
        backward(model, {"norm.weight": torch.full_like(model.norm.weight, value)})
    assert model.norm.weight.grad is None
    assert (optimizer.masters["norm.weight"].grad == 2.0).all()


def test_a_weight_that_is_used_twice_has_its_gradient_once():
    """Tied embeddings, with blocks computed again in backward. Catches: a hook that moves half a gradient, or twice."""
    gradients = []
    for checkpointing in (False, True):
        model, tokens = small_gpt().bfloat16(), torch.arange(12).view(2, 6)
        model.gradient_checkpointing = checkpointing
        optimizer = Float32AdamW(model, learning_rate=1e-3, weight_decay=0.0)
        model.logits(model(tokens)).float().square().mean().backward()
        gradients.append(optimizer.masters["embed_tokens.weight"].grad)
    plain = small_gpt().bfloat16()
    plain.logits(plain(tokens)).float().square().mean().backward()
    assert all(torch.equal(gradient, plain.embed_tokens.weight.grad.float()) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_to_disk_and_back(tmp_path, dtype):
    """Catches: moments given to the wrong weight, a step count that starts anew: Adam's first steps are longer."""
    models = [small_gpt().to(dtype) for _ in range(2)]
    first, second = (Float32AdamW(model, 1e-2, 0.01) for model in models)
    for seed in range(3):
        gradient_step(models[0], first, seed)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in (3, 4):
        gradient_step(models[0], first, seed)
        gradient_step(models[1], second, seed)
    assert all(torch.equal(first.masters[name], second.masters[name]) for name in first.masters)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_the_state_of_another_model_is_refused():
    """Catches: weights squeezed into a model that they do not fit."""
    state = Float32AdamW(small_gpt(intermediate_size=32), 1e-2, 0.0).state_dict()
    with pytest.raises(ValueError, match="other names or shapes"):
        Float32AdamW(small_gpt(), 1e-2, 0.0).load_state_dict(state)


def test_a_gradient_from_before_the_optimizer_is_not_in_its_first_step():
    """Catches: a hook that adds to what another backward() had left on the weight."""
    model, fresh = small_gpt().bfloat16(), small_gpt().bfloat16()
    backward(model, {"norm.weight": torch.full_like(model.norm.weight, 100.0)})
    first, second = (Float32AdamW(each, 1e-2, 0.0) for each in (model, fresh))
    gradient_step(model, first, 1)
    gradient_step(fresh, second, 1)
    assert all(torch.equal(first.masters[name], second.masters[name]) for name in first.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_weight_stays(dtype):
    """Catches: weight decay on what is not trained, a master and two moments for nothing."""
    model = small_gpt().to(dtype)
    model.embed_tokens.weight.requires_grad_(False)
    before = model.embed_tokens.weight.clone()
    optimizer = Float32AdamW(model, 1e-2, weight_decay=0.5)
    optimizer.zero_grad()
    backward(model, {"norm.weight": torch.ones_like(model.norm.weight)})
    optimizer.step()
    assert torch.equal(model.embed_tokens.weight, before) and "embed_tokens.weight" not in optimizer.masters


def test_a_new_optimizer_takes_the_gradients_over():
    """Catches: two hooks on one weight, of which the old one takes the gradient away before the new one sees it."""
    model = small_gpt().bfloat16()
    old = Float32AdamW(model, 1e-2, 0.0)
    new = Float32AdamW(model, 1e-2, 0.0)
    before = model.norm.weight.detach().clone()
    gradient_step(model, new, 0)
    assert not torch.equal(model.norm.weight, before)
    with pytest.raises(AssertionError, match="a new optimizer took over"):
        old.step()


def test_a_loaded_state_keeps_the_new_learning_rate():
    """Catches: a run that is resumed with another learning rate, and goes on with the old one."""
    state = Float32AdamW(small_gpt(), 1e-2, 0.1).state_dict()
    optimizer = Float32AdamW(small_gpt(), 3e-3, 0.2)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 3e-3 and optimizer.param_groups[0]["weight_decay"] == 0.2


def test_it_refuses_to_be_copied():
    """Catches: a copied trainer whose optimizer trains the weights of the original."""
    with pytest.raises(TypeError, match="make a new one"):
        copy.deepcopy(Float32AdamW(small_gpt(), 1e-2, 0.0))
