# %% [markdown]
# # 2. Sampling and the KV cache
#
# **Question.** How does a model write, and why is the naive way so slow?
#
# You need lesson 1. Here come: how a word is drawn, which log-prob (logarithm of its probability) belongs to the draw,
# where a completion ends, and a cache that computes every word once.

# %%
import matplotlib.pyplot as plt
import torch
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.sampler import KVCache, sample, sampling_logprobs
from minclipo.toy import solution_loss

from common import show, tidy

# %% [markdown]
# ## From logits to one word
#
# A model gives five words the probabilities below. Three knobs change them, in this order. The *temperature* divides
# the logits $z_i$ before the softmax: below 1 the likely gets likelier, above 1 all become more alike.
#
# $$p_i \propto e^{z_i / \mathrm{temperature}}$$
#
# *Top-k* keeps the k likeliest (Fan et al. 2018, arXiv 1805.04833). *Top-p* keeps the smallest set of likeliest words
# whose probability reaches p (Holtzman et al. 2020, arXiv 1904.09751, section 3.1): the word that crosses p still
# belongs to it.

# %%
words = ["mat", "rug", "sofa", "floor", "moon"]
logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()  # [V]


def distribution(logits, temperature, top_k=None, top_p=None):
    """Log-probs [V] to draw from; -inf for what is cut."""
    logits = logits / temperature
    kept = logits.argsort(descending=True)[:top_k]
    if top_p is not None:
        shares = logits[kept].softmax(0)
        kept = kept[
            shares.cumsum(0) - shares < top_p
        ]  # as long as those before it do not reach top_p
    return torch.full_like(logits, -torch.inf).scatter(
        0, kept, logits[kept].log_softmax(0)
    )


knobs = {"temperature 1": (1.0,), "temperature 0.5": (0.5,), "... then top-k 3": (0.5, 3)}
knobs |= {
    "... then top-p 0.9": (0.5, 3, 0.9),
    "temperature 1, top-p 0.9": (1.0, None, 0.9),
}
print(f"{'':24}", *(f"{word:>6}" for word in words))
for name, values in knobs.items():
    print(f"{name:24}", *(f"{p:6.3f}" for p in distribution(logits, *values).exp()))

# %% [markdown]
# By hand: temperature 0.5 squares the probabilities (1/4, 1/25, ...) and divides by their sum. Of the first three, mat
# has 0.8, and with rug 0.9 is passed. The order matters: before the temperature, top-p would have kept four words (last
# line).

# %%
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for i, (temperature, color) in enumerate(
    ((0.5, "black"), (1.0, "#777777"), (2.0, "#CCCCCC"))
):
    places = [place + 0.27 * (i - 1) for place in range(5)]
    axis.bar(
        places,
        distribution(logits, temperature).exp(),
        0.25,
        color=color,
        label=f"temperature {temperature:g}",
    )
axis.set_xticks(range(5), words)
axis.legend(frameon=False)
tidy(axis, "next word", "probability", "The same logits at three temperatures")
axis.set_axisbelow(True)
show(figure, "02_temperature", "Cold: nearly always the likeliest. Hot: nearly all alike")

# %% [markdown]
# To draw, take a uniform number $u$ from 0 to 1, and the first word whose cumulative probability exceeds it.

# %%
cut = distribution(logits, 0.5, top_k=3, top_p=0.9)
u = 0.9
drawn = int((cut.exp().cumsum(0) <= u).sum())  # how many words lie below u
print(f"u = {u}: {words[drawn]}")
print(
    f"log-prob under what it was drawn from {cut[drawn]:.3f}, under the model's own {logits[drawn]:.3f}"
)
print(f"ratio of the two probabilities {(logits[drawn] - cut[drawn]).exp():.2f}")

# %% [markdown]
# > **You should know.** Where temperature or cuts are used, a word has two log-probs. Later lessons divide a word's new
# > probability by the one with which it was *drawn*, and both must be of one kind. Mix them, and here the ratio is 1.45
# > before anything has been learned. Nothing fails; the model only learns something else.
#
# ## A model whose answers we know
#
# Ten sentences, each a prompt and a completion that closes with `<eos>`, the end of a sequence. After "the cat sat" a
# third ends; of those that go on, three in four end on the mat, one on the rug.

# %%
book = [
    ("the cat", "sat", 2),
    ("the cat", "sat on the mat", 3),
    ("the cat", "sat on the rug", 1),
]
book += [("the old dog", "barked", 3), ("the old dog", "sat on the rug", 1)]
vocabulary = ["<eos>", "the", "cat", "old", "dog", "sat", "on", "mat", "rug", "barked"]
EOS = 0
encode = lambda text: [vocabulary.index(word) for word in text.split()]
decode = lambda ids: " ".join(vocabulary[i] for i in ids)

pages = [
    (encode(prompt), [*encode(rest), EOS])
    for prompt, rest, copies in book
    for _ in range(copies)
]
model = GPT(
    GPTConfig(
        10,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=64,
    )
)
init_weights(model, torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(150):
    loss = solution_loss(
        model, *zip(*pages)
    )  # lesson 1's loss, of the words after the prompt
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.requires_grad_(False)
print(f"loss {loss.item():.2f}: not 0, nobody can know which end comes")

# %% [markdown]
# ## The naive way to write
#
# Run the model on all that is there, draw from the logits of the last place, append, again. G rows at the same time, a
# *group* of completions of one prompt, which has P words (and from here on T counts the words written):


# %%
def draw(logits, temperature, generator):
    """A word for each row of logits [G, V], and its log-prob: [G] each."""
    logprobs = (logits / temperature).log_softmax(-1)  # [G, V]
    u = torch.rand(len(logits), 1, generator=generator)
    word = (
        (logprobs.exp().cumsum(1) <= u)
        .sum(1, keepdim=True)
        .clamp(max=logits.shape[1] - 1)
    )  # [G, 1]
    return word[:, 0], logprobs.gather(1, word)[:, 0]


def write(model, prompt, G, T, temperature, seed):
    """(completions [G, T], log-probs [G, T], places that went through the model)."""
    generator = torch.Generator().manual_seed(seed)
    tokens, logprobs, computed = torch.tensor([prompt] * G), [], 0  # [G, P]
    for _ in range(T):
        computed += tokens.numel()
        word, logprob = draw(
            model.logits(model(tokens)[:, -1]), temperature, generator
        )  # [G]
        tokens = torch.cat([tokens, word[:, None]], 1)
        logprobs.append(logprob)
    return tokens[:, len(prompt) :], torch.stack(logprobs, 1), computed


# %% [markdown]
# ## Where a completion ends
#
# What a row says after its first `<eos>` does not count. The mask says what does: every word before which there is no
# `<eos>`. So the first `<eos>` itself counts: it is a word that the model has chosen.


# %%
def mask_of(completions):
    ended = (completions == EOS).long()
    return ended.cumsum(1) - ended == 0  # [G, T]


completions, _, _ = write(model, encode("the cat"), 4, 6, 1.0, seed=0)
for row, counts in zip(completions.tolist(), mask_of(completions).long().tolist()):
    print(counts, decode(row))

ends = [[*encode(rest), EOS] for prompt, rest, _ in book if prompt == "the cat"]


def score(prompt, completion, temperature=1.0):
    """The log-prob of each word of a given completion, [T], from one pass over the whole text."""
    hidden = model(torch.tensor([prompt + completion[:-1]]))[
        0, len(prompt) - 1 :
    ]  # [T, D]: the places before each
    return (
        (model.logits(hidden) / temperature)
        .log_softmax(-1)
        .gather(1, torch.tensor(completion)[:, None])[:, 0]
    )


scores = [score(encode("the cat"), end) for end in ends]
print(f"the three completions together: {sum(s.sum().exp() for s in scores):.1f}")
print(f"without the log-prob of <eos>: {sum(s[:-1].sum().exp() for s in scores):.1f}")

# %% [markdown]
# > **You should know.** What stands behind the end is often the id of `<eos>` again, since many models have none for
# > padding. A mask that says `completions != pad` then loses the end of every row. The probabilities of all completions
# > no longer sum to 1, and a model trained with that mask is never told when to stop. A mask is made from where a row
# > has ended, not from what stands behind.
#
# ## Does it write what it believes?
#
# For each of the three completions: its share in the book, its probability in the model (log-probs, summed,
# exponentiated), its share among 4000 samples. Then model and samples at temperature 0.5.


# %%
def shares(temperature):
    """How often each of the three completions of "the cat" comes, among 4000."""
    completions, _, _ = write(model, encode("the cat"), 4000, 5, temperature, seed=0)
    return [
        sum(row[: len(end)] == end for row in completions.tolist()) / 4000 for end in ends
    ]


print("                 book   model  samples   at 0.5: model  samples")
for end, copies, warm, cold in zip(ends, (2, 3, 1), shares(1.0), shares(0.5)):
    p, q = (
        score(encode("the cat"), end, temperature).sum().exp()
        for temperature in (1.0, 0.5)
    )
    print(
        f"{decode(end[:-1]):15} {copies / 6:6.2f} {p:7.2f} {warm:8.2f} {q:15.2f} {cold:8.2f}"
    )

# %% [markdown]
# Samples, model and book agree, within the noise of 4000 draws. At temperature 0.5 each *choice* is squared: to end or
# not, 1 : 2, becomes 1 : 4; mat or rug, 3 : 1, becomes 9 : 1. That makes 0.20, 0.72 and 0.08. It is not the square of
# the sentences' probabilities, which would be 4 : 9 : 1. Temperature works word by word, and knows nothing of where a
# word leads.
#
# ## What the naive way computes again
#
# Every step runs the whole row through the model, though nothing in it has changed: a new word cannot reach those
# before it (lesson 1). What it needs of them is their keys and values, in every layer. So keep those. By hand, one
# head:

# %%
q, k, v = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))  # [T, C] each
causal = torch.ones(6, 6, dtype=torch.bool).tril()
at_once = (q @ k.T / 8**0.5).masked_fill(~causal, -torch.inf).softmax(-1) @ v  # [T, C]

keys, values = torch.empty(0, 8), torch.empty(0, 8)
for t in range(6):
    keys, values = (
        torch.cat([keys, k[t : t + 1]]),
        torch.cat([values, v[t : t + 1]]),
    )  # [t + 1, C]
    y = (q[t] @ keys.T / 8**0.5).softmax(
        -1
    ) @ values  # no mask: what is later is not there yet
    assert torch.allclose(y, at_once[t], atol=1e-6)
print("one place at a time, the same")

# %% [markdown]
# A key is turned to its position once and stays good, since only the distance counts (lesson 1). `KVCache` is this for
# all layers and rows. The prompt goes through once (*prefill*), and not once a row but once for the whole group:
# `keep` copies its keys and values. After that a step computes one place a row.


# %%
def write_cached(model, prompt, G, T, temperature, seed):
    """The same as `write`."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, 1, len(prompt) + T)
    hidden, computed = model(torch.tensor([prompt]), cache)[:, -1], len(prompt)  # [1, D]
    cache.keep(torch.zeros(G, dtype=torch.long))  # row 0, G times
    drawn = [draw(model.logits(hidden.expand(G, -1)), temperature, generator)]
    for _ in range(T - 1):
        hidden = model(drawn[-1][0][:, None], cache)[
            :, 0
        ]  # [G, D], of the last word alone
        computed += G
        drawn.append(draw(model.logits(hidden), temperature, generator))
    completions, logprobs = (
        torch.stack(parts, 1) for parts in zip(*drawn)
    )  # [G, T] each
    return completions, logprobs, computed


slow, slow_logprobs, slow_computed = write(model, encode("the cat"), 64, 6, 1.0, seed=0)
fast, fast_logprobs, fast_computed = write_cached(
    model, encode("the cat"), 64, 6, 1.0, seed=0
)
assert torch.equal(slow, fast) and torch.allclose(slow_logprobs, fast_logprobs, atol=1e-5)
print(
    f"the same words, log-probs within 1e-5; places computed: {slow_computed} and {fast_computed}"
)
print(
    f"of the {slow.numel()} words drawn, {mask_of(slow).sum()} count; the others stand behind an <eos>"
)

# %% [markdown]
# With a prompt of P words, the naive way computes $P + (P+1) + \dots$ places a row, together $PT + T(T-1)/2$. With the
# cache it is $T-1$ a row, and $P$ once a group. Here that is $64 \cdot (12+15)$ against $2 + 64 \cdot 5$. And longer:

# %%
P = 100
written = torch.arange(1, 4097, dtype=torch.float64)  # T
seen = P + written - 1  # places that hold a word when word T is drawn
naive = (
    seen,
    seen * (seen + 1) / 2,
)  # of one step: places computed, pairs of a query and a key that it sees
cached = (torch.ones(4096).double(), seen.clone())
cached[0][0], cached[1][0] = P, P * (P + 1) / 2  # prefill
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axis, slow_step, fast_step, unit in zip(
    axes, naive, cached, ("places computed", "pairs of query and key")
):
    axis.loglog(
        written, slow_step.cumsum(0), color="black", linestyle="--", label="naive"
    )
    axis.loglog(written, fast_step.cumsum(0), color="black", label="with cache")
    tidy(axis, "words written", f"{unit}, in total")
axes[0].legend(frameon=False)
show(
    figure,
    "02_cost",
    "One row, a prompt of 100 words. Both scales are logarithmic: a slope is a power",
)
for name, steps in (("naive", naive), ("with cache", cached)):
    print(
        f"1000 words, {name}: {int(steps[0][:1000].sum())} places, {int(steps[1][:1000].sum())} pairs"
    )
kib = [
    2 * 24 * key_heads * 64 * 2 / 1024 for key_heads in (2, 14)
]  # key and value, layers, heads, channels, bytes
print(
    f"keys and values of one word: {kib[0]:.0f} KiB with 2 key heads, {kib[1]:.0f} KiB with 14"
)

# %% [markdown]
# The cache takes one power of T off both. Attention still grows with the square: each word looks at all before it. The
# price is memory: a key and a value for each layer, key head and channel. Qwen2.5-0.5B has 24 layers and 2 key heads of
# 64 channels: 12 KiB a word in bfloat16. This is what shared heads (lesson 1) are for: with a key head for each of its
# 14 query heads it would be 84 KiB.
#
# ## The same in minclipo
#
# `sample` in `minclipo/sampler.py` prefills each prompt once, draws for all rows together, and lets a row leave the
# batch when it has ended, so that nothing is computed behind an `<eos>`. Prompts of different lengths are padded on the
# right; in the cache, a shorter row's next word overwrites its padding. `Decoder.step` is the loop's body above: draw,
# write down, feed. On a GPU it runs in rounds of 32 words, within which no shape changes and nobody asks what was drawn.
# So the work of one step is recorded once and replayed, and rows leave only between rounds: 32 words at a time, since a
# GPU is faster at computing a word too many than a computer is at asking it. What comes back is `Rollouts` (a completion
# that the model has drawn itself is a *rollout*): the G completions of each prompt, side by side. Let them be cut at 4
# words:

# %%
prompts = [encode("the cat"), encode("the old dog")]
generator = torch.Generator().manual_seed(0)
rollouts = sample(
    model, prompts, 3, 4, temperature=2.0, eos_ids=[EOS], generator=generator
)
print(
    "prompts",
    rollouts.prompts,
    "group_size",
    rollouts.group_size,
    "group",
    rollouts.group.tolist(),
)
for i, ids in enumerate(rollouts.completion_ids()):  # without <eos>
    logprobs, mask, finished = (
        rollouts.logprobs[i],
        rollouts.mask[i],
        rollouts.finished[i],
    )
    shown = " ".join(f"{x:6.2f}" for x in logprobs.tolist())
    print(
        f"{decode(ids):20} mask {mask.long().tolist()}  finished {int(finished)}  logprobs {shown}"
    )
    completion = rollouts.completions[i][mask].tolist()
    assert torch.allclose(
        logprobs[mask], score(prompts[i // 3], completion, 2.0), atol=1e-5
    )

greedy = (
    sample(model, prompts[:1], 1, 5, temperature=0, eos_ids=[EOS]).completions[0].tolist()
)
tokens = torch.tensor(prompts[:1])
for _ in greedy:
    tokens = torch.cat([tokens, model.logits(model(tokens)[:, -1:]).argmax(-1)], 1)
assert greedy == tokens[0, 2:].tolist()
for values in knobs.values():
    assert torch.allclose(
        sampling_logprobs(logits[None], *values)[0], distribution(logits, *values)
    )
print("they agree")

# %% [markdown]
# A row that was cut off is not finished, and its last word is an ordinary one. Where a row says "sat on mat",
# temperature 2 has drawn what the book never says; one of its log-probs is by far the lowest. `temperature=0` means
# greedy: always the likeliest. `Rollouts` has one more field, `pooled`, which waits for lesson 7.
#
# **Exercise.** `python lessons/exercises/02_sampling.py`: the three knobs for a batch, the draw, and a mask for models
# with several `<eos>`.
#
# **What to try next.** Give `sample` temperature 3 (and `score` in the assertion below it), then `top_k=2` as well (and
# take the assertion out: `score` knows no cuts): most rows come back to the book, but not all. Where one word alone is
# right, the second is a mistake. Then read `decode` in `minclipo/sampler.py`: how do rows leave? Lesson 3 gives the
# model a task.
