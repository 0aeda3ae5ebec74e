"""The model against a slow loop, and against itself with a cache. Against transformers: test_parity.py."""

import math

import pytest
import torch
from conftest import small_gpt

from minclipo.checkpoint.rope import Linear
from minclipo.model import GPT, Causal, GPTConfig, rotary_frequencies, rotate
from minclipo.sampler import KVCache, pad_right


@torch.no_grad()
def test_attention_equals_a_slow_loop():
    """Catches: a query that sees its future, a query head that reads the wrong key/value head."""
    model = small_gpt()
    attention, config = model.layers[0].self_attn, model.config
    x = torch.randn(1, 5, config.hidden_size)
    angles = torch.arange(5)[:, None] * rotary_frequencies(config)
    cos, sin = angles.cos()[None, None], angles.sin()[None, None]
    got = attention(x, cos, sin, Causal())

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
    stretched = GPTConfig(8, 16, 1, 2, 2, 8, rope_scaling=Linear(factor=4.0))
    torch.testing.assert_close(8 * rotary_frequencies(stretched), 2 * rotary_frequencies(plain))


@pytest.mark.parametrize(
    "changes",
    [{}, dict(qkv_bias=True), dict(qk_norm=True, head_dim=6), dict(tie_embeddings=False), dict(unrotated_layers=(1,))],
)
def test_cached_ragged_decoding_equals_the_full_forward(changes):
    """Catches: padding that leaks into a shorter row, positions counted from the padded end, stale cache slots."""
    model = small_gpt(**changes)
    rows = [torch.randint(0, 31, (n,)).tolist() for n in (3, 7, 5)]
    more = torch.randint(0, 31, (3, 4))
    tokens, lengths = pad_right(rows)
    cache = KVCache(model.config, 3, 7 + 4)
    model(tokens, cache)
    cache.lengths = lengths
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


@pytest.mark.parametrize("rotated", [False, True])
def test_a_layer_that_does_not_rotate_sees_no_positions(rotated):
    """To the last token of one such layer, the others are a set. Catches: a rotation by angle 0 that is none."""
    model = small_gpt(num_layers=1, unrotated_layers=() if rotated else (0,))
    forwards, backwards = torch.tensor([[1, 2, 3, 4, 5, 9]]), torch.tensor([[5, 4, 3, 2, 1, 9]])
    assert torch.allclose(model(forwards)[0, -1], model(backwards)[0, -1], atol=1e-5) is not rotated


def test_a_full_cache_says_so():
    model = small_gpt()
    cache = KVCache(model.config, 1, 4)
    with pytest.raises(AssertionError, match="no room for 2 more tokens"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
        model(torch.zeros(1, 2, dtype=torch.long), cache)


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(num_heads=3, num_kv_heads=3), "head_dim"),
        (dict(num_kv_heads=3), "num_kv_heads"),
        (dict(head_dim=5), "head_dim"),
    ],
)
def test_impossible_configurations_are_refused(changes, names):
    """Catches: a rotation of half a pair. (config.json: test_checkpoint.py.)"""
    shape = dict(vocab_size=8, hidden_size=16, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=8)
    with pytest.raises(AssertionError, match=names):
        GPT(GPTConfig(**shape | changes))(torch.zeros(1, 1, dtype=torch.long))
