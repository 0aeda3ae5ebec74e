# %% [markdown]
# # 2. Sampling and the KV cache
#
# **Question.** How does a model write, and why is the naive way so slow?
#
# You need lesson 1. Here a model draws its words one by one, and a cache spares it from
# computing the earlier ones again.
#
# **If you know sampling with a KV cache, skip to lesson 3.** Later lessons use the
# log-prob under which a word was drawn, the mask that ends with the first `<eos>`, and
# `Rollouts`, with G completions per prompt.

# %%
import time

import matplotlib.pyplot as plt
import torch
from common import show, tidy

from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.sampler import KVCache, sample, sampling_logprobs
from minclipo.toy import solution_loss

# %% [markdown]
# ## From logits to one word
#
# A model gives five words the probabilities 0.5, 0.2, 0.15, 0.1 and 0.05. The
# *temperature* divides the logits:
#
# $$\mathrm{softmax}(\mathrm{logits} / \mathrm{temperature})$$
#
# *Top-k* then keeps the k likeliest words (arXiv 1805.04833). *Top-p* keeps the fewest
# likeliest words whose probability reaches p (arXiv 1904.09751). The course uses
# neither.

# %%
words = ["mat", "rug", "sofa", "floor", "moon"]
logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()  # [V]


def distribution(logits, temperature, top_k=None, top_p=None):
    """Log-probs [V] to draw from; -inf for what is cut."""
    logits = logits / temperature
    kept = logits.argsort(descending=True)[:top_k]  # the likeliest first
    if top_p is not None:
        shares = logits[kept].softmax(0)
        kept = kept[shares.cumsum(0) - shares < top_p]  # those before it fall short of p
    cut = torch.full_like(logits, -torch.inf)
    return cut.scatter(0, kept, logits[kept].log_softmax(0))


knobs = {
    "temperature 2": (2.0,),
    "temperature 1": (1.0,),
    "temperature 0.5": (0.5,),
    "... then top-k 3": (0.5, 3),
    "... then top-p 0.9": (0.5, 3, 0.9),
}
print(f"{'':18}", *(f"{word:>6}" for word in words))
for name, values in knobs.items():
    print(f"{name:18}", *(f"{x:6.3f}" for x in distribution(logits, *values).exp()))

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
greys = ((0.5, "black"), (1.0, "#777777"), (2.0, "#CCCCCC"))
for i, (temperature, color) in enumerate(greys):
    places = [place + 0.27 * (i - 1) for place in range(5)]
    shares = distribution(logits, temperature).exp()
    axis.bar(places, shares, 0.25, color=color, label=f"temperature {temperature:g}")
axis.set_xticks(range(5), words)
axis.legend(frameon=False)
tidy(axis, "next word", "probability")
axis.set_axisbelow(True)
show(
    figure,
    "02_temperature",
    "The same logits at three temperatures. A low one (black) makes the likeliest word"
    " likelier still, a high one (light grey) makes all words more alike.",
)

# %% [markdown]
# To draw, take a uniform number from 0 to 1 and the first word whose cumulative
# probability exceeds it.

# %%
cut = distribution(logits, 0.5, top_k=3, top_p=0.9)
uniform = 0.9
drawn = int((cut.exp().cumsum(0) <= uniform).sum())  # how many words lie below it
print(f"uniform number {uniform}: {words[drawn]}")
print(f"log-prob under what it was drawn from {cut[drawn]:.3f}")
print(f"log-prob under the model itself       {logits[drawn]:.3f}")
print(f"ratio of the two probabilities {(logits[drawn] - cut[drawn]).exp():.2f}")

# %% [markdown]
# > **You should know.** With a temperature or cuts, a word has two log-probs. Later
# > lessons divide its new probability by the one with which it was *drawn*. Mix the two
# > kinds, and here the ratio is 1.45 before anything has been learned. Nothing crashes;
# > the model only learns something else.
#
# ## A model whose answers we know
#
# Ten sentences, each a prompt and a completion that closes with `<eos>`, the end of a
# sequence. A third of the cats only "sat". Of the others, three in four sat on the mat.

# %%
book = [("the cat", "sat", 2), ("the cat", "sat on the mat", 3)]
book += [("the cat", "sat on the rug", 1)]
book += [("the old dog", "barked", 3), ("the old dog", "sat on the rug", 1)]
vocabulary = ["<eos>", "the", "cat", "old", "dog", "sat", "on", "mat", "rug", "barked"]
EOS = 0
encode = lambda text: [vocabulary.index(word) for word in text.split()]
decode = lambda ids: " ".join(vocabulary[i] for i in ids)

prompts, completions = [], []
for prompt, rest, copies in book:
    prompts += [encode(prompt)] * copies
    completions += [[*encode(rest), EOS]] * copies
config = GPTConfig(
    10, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=64
)
model = GPT(config)
init_weights(model, torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(150):
    loss = solution_loss(model, prompts, completions)  # of the words after the prompt
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.requires_grad_(False)
print(f"loss {loss.item():.2f}: not 0, since nobody can know which end comes")

# %% [markdown]
# ## The naive way to write
#
# Run the model on all that is there, draw from the logits of the last place, append,
# repeat. A *group* is G completions of one prompt of P words; each gets T words.


# %%
def draw(logits, temperature, generator):
    """A word for each row of logits [G, V], and its log-prob: [G] each."""
    logprobs = (logits / temperature).log_softmax(-1)  # [G, V]
    uniform = torch.rand(len(logits), 1, generator=generator)  # [G, 1]
    below = (logprobs.exp().cumsum(1) <= uniform).sum(1, keepdim=True)
    word = below.clamp(max=logits.shape[1] - 1)  # rounding: the sum may end below 1
    return word[:, 0], logprobs.gather(1, word)[:, 0]


def write(model, prompt, G, T, temperature, seed):
    """(completions [G, T], log-probs [G, T], places that went through the model)."""
    generator = torch.Generator().manual_seed(seed)
    tokens, logprobs, computed = torch.tensor([prompt] * G), [], 0  # [G, P]
    for _ in range(T):
        computed += tokens.numel()
        last = model(tokens)[:, -1]  # [G, D], the hidden state of the last place
        word, logprob = draw(model.logits(last), temperature, generator)  # [G] each
        tokens = torch.cat([tokens, word[:, None]], 1)
        logprobs.append(logprob)
    return tokens[:, len(prompt) :], torch.stack(logprobs, 1), computed


# %% [markdown]
# ## Where a completion ends
#
# What a row says after its first `<eos>` does not count.


# %%
def mask_of(completions):
    """True for every word before which there is no <eos>, so for the first <eos> too."""
    ended = (completions == EOS).long()
    return ended.cumsum(1) - ended == 0  # [G, T]


completions, _, _ = write(model, encode("the cat"), 4, 6, 1.0, seed=0)
for row, counts in zip(completions.tolist(), mask_of(completions).long().tolist()):
    print(counts, decode(row))

# %% [markdown]
# <details><summary><b>Guess first.</b> Many models pad with the id of eos. What breaks
# if the mask is <code>completions != pad</code>?</summary>
#
# The end of every row is lost. A model trained with that mask is never told when to
# stop, and the probabilities of all completions no longer sum to 1.
#
# </details>

# %%
ends = [[*encode(rest), EOS] for prompt, rest, _ in book if prompt == "the cat"]


def score(prompt, completion, temperature=1.0):
    """The log-prob of each word of a given completion, [T], from one pass over it all."""
    tokens = torch.tensor([prompt + completion[:-1]])  # [1, P + T - 1]
    hidden = model(tokens)[0, len(prompt) - 1 :]  # [T, D]: the place before each word
    logprobs = (model.logits(hidden) / temperature).log_softmax(-1)  # [T, V]
    return logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0]


scores = [score(encode("the cat"), end) for end in ends]
whole = sum(logprobs.sum().exp() for logprobs in scores)
cut_short = sum(logprobs[:-1].sum().exp() for logprobs in scores)
print(f"probabilities of the three completions, together {whole:.1f}")
print(f"without the log-prob of <eos>, together {cut_short:.1f}")

# %% [markdown]
# ## Does it write what it believes?
#
# For each completion, its share in the book, its probability in the model, and its share
# among 4000 samples.
#
# <details><summary><b>Guess first.</b> At temperature 1 the three come 2 : 3 : 1. A
# temperature of 0.5 squares the probabilities. Do they come 4 : 9 : 1?</summary>
#
# No, it squares each *choice*. To end or not, 1 : 2, becomes 1 : 4; mat or rug, 3 : 1,
# becomes 9 : 1. That makes 0.20, 0.72 and 0.08. Temperature works word by word and does
# not know where a word leads.
#
# </details>


# %%
def shares(temperature):
    """How often each of the three completions of "the cat" comes, among 4000."""
    rows = write(model, encode("the cat"), 4000, 5, temperature, seed=0)[0].tolist()
    return [sum(row[: len(end)] == end for row in rows) / 4000 for end in ends]


print("                 book   model  samples   at 0.5: model  samples")
for end, copies, warm, cold in zip(ends, (2, 3, 1), shares(1.0), shares(0.5)):
    likely = [score(encode("the cat"), end, heat).sum().exp() for heat in (1.0, 0.5)]
    print(
        f"{decode(end[:-1]):15} {copies / 6:6.2f} {likely[0]:7.2f} {warm:8.2f}"
        f" {likely[1]:15.2f} {cold:8.2f}"
    )

# %% [markdown]
# ## What the naive way computes again
#
# Every step runs whole rows through the model, though a new word cannot reach those
# before it (lesson 1). What it needs of them is their keys and values. The *KV cache*
# keeps those:

# %%
# one head, six places: [T, C] each
query, key, value = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
later = ~torch.ones(6, 6, dtype=torch.bool).tril()
weights = (query @ key.T / 8**0.5).masked_fill(later, -torch.inf).softmax(-1)  # [T, T]
at_once = weights @ value  # [T, C]

keys, values = torch.empty(0, 8), torch.empty(0, 8)  # the cache
for t in range(6):
    keys = torch.cat([keys, key[t : t + 1]])  # [t + 1, C]
    values = torch.cat([values, value[t : t + 1]])
    weights = (query[t] @ keys.T / 8**0.5).softmax(-1)  # no mask: nothing later is there
    assert torch.allclose(weights @ values, at_once[t], atol=1e-6)
print("one place at a time, the same")

# %% [markdown]
# `KVCache` does this for all layers and rows. The prompt goes through once for the whole
# group (*prefill*). After that a step computes one place per row.
#
# <details><summary><b>Guess first.</b> For 200 words the cache computes a hundredth of
# the places. Is it a hundred times faster?</summary>
#
# Far from it. Each call of the model has a fixed cost, which dominates such small steps.
#
# </details>


# %%
def write_cached(model, prompt, G, T, temperature, seed):
    """The same as `write`."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, 1, len(prompt) + T)
    hidden = model(torch.tensor([prompt]), cache)[:, -1]  # [1, D], the prefill
    cache.keep(torch.zeros(G, dtype=torch.long))  # row 0, G times
    hidden = hidden.expand(G, -1)  # [G, D]
    words, logprobs, computed = [], [], len(prompt)
    for t in range(T):
        word, logprob = draw(model.logits(hidden), temperature, generator)  # [G] each
        words.append(word)
        logprobs.append(logprob)
        if t < T - 1:  # nothing follows the last word
            hidden = model(word[:, None], cache)[:, 0]  # [G, D]
            computed += G
    return torch.stack(words, 1), torch.stack(logprobs, 1), computed


cat, lengths, places, seconds = encode("the cat"), (25, 50, 100, 200), [], []
for T in lengths:
    started = time.process_time()
    slow, slow_logprobs, slow_places = write(model, cat, 16, T, 1.0, seed=0)
    between = time.process_time()
    fast, fast_logprobs, fast_places = write_cached(model, cat, 16, T, 1.0, seed=0)
    times = between - started, time.process_time() - between
    assert torch.equal(slow, fast)
    assert torch.allclose(slow_logprobs, fast_logprobs, atol=1e-4)
    places.append((slow_places, fast_places))
    seconds.append(times)
    print(f"{T:3} words: {slow_places:6} places, with the cache {fast_places:4}")
    print(f"{times[0]:22.2f} seconds, with the cache {times[1]:.2f} seconds")

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axis, rows, unit in zip(axes, (places, seconds), ("places computed", "seconds")):
    for column, (name, linestyle) in enumerate((("naive", "--"), ("with cache", "-"))):
        numbers = [row[column] for row in rows]
        axis.loglog(lengths, numbers, "o", linestyle=linestyle, color="black", label=name)
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    tidy(axis, "words written per row", unit)
axes[0].legend(frameon=False)
show(
    figure,
    "02_cost",
    "What 16 rows cost, without the cache (dashed) and with it (solid). Both scales are"
    " logarithmic. The cache saves far more places (left) than seconds (right).",
)

# %% [markdown]
# Naively, $T$ words cost $PT + T(T-1)/2$ places per row; with the cache $T-1$, and $P$
# once per group. The price is memory:

# %%
# Qwen2.5-0.5B: key and value, 24 layers, heads of 64 channels, 2 bytes per number
for heads in (2, 14):
    print(f"{heads} key-value heads: {2 * 24 * heads * 64 * 2 / 1024:.0f} KiB per word")

# %% [markdown]
# This is what grouped-query attention saves. Qwen2.5-0.5B has 14 query heads and 2
# key-value heads.
#
# ## The same in minclipo
#
# `sample` prefills each prompt once, draws for all rows together, and lets rows leave
# when they have ended. Its completions are called *rollouts*. Here they are cut at 4
# words:

# %%
prompts = [encode("the cat"), encode("the old dog")]
generator = torch.Generator().manual_seed(0)
rollouts = sample(
    model, prompts, 3, 4, temperature=2.0, eos_ids=[EOS], generator=generator
)
print("prompts", rollouts.prompts)
print("group_size", rollouts.group_size, "group", rollouts.group.tolist())
for i, ids in enumerate(rollouts.completion_ids()):  # without <eos>
    logprobs, mask = rollouts.logprobs[i], rollouts.mask[i]
    shown = " ".join(f"{logprob:5.2f}" for logprob in logprobs.tolist())
    ended = int(rollouts.finished[i])
    print(
        f"{decode(ids):18} mask {mask.int().tolist()} finished {ended} logprobs {shown}"
    )
    again = score(prompts[i // 3], rollouts.completions[i][mask].tolist(), 2.0)
    assert torch.allclose(logprobs[mask], again, atol=1e-5)

found = sample(model, prompts[:1], 1, 5, temperature=0, eos_ids=[EOS]).completions
greedy, tokens = found[0].tolist(), torch.tensor(prompts[:1])
for _ in greedy:
    tokens = torch.cat([tokens, model.logits(model(tokens)[:, -1:]).argmax(-1)], 1)
assert greedy == tokens[0, 2:].tolist()
for values in knobs.values():
    ours = distribution(logits, *values)
    assert torch.allclose(sampling_logprobs(logits[None], *values)[0], ours)
print("they agree")

# %% [markdown]
# A row that was cut off is not finished. `temperature=0` is *greedy*: it always takes
# the likeliest word.
#
# **Now you know.**
#
# * Use the log-prob of the distribution from which a word was drawn.
# * A completion ends with its first `<eos>`, which counts.
# * A cache of keys and values computes each place once, and pays with memory.
#
# **Exercise.** About 40 minutes, medium. `python lessons/exercises/02_sampling.py`:
# knobs, draw and mask for a batch.
#
# <details><summary>A hint for <code>next_word</code></summary>
#
# The docstring shows the way back from sorted to unsorted.
#
# </details>
#
# **What to try next.** Give `sample` and `score` temperature 3, then `sample` also
# `top_k=2`, without the assertion. How many rows are sentences of the book? Then read
# `Decoder` in `minclipo/sampler.py`. Lesson 3 gives the model a task.
