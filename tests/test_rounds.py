"""What a GPU needs, tested without one: decoding in rounds, steps that can be replayed, an update that does not wait.

A captured CUDA graph repeats kernels with the same shapes on the same memory. `Replay` does that with PyTorch's own
operators on a CPU, so whatever a replay would miss (a Python number that changes, a new tensor) shows here.
"""

import weakref

import pytest
import torch
from conftest import small_gpt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minclipo.extensions.micro_batches as micro_batches_module
import minclipo.model as model_module
import minclipo.sampler as sampler
import minclipo.trainer as trainer_module
from minclipo.config import TrainConfig
from minclipo.logprobs import completion_logprobs
from minclipo.runs.recipes import METHODS
from minclipo.sampler import Decoder, Rollouts, sample
from minclipo.tasks import Task
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer
from minclipo.trainer import Trainer

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
WAITS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim"}


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Watch(TorchDispatchMode):
    """Notes each operator with the shapes that it returns, and those at which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen, self.waits = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        self.seen.append((name, [tuple(tensor.shape) for tensor in tensors(result)]))
        by_mask = name in ("index", "index_put_") and any(x.dtype == torch.bool for x in tensors(arguments[1]))
        if name in WAITS or by_mask:
            self.waits.append(name)
        return result


class Replay(TorchDispatchMode):
    """Like a CUDA graph: records the operators of a step with their tensors, and repeats them on just these."""

    def __init__(self, step, earlier):
        super().__init__()
        self.calls, decoder = [], step.__self__
        state = tensors((vars(decoder), decoder.cache.keys, decoder.cache.values, decoder.cache.lengths))
        before = [tensor.clone() for tensor in state]
        with self:
            step()
        for tensor, value in zip(state, before):  # recording does not count: a capture runs nothing
            tensor.copy_(value)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, result))
        return result

    def replay(self):
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            for old, new in zip(tensors(result), tensors(again)):
                if old is not new:
                    old.copy_(new)


class Numbers:
    """The same random number for a token of a row, in whatever order the numbers are asked for."""

    def __init__(self, monkeypatch, seed: int = 0, dtype=torch.float32):
        self.table = torch.rand(64, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)  # token, row
        self.decoder, original = None, Decoder.round

        def watched(decoder, *arguments):
            self.decoder = decoder
            return original(decoder, *arguments)

        monkeypatch.setattr(Decoder, "round", watched)
        monkeypatch.setattr(sampler.torch, "rand", self.rand)

    def rand(self, shape, **_):
        t = self.decoder.t.item()
        return self.table[t : t + shape[0]][:, self.decoder.rows]


def in_rounds(monkeypatch, tokens: int, slots: int = 8, capture=None) -> None:
    monkeypatch.setattr(sampler, "ROUND", {"cpu": tokens})
    monkeypatch.setattr(sampler, "SLOTS", {"cpu": slots})
    monkeypatch.setattr(sampler, "CAPTURE", {"cpu": capture})


def draw(model, **changes) -> Rollouts:
    return sample(model, PROMPTS, **dict(group_size=5, max_new_tokens=19, eos_ids=[0, 1, 2]) | changes)


def assert_same(found: Rollouts, wanted: Rollouts) -> None:
    assert torch.equal(found.completions, wanted.completions) and torch.equal(found.mask, wanted.mask)
    assert torch.equal(found.finished, wanted.finished)
    for name in ("logprobs", "pooled"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-5, rtol=1e-5)


OPTIONS = [{}, dict(temperature=0), dict(temperature=0.7, top_k=5), dict(top_p=0.8), dict(sampling_rows=11)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens, capture", [(4, None), (32, None), (4, Replay), (5, Replay), (32, Replay)])
def test_rounds_of_any_length_give_the_same_rollouts(monkeypatch, options, tokens, capture):
    """Ragged prompts, rows that end early, buckets that shrink. Catches: a row that writes after its end, a round that
    runs past max_new_tokens, padding slots that are seen, a replay that repeats the first token's Python numbers."""
    model, _ = small_gpt(), Numbers(monkeypatch)
    wanted = draw(model, **options)
    assert len(set(wanted.mask.sum(1).tolist())) > 3 or options == dict(temperature=0)
    in_rounds(monkeypatch, tokens, capture=capture)
    assert_same(draw(model, **options), wanted)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_rounds_say_how_likely_their_tokens_are(monkeypatch, dtype, atol):
    """In other widths. Catches: log-probs or pooled states that a round has cut down to float32."""
    model = small_gpt().to(dtype)
    Numbers(monkeypatch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    in_rounds(monkeypatch, 4, capture=Replay)
    rollouts = draw(model, eos_ids=[0, 1])
    prompts = [prompt for prompt in PROMPTS for _ in range(5)]
    logprobs, _ = completion_logprobs(model, prompts, rollouts.completions, rollouts.mask)
    torch.testing.assert_close(rollouts.logprobs, logprobs, atol=atol, rtol=0)


def rounds_of(monkeypatch, **options) -> list[list[Watch]]:
    """What each step of each round of four does."""
    rounds, step, decode_round = [], Decoder.step, Decoder.round

    def watched_step(decoder):
        rounds[-1].append(Watch())
        with rounds[-1][-1]:
            step(decoder)

    monkeypatch.setattr(Decoder, "round", lambda *arguments: rounds.append([]) or decode_round(*arguments))
    monkeypatch.setattr(Decoder, "step", watched_step)
    in_rounds(monkeypatch, 4)
    draw(small_gpt(rope_theta=100.0, qk_norm=True, qkv_bias=True), **options)
    return rounds


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_within_a_round_the_host_never_waits_and_no_shape_changes(monkeypatch, options):
    """Catches: what cannot be captured: reading a number, nonzero, a boolean index, a slice that grows."""
    rounds = rounds_of(monkeypatch, **options)
    assert len(rounds) >= 3 and all(step.waits == [] for steps in rounds for step in steps)
    assert all(len({str(step.seen) for step in steps}) == 1 for steps in rounds)


def test_the_watch_sees_what_it_must():
    """The tests above could not fail if it did not."""
    x = torch.arange(4.0)
    with Watch() as watch:
        x[x > 1], x.sum().item(), x[x > 2].sum()
        x[x > 1] = 0.0
    assert len(watch.waits) >= 4


def test_the_replay_repeats_python_numbers(monkeypatch):
    """As a CUDA graph would. Catches: an emulation that runs the step again and so could not fail."""
    original = Decoder.step

    def counts_in_python(decoder):
        original(decoder)
        decoder.count = getattr(decoder, "count", 0) + 1

    monkeypatch.setattr(Decoder, "step", counts_in_python)
    in_rounds(monkeypatch, 19, capture=Replay)
    decoders, run = [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda decoder, *a: decoders.append(decoder) or run(decoder, *a))
    draw(small_gpt(), eos_ids=[])
    assert decoders[0].count == 2 and decoders[0].t.item() == 19  # the first step, and the recording


def test_each_size_of_a_round_is_captured_once(monkeypatch):
    """Catches: later rounds that run step by step, or capture anew what has been captured; neither changes a number."""
    captures, sizes, original = [], [], Decoder.round
    capture = lambda step, earlier: (
        captures.append((len(step.__self__.rows), step.__self__.cache.used)) or Replay(step, earlier)
    )

    def watched(decoder, tokens, *random):
        alive = original(decoder, tokens, *random)
        sizes.append((len(decoder.rows), decoder.cache.used))
        return alive

    monkeypatch.setattr(Decoder, "round", watched)
    in_rounds(monkeypatch, 3, capture=capture)
    draw(small_gpt(), eos_ids=[0, 1, 2], max_new_tokens=18)
    assert captures == list(dict.fromkeys(sizes)) and 2 < len(captures) < len(sizes)


def test_rows_leave_by_halves(monkeypatch):
    """Catches: a graph for every number of rows, rows that stay for good, a living row thrown out."""
    sizes, original = [], Decoder.leave

    def watched(decoder, alive):
        original(decoder, alive)
        sizes.append((len(decoder.rows), alive, decoder.alive.sum().item()))

    monkeypatch.setattr(Decoder, "leave", watched)
    in_rounds(monkeypatch, 2)
    draw(small_gpt(), group_size=12, eos_ids=[0, 1, 2, 3])
    assert {rows for rows, *_ in sizes} <= {48, 24, 12, 6, 3, 1} and len({rows for rows, *_ in sizes}) > 2
    assert all(alive == still for _, alive, still in sizes)
    assert all(alive <= rows < 2 * alive or rows == 48 for rows, alive, _ in sizes)


def test_nan_in_a_round_is_an_error_and_no_index(monkeypatch):
    """Catches: NaN past the end of the vocabulary, which ends a process on a GPU; an error that a later token hides."""
    in_rounds(monkeypatch, 4)
    model = small_gpt()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        draw(model)


# ---- the update ----


def half_right(problem, text, finished) -> bool:
    return len(text) % 2 == 0


def make(dtype=torch.float32, **changes) -> Trainer:
    settings = dict(prompts_per_step=4, group_size=4, max_new_tokens=8, num_mini_batches=1, learning_rate=1e-3)
    model = toy_model(ToyConfig(num_layers=6), seed=0).to(dtype)
    return Trainer(model, toy_tokenizer(), Task(TASK.draw, half_right), TrainConfig(**settings | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(kl_weight=0.1), dict(ratio="sequence", aggregation="sequence_mean")])
def test_the_host_does_not_wait_for_micro_batches(monkeypatch, dtype, options):
    """Catches: a metric read, a mask turned into indices or a bound checked per micro-batch: the device runs dry."""
    waits, original = {}, Trainer.update_on
    for tokens in (0, 40):

        def watched(trainer, parts, *rest):
            with Watch() as watch:
                found = original(trainer, parts, *rest)
            waits[len(parts)] = watch.waits
            return found

        monkeypatch.setattr(Trainer, "update_on", watched)
        make(dtype, micro_batch_tokens=tokens, **options).step()
    (one, few), (several, many) = sorted(waits.items())
    assert one == 1 and several > 3 and len(few) == len(many) <= 5


@pytest.mark.parametrize("num_mini_batches, passes", [(1, 1), (2, 3)])
def test_half_precision_scores_only_what_the_policy_will_have_moved_away_from(monkeypatch, num_mini_batches, passes):
    """Catches: a scoring pass over rollouts whose old log-probs are those of the update itself."""
    calls = []
    for module in (trainer_module, vars(micro_batches_module)):
        scope = module if isinstance(module, dict) else vars(module)
        original = scope["batch_logprobs"]
        monkeypatch.setitem(scope, "batch_logprobs", lambda *a, f=original, **k: calls.append(1) or f(*a, **k))
    make(torch.bfloat16, num_mini_batches=num_mini_batches).step()
    assert len(calls) == passes


def test_scoring_holds_the_activations_of_one_part_at_a_time(monkeypatch):
    """Catches: the graph of one part kept while the next is computed: twice the memory that the estimate counts."""
    alive, original = [], micro_batches_module.batch_logprobs

    def watched(*arguments, **options):
        assert all(graph() is None for graph in alive)
        logprobs, entropy = original(*arguments, **options)
        alive.append(weakref.ref(logprobs))
        return logprobs, entropy

    monkeypatch.setattr(micro_batches_module, "batch_logprobs", watched)
    make(torch.bfloat16, num_mini_batches=2, micro_batch_tokens=30).step()
    assert len(alive) > 2


# ---- compilation ----


@pytest.fixture
def compilations(monkeypatch) -> dict[str, int]:
    """torch.compile without a compiler, so that only its tracing is tested; how often each function was compiled."""
    torch._dynamo.reset()
    counts, made = {}, {}

    def compiled(function):
        def backend(graph, example):
            counts[function.__qualname__] = counts.get(function.__qualname__, 0) + 1
            return graph.forward

        if function not in made:
            made[function] = torch.compile(function, dynamic=True, fullgraph=True, backend=backend)
        return made[function]

    monkeypatch.setattr(model_module, "compiled", compiled)
    monkeypatch.setattr("minclipo.logprobs.compiled", compiled)
    yield counts
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_and_head_compile_a_few_times_and_without_a_break(compilations, checkpointing):
    """All layers and batches of every size share a compilation. Catches: a number of the layer or of the batch that is
    built into the code, which then is compiled again and again; a break within a block, which fullgraph refuses."""
    trainer = make(micro_batch_tokens=60, kl_weight=0.1, max_new_tokens=12, **METHODS["clipo"])
    trainer.model.compiled, trainer.model.gradient_checkpointing = True, checkpointing
    for _ in range(4):
        trainer.step()
    assert set(compilations) == {"Block.forward", "token_logprobs"} and max(compilations.values()) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_step_is_the_same_step(compilations, dtype):
    """Catches: a layout or weights frozen at the first call."""
    trainers = [make(dtype, micro_batch_tokens=100, num_mini_batches=2) for _ in range(2)]
    trainers[0].model.compiled = True
    for _ in range(3):
        steps = [trainer.step() for trainer in trainers]
    assert compilations and torch.equal(steps[0].rollouts.completions, steps[1].rollouts.completions)
    for ours, theirs in zip(trainers[0].model.parameters(), trainers[1].model.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-6 if dtype == torch.float32 else 2e-3, rtol=0)
