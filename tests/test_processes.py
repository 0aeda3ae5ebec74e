"""Several processes train as one: 2 and 4 of them give the rollouts and the weights of one, for the same batch.

They are real processes, which speak through gloo on this machine; several_processes.py says what they do.
"""

from functools import cache

import pytest
import torch
from conftest import small_gpt
from several_processes import CASES, SHARDS, STEPS, cases, end, make, start, train, train_all

from minclipo.extensions.processes import row_numbers, share
from minclipo.sampler import ROUND, sample

FLOAT32 = [name for name in CASES if "dtype" not in CASES[name]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{number of processes: what each of them found}."""
    out, found = tmp_path_factory.mktemp("processes"), {}
    for count in (2, 4):
        assert end([start(train_all, out, rank, count) for rank in range(count)]) == [0] * count
        load = lambda rank: torch.load(out / f"processes{count}_rank{rank}.pt", weights_only=False)
        found[count] = [load(rank) for rank in range(count)]
    return found


alone = cache(train)


@pytest.mark.parametrize("count, name", [(count, name) for count in (2, 4) for name in cases(count)])
def test_every_process_holds_the_same(found, count, name):
    """To the last bit, training states included. Catches: processes that drift apart, since each draws, rounds or
    learns on its own."""
    first, *others = (of_process[name] for of_process in found[count])
    for other in others:
        assert_equal(first, other)


def assert_equal(a, b, where=""):
    """Two nested results, to the last bit. Of a sharded model's state only the first process has more than the shapes."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where} {key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{where} {i}")
    else:
        tensors, shapes = isinstance(a, torch.Tensor), getattr(b, "is_meta", False)
        assert (a.shape == b.shape if shapes else torch.equal(a, b)) if tensors else a == b, where


@pytest.mark.parametrize("count, name", [(count, name) for count in (2, 4) for name in cases(count) if name in FLOAT32])
def test_several_processes_do_what_one_does(found, count, name):
    """Rollouts, rewards, metrics and weights of three steps. Catches: means of means, a part that counts twice or never,
    contrast or dynamic sampling that sees one process's rollouts only, random numbers of a process."""
    many, one = found[count][0][name], alone(name)
    for ours, theirs in zip(many["steps"], one["steps"], strict=True):
        assert ours["texts"] == theirs["texts"] and ours["prompts"] == theirs["prompts"]
        assert torch.equal(ours["completions"], theirs["completions"])
        assert torch.equal(ours["mask"], theirs["mask"]) and torch.equal(ours["finished"], theirs["finished"])
        for key in ("logprobs", "pooled", "rewards"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=3e-6)
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=3e-6, nan_ok=True)
    assert many["weights"].keys() == one["weights"].keys()
    for key, weight in one["weights"].items():
        torch.testing.assert_close(many["weights"][key], weight, rtol=0, atol=1e-6)


def test_the_cases_learn():
    """Catches: an identity between runs that do nothing."""
    for name in FLOAT32:
        before, after = dict(make(name).model.named_parameters()), alone(name)["weights"]
        moved = [(after[key] - weight).abs().max() for key, weight in before.items() if weight.requires_grad]
        assert min(moved) > 1e-4, name


@pytest.mark.skipif(not SHARDS, reason="this PyTorch does not shard on a CPU")
@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 lora"])
def test_a_sharded_model_in_bfloat16_is_trained_by_its_float32_weights(found, name):
    """Catches: masters that get no gradient, since a sharded weight's own hook is never called; bfloat16 sums."""
    sharded, plain = (found[2][0][name] for name in (f"sharded {name}", name))
    ours, theirs = (of["state"]["optimizer"]["masters"] for of in (sharded, plain))
    start = dict(make(name).model.named_parameters())
    for key, weight in theirs.items():
        assert ours[key].dtype == torch.float32
        moved = (weight - start[key].float()).abs().max()
        assert (ours[key] - weight).abs().max() < 0.2 * moved


@pytest.mark.parametrize("count, total, mean", [(2, 1, 1.5), (4, 1 + 3 + 4, 2.5)])
def test_gradients_of_all_processes_are_added_up(found, count, total, mean):
    """Catches: a process without a gradient that keeps the others waiting, a sum where a mean is due."""
    assert all(of_process["gradients"] == [total, mean] for of_process in found[count])


@pytest.mark.parametrize("length, count", [(8, 4), (7, 3), (3, 4), (0, 2)])
def test_shares_are_even_and_in_order(monkeypatch, length, count):
    monkeypatch.setattr("minclipo.extensions.processes.count", lambda: count)
    shares = [share(range(length), process) for process in range(count)]
    assert [item for part in shares for item in part] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rollout_does_not_depend_on_those_beside_it():
    """Catches: random numbers that go by the row's place in the batch, or that change as rows leave."""
    trainer = make("grpo")
    config, prompts = trainer.config, [[5, 6, 7], [8, 9], [10, 11, 12, 13], [3]]
    settings = dict(group_size=4, max_new_tokens=6, eos_ids=trainer.tokenizer.eos_ids)
    together = sample(trainer.model, prompts, uniform=row_numbers(config, range(40, 44)), **settings)
    later = sample(trainer.model, prompts[2:], uniform=row_numbers(config, range(42, 44)), **settings)
    few = sample(trainer.model, prompts, uniform=row_numbers(config, range(40, 44)), sampling_rows=4, **settings)
    assert together.completion_ids()[8:] == later.completion_ids()
    assert together.completion_ids() == few.completion_ids()
    assert len(set(map(tuple, together.completion_ids()))) > 8


@pytest.mark.parametrize("tokens", [4, 32])
def test_given_numbers_give_the_same_rollouts_in_rounds(monkeypatch, tokens):
    """Rows that end early, a last round that is shorter. Catches: numbers of the first round in every round, or of
    another row once some have left."""
    model = small_gpt()
    settings = dict(group_size=16, max_new_tokens=18, eos_ids=[0, 1, 2], uniform=torch.rand(48, 18))
    one_by_one = sample(model, [[5, 6, 7], [8], [9, 10]], **settings)
    monkeypatch.setitem(ROUND, "cpu", tokens)
    in_rounds = sample(model, [[5, 6, 7], [8], [9, 10]], **settings)
    assert one_by_one.completion_ids() == in_rounds.completion_ids()
    assert len(set(map(len, one_by_one.completion_ids()))) > 8


def test_random_numbers_differ_from_problem_to_problem_and_from_seed_to_seed():
    config = make("grpo").config
    numbers = row_numbers(config, range(100))
    assert numbers.shape == (400, 6) and len(numbers.unique()) > 2390 and 0.47 < numbers.mean() < 0.53
    config.seed += 1
    assert not torch.isin(row_numbers(config, range(100)), numbers).any()


def test_the_cases_run_their_three_steps():
    assert all(len(alone(name)["steps"]) == STEPS for name in FLOAT32)
