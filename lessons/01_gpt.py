# %% [markdown]
# # 1. A GPT in one page
#
# **Question.** How does a model turn a line of words into a guess at the next word?
#
# You need a little PyTorch. A model of Llama's kind (arXiv 2302.13971) in plain
# functions learns one line by heart.
#
# **If you know a GPT, skip to lesson 3.** Later lessons use the hidden state, the loss,
# and padding on the right.
#
# Sizes: N lines, T words in a line, V words in the vocabulary, D numbers per word, H
# heads, C numbers per head.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import show, tidy

from minclipo.model import GPT, GPTConfig, init_weights

# %% [markdown]
# ## Words are numbers
#
# A model reads whole numbers, called *tokens*. Here a token is a word, elsewhere a piece
# of one.

# %%
line = "the dog saw the cat and the cat saw the mouse".split()
vocabulary = list(dict.fromkeys(line))  # in order of appearance
V = len(vocabulary)
tokens = torch.tensor([[vocabulary.index(word) for word in line]])  # [N, T + 1], N = 1
print(vocabulary, tokens.tolist())

followers = {}  # of each word: the words that come after it
for word, after in zip(line, line[1:]):
    followers.setdefault(word, []).append(after)
print(followers)

counted = 0.0
for word, after in zip(line, line[1:]):
    counted -= math.log(followers[word].count(after) / len(followers[word]))
print(f"loss of a guesser who knows nothing: {math.log(V):.3f}")
print(f"loss of a guesser who knows the last word: {counted / 10:.3f}")

# %% [markdown]
# The *loss* of a guess is minus the logarithm of the probability that it gave to the
# word that came, in *nats* (natural logarithm). Whoever knows nothing pays $\log 6$.
# Whoever sees the last word can give its followers their shares. To get below 0.555, a
# model must look further back.
#
# ## Which earlier words: attention
#
# Learned matrices turn each place's vector into three others. The place asks with a
# *query*, answers with a *key* and gives a *value*. The dot product of its query with a
# key is a score. A softmax turns the scores of a place into weights, and the place
# receives the weighted mean of the values (arXiv 1706.03762):
#
# $$
# \mathrm{softmax}\big(\mathrm{query} \cdot \mathrm{key}^\top / \sqrt{C}\big)
# \cdot \mathrm{value}
# $$
#
# Later places are what is to be guessed, so their scores become $-\infty$. By hand:

# %%
scores = torch.tensor(
    [[0, 7, 7], [0, math.log(3), 7], [0, 0, math.log(2)]]
)  # [T, T]: row: the place that asks, column: the place that answers
visible = torch.ones(3, 3, dtype=torch.bool).tril()  # the place itself and earlier ones
attention = scores.masked_fill(~visible, -torch.inf).softmax(-1)
print(attention)
print(attention @ torch.tensor([8.0, 4.0, 0.0]))  # the values 8, 4, 0, mixed

# %% [markdown]
# The scores of 7 count for nothing. The last place weighs 1 : 1 : 2 and receives
# $(8+4+2\cdot 0)/4=3$. Long vectors have large dot products, which without $\sqrt{C}$
# would put nearly all weight on one place.
#
# ## Where a word stands: rotation
#
# In this formula the order of the earlier words does not matter. RoFormer (arXiv
# 2104.09864) turns queries and keys, two numbers (*channels*) at a time. Each pair turns
# like the hand of a clock, at its own speed, by an angle proportional to the position.


# %%
def rotate(channels, positions, theta=10000.0):
    """Turn the pairs of channels [..., T, C] to where their positions [T] ask for."""
    C = channels.shape[-1]
    angles = positions[:, None] * theta ** (-torch.arange(0, C, 2) / C)  # [T, C / 2]
    cos, sin = angles.cos(), angles.sin()
    first, second = channels.split(C // 2, -1)  # paired as in Hugging Face's files
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


one_pair = torch.tensor([[1.0, 0.0]] * 4)  # [T, C]
print(rotate(one_pair, torch.arange(4)))  # one radian, 57 degrees, per place

query, key = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))  # [1, C]
curves = []
for start in (0, 50, 500):  # one key at the start, the query at 60 places from there on
    places = start + torch.arange(60)
    turned = rotate(query.expand(60, 16), places) @ rotate(key, places[:1])[0]  # [60]
    curves.append(turned)
    print(f"key at {start:3}, query 0, 1, 2 places later:", turned[:3])

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
styles = (
    dict(color="#CCCCCC", linewidth=8),
    dict(color="black"),
    dict(color="black", linestyle="", marker="o"),
)
for start, curve, style in zip((0, 50, 500), curves, styles):
    axis.plot(curve, label=f"key at {start}", **style)
tidy(axis, "distance from key to query, in places", "dot product")
axis.set_ylim(top=7.5)
axis.legend(frameon=False, ncols=3, loc="upper center")
show(
    figure,
    "01_rotation",
    "One query at growing distance from one key, which stands at place 0 (grey band), 50"
    " (line) or 500 (dots). The three curves are one: only the distance counts.",
)

# %% [markdown]
# A query and a key that move together turn by the same angle, and their dot product
# stays.
#
# ## The page
#
# Each word has a row of D numbers in a table, its *embedding*. Two more parts work place
# by place. *RMSNorm* (arXiv 1910.07467) brings a vector to a fixed size, and a *gated
# MLP* (arXiv 2002.05202) is a small network of its own. Attention and MLP read a
# normalised copy of a place's vector $u$ and *add* what they found. One of each makes a
# *layer*. A *head* is one attention on channels of its own.


# %%
def rms_norm(u, gain):
    return gain * u / (u.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def forward(weights, tokens, *, layers=2, heads=2, positions=None, visible=None):
    """(hidden states [N, T, D], each layer's attention [N, H, T, T]) of tokens [N, T]."""
    T, maps = tokens.shape[1], []
    positions = torch.arange(T) if positions is None else positions
    visible = torch.ones(T, T, dtype=torch.bool).tril() if visible is None else visible
    u = weights["embed_tokens.weight"][tokens]  # [N, T, D], to which all is added
    for layer in range(layers):
        linear = lambda name, u: u @ weights[f"layers.{layer}.{name}.weight"].T
        gain = lambda name: weights[f"layers.{layer}.{name}_layernorm.weight"]
        split = lambda u: u.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, H, T, C]
        copy = rms_norm(u, gain("input"))
        query, key, value = (
            split(linear(f"self_attn.{name}_proj", copy)) for name in "qkv"
        )
        scores = rotate(query, positions) @ rotate(key, positions).mT  # [N, H, T, T]
        scores = scores / query.shape[-1] ** 0.5
        maps.append(scores.masked_fill(~visible, -torch.inf).softmax(-1))
        mixed = (maps[-1] @ value).transpose(1, 2).flatten(2)  # [N, T, D], heads joined
        u = u + linear("self_attn.o_proj", mixed)
        copy = rms_norm(u, gain("post_attention"))
        gate = F.silu(linear("mlp.gate_proj", copy))  # silu(x) = x / (1 + exp(-x))
        u = u + linear("mlp.down_proj", gate * linear("mlp.up_proj", copy))
    return rms_norm(u, weights["norm.weight"]), maps


def logits(weights, hidden):
    return hidden @ weights["embed_tokens.weight"].T  # [..., V]


# %% [markdown]
# What comes out is each place's *hidden state*. Its dot product with a word's embedding
# is the word's *logit*, and a softmax turns logits into probabilities. Place $t$ guesses
# word $t+1$.
#
# Now two untrained models. In the second, all numbers of the embedding table are 20 times
# as large.

# %%
generator = torch.Generator().manual_seed(0)
shapes = {f"self_attn.{name}_proj": (32, 32) for name in "qkvo"}  # D = 32
shapes |= {"mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}
random = lambda *shape: torch.randn(*shape, generator=generator)
fresh = {"embed_tokens.weight": 0.05 * random(V, 32), "norm.weight": torch.ones(32)}
for layer in range(2):
    for name, (rows, columns) in shapes.items():
        matrix = random(rows, columns) / (3 * columns) ** 0.5
        fresh[f"layers.{layer}.{name}.weight"] = matrix
    for name in ("input", "post_attention"):
        fresh[f"layers.{layer}.{name}_layernorm.weight"] = torch.ones(32)


def loss_of(weights, **options):
    hidden, _ = forward(weights, tokens[:, :-1], **options)
    return F.cross_entropy(logits(weights, hidden)[0], tokens[0, 1:])


count = sum(matrix.numel() for matrix in fresh.values())
print(f"{count} weights: first loss {loss_of(fresh):.2f}; log V is {math.log(V):.2f}")
loud = fresh | {"embed_tokens.weight": 20 * fresh["embed_tokens.weight"]}
guesses = logits(loud, forward(loud, tokens)[0]).argmax(-1)  # [N, T + 1]
print(f"embeddings 20 times as large: first loss {loss_of(loud):.2f}")

# %% [markdown]
# <details><summary><b>Guess first.</b> What does the second take for the next
# word?</summary>
#
# The same word again. What the layers add is small beside such an embedding, so a place's
# vector is still almost its own word's, and the output compares it with the same table.
#
# </details>

# %%
print(f"it guesses the same word again: {(guesses == tokens).all()}")

# %% [markdown]
# > **You should know.** The first loss is a test for free. An untrained model knows
# > nothing, so its loss must be near $\log V$.
#
# ## One line, learned by heart
#
# An optimizer (AdamW) steps against the loss's gradient. Three models start alike. In
# the second every place sees only itself. In the third all words stand at position 0.
#
# <details><summary><b>Guess first.</b> Where does each loss end?</summary>
#
# At 0, at the counted 0.555, and at 0. The third needs no positions: its mask shows the
# first place one word, the second place two.
#
# </details>


# %%
def learn(**options):
    """(weights, last loss) after learning the line."""
    weights = {name: matrix.clone().requires_grad_() for name, matrix in fresh.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.01)
    for _ in range(150):
        loss = loss_of(weights, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: matrix.detach() for name, matrix in weights.items()}, loss.item()


weights, loss = learn()
_, short_sighted = learn(visible=torch.eye(10, dtype=torch.bool))
_, unturned = learn(positions=torch.zeros(10))
print(f"last loss {loss:.2f}")
print(f"where every place sees only itself: {short_sighted:.3f}")
print(f"where all words stand at position 0: {unturned:.2f}")

written = tokens[:, :1]  # the first word; then ten times the likeliest next one
for _ in range(10):
    following = logits(weights, forward(weights, written)[0][:, -1:]).argmax(-1)  # [N, 1]
    written = torch.cat([written, following], 1)
print(" ".join(vocabulary[i] for i in written[0]))

# %% [markdown]
# Where does the first model look?

# %%
usual, maps = forward(weights, tokens)
for t in (0, 3, 6, 9):  # the four places of "the"; layer 2, head 1
    most = int(maps[1][0, 0, t].argmax())
    print(f"place {t}, next {line[t + 1]!r}: looks most at place {most}, {line[most]!r}")

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 4, figsize=(8, 2.7), layout="constrained", sharey=True)
for i, axis in enumerate(axes):
    axis.imshow(maps[i // 2][0, i % 2, :10, :10], cmap="Greys", vmin=0, vmax=1)
    axis.set_xticks(range(10), line[:10], rotation=90, fontsize=9)
    axis.set_yticks(range(10), line[:10], fontsize=9)
    axis.set_title(f"layer {i // 2 + 1}, head {i % 2 + 1}", fontsize=10)
    axis.set_xlabel("looks at")
axes[0].set_ylabel("place that looks")
show(
    figure,
    "01_attention",
    "Attention weights after learning. Each row is a place and sums to 1; white is 0,"
    " black is 1. Nothing lies above the diagonal, since no place sees a later one.",
)

# %% [markdown]
# Read such maps with care: layer 2 looks at what layer 1 has made of a word.
#
# ## What changes nothing
#
# <details><summary><b>Guess first.</b> Move all places by 100 or by 100 million, put
# them twice as far apart, add words on the right. What changes the hidden
# states?</summary>
#
# The second and the third. Only distances count, but near 100 million float32 gives
# neighbours the same position.
#
# </details>

# %%
places = torch.arange(11)
positions = {
    "all places moved by 100": places + 100,
    "all places moved by 100 million": places + 10**8,
    "all places twice as far apart": places * 2,
}
found = {name: forward(weights, tokens, positions=p)[0] for name, p in positions.items()}
longer = torch.cat([tokens, torch.zeros(1, 5, dtype=torch.long)], 1)  # "the", five times
found["five words added on the right"] = forward(weights, longer)[0][:, :11]
for name, hidden in found.items():
    print(f"{name}: same hidden states? {torch.allclose(hidden, usual, atol=1e-3)}")

# %% [markdown]
# > **You should know.** Lines of different lengths share a batch without a padding mask.
# > Pad them on the *right*, and read only what belongs to the line.
#
# ## The same in minclipo
#
# `minclipo/model.py` is this page as modules:

# %%
config = GPTConfig(
    50, hidden_size=48, num_layers=3, num_heads=4, num_kv_heads=4, intermediate_size=80
)
model = GPT(config)
init_weights(model, generator)
text = torch.randint(50, (5, 20), generator=generator)  # [N, T]
ours = model.state_dict()
hidden, _ = forward(ours, text, layers=3, heads=4)
assert torch.allclose(model(text), hidden, atol=1e-4)
assert torch.allclose(model.logits(model(text)), logits(ours, hidden), atol=1e-4)
print("they agree")

# %% [markdown]
# In `minclipo` several query heads may share a key and value head, which saves memory
# (*grouped-query attention*, arXiv 2305.13245).
#
# **Now you know.**
#
# * Attention and MLPs add to an embedding until it says what comes next.
# * Attention averages values of earlier places; rotation shows it distances.
# * An untrained model's loss is near $\log V$. Words on the right change nothing.
#
# **Exercise.** About 40 minutes, medium. `python lessons/exercises/01_gpt.py`: norm,
# rotation and attention for real checkpoints.
#
# <details><summary>A hint for <code>causal_attention</code></summary>
#
# Query $t$ stands at place S - T + $t$.
#
# </details>
#
# **What to try next.** Compute the angles in float64: do 100 million still matter? Then
# read `minclipo/model.py`.
