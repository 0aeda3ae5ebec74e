# %% [markdown]
# # 13. Real checkpoints: what loads may still be wrong
#
# **Question.** What stands between a folder of files and the model of lesson 1, and
# which mistakes raise no error?
#
# You need lessons 1 to 5. The model is a Llama 3.1 in miniature with random weights.
# The reference is Hugging Face's transformers.

# %%
import dataclasses
import json
import struct
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import LESSONS, pretrained, problems_of, show, tidy, toy_tokenizer, verdicts
from safetensors.torch import load_file

from minclipo.checkpoint import load_model, load_tokenizer
from minclipo.extensions.micro_batches import rollout_logprobs
from minclipo.model import GPT
from minclipo.sampler import sample

FOLDER = LESSONS.parent / "tests" / "fixtures" / "parity" / "llama3_rope_scaling"

# %% [markdown]
# ## Files: a table of contents, then bytes
#
# A safetensors file is a length in eight bytes, a JSON text of that length, and raw
# numbers. Nothing in it can run; the older pickle format is a program.


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
        tensor = torch.frombuffer(numbers[start:end], dtype=torch.float32)
        tensors[name] = tensor.view(entry["shape"])
    return tensors


stored = read_safetensors(FOLDER / "model.safetensors")
for name in list(stored)[:4]:
    print(f"{name:38} {list(stored[name].shape)}")
numbers = sum(tensor.numel() for tensor in stored.values())
print(f"... {len(stored)} tensors, {numbers} numbers")

# %% [markdown]
# The settings are in `config.json`. A loader may miss one, or cut the heads
# differently.
#
# <details><summary><b>Guess first.</b> Five such mistakes follow. How many raise an
# error, and how many the loss?</summary>
#
# None raises an error: every model finds the tensors it wants. With random weights only
# one raises the loss.
#
# </details>

# %%
config = json.loads((FOLDER / "config.json").read_text())
for key in ("num_attention_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):
    print(f"{key:20} {config[key]}")
settings = load_model(FOLDER).config  # the same as a GPTConfig
weights = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
reference = load_file(FOLDER / "reference.safetensors")
tokens = reference["right.input_ids"][:1]  # [1, T]
truth = reference["right.logits"][0]  # [T, V]


def logits_with(weights=weights, **changes):
    """Logits [T, V] of the reference's text under other weights or settings."""
    model = GPT(dataclasses.replace(settings, **changes))
    model.load_state_dict(weights, strict=False)  # as in many scripts: extras are dropped
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
    same = (logits.argmax(1) == truth.argmax(1)).sum()
    loss = F.cross_entropy(logits[:-1], tokens[0, 1:])
    print(f"{name:20}  error {(logits - truth).abs().max():.1e}", end="   ")
    print(f"same favourite at {same:2} of 18   loss {loss:.2f}")

# %% [markdown]
# The sure test is **parity**: send the same tokens through the reference and through
# your own code, and compare the logits. Good answers prove less, as a trained model may
# hide a mistake. Here is lesson 3's careless model, trained with theta 10000:

# %%
careless, toy = pretrained("careless"), toy_tokenizer()
problems = problems_of("lesson 12", 200)
prompts = toy.encode_batch([problem.prompt for problem in problems])
for theta in (10000.0, 20000.0, 100000.0):
    model = GPT(dataclasses.replace(careless.config, rope_theta=theta))
    model.load_state_dict(careless.state_dict())
    rollouts = sample(model, prompts, 1, 24, temperature=0, eos_ids=toy.eos_ids)
    correct, steps_right = verdicts(problems, rollouts)  # [N] bool each
    print(f"rope_theta {theta:6.0f}: right {correct.float().mean():.2f}", end="   ")
    print(f"faithful {(correct & steps_right).float().mean():.2f}")

# %% [markdown]
# Ten times the value looks like a weak model, not a bug.
#
# ## Rotation: which channels turn together
#
# Lesson 1 turned each channel with the one half a head further on, as Hugging Face
# does. Meta's own Llama code turns neighbours. The rows of `q_proj` and `k_proj` must
# be in the order that the rotation expects.


# %%
def rotate_neighbours(x, cos, sin):
    """x [B, H, T, C], turned in pairs of neighbours; cos, sin [B, 1, T, C / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def to_neighbours(rows):
    """Rows [H * C, D], partners half a head apart -> the same rows, side by side."""
    halves = rows.view(-1, 2, settings.head_dim // 2, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)


turned = ("q_proj", "k_proj")
moved = {
    name: to_neighbours(tensor) if any(part in name for part in turned) else tensor
    for name, tensor in weights.items()
}
with patch("minclipo.model.rotate", rotate_neighbours):  # Meta's convention
    found["neighbours turned"], repaired = logits_with(), logits_with(moved)
errors = {name: (logits - truth).abs().amax(1) for name, logits in found.items()}  # [T]
print(f"neighbours turned: error {errors['neighbours turned'].max():.1e}")
print(f"and the rows moved: error {(repaired - truth).abs().max():.1e}")
assert torch.allclose(repaired, truth, atol=3e-5)
for place in (0, 1, 17):
    print(f"neighbours turned, place {place:2}: {errors['neighbours turned'][place]:.2f}")
assert torch.equal(found["neighbours turned"][0], found["as config.json says"][0])

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
names = (
    "8 heads, not 4",
    "neighbours turned",
    "rope_scaling ignored",
    "rms_norm_eps 1e-6",
    "as config.json says",
)
for name, marker, grey in zip(names, "vs^ox", ("0.65", "0", "0.4", "0.55", "0")):
    style = dict(color=grey, marker=marker, markersize=5, linewidth=1, label=name)
    axis.semilogy(errors[name].clamp(min=1e-7), **style)
axis.set_xticks(range(0, 18, 2))
legend = dict(ncols=2, loc="center", bbox_to_anchor=(0.55, 0.55))
axis.legend(frameon=False, fontsize=9, **legend)
tidy(axis, "position in the text", "largest error of a logit")
show(
    figure,
    "13_errors",
    "Error of the logits at each position, for four mistakes and for none (crosses); no "
    "error at all is drawn at 1e-7. At position 0 both wrong rotations are exact.",
)

# %% [markdown]
# <details><summary><b>Guess first.</b> Why is a wrong rotation exact at place
# 0?</summary>
#
# The first token sees only itself, and the softmax of a single score is 1, whatever
# query and key are.
#
# </details>
#
# > **You should know.** A parity check on one token passes with a wrong rotation.
#
# ## Chat: the text that the model really gets
#
# A chat model knows conversations in one format, its template.
#
# <details><summary><b>Guess first.</b> Three of the four inputs below are wrong. What
# does the model see in each?</summary>
#
# The second begins its text twice. The third ends before the model's own turn is opened.
# The fourth lacks two line breaks. To find such mistakes, print the tokens of a prompt.
#
# </details>

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
word = lambda token: chat.tokenizer.decode([token], skip_special_tokens=False)
for name, ids in variants.items():
    words = [word(token) for token in ids]
    print(f"{name:20} {len(ids)} tokens")
    print(f"    {words[:2]} ... {words[-2:]}")
ends = [chat.tokenizer.id_to_token(token) for token in chat.eos_ids]
print("a completion ends with one of", ends)

# %% [markdown]
# The first ends a document, the second a turn. Stop at the first only, and completions
# run to the limit: unfinished, and worth nothing (lesson 3).
#
# ## Rounding: steps too small to take
#
# On a GPU models compute in bfloat16, with 8 significant bits. Add a usual step to a
# usual weight. Then compute the log-probs of fresh rollouts again, all places at once,
# as an update does:

# %%
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.tensor(0.02, dtype=dtype)
    model, generator = load_model(FOLDER, dtype=dtype), torch.Generator().manual_seed(0)
    options = dict(eos_ids=chat.eos_ids, generator=generator)
    rollouts = sample(model, [variants["as it was trained"]], 16, 24, **options)
    options = dict(temperature=1.0, micro_batch_tokens=4096)
    again = rollout_logprobs(model, rollouts, **options)  # [N, T]
    off = ((again - rollouts.logprobs)[rollouts.mask].exp() - 1).abs().max()
    print(f"{dtype}: 0.02 + 1e-6 is 0.02: {bool(weight + 1e-6 == weight)}", end="   ")
    print(f"ratios off by up to {off:.2f}")

# %% [markdown]
# The bfloat16 weight never moves, so the optimizer keeps float32 copies. And lesson 5's
# first ratio is not 1 unless the old log-probs are computed as in the update
# (`Trainer.old_logprobs`).
#
# ## The same in minclipo

# %%
loaded = load_model(FOLDER).state_dict()
assert loaded.keys() == weights.keys()
assert all(torch.equal(loaded[name], weights[name]) for name in weights)
print("they agree")

# %% [markdown]
# **Now you know.**
#
# * That a checkpoint loads says nothing. Compare logits, on a long text.
# * Rotation and chat template are conventions; both sides must have the same.
# * bfloat16 swallows small steps and moves the ratios of fresh rollouts away from 1.
#
# **Exercise.** About 40 minutes, medium. `python lessons/exercises/13_checkpoints.py`:
# check a safetensors header, bring Meta's rows into halves, cut completions.
#
# <details><summary>A hint for <code>read_header</code></summary>
#
# A slice beyond the end of a file raises nothing. Compare lengths first.
#
# </details>
#
# **What to try next.** Set `strict=True` in `logits_with`: one of the five mistakes is
# noticed. Give `train_llm.py --model` a model of the hub. Lesson 14 asks what an answer
# is.
