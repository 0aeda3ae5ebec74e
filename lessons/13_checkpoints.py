# %% [markdown]
# # 12. Real checkpoints: what loads without an error may still be wrong
#
# **Question.** The toy's code trains published models, too. What stands between a directory of files and the model of
# lesson 1, and what goes wrong there without a word?
#
# You need lessons 1 to 5. Here come five places where a run is spoilt in silence: settings, rotation, prompt, verifier,
# rounding. The model is a Llama 3.1 in miniature: its weights are random, its files are like a real one's, and beside
# them lie the logits that the reference, Hugging Face's transformers, computes with it.

# %%
import dataclasses
import json
import struct
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from minclipo.checkpoint import load_model, load_tokenizer
from minclipo.extensions.micro_batches import rollout_logprobs
from minclipo.model import GPT
from minclipo.sampler import sample
from minclipo.verifier import verify
from safetensors.torch import load_file

from common import LESSONS, pretrained, problems_of, show, tidy, toy_tokenizer, verdicts

FOLDER = LESSONS.parent / "tests" / "fixtures" / "parity" / "llama3_rope_scaling"

# %% [markdown]
# ## Weights: a table of contents, then bytes
#
# A safetensors file is a length (eight bytes), a JSON text of that length, and raw numbers. The JSON says of each
# tensor its type, its shape and where its bytes are. Nothing in it can run. An older format, the pickle, is a program:
# opening it does whatever its author wrote, which is why minCLIPO never reads one.


# %%
def read_safetensors(path):
    """{name: tensor} of a safetensors file of float32 numbers."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)  # remarks about the file
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = torch.frombuffer(numbers[start:end], dtype=torch.float32).view(
            entry["shape"]
        )
    return tensors


stored = read_safetensors(FOLDER / "model.safetensors")
for name in list(stored)[:4]:
    print(f"{name:38} {list(stored[name].shape)}")
print(
    f"... {len(stored)} tensors, {sum(tensor.numel() for tensor in stored.values())} numbers"
)

# %% [markdown]
# The names are lesson 1's, most of them with `model.` in front.
#
# ## Settings: the numbers that no tensor holds
#
# The rest stands in `config.json`. `rope_theta` is lesson 1's 10000 and `rms_norm_eps` its $10^{-5}$; `rope_scaling`
# slows the slow hands of the clock down, for longer texts; `tie_word_embeddings` says whether input and output share
# one table. A loader may take a default for the file's value, overlook a key, or cut the heads differently. What then?

# %%
config = json.loads((FOLDER / "config.json").read_text())
for key in (
    "num_attention_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
):
    print(f"{key:20} {config[key]}")
shape = load_model(FOLDER).config  # the same as a GPTConfig
weights = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
reference = load_file(FOLDER / "reference.safetensors")
tokens, truth = (
    reference["right.input_ids"][:1],
    reference["right.logits"][0],
)  # [1, T], [T, V]


def logits_with(weights=weights, **changes):
    """Logits [T, V] of the reference's text under other weights or settings."""
    model = GPT(dataclasses.replace(shape, **changes))
    model.load_state_dict(
        weights, strict=False
    )  # as in many scripts: what has no place is dropped
    with torch.no_grad():
        return model.logits(model(tokens))[0]


found = {
    "as config.json says": logits_with(),
    "rms_norm_eps 1e-6": logits_with(norm_eps=1e-6),
    "rope_scaling ignored": logits_with(rope_scaling=None),
    "rope_theta 500000": logits_with(rope_theta=500000.0),
    "8 heads, not 4": logits_with(num_heads=8, num_kv_heads=4, head_dim=8),
    "output head tied": logits_with(tie_embeddings=True),
}
for name, logits in found.items():
    same, loss = (
        (logits.argmax(1) == truth.argmax(1)).sum(),
        F.cross_entropy(logits[:-1], tokens[0, 1:]),
    )
    print(
        f"{name:20}  error {(logits - truth).abs().max():.1e}   same favourite at {same:2} of 18   loss {loss:.2f}"
    )

# %% [markdown]
# Nothing raises: every model finds all the tensors it wants. The right one agrees with the reference to rounding, no
# other one does. That it loads tells nothing. Neither does the loss: with random weights several wrong models have a
# lower one. What tells is **parity**: the same tokens through reference and own code, and the difference of the logits.
#
# A trained model is spoilt by degrees. Lesson 3's toy answers 200 problems, always taking its favourite token:

# %%
careless, toy = pretrained("careless"), toy_tokenizer()
problems = problems_of("lesson 12", 200)
prompts = toy.encode_batch([problem.prompt for problem in problems])
for theta in (10000.0, 20000.0, 100000.0):
    model = GPT(dataclasses.replace(careless.config, rope_theta=theta))
    model.load_state_dict(careless.state_dict())
    rollouts = sample(model, prompts, 1, 24, temperature=0, eos_ids=toy.eos_ids)
    correct, steps_right = verdicts(problems, rollouts)  # [N] bool each
    faithful = (correct & steps_right).float().mean()
    print(
        f"rope_theta {theta:6.0f}: right answers {correct.float().mean():.2f}, faithful {faithful:.2f}"
    )

# %% [markdown]
# It was trained with 10000. Twice that does no harm on lines this short; ten times looks like a weak model, not a bug.
#
# ## Rotation: which channels turn together
#
# Lesson 1 turned the channels $(c, c + C/2)$ together, as Hugging Face's files want it. Meta's own Llama code, like
# RoFormer (arXiv 2104.09864), turns neighbours, $(2c, 2c + 1)$. Same angles, same maths, another order of channels. A
# score is a sum over channels and does not mind their order, if query and key have the same one. So the rows of
# `q_proj` and `k_proj` can be brought into the order that a rotation expects; and they must be:


# %%
def rotate_neighbours(x, cos, sin):
    """x [B, H, T, C] with channels (2c, 2c + 1) turned by angle c; cos, sin [B, 1, T, C / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def to_neighbours(rows):
    """Rows [heads * C, D], partners half a head apart -> the same rows, partners side by side."""
    return (
        rows.view(-1, 2, shape.head_dim // 2, rows.shape[1])
        .transpose(1, 2)
        .reshape(rows.shape)
    )


moved = {
    name: to_neighbours(w) if "q_proj" in name or "k_proj" in name else w
    for name, w in weights.items()
}
with patch("minclipo.model.rotate", rotate_neighbours):  # Meta's convention, for one line
    found["neighbours turned"], repaired = logits_with(), logits_with(moved)
print(f"neighbours turned: error {(found['neighbours turned'] - truth).abs().max():.1e}")
print(f"and the rows moved: error {(repaired - truth).abs().max():.1e}")
assert torch.allclose(repaired, truth, atol=3e-5)
assert torch.equal(
    found["neighbours turned"][0], found["as config.json says"][0]
)  # the first position: see below

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
names = (
    "8 heads, not 4",
    "neighbours turned",
    "rope_scaling ignored",
    "rms_norm_eps 1e-6",
    "as config.json says",
)
for name, marker, grey in zip(names, "vs^ox", ("0.65", "0", "0.4", "0.55", "0")):
    error = (found[name] - truth).abs().amax(1).clamp(min=1e-7)  # [T]
    axis.semilogy(error, color=grey, marker=marker, markersize=5, linewidth=1, label=name)
axis.set_xticks(range(0, 18, 2))
axis.legend(frameon=False, fontsize=9, ncols=2, loc="center", bbox_to_anchor=(0.55, 0.55))
tidy(axis, "position in the text", "largest error of a logit")
show(
    figure,
    "13_errors",
    "Error of the logits at each position; no error at all is drawn at 1e-7",
)

# %% [markdown]
# > **You should know.** At position 0 every wrong rotation is *exactly* right. The first token sees only itself, and
# > the softmax of a single score is 1, whatever query and key are. A check on one token passes. Check a long text.
#
# ## Prompt: the text that the model really gets
#
# A chat model has seen conversations in one format. Its template, a small program, comes with the tokenizer:

# %%
chat = load_tokenizer(FOLDER)
question = [{"role": "user", "content": "What is 12 + 30?"}]
text = chat.chat(question)
variants = {
    "as it was trained": chat.encode(text),
    "special tokens added": chat.encode(text, add_special_tokens=True),
    "no generation prompt": chat.encode(chat.chat(question, add_generation_prompt=False)),
    "blanks stripped": chat.encode(text.strip()),
}
print(repr(text))
for name, ids in variants.items():
    words = [chat.tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    print(f"{name:20}  {len(ids)} tokens: {words[:2]} ... {words[-2:]}")
print(
    "a completion ends with one of",
    [chat.tokenizer.id_to_token(token) for token in chat.eos_ids],
)

# %% [markdown]
# Four inputs, three of them wrong, no error: two beginnings of text, by template and tokenizer; a turn that the model
# has to open itself; two line breaks that it expects and does not get. Print the tokens of a prompt before you train.
#
# There are two ends: the base model ended its documents with the first, the chat model ends its turns with the second.
# Stop at the first only, and completions run to the limit: unfinished, and so worth nothing by lesson 3's rule.
#
# ## Verifier: what it accepts is what is learnt
#
# Models are asked to write their answer in a box. minCLIPO's verifier takes the last box that is filled in and closed,
# compares exact fractions, and refuses where in doubt. The truth here is 15:

# %%
for answer in (
    r"\boxed{\frac{30}{2}}",
    r"\boxed{15.00 \text{ euros}}",
    r"\boxed{15} or \boxed{18}",
    "It is 15.",
):
    print(f"{answer:28} {verify(answer, '15')}")

# %% [markdown]
# The last one is right and refused: that loses some reward. To accept a wrong one costs more, since a reward pays a
# *way of answering*, and what pays spreads. A made-up policy shows it. It adds without carrying, which is right for
# half of these sums, and has five ways of answering; its start is made up, too. Nothing is sampled: if way $k$ pays
# $R_k$ on average, lesson 4's gradient for its logit is $p_k (R_k - J)$, where $J=\sum_j p_j R_j$.

# %%
sums = [
    (12, 30),
    (41, 22),
    (50, 19),
    (64, 13),
    (31, 8),
    (7, 35),
    (28, 15),
    (36, 47),
    (23, 19),
    (55, 27),
]
hasty = lambda a, b: 10 * (a // 10 + b // 10) + (a + b) % 10  # forgets the carry
ways = {  # name: (probability at the start, what it writes)
    "one box": (0.75, lambda a, b: rf"{a} + {b} = \boxed{{{hasty(a, b)}}}"),
    "no box": (0.10, lambda a, b: f"It is {hasty(a, b)}."),
    "off by one": (0.10, lambda a, b: rf"\boxed{{{hasty(a, b) + 1}}}"),
    "two boxes": (
        0.04,
        lambda a, b: rf"\boxed{{{hasty(a, b)}}} or \boxed{{{hasty(a, b) + 10}}}",
    ),
    "a list": (0.01, lambda a, b: rf"\boxed{{{', '.join(map(str, range(10, 100)))}}}"),
}
share = lambda accept, way: (
    sum(accept(way(a, b), str(a + b)) for a, b in sums) / len(sums)
)
really_right = torch.tensor([share(verify, way) for _, way in ways.values()])
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
styles = ("-", "0"), (":", "0.3"), ("-.", "0.5"), ("--", "0"), ("-", "0.75")
verifiers = {
    "the truth occurs in the text": lambda text, truth: truth in text,
    "verify": verify,
}
for axis, (name, accept) in zip(axes, verifiers.items()):
    R, history = torch.tensor([share(accept, way) for _, way in ways.values()]), []
    logits = torch.tensor([start for start, _ in ways.values()]).log()
    for _ in range(120):
        history.append(logits.softmax(0))
        logits = logits + history[-1] * (R - history[-1] @ R)
    for name_of_way, curve, (style, grey) in zip(ways, torch.stack(history).T, styles):
        axis.plot(curve, linestyle=style, color=grey, label=name_of_way)
    tidy(axis, "update", "" if accept is verify else "probability", name)
    print(
        f"{name:28}  mean reward {history[0] @ R:.2f} -> {history[-1] @ R:.2f}", end="   "
    )
    print(
        f"really right {history[0] @ really_right:.2f} -> {history[-1] @ really_right:.2f}"
    )
axes[1].legend(frameon=False, fontsize=9, loc="center right")
show(
    figure,
    "13_verifier",
    "One policy, trained under two verifiers (under verify, 'no box' and 'off by one' coincide)",
)

# %% [markdown]
# > **You should know.** The run with the broken verifier has the better reward curve, and gets hardly anything right.
# > Its hedge was rare, but pays twice as much as an honest try. Read completions, above all when the reward is high.
#
# ## Rounding: steps too small to take
#
# On a GPU models mostly compute in bfloat16, with 8 significant bits. Below, a usual step of reinforcement learning is
# added to a usual weight; and the log-probs of fresh rollouts are computed again, all places at once, as every update
# does:

# %%
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.tensor(0.02, dtype=dtype)
    model, generator = load_model(FOLDER, dtype=dtype), torch.Generator().manual_seed(0)
    rollouts = sample(
        model,
        [variants["as it was trained"]],
        16,
        24,
        eos_ids=chat.eos_ids,
        generator=generator,
    )
    again = rollout_logprobs(
        model, rollouts, temperature=1.0, micro_batch_tokens=4096
    )  # [N, T]
    off = ((again - rollouts.logprobs)[rollouts.mask].exp() - 1).abs().max()
    print(
        f"{dtype}: 0.02 + 1e-6 is 0.02: {bool(weight + 1e-6 == weight)}   ratios off by up to {off:.2f}"
    )

# %% [markdown]
# The bfloat16 weight never moves, however many steps: so the optimizer keeps float32 copies. And lesson 5's first ratio
# is 1 only if the old log-probs are computed as in the update; `Trainer.old_logprobs` does so in bfloat16.
#
# ## The same in minclipo

# %%
loaded = load_model(FOLDER).state_dict()
assert loaded.keys() == weights.keys() and all(
    torch.equal(loaded[name], weights[name]) for name in weights
)
print("they agree")

# %% [markdown]
# `load_model` is `read_safetensors` with all number types, shards and checks: a missing tensor, a NaN, or an unknown
# `rope_scaling` are errors. `tests/test_parity.py` is our first table for eleven checkpoints of all families.
#
# The program for real models trains the toy's as well, in a few seconds, from the repository's root:
#
# ```
# python train_llm.py --model lessons/models/careless --data chain --max-new-tokens 16 --learning-rate 5e-4 \
#     --steps 3 --out runs/lesson12
# ```
#
# For `--model` give a directory or a name on the Hugging Face hub. `minclipo/checkpoint/README.md` says which models
# there are, `minclipo/runs/README.md` how much memory to expect. Look at step 0 first: is it as good as its publisher
# says, do its completions finish?
#
# **Exercise.** `python lessons/exercises/13_checkpoints.py`: check a safetensors header, bring Meta's rows into halves,
# find the final answer.
#
# **What to try next.** Set `strict=True` in `logits_with`: one of the five mistakes is noticed. Remove the two boxes
# from `ways` and make 400 updates: the list takes their place. Then read `minclipo/checkpoint/weights.py` and
# `minclipo/verifier.py`. Lesson 15 hands you training programs with a silent bug each.
