"""Shared by all tests: one thread, and the fixtures that reference code produced."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minclipo.model import GPT, GPTConfig, init_weights

FIXTURES = Path(__file__).parent / "fixtures"
torch.set_num_threads(1)  # the models here are too small to share out
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell script, which ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def golden(family: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """(cases, tensors) of a family of fixtures/golden."""
    folder = FIXTURES / "golden"
    return json.loads((folder / f"{family}.json").read_text())["cases"], load_file(folder / f"{family}.safetensors")


def tensors_of(case: dict, section: str, tensors: dict) -> dict[str, torch.Tensor]:
    """The tensors of case[section] by their short names."""
    return {name: tensors[key] for name, key in case[section].items()}


def small_gpt(seed: int = 0, **changes) -> GPT:
    """A random model small enough for exact comparisons; embeddings larger than usual, so that its logits differ."""
    settings = dict(
        vocab_size=31, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=24, max_positions=64
    )
    model = init_weights(GPT(GPTConfig(**settings | changes)), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.embed_tokens.weight.mul_(5)
    return model.eval()


@pytest.fixture(autouse=True)
def same_random_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_question_to_the_hub(monkeypatch):
    """Tests put something in the place of the download; what is asked before it must not go out either."""
    monkeypatch.setattr("minclipo.checkpoint.hub.hub_is_silent", lambda *_, **__: False)
