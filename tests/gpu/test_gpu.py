"""What only a GPU can show: captured graphs, compiled blocks, and everything else once on CUDA.

    python -m pytest tests/gpu

Skipped elsewhere. Matrix products of float32 numbers are float32 throughout: TF32 is off, as it is by default.
"""

import json
import math
import os
from functools import partial
from pathlib import Path

import everything
import pytest
import torch
from conftest import FIXTURES, small_gpt
from everything import OPTIONS, with_adapters
from safetensors.torch import load_file
from test_launch import OPTIONS as LAUNCH_OPTIONS
from test_launch import TASK as OWN_TASK
from test_launch import finished, torchrun
from test_parity import CHECKPOINTS, unpadded

from minclipo import sampler
from minclipo.checkpoint import load_model, save_model
from minclipo.config import TrainConfig
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.runs.measure import evaluate, timed_step
from minclipo.runs.state import newest_state, save_state
from minclipo.sampler import Rollouts, sample
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

DEVICE = os.environ.get("MINCLIPO_TEST_DEVICE", "cuda")  # see tests/pretend_gpu.py
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")
CARELESS = Path(__file__).parents[2] / "lessons" / "models" / "careless"
in_both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

# ---- sampling ----

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
LONG = [[1 + i % 30 for i in range(length)] for length in (190, 200)]  # the second round needs another 256 slots
CASES = {
    "most rows end in the first round": dict(eos_ids=[0, 1, 2]),
    "some rows end in every round": dict(eos_ids=[0]),
    "no row ends": dict(eos_ids=[]),
    "another temperature": dict(eos_ids=[0], temperature=0.6),
    "top-k and top-p": dict(eos_ids=[0], top_k=6, top_p=0.9),
    "greedy": dict(eos_ids=[0], temperature=0.0),
    "more slots on the way": dict(eos_ids=[0], prompts=LONG),
    "in parts": dict(eos_ids=[0], sampling_rows=32),
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def rollouts_of(model: GPT, **options) -> Rollouts:
    """70 tokens: two whole rounds and a part of one."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    settings = dict(prompts=PROMPTS, group_size=16, max_new_tokens=70, eos_ids=[0], generator=generator)
    return sample(model, **settings | options)


def large_enough(dtype: torch.dtype = torch.float32, device: str = DEVICE, seed: int = 0) -> GPT:
    """Heads of 64 channels, as published models have: fused attention in bfloat16 needs a multiple of 8."""
    return small_gpt(seed, max_positions=400, head_dim=64).to(device, dtype)


def count_captures(monkeypatch) -> list:
    """A list that gets an entry for every graph captured from now on."""
    capture, captures = sampler.CAPTURE[DEVICE], []
    monkeypatch.setitem(sampler.CAPTURE, DEVICE, lambda *inputs: captures.append(inputs) or capture(*inputs))
    return captures


def scores_of(model: GPT, rollouts: Rollouts, temperature: float = 1.0) -> torch.Tensor:
    """The log-probs of the rollouts by one plain pass on the model's device."""
    prompts = [prompt for prompt in rollouts.prompts for _ in range(rollouts.group_size)]
    device = model.embed_tokens.weight.device
    with torch.no_grad():
        found, _ = completion_logprobs(
            model, prompts, rollouts.completions.to(device), rollouts.mask.to(device), temperature=temperature
        )
    return found.to(DEVICE)


@each_case
def test_captured_steps_equal_eager_ones(monkeypatch, options):
    """The same random numbers. Catches: a Python number frozen into a graph, a tensor that is replaced instead of
    changed in place, a graph replayed for other rows than it was captured for, memory that two graphs share, rows that
    leave before their end."""
    model, captures = large_enough(), count_captures(monkeypatch)
    captured = rollouts_of(model, **options)
    assert captures and (captured.finished | (captured.mask.sum(1) == 70)).all()
    monkeypatch.setattr(sampler, "CAPTURE", {})
    eager = rollouts_of(model, **options)
    for name in ("completions", "mask", "finished"):
        assert torch.equal(getattr(captured, name), getattr(eager, name)), name
    torch.testing.assert_close(captured.logprobs, eager.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(captured.pooled, eager.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_captured_steps_equal_one_plain_pass_on_a_cpu(temperature):
    """Ragged prompts, rows that end early. Catches: what captured and eager steps could both have wrong: a row that
    sees another's slots, rows mixed up as some leave."""
    rollouts, model = rollouts_of(large_enough(), temperature=temperature), large_enough(device="cpu")
    assert len(set(rollouts.mask.sum(1).tolist())) > 10 and rollouts.mask.all(1).any()
    close = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollouts.logprobs, scores_of(model, rollouts, temperature), **close)
    for row, (completion, mask) in enumerate(zip(rollouts.completions.cpu(), rollouts.mask.cpu())):
        prompt = torch.tensor(rollouts.prompts[row // rollouts.group_size])
        hidden = model(torch.cat([prompt, completion[mask]])[None])[0, len(prompt) :]  # [T, D]
        torch.testing.assert_close(rollouts.pooled[row].cpu(), hidden.mean(0), **close)


def test_captured_steps_in_bfloat16(monkeypatch):
    """Rounding may differ, and a token with it, but seldom. Catches: a graph that is right in float32 only."""
    model, captures = large_enough(torch.bfloat16), count_captures(monkeypatch)
    captured = rollouts_of(model)
    assert captures and (scores_of(model, captured) - captured.logprobs)[captured.mask].abs().mean() < 0.05
    monkeypatch.setattr(sampler, "CAPTURE", {})
    eager = rollouts_of(model)
    width = min(captured.mask.shape[1], eager.mask.shape[1])
    same = (captured.completions[:, :width] == eager.completions[:, :width]).all(1)
    assert same.float().mean() > 0.7


def test_captured_steps_take_random_numbers_that_are_given(monkeypatch):
    """Each row its own, as several processes need them. Catches: numbers of another row once some have left, or of the
    first round in every round."""
    model, captures = large_enough(), count_captures(monkeypatch)
    uniform = torch.rand(len(PROMPTS) * 16, 70, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    captured = rollouts_of(model, uniform=uniform)
    assert captures
    monkeypatch.setattr(sampler, "CAPTURE", {})
    monkeypatch.setattr(sampler, "ROUND", {})
    eager = rollouts_of(model, uniform=uniform)
    for name in ("completions", "mask", "finished"):
        assert torch.equal(getattr(captured, name), getattr(eager, name)), name


@pytest.mark.parametrize("rows, words", [(1, 151_936), (4, 151_936), (130, 5_000)])
def test_captured_steps_with_a_vocabulary_of_published_size(monkeypatch, rows, words):
    """Beyond 4,096 words CUDA sorts with other kernels, one kind for a single row, one for few and one for many; a single
    row's sums have a kernel of their own, too. Catches: one of them that waits for the host or cannot be captured, which
    the words of the other tests are too few to show; a word that top-p has cut, drawn all the same."""
    model, captures = small_gpt(vocab_size=words).to(DEVICE), count_captures(monkeypatch)
    options = dict(prompts=[[1, 2, 3]], group_size=rows, max_new_tokens=4, top_k=4_500, top_p=0.9, eos_ids=[])
    captured = rollouts_of(model, **options)
    assert captures and captured.logprobs.isfinite().all()
    monkeypatch.setattr(sampler, "CAPTURE", {})
    eager = rollouts_of(model, **options)
    assert torch.equal(captured.completions, eager.completions)
    torch.testing.assert_close(captured.logprobs, eager.logprobs, atol=1e-5, rtol=1e-5)


def test_captured_steps_with_adapters(monkeypatch):
    """Catches: adapters on the CPU, or left out of the graph."""
    small = lambda: small_gpt(max_positions=400).to(DEVICE)  # in heads of 64 channels these adapters magnify rounding
    model, captures = with_adapters(small()), count_captures(monkeypatch)
    captured = rollouts_of(model)
    assert captures
    torch.testing.assert_close(captured.logprobs, scores_of(model, captured), atol=1e-4, rtol=1e-4)
    plain = scores_of(small(), captured)
    assert (plain - captured.logprobs).abs().max() > 1e-2


def test_graphs_follow_the_weights():
    """Catches: a graph kept from one call of `sample` to the next, which would replay weights that are gone."""
    model, other = large_enough(), large_enough(seed=1)
    before = rollouts_of(model, temperature=0.0)
    model.load_state_dict(other.state_dict())
    after, wanted = rollouts_of(model, temperature=0.0), rollouts_of(other, temperature=0.0)
    assert torch.equal(after.completions, wanted.completions)
    assert before.completions.shape != after.completions.shape or not torch.equal(before.completions, after.completions)


def test_logits_that_are_not_finite_stop_the_sampling():
    """Catches: NaN that is noticed by a wait for the host only, which captured steps do not have."""
    model = large_enough()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        rollouts_of(model)


# ---- published checkpoints ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_compute_on_the_gpu_what_they_should(name):
    """Logits, greedy tokens and log-probs of transformers; sampled log-probs. Catches: TF32, a kernel that treats a
    mask, grouped heads or positions in another way than the CPU's does."""
    folder = FIXTURES / "parity" / name
    reference, model = load_file(folder / "reference.safetensors"), load_model(folder, device=DEVICE)
    close, mask = dict(atol=2e-4, rtol=1e-5), reference["right.attention_mask"].bool()
    logits = model.logits(model(reference["right.input_ids"].to(DEVICE))).detach().cpu()
    torch.testing.assert_close(logits[mask], reference["right.logits"][mask], **close)
    prompts = unpadded(reference["completion.prompt_ids"], reference["completion.prompt_mask"])
    completions = reference["completion.ids"].to(DEVICE), reference["completion.mask"].bool().to(DEVICE)
    logprobs, _ = completion_logprobs(model, prompts, *completions)
    torch.testing.assert_close(logprobs.detach().cpu(), reference["completion.logps"], **close)
    greedy = unpadded(reference["greedy.prompt_ids"], reference["greedy.prompt_mask"])
    found = sample(model, greedy, 1, 20, temperature=0, eos_ids=[]).completions.cpu()
    assert torch.equal(found, reference["greedy.new_ids"])
    sampled = sample(model, prompts, 4, 24, eos_ids=[3], generator=torch.Generator(DEVICE).manual_seed(0))
    torch.testing.assert_close(sampled.logprobs, scores_of(model, sampled), **close)


# ---- training ----

trainer_of = partial(everything.trainer_of, DEVICE)


def weights_of(trainer: Trainer) -> torch.Tensor:
    """In float32, also those of a bfloat16 model."""
    return torch.cat([weight.detach().flatten().clone() for weight in trainer.optimizer.masters.values()])


@in_both_dtypes
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_step_of_everything(options, dtype):
    """Catches: a tensor left on the CPU, an operation that CUDA or bfloat16 lacks, NaN."""
    trainer = trainer_of(dtype, **options)
    before, metrics = weights_of(trainer), timed_step(trainer)
    assert trainer.last.rollouts.completions.device.type == trainer.last.advantages.device.type == DEVICE
    assert all(value is None or math.isfinite(value) for value in metrics.values()), metrics  # None: of nothing
    after = weights_of(trainer)
    assert after.isfinite().all() and not torch.equal(before, after)


@pytest.mark.parametrize(
    "settings",
    [
        dict(micro_batch_tokens=150),
        dict(gradient_checkpointing=True),
        dict(gradient_checkpointing=True, micro_batch_tokens=150),
    ],
)
def test_what_saves_memory_changes_nothing_else(settings):
    """Catches: gradients of a micro-batch lost, a block that is computed again from something else."""
    wanted, _ = update(trainer_of(num_mini_batches=1))
    found, _ = update(trainer_of(num_mini_batches=1, **settings))
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def update(trainer: Trainer) -> tuple[torch.Tensor, dict[str, float]]:
    """(The gradient of an update on rollouts of the first batch, as one vector; its metrics). Nothing moves."""
    trainer.optimizer.step, masters = lambda: None, trainer.optimizer.masters.values()
    rollouts = trainer.collect()[1]
    advantages = torch.randn(len(rollouts.mask), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    metrics = trainer.update_policy(rollouts, advantages)
    return torch.cat([master.grad.flatten() for master in masters]), metrics


def graphs_compiled() -> int:
    from torch._dynamo.utils import counters  # takes seconds, also where these tests are skipped

    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "options, tolerance",
    [
        (dict(micro_batch_tokens=150), 1e-4),
        (dict(micro_batch_tokens=150, gradient_checkpointing=True, kl_weight=0.1), 1e-4),
        (dict(micro_batch_tokens=150, dtype=torch.bfloat16), 0.1),
    ],
)
def test_a_compiled_update_equals_an_eager_one(options, tolerance):
    """Catches: a compiled block that takes the sizes of an earlier micro-batch for its own, or that is not compiled."""
    wanted, metrics = update(trainer_of(num_mini_batches=1, **options))
    torch.compiler.reset()
    graphs = graphs_compiled()
    found, compiled_metrics = update(trainer_of(num_mini_batches=1, compiled=True, **options))
    assert graphs_compiled() > graphs
    assert (found - wanted).norm() < tolerance * wanted.norm()
    assert compiled_metrics == pytest.approx(metrics, rel=tolerance, abs=tolerance)


@in_both_dtypes
def test_a_resumed_run_goes_on_as_it_would_have(tmp_path, dtype):
    """By way of the disk; a GPU adds up in changing order, so that the last bits may differ. Catches: a state that
    comes back on the CPU, a generator of the GPU that is not saved."""
    options = dict(contrastive_weight=0.2, contrastive_loss="infonce", contrastive_level="batch", kl_weight=0.05)
    whole = trainer_of(dtype, **options)
    for _ in range(2):
        whole.step()
    save_state(tmp_path, 2, whole.state_dict(), keep=1)
    resumed = trainer_of(dtype, **options)
    resumed.load_state_dict(newest_state(tmp_path))
    assert torch.equal(weights_of(resumed), weights_of(whole))
    wanted, found = whole.step(), resumed.step()
    assert found.number == 3 and torch.equal(found.rollouts.completions, wanted.rollouts.completions)
    difference = (weights_of(resumed) - weights_of(whole)).abs()
    assert difference.max() < 1e-4 if dtype == torch.float32 else difference.mean() < 1e-4


def test_the_toy_learns():
    """From 0.67 to 0.94 on a CPU. Catches: gradients or rollouts that are wrong without being NaN."""
    model, tokenizer = load_model(CARELESS, device=DEVICE), toy_tokenizer()
    options = dict(problems=500, max_new_tokens=16, seed=1)
    before = evaluate(model, tokenizer, TASK, **options)["accuracy"]
    trainer = Trainer(model, tokenizer, TASK, TrainConfig(learning_rate=5e-4, contrastive_weight=0.1))
    for _ in range(40):
        trainer.step()
    assert evaluate(model, tokenizer, TASK, **options)["accuracy"] > before + 0.1


@in_both_dtypes
def test_decoding_never_waits_for_the_gpu(monkeypatch, dtype):
    """In a whole training step. Catches: a number read by the host in the middle of a round, which makes a GPU idle and
    a graph wrong."""
    original = sampler.Decoder.step

    def watched(decoder):
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(decoder)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer = trainer_of(dtype)
    monkeypatch.setattr(sampler.Decoder, "step", watched)
    trainer.step()
    monkeypatch.setattr(sampler, "CAPTURE", {})
    trainer.step()


# ---- several processes ----


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_process_for_each_gpu(tmp_path, dtype, shard):
    """One GPU: a group of one process, through NCCL and FSDP2 all the same. Catches: tensors on another process's GPU,
    objects sent through NCCL, sharded weights that a step on CUDA cannot use."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path / "model")
    (tmp_path / "task.py").write_text(OWN_TASK)
    arguments = [*LAUNCH_OPTIONS, "--device", "cuda", "--dtype", dtype, "--steps", "3", *["--shard"] * shard]
    arguments += ["--model", str(tmp_path / "model"), "--task", f"{tmp_path / 'task.py'}:task"]
    finished(torchrun("gpu", *arguments, "--out", str(tmp_path / "run")))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3 and all(line["gradient_norm"] > 0 for line in metrics)
    before, after = (load_file(tmp_path / f"{name}model" / "model.safetensors") for name in ("", "run/"))
    assert any(not torch.equal(before[name].to(weight.dtype), weight) for name, weight in after.items())
