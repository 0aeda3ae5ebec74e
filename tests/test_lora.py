"""LoRA: exactly the base model at first, then W + (alpha / r) B A everywhere, and nothing trains but A and B."""

import copy
import zlib

import pytest
import torch
from conftest import small_gpt

import minclipo.model as model_module
from minclipo.config import TrainConfig
from minclipo.extensions.float32_adamw import Float32AdamW
from minclipo.extensions.lora import TARGETS, LoRALinear, adapter_weights, add_lora, load_adapter, merged
from minclipo.extensions.micro_batches import micro_batches
from minclipo.extensions.prompt_contrast import own_prompt_gain
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.model import GPT
from minclipo.runs.state import save_state
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

PROMPTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
RUN = dict(steps=6, prompts_per_step=3, group_size=4, max_new_tokens=6, learning_rate=1e-2)
SHAPES = {
    "tied": {},
    "untied, biases": dict(tie_embeddings=False, qkv_bias=True),
    "norms on heads": dict(qk_norm=True, head_dim=6),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_lora(model: GPT, *, trained: bool = True, rank: int = 3, alpha: float = 5.0, targets=TARGETS) -> GPT:
    """The model with adapters; `trained`: with a B that is not 0."""
    add_lora(model, rank, alpha, targets, seeded())
    with torch.no_grad():
        for name, weight in adapter_weights(model).items():
            if trained and "lora_B" in name:
                weight.normal_(std=0.3, generator=seeded(len(name)))
    return model


def rollouts_of(model: GPT, seed: int = 1) -> Rollouts:
    return sample(model, PROMPTS, 3, 6, eos_ids=[0], generator=seeded(seed))


def policy_of(dtype=torch.float32, **changes) -> tuple[Trainer, GPT]:
    """(a trainer of a model with adapters, its model)"""
    model = with_lora(small_gpt(vocab_size=122).to(dtype), trained=False)
    return Trainer(model, toy_tokenizer(), EASY, TrainConfig(**RUN | changes)), model


# ---- the model ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_adapters_change_not_one_bit(dtype):
    """Tokens, log-probs, pooled states, entropies. Catches: a B that is not 0, a base that is computed otherwise."""
    plain = small_gpt().to(dtype)
    model = with_lora(copy.deepcopy(plain), trained=False)
    ours, theirs = rollouts_of(model), rollouts_of(plain)
    for name in ("completions", "mask", "logprobs", "pooled", "finished"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    batch = MicroBatch.some(ours, torch.arange(9))
    for a, b in zip(batch_logprobs(model, batch), batch_logprobs(plain, batch)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_the_formula(bias):
    """In float64, number by number. Catches: a scale of alpha, of 1 / r or of none; A and B in the wrong order; a bias
    that is lost or added twice."""
    base = torch.nn.Linear(5, 4, bias=bias)
    layer, x = LoRALinear(base, 2, 6.0, seeded()).double(), torch.randn(3, 5, dtype=torch.float64)
    W, A, B = layer.weight, layer.lora_A.weight, layer.lora_B.weight.data.normal_()
    add = [[6.0 / 2 * sum(B[o, k] * A[k, i] for k in range(2)) for i in range(5)] for o in range(4)]
    for row, y in zip(x, layer(x)):
        for o in range(4):
            wanted = sum((W[o, i] + add[o][i]) * row[i] for i in range(5)) + (layer.bias[o] if bias else 0)
            assert abs(y[o] - wanted) < 1e-12
    assert layer.weight is base.weight and layer.bias is base.bias


def test_adapters_begin_as_pefts_do():
    """A uniform within 1 / sqrt(in), B 0, float32, the same numbers for a base of any dtype; the base's names stay.

    Catches: the width of another initialisation, a half-precision master, numbers that the base's dtype changes."""
    models = [with_lora(small_gpt().to(dtype), trained=False, rank=8) for dtype in (torch.float32, torch.bfloat16)]
    found = [adapter_weights(model) for model in models]
    assert len(found[0]) == 2 * 7 * 2 and all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name, weight in found[1].items():
        assert weight.dtype == torch.float32 and weight.requires_grad
        if "lora_B" in name:
            assert not weight.any()
        else:
            bound = weight.shape[1] ** -0.5
            assert bound * 0.9 < weight.abs().max() <= bound and abs(weight.mean()) < bound * 0.3
    rest = {name: weight for name, weight in models[0].named_parameters() if name not in found[0]}
    assert rest.keys() == dict(small_gpt().named_parameters()).keys()
    assert not any(weight.requires_grad for weight in rest.values())


def test_only_the_targets_have_adapters():
    model = with_lora(small_gpt(), targets=("v_proj", "q_proj"))
    owners = {name.split(".")[3] for name in adapter_weights(model)}
    assert owners == {"q_proj", "v_proj"} and len(adapter_weights(model)) == 2 * 2 * 2


def test_adapters_on_the_meta_device_cost_nothing_and_draw_nothing():
    """As the memory estimate counts them. Catches: random numbers that a run would miss, memory for a model of 7B."""
    with torch.device("meta"):
        model = GPT(small_gpt().config)
    before = torch.get_rng_state()
    add_lora(model, 4, 8.0, TARGETS)
    assert torch.equal(torch.get_rng_state(), before) and {weight.device.type for weight in model.parameters()} == {
        "meta"
    }
    # q and o, k and v, gate and up, down; two layers of width 16 and 24, keys and values of width 8
    assert sum(weight.numel() for weight in adapter_weights(model).values()) == 2 * 4 * (4 * 16 + 2 * 24 + 2 * 40 + 40)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_with_adapters_is_the_merged_one(shape):
    """In float64. Catches: an adapter that the forward pass or the merge leaves out or takes for another's."""
    model = with_lora(small_gpt(**SHAPES[shape])).double()
    plain, tokens = merged(model), torch.randint(0, 31, (2, 9))
    assert dict(plain.named_parameters()).keys() == dict(small_gpt(**SHAPES[shape]).named_parameters()).keys()
    torch.testing.assert_close(model.logits(model(tokens)), plain.logits(plain(tokens)), atol=1e-11, rtol=0)
    assert (plain(tokens) - small_gpt(**SHAPES[shape]).double()(tokens)).abs().max() > 0.1


def test_merging_sums_in_float32_rounds_once_and_copies_nothing_else():
    """Catches: B A rounded before the sum; a second embedding; a base that merging changes or thaws;
    training of a model that shares half of its weights with another."""
    model = with_lora(small_gpt(tie_embeddings=False).to(torch.bfloat16), targets=("k_proj", "down_proj"))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain, own = merged(model), dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(own[name], before[name])
        if "k_proj" in name or "down_proj" in name:
            A, B = (own[name.replace("weight", f"lora_{part}.weight")] for part in "AB")
            assert torch.equal(weight, (own[name].float() + 5 / 3 * (B @ A)).bfloat16())
        else:
            assert weight.data_ptr() == own[name].data_ptr()
    assert {name for name, weight in own.items() if weight.requires_grad} == adapter_weights(model).keys()
    assert not any(weight.requires_grad for weight in plain.parameters()) and merged(plain) is plain


# ---- training ----


def factors_of(plain: GPT, model: GPT) -> dict[str, torch.Tensor]:
    """The gradients of A and B that follow from those of the whole weights G: s B^T G and s G A^T."""
    found, own, grads = {}, adapter_weights(model), dict(plain.named_parameters())
    for name in own:
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        other = own[name.replace(part, "lora_B" if part == "lora_A" else "lora_A")].detach()
        G = grads[f"{layer}.weight"].grad
        found[name] = 5 / 3 * (other.T @ G if part == "lora_A" else G @ other.T)
    return found


@pytest.mark.parametrize("checkpointing, tokens", [(False, 0), (True, 0), (False, 20), (True, 20)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_whole_weights(shape, checkpointing, tokens):
    """The chain rule on the merged model, float64: shared prompts, checkpointing, micro-batches. Catches: a gradient
    that is cut, scaled, or lost in a recomputation."""
    model = with_lora(small_gpt(**SHAPES[shape])).double()
    plain = merged(model).requires_grad_(True)
    rollouts = rollouts_of(plain)
    for policy, limit in ((plain, 0), (model, tokens)):
        policy.gradient_checkpointing = checkpointing and policy is model
        for part in micro_batches(rollouts, torch.arange(9), limit):
            batch_logprobs(policy, part)[0].mul(torch.arange(1, 7)[: part.mask.shape[1]]).sum().backward()
    wanted = factors_of(plain, model)
    for name, weight in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(weight.grad, wanted[name], atol=1e-10, rtol=1e-9)
        else:
            assert weight.grad is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sampler_sees_the_adapters(shape):
    """Decoding with a cache and the whole pass agree on log-probs. Catches: a sampler of the base, off-policy for
    ever."""
    model = with_lora(small_gpt(**SHAPES[shape]))
    rollouts = rollouts_of(model)
    with torch.no_grad():
        logprobs, _ = batch_logprobs(model, MicroBatch.some(rollouts, torch.arange(9)))
        base, _ = batch_logprobs(small_gpt(**SHAPES[shape]), MicroBatch.some(rollouts, torch.arange(9)))
    torch.testing.assert_close(rollouts.logprobs, logprobs, atol=2e-5, rtol=0)
    assert (rollouts.logprobs - base).abs().max() > 0.1


def test_prompt_contrast_sees_the_adapters():
    """Catches: the gain of the base model's answers."""
    model = with_lora(small_gpt())
    rollouts = rollouts_of(model)
    ours, theirs = (own_prompt_gain(policy, rollouts, 2, seeded()) for policy in (model, merged(model)))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_trains_but_the_adapters(dtype):
    """Whatever switches on besides. Catches: gradients, moments or masters of frozen weights, which are most of the
    memory; a base that moves; adapters that round like the base."""
    trainer, model = policy_of(
        dtype, kl_weight=0.1, contrastive_weight=0.2, micro_batch_tokens=40, num_mini_batches=2, head_size=4
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for _ in range(3):
        trainer.step()
    own = adapter_weights(model)
    assert trainer.optimizer.masters.keys() == own.keys()
    assert all(trainer.optimizer.masters[name] is weight for name, weight in own.items())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != (name in own), name
        assert weight.grad is None and (name in own or not hasattr(weight, "gradient_hook"))


def test_a_training_state_holds_the_adapters_alone(tmp_path):
    """12 bytes per number of an adapter: master and two moments. Catches: a state of the size of the model."""
    trainer, model = policy_of()
    trainer.step()
    state, own = trainer.state_dict(), adapter_weights(model)
    assert state["optimizer"]["masters"].keys() == own.keys() and len(state["optimizer"]["state"]) == len(own)
    save_state(tmp_path, 1, state, keep=1)
    size, numbers = sum(path.stat().st_size for path in tmp_path.iterdir()), sum(w.numel() for w in own.values())
    assert numbers * 12 < size < numbers * 12 + 50_000


def test_training_goes_on_bit_equal_from_a_state():
    """Into adapters that were drawn otherwise. Catches: an A that comes from the seed and not from the state."""
    whole, model = policy_of(torch.bfloat16, kl_weight=0.1)
    for _ in range(2):
        whole.step()
    state = copy.deepcopy(whole.state_dict())
    resumed, other = policy_of(torch.bfloat16, kl_weight=0.1)
    resumed.load_state_dict(state)
    for _ in range(2):
        whole.step(), resumed.step()
    pairs = zip(model.parameters(), other.parameters())
    assert all(torch.equal(a, b) for a, b in pairs) and whole.last.metrics == resumed.last.metrics


@pytest.mark.parametrize("trained", [False, True])
def test_the_reference_of_the_kl_is_no_second_copy(trained):
    """Against a real copy of the model that training began with, over four steps: penalties, gradients, weights.

    Catches: a copy of the frozen weights; a reference whose adapters move with the policy's."""
    trainers = []
    for real in (False, True):
        model = with_lora(small_gpt(vocab_size=122), trained=trained)
        trainer = Trainer(model, toy_tokenizer(), EASY, TrainConfig(**RUN | dict(kl_weight=0.3, num_mini_batches=2)))
        if real:  # with fresh adapters, the base as it was loaded: not an adapter in it
            trainer.reference = copy.deepcopy(model) if trained else small_gpt(vocab_size=122)
        trainers.append(trainer)
    shared, policy = dict(trainers[0].reference.named_parameters()), dict(trainers[0].model.named_parameters())
    for name, weight in shared.items():
        assert (weight.data_ptr() == policy[name].data_ptr()) != (".lora_" in name), name
        assert not weight.requires_grad
    for _ in range(4):
        ours, theirs = (trainer.step().metrics for trainer in trainers)
        assert ours == theirs
    assert ours["kl_reference"] > 0
    pairs = zip(trainers[0].model.parameters(), trainers[1].model.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_adapters_the_reference_is_a_whole_copy():
    """Catches: a reference that shares the weights that train."""
    trainer = Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, TrainConfig(**RUN | dict(kl_weight=0.3)))
    places = {weight.data_ptr() for weight in trainer.model.parameters()}
    assert not places & {weight.data_ptr() for weight in trainer.reference.parameters()}


def test_blocks_with_adapters_compile_without_a_break(monkeypatch):
    """With gradient checkpointing. fullgraph refuses a break. Catches: what Dynamo cannot trace; adapters frozen at the first call; one compilation
    per layer."""
    torch._dynamo.reset()
    made, run = [], {}

    def backend(graph, example):
        made.append(graph)
        return graph.forward

    def compiled(function):
        return run.setdefault(function, torch.compile(function, dynamic=True, fullgraph=True, backend=backend))

    monkeypatch.setattr(model_module, "compiled", compiled)
    monkeypatch.setattr("minclipo.logprobs.compiled", compiled)
    (ours, model), (theirs, plain) = policy_of(kl_weight=0.1), policy_of(kl_weight=0.1)
    model.compiled = model.gradient_checkpointing = True
    for _ in range(2):
        ours.step(), theirs.step()
    torch._dynamo.reset()
    assert 2 <= len(made) <= 8
    for a, b in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_an_adapter_can_be_loaded_into_a_fresh_one():
    """Catches: A for B, a layer for another, a parameter replaced that the optimizer holds."""
    source, model = with_lora(small_gpt()), with_lora(small_gpt(), trained=False)
    before, tokens = adapter_weights(model), torch.arange(9)[None]
    optimizer = Float32AdamW(model, 1e-3, 0.0)
    load_adapter(model, adapter_weights(source))
    assert torch.equal(model(tokens), source(tokens))
    assert all(optimizer.masters[name] is before[name] is weight for name, weight in adapter_weights(model).items())
