"""The model against the numbers that transformers computes for tiny checkpoints of every family; fixtures/README.md."""

from functools import cache

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file

from minclipo.checkpoint import load_model
from minclipo.checkpoint.files import read_json
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.sampler import pad_right, sample
from minclipo.toy import solution_loss

PARITY = FIXTURES / "parity"
CHECKPOINTS = sorted(path.name for path in PARITY.iterdir() if path.name != "malformed")
CLOSE = dict(atol=3e-5, rtol=1e-5)  # separates a right model from one with another norm_eps
everywhere = pytest.mark.parametrize("name", CHECKPOINTS)


@cache
def model_of(name: str) -> GPT:
    return load_model(PARITY / name)


@cache
def reference_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(PARITY / name / "reference.safetensors")


def unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The real tokens of each row, wherever its padding is."""
    return [row[keep].tolist() for row, keep in zip(ids, mask.bool())]


@everywhere
def test_hidden_states_equal_transformers(name):
    """Catches: wrong rotary pairing or scaling, norm epsilon, head grouping, bias, q/k norm."""
    reference = reference_of(name)
    mask = reference["right.attention_mask"].bool()
    hidden = model_of(name)(reference["right.input_ids"])
    torch.testing.assert_close(hidden[mask], reference["right.hidden"][mask], **CLOSE)


@everywhere
def test_logits_equal_transformers(name):
    """Catches: an output head that is tied where it should not be, or not where it should."""
    model, reference = model_of(name), reference_of(name)
    mask = reference["right.attention_mask"].bool()
    logits = model.logits(model(reference["right.input_ids"]))
    torch.testing.assert_close(logits[mask], reference["right.logits"][mask], **CLOSE)


@everywhere
def test_rows_that_transformers_pads_on_the_left_agree_with_ours_padded_on_the_right(name):
    """Catches: positions that count padding."""
    model, reference = model_of(name), reference_of(name)
    mask = reference["left.attention_mask"].bool()
    tokens, lengths = pad_right(unpadded(reference["left.input_ids"], mask))
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    torch.testing.assert_close(model.logits(model(tokens))[real], reference["left.logits"][mask], **CLOSE)


@everywhere
@pytest.mark.parametrize("temperature, key", [(1.0, "completion.logps"), (0.7, "completion.logps_temperature_0.7")])
def test_completion_logprobs_equal_transformers(name, temperature, key):
    """Catches: completions read one place off, temperature left out, padding counted."""
    reference = reference_of(name)
    prompts = unpadded(reference["completion.prompt_ids"], reference["completion.prompt_mask"])
    mask = reference["completion.mask"].bool()
    logprobs, entropy = completion_logprobs(
        model_of(name), prompts, reference["completion.ids"], mask, temperature=temperature
    )
    torch.testing.assert_close(logprobs, reference[key], **CLOSE)
    if temperature == 1:
        torch.testing.assert_close(entropy, reference["completion.entropy"], **CLOSE)


@everywhere
def test_mean_hidden_states_of_completions_equal_transformers(name):
    """Catches: a plain forward over prompt and completion that disagrees with the separately padded halves."""
    reference = reference_of(name)
    prompts = unpadded(reference["completion.prompt_ids"], reference["completion.prompt_mask"])
    completions = unpadded(reference["completion.ids"], reference["completion.mask"])
    hidden = model_of(name)(pad_right([p + c for p, c in zip(prompts, completions)])[0])
    means = [row[len(p) : len(p) + len(c)].mean(0) for row, p, c in zip(hidden, prompts, completions)]
    torch.testing.assert_close(torch.stack(means), reference["completion.mean_hidden"], **CLOSE)


@everywhere
@pytest.mark.parametrize("with_eos", [False, True])
def test_greedy_tokens_equal_transformers(name, with_eos):
    """Catches: ragged prompts that see each other's padding, cache slots off by one, eos not ending a row."""
    reference = reference_of(name)
    eos_ids = read_json(PARITY / name / "reference.json")["greedy_eos_token_id"]
    eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    expected = reference["greedy.new_ids_with_eos" if with_eos else "greedy.new_ids"].tolist()
    prompts = unpadded(reference["greedy.prompt_ids"], reference["greedy.prompt_mask"])
    rollouts = sample(model_of(name), prompts, 1, 20, temperature=0, eos_ids=eos_ids if with_eos else [])
    for ids, wanted in zip(unpadded(rollouts.completions, rollouts.mask), expected):
        assert ids == wanted[: len(ids)]
        assert len(ids) == 20 or ids[-1] in eos_ids


@everywhere
def test_gradient_norms_equal_transformers(name):
    """Catches: a detached branch, a weight used twice or not at all: the forward pass would not tell."""
    model, reference, notes = model_of(name), reference_of(name), read_json(PARITY / name / "reference.json")
    rows = unpadded(reference["right.input_ids"], reference["right.attention_mask"])
    model.zero_grad()
    loss = solution_loss(model, [row[:1] for row in rows], [row[1:] for row in rows])  # all tokens but the first
    assert loss.item() == pytest.approx(notes["mean_token_nll"], rel=1e-5)
    loss.backward()
    ours = {
        name if name.startswith("lm_head") else f"model.{name}": parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
    }
    assert ours == pytest.approx(notes["grad_norms"], rel=1e-4)
