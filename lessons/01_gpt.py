# %% [markdown]
# # 1. A GPT in one page
#
# **Question.** How does a model turn a line of words into a guess at the next word?
#
# You need Python and a little PyTorch. Here comes a whole language model of Llama's kind (Touvron et al. 2023, arXiv
# 2302.13971), as plain functions over a dict of weights, and a line that it learns by heart.
#
# Letters for shapes, here and later: B lines side by side, T words in a line, V words in the vocabulary, D numbers that
# stand for a word, H heads, C numbers of one head. (From lesson 3 on B counts prompts, and N lines.)

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from minclipo.model import GPT, GPTConfig, init_weights

from common import show, tidy

# %% [markdown]
# ## Words are numbers
#
# A model reads whole numbers, called tokens. Here a token is a word; real models cut text into pieces of words, and
# nothing else changes. The task: from the words so far, give every word of the vocabulary a probability of being next.

# %%
line = "the dog saw the cat and the cat saw the mouse".split()
vocabulary = list(dict.fromkeys(line))  # in order of appearance
V = len(vocabulary)
tokens = torch.tensor(
    [[vocabulary.index(word) for word in line]]
)  # [B, T + 1]: B = 1, T = 10 words have a next one
print(vocabulary, tokens.tolist())

followers = {
    word: [after for before, after in zip(line, line[1:]) if before == word]
    for word in vocabulary[:-1]
}
print(followers)
losses = [
    math.log(len(after) / after.count(word))
    for after in followers.values()
    for word in after
]
print(
    f"loss of a guesser who knows nothing {math.log(V):.3f}, of one who knows the last word {sum(losses) / 10:.3f}"
)

# %% [markdown]
# The *loss* of a guess is minus the logarithm of the probability that it gave to the word that came, in nats (natural
# logarithm). Six words, all equally likely: $\log 6$. Whoever sees only the last word can at best give its followers
# their shares: after "the", "cat" half of the time. To get below 0.555 a model must look further back.
#
# ## Which earlier words: attention
#
# Every place asks something (its *query* $q_t$), shows what it has (its *key* $k_t$) and gives something (its *value*
# $v_t$). How well a query fits a key is a score; a softmax makes weights of the scores, which sum to 1; and the place
# receives the weighted mean of the values (Vaswani et al. 2017, arXiv 1706.03762, eq. 1):
#
# $$
# y_t = \sum_{s \le t} a_{ts} v_s \qquad a_{ts} = \frac{e^{z_{ts}}}{\sum_{u \le t} e^{z_{tu}}} \qquad
# z_{ts} = \frac{q_t \cdot k_s}{\sqrt{C}}
# $$
#
# The sums end at $t$: the later words are what is to be guessed. By hand, three places with given scores:

# %%
scores = torch.tensor(
    [[0, 7, 7], [0, math.log(3), 7], [0, 0, math.log(2)]]
)  # [T, T]: row t asks, column s answers
visible = torch.ones(3, 3, dtype=torch.bool).tril()  # true where s <= t
attention = scores.masked_fill(~visible, -torch.inf).softmax(-1)
print(attention)
print(attention @ torch.tensor([8.0, 4.0, 0.0]))  # the values 8, 4, 0, mixed

# %% [markdown]
# Since $e^{-\infty}=0$, the high scores of 7 above the diagonal count for nothing. The last place weighs 1 : 1 : 2 and
# gets $(8+4+2\cdot 0)/4=3$. Why divide by $\sqrt{C}$? The dot product of two vectors of $C$ random numbers of size 1 is
# of size $\sqrt{C}$, and a softmax of large scores puts all weight on one place before anything is learned.
#
# ## Where a word stands: rotation
#
# Nothing in that sum changes if the earlier words change places. The remedy (RoFormer, Su et al. 2021, arXiv
# 2104.09864, section 3.2): take the numbers (*channels*) of queries and keys in pairs, and turn each pair like the hand
# of a clock, by an angle proportional to its position. Each of the $C/2$ pairs has its own speed, $\theta^{-2c/C}$
# radians a place for $c=0,1,\dots$, with $\theta=10000$: fast hands tell neighbours apart, slow ones far places.
# RoFormer pairs neighbours; Hugging Face's checkpoints, and so we, pair channel $c$ with channel $c+C/2$.


# %%
def rotate(x, positions, theta=10000.0):
    """Turn the channel pairs of x [..., T, C] to where their positions [T] ask for."""
    C = x.shape[-1]
    angles = positions[:, None] * theta ** (-torch.arange(0, C, 2) / C)  # [T, C / 2]
    a, b = x[..., : C // 2], x[..., C // 2 :]
    return torch.cat(
        [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1
    )


print(
    rotate(torch.tensor([[1.0, 0.0]] * 4), torch.arange(4))
)  # one pair: one radian, 57 degrees, a place

q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))  # [1, C] each
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
styles = (
    dict(color="#CCCCCC", linewidth=8),
    dict(color="black"),
    dict(color="black", linestyle="", marker="o"),
)
for start, style in zip((0, 50, 500), styles):
    places = start + torch.arange(60)
    axis.plot(
        rotate(q.expand(60, 16), places) @ rotate(k, places[:1])[0],
        label=f"key at {start}",
        **style,
    )
tidy(
    axis,
    "distance from key to query, in places",
    "dot product",
    "Only the distance counts",
)
axis.set_ylim(top=7.5)
axis.legend(frameon=False, ncols=3, loc="upper center")
show(
    figure,
    "01_rotation",
    "One query and one key at growing distance, in three places: three curves, one line",
)

# %% [markdown]
# Two hands of one speed, two places apart, stand at the same angle wherever they are. So do all pairs of a query and a
# key: the three curves are one.
#
# ## The page
#
# Two more parts. RMSNorm brings a vector to root mean square 1 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4; $g$ is
# learned; $\odot$, like $g x$, multiplies number by number). A gated MLP computes at each place by itself (Shazeer
# 2020, arXiv 2002.05202, eq. 6; $\mathrm{silu}(z) = z/(1+e^{-z})$):
#
# $$
# \mathrm{norm}(x) = \frac{g x}{\sqrt{\mathrm{mean}(x^2) + 10^{-5}}} \qquad
# \mathrm{mlp}(x) = W_{\mathrm{down}} (\mathrm{silu}(W_{\mathrm{gate}} x) \odot W_{\mathrm{up}} x)
# $$
#
# Nothing overwrites $x$: attention and MLP read a normalised copy and *add* what they found. An attention and an MLP
# make a *layer*, and layers follow one another; what runs through all of them is called the residual stream. A *head*
# is one attention by the formula above, on $C$ channels of its own; several work side by side. The weights have the
# names that published checkpoints (files of trained weights) use.


# %%
def rms_norm(x, g):
    return g * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def forward(w, tokens, *, layers=2, heads=2, positions=None, visible=None):
    """(hidden states [B, T, D], attention weights of each layer [B, H, T, T]) of tokens [B, T]."""
    T, maps = tokens.shape[1], []
    positions = torch.arange(T) if positions is None else positions
    visible = torch.ones(T, T, dtype=torch.bool).tril() if visible is None else visible
    x = w["embed_tokens.weight"][
        tokens
    ]  # [B, T, D], the residual stream: at first each word's row of a table
    for n in range(layers):
        linear = lambda name, x: x @ w[f"layers.{n}.{name}.weight"].T
        y = rms_norm(x, w[f"layers.{n}.input_layernorm.weight"])
        q, k, v = (linear(f"self_attn.{name}_proj", y) for name in "qkv")  # [B, T, H * C]
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)
        )  # [B, H, T, C]
        scores = (
            rotate(q, positions) @ rotate(k, positions).mT / q.shape[-1] ** 0.5
        )  # [B, H, T, T]
        maps.append(scores.masked_fill(~visible, -torch.inf).softmax(-1))
        x = x + linear(
            "self_attn.o_proj", (maps[-1] @ v).transpose(1, 2).flatten(2)
        )  # [B, T, D]
        y = rms_norm(x, w[f"layers.{n}.post_attention_layernorm.weight"])
        x = x + linear(
            "mlp.down_proj", F.silu(linear("mlp.gate_proj", y)) * linear("mlp.up_proj", y)
        )
    return rms_norm(x, w["norm.weight"]), maps


def logits(w, hidden):
    return hidden @ w["embed_tokens.weight"].T  # [..., V]


# %% [markdown]
# The hidden state of a place says, in D numbers, what may come next. Its dot product with a word's row of the table is
# that word's *logit*, and a softmax makes probabilities of logits. So one table is input and output ("tied"). All T
# guesses come out of one pass: place $t$ guesses word $t+1$.

# %%
generator = torch.Generator().manual_seed(0)
shapes = {f"self_attn.{name}_proj": (32, 32) for name in "qkvo"}  # D = 32
shapes |= {"mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}
fresh = {
    "embed_tokens.weight": 0.05 * torch.randn(V, 32, generator=generator),
    "norm.weight": torch.ones(32),
}
for n in range(2):
    for name, shape in shapes.items():
        fresh[f"layers.{n}.{name}.weight"] = (
            torch.randn(shape, generator=generator) / (3 * shape[1]) ** 0.5
        )
    fresh |= {
        f"layers.{n}.{name}_layernorm.weight": torch.ones(32)
        for name in ("input", "post_attention")
    }


def loss_of(w, **options):
    hidden, _ = forward(w, tokens[:, :-1], **options)
    return F.cross_entropy(logits(w, hidden)[0], tokens[0, 1:])


print(
    f"{sum(x.numel() for x in fresh.values())} weights: first loss {loss_of(fresh):.2f}; log V is {math.log(V):.2f}"
)
loud = fresh | {"embed_tokens.weight": 20 * fresh["embed_tokens.weight"]}
same_again = logits(loud, forward(loud, tokens)[0]).argmax(-1) == tokens
print(
    f"a table 20 times as large: first loss {loss_of(loud):.2f}; guesses the same word again: {same_again.all()}"
)

# %% [markdown]
# > **You should know.** The first loss is a test for free: an untrained model knows nothing, so it must start near
# > $\log V$. Far above, something is wrong. Here it is the table: where its numbers are large, the residual stream
# > remains almost the word's own row, the output compares it with the same rows, and the model is sure that each word
# > comes twice.
#
# ## One line, learned by heart
#
# Autograd gives the gradient of the loss, an optimizer (AdamW) steps against it. Twice from the same start: once as
# above, once with a mask that lets every place see only itself.


# %%
def learn(**options):
    """(weights, last loss) after learning the line."""
    w = {name: x.clone().requires_grad_() for name, x in fresh.items()}
    optimizer = torch.optim.AdamW(w.values(), lr=0.01)
    for _ in range(150):
        loss = loss_of(w, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: x.detach() for name, x in w.items()}, loss.item()


w, loss = learn()
_, short_sighted = learn(visible=torch.eye(10, dtype=torch.bool))
print(f"last loss {loss:.2f}; where every place sees only itself {short_sighted:.2f}")
written = tokens[:, :1]  # the first word; then ten times the likeliest next one
for _ in range(10):
    written = torch.cat(
        [written, logits(w, forward(w, written)[0][:, -1:]).argmax(-1)], 1
    )
print(" ".join(vocabulary[i] for i in written[0]))

# %% [markdown]
# Without a look back the same network ends where counting said that it must. With it the loss goes to 0, and the line
# comes back from its first word. Whom do the places look at?

# %%
usual, maps = forward(w, tokens)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.9), layout="constrained", sharey=True)
for i, axis in enumerate(axes):
    axis.imshow(maps[i // 2][0, i % 2, :10, :10], cmap="Greys", vmin=0, vmax=1)
    axis.set_xticks(range(10), line[:10], rotation=90, fontsize=9)
    axis.set_yticks(range(10), line[:10], fontsize=9)
    axis.set_title(f"layer {i // 2 + 1}, head {i % 2 + 1}", fontsize=10)
    axis.set_xlabel("looks at")
axes[0].set_ylabel("place that looks")
show(figure, "01_attention", "Attention weights after learning; black: all of the weight")

# %% [markdown]
# Nothing lies above the diagonal, and rows sum to 1, so the first word can only look at itself. Compare the four rows
# of "the" in layer 2, head 1: the first sees itself and says "dog"; the next two look back at "dog" and say "cat"; the
# last looks at the first "cat" and says "mouse". Nobody told it to. But read such maps with care: in layer 2 a column
# is no longer its word, it is what layer 1 has made of it.
#
# ## What changes nothing
#
# The positions are used in `rotate` alone, and there only distances matter. And what stands to the right of a word
# cannot reach it.

# %%
alike = lambda found: torch.allclose(found, usual, atol=1e-3)
places = torch.arange(11)
print(
    "all places moved by 100: same hidden states?",
    alike(forward(w, tokens, positions=places + 100)[0]),
)
print(
    "all places twice as far apart: same?",
    alike(forward(w, tokens, positions=places * 2)[0]),
)
longer = torch.cat(
    [tokens, torch.zeros(1, 5, dtype=torch.long)], 1
)  # five more words behind, "the" each
print("words added on the right: same?", alike(forward(w, longer)[0][:, :11]))

# %% [markdown]
# > **You should know.** Lines of different lengths share a batch without a padding mask: pad them on the *right*, with
# > anything, and read only what belongs to the line. Padding on the left needs a mask.
#
# ## The same in minclipo
#
# `minclipo/model.py` is this page as modules, and its state dict is our dict, name by name. They agree, here at another
# size:

# %%
model = GPT(
    GPTConfig(
        50,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=80,
    )
)
init_weights(model, generator)
text = torch.randint(50, (5, 20), generator=generator)  # [B, T]
hidden, _ = forward(model.state_dict(), text, layers=3, heads=4)
assert torch.allclose(model(text), hidden, atol=1e-4)
assert torch.allclose(
    model.logits(model(text)), logits(model.state_dict(), hidden), atol=1e-4
)
print("they agree")
print(
    f"logits of 16 lines of 1024 words, V = 151936, in float32: {16 * 1024 * 151936 * 4 / 2**30:.1f} GiB"
)

# %% [markdown]
# There, too, logits are a call of their own: with a vocabulary like Qwen2.5's they take gigabytes, and whoever writes
# needs those of the last place alone. This page leaves out some options: several query heads may share a key and value
# head (`num_kv_heads`; Ainslie et al. 2023, arXiv 2305.13245), queries and keys may be normalised (`qk_norm`), their
# projections may have a bias (`qkv_bias`).
#
# **Exercise.** `python lessons/exercises/01_gpt.py`: norm, rotation and attention as real checkpoints need them: in
# half precision, with rows at different positions, with shared heads.
#
# **What to try next.** Take both `rotate` out of `forward`: it learns the line all the same, a little later, for the
# mask tells places apart too: the first sees one word, the second two. Now even places twice as far apart change
# nothing (and the first assertion below fails, since minclipo still rotates). Move the places by `10**8` instead of
# 100: float32 has run out of digits. Then read `minclipo/model.py`. Lesson 2 draws words instead of taking the
# likeliest.
