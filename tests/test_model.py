"""The model against transformers' numbers, against a slow loop, and against itself with a cache."""

import math

import pytest
import torch
from conftest import FIXTURES, small_gpt
from safetensors.torch import load_file

from minclipo.checkpoint import load_model, read_json
from minclipo.model import GPT, GPTConfig, KVCache, RopeScaling, rotary_frequencies, rotate
from minclipo.pretrain import solution_loss
from minclipo.sampler import completion_hidden, completion_logprobs, mean_pool, pad_right, sample

CHECKPOINTS = sorted(path.name for path in (FIXTURES / "parity").iterdir())
CLOSE = dict(atol=3e-5, rtol=1e-5)  # separates a right model from one with another norm_eps; see the fixtures' README


def load(name: str):
    folder = FIXTURES / "parity" / name
    model, _ = load_model(folder)
    return model.float(), load_file(folder / "reference.safetensors"), read_json(folder / "reference.json")


def ragged_completions(reference: dict) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    """The reference's left-padded prompts as lists, and its completions with their mask."""
    pairs = zip(reference["completion.prompt_ids"], reference["completion.prompt_mask"].bool())
    return [ids[mask].tolist() for ids, mask in pairs], reference["completion.ids"], reference["completion.mask"].bool()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_hidden_states_equal_transformers(name):
    """Catches: wrong rotary pairing or scaling, norm epsilon, head grouping, bias, q/k norm, tied head."""
    model, reference, _ = load(name)
    mask = reference["right.attention_mask"].bool()
    hidden = model(reference["right.input_ids"])
    torch.testing.assert_close(hidden[mask], reference["right.hidden"][mask], **CLOSE)
    torch.testing.assert_close(model.logits(hidden)[mask], reference["right.logits"][mask], **CLOSE)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_completion_logprobs_equal_transformers(name):
    """Catches: completions read one place off, temperature left out, padding counted, pooling over the prompt."""
    model, reference, _ = load(name)
    prompts, completions, mask = ragged_completions(reference)
    logprobs, entropy = completion_logprobs(model, prompts, completions, mask)
    torch.testing.assert_close(logprobs, reference["completion.logps"], **CLOSE)
    torch.testing.assert_close(entropy, reference["completion.entropy"], **CLOSE)
    cooler, _ = completion_logprobs(model, prompts, completions, mask, temperature=0.7)
    torch.testing.assert_close(cooler, reference["completion.logps_temperature_0.7"], **CLOSE)
    _, own = completion_hidden(model, prompts, completions, mask)
    torch.testing.assert_close(mean_pool(own, mask), reference["completion.mean_hidden"], **CLOSE)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("with_eos", [False, True])
def test_greedy_tokens_equal_transformers(name, with_eos):
    """Catches: ragged prompts that see each other's padding, cache slots off by one, eos not ending a row."""
    model, reference, notes = load(name)
    eos_ids = notes["greedy_eos_token_id"]
    eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    expected = reference["greedy.new_ids_with_eos" if with_eos else "greedy.new_ids"]
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(reference["greedy.prompt_ids"], reference["greedy.prompt_mask"])
    ]
    rollouts = sample(model, prompts, 1, 20, temperature=0, eos_ids=eos_ids if with_eos else [])
    for row, mask, wanted in zip(rollouts.completions, rollouts.mask, expected):
        ids = row[mask].tolist()
        assert ids == wanted[: len(ids)].tolist()
        assert len(ids) == 20 or ids[-1] in eos_ids


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_gradient_norms_equal_transformers(name):
    """Catches: a detached branch, a weight used twice or not at all: the forward pass would not tell."""
    model, reference, notes = load(name)
    ids, mask = reference["right.input_ids"], reference["right.attention_mask"]
    rows = [row[: int(n)].tolist() for row, n in zip(ids, mask.sum(1))]
    loss = solution_loss(model, [row[:1] for row in rows], [row[1:] for row in rows])  # all tokens but the first
    assert loss.item() == pytest.approx(notes["mean_token_nll"], rel=1e-5)
    loss.backward()
    ours = {
        name if name.startswith("lm_head") else f"model.{name}": p.grad.norm().item()
        for name, p in model.named_parameters()
    }
    assert ours == pytest.approx(notes["grad_norms"], rel=1e-4)


@torch.no_grad()
def test_attention_equals_a_slow_loop():
    """Catches: a query that sees its future, a query head that reads the wrong key/value head."""
    model = small_gpt()
    attention, config = model.layers[0].self_attn, model.config
    x = torch.randn(1, 5, config.hidden_size)
    angles = torch.arange(5)[:, None] * rotary_frequencies(config)
    cos, sin = angles.cos()[None, None], angles.sin()[None, None]
    got = attention(x, cos, sin, None, None)

    shape = lambda y: y.view(1, 5, -1, config.head_dim).transpose(1, 2)
    q, k = rotate(shape(attention.q_proj(x)), cos, sin)[0], rotate(shape(attention.k_proj(x)), cos, sin)[0]
    v = shape(attention.v_proj(x))[0]
    wanted = torch.zeros(5, config.num_heads, config.head_dim)
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)
        for t in range(5):
            scores = torch.tensor([float(q[head, t] @ k[shared, s]) for s in range(t + 1)]) / math.sqrt(config.head_dim)
            wanted[t, head] = sum(p * v[shared, s] for s, p in enumerate(scores.softmax(0)))
    torch.testing.assert_close(got[0], attention.o_proj(wanted.flatten(1)), atol=1e-6, rtol=1e-5)


def test_rotation_depends_on_the_distance_only():
    """Catches: cos and sin exchanged, or applied to neighbours on one side and halves on the other."""
    config = small_gpt().config
    frequencies = rotary_frequencies(config)
    q, k = torch.randn(2, 1, 1, 1, config.head_dim)
    turn = lambda x, p: rotate(x, (p * frequencies).cos(), (p * frequencies).sin())
    near = (turn(q, 3) * turn(k, 1)).sum()
    far = (turn(q, 45) * turn(k, 43)).sum()
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)


def test_linear_rope_scaling_stretches_positions():
    """Catches: multiplying where dividing is meant. Position 8 with factor 4 must look like position 2 without."""
    plain = GPTConfig(8, 16, 1, 2, 2, 8)
    stretched = GPTConfig(8, 16, 1, 2, 2, 8, rope_scaling=RopeScaling("linear", factor=4.0))
    torch.testing.assert_close(8 * rotary_frequencies(stretched), 2 * rotary_frequencies(plain))


@pytest.mark.parametrize(
    "changes", [{}, dict(qkv_bias=True), dict(qk_norm=True, head_dim=6), dict(tie_embeddings=False)]
)
def test_cached_ragged_decoding_equals_the_full_forward(changes):
    """Catches: padding that leaks into a shorter row, positions counted from the padded end, stale cache slots."""
    model = small_gpt(**changes)
    rows = [torch.randint(0, 31, (n,)).tolist() for n in (3, 7, 5)]
    more = torch.randint(0, 31, (3, 4))
    tokens, lengths = pad_right(rows)
    cache = KVCache(model.config, 3, 7 + 4)
    model(tokens, cache, lengths)
    steps = torch.cat([model(more[:, :1], cache), model(more[:, 1:], cache)], dim=1)  # one token, then three at once
    for i, row in enumerate(rows):
        full = model(torch.tensor([row + more[i].tolist()]))
        torch.testing.assert_close(steps[i], full[0, len(row) :], atol=1e-5, rtol=1e-5)


def test_the_future_does_not_matter():
    """Catches: a causal mask that is off by one."""
    model, tokens = small_gpt(), torch.randint(0, 31, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 31
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])


def test_a_full_cache_says_so():
    model = small_gpt()
    cache = KVCache(model.config, 1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row: no room for 2 more after 3"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
        model(torch.zeros(1, 2, dtype=torch.long), cache)


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(num_heads=3, num_kv_heads=3), "head_dim"),
        (dict(num_kv_heads=3), "num_kv_heads"),
        (dict(head_dim=5), "head_dim"),
        (dict(rope_scaling=RopeScaling("yarn", 2.0)), "yarn"),
    ],
)
def test_impossible_configurations_are_refused(changes, names):
    with pytest.raises(ValueError, match=names):
        GPT(
            GPTConfig(
                **dict(vocab_size=8, hidden_size=16, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=8)
                | changes
            )
        )
