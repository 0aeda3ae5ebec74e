"""What the lessons share and none of them teaches: pretrained models, pictures, training.

Run a lesson as a script and its pictures go to runs/lessons/; in a notebook they appear
in place.
"""

import base64
import contextlib
import copy
import io
import os
import platform
import random
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

# x86 processors with AVX-512 add up in another order than those without, and after a
# hundred training steps that is another run. torch reads this before its first operation.
if platform.machine().lower() in ("x86_64", "amd64"):  # elsewhere torch would warn of it
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
matplotlib.use("Agg")  # draw to files: there may be no screen
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

from minclipo.checkpoint import load_model
from minclipo.config import TrainConfig
from minclipo.model import GPT, upcast
from minclipo.runs.loop import Run
from minclipo.runs.plots import STYLES
from minclipo.runs.recipes import TOY
from minclipo.sampler import Rollouts, sample
from minclipo.tasks.chain import CarelessAuthor, ChainProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

LESSONS = Path(__file__).parent
RUNS = LESSONS.parent / "runs" / "lessons"
METHODS = {name: style["color"] for name, style in STYLES.items()}  # the same everywhere
KINDS = {"faithful": "#56B4E9", "hallucinated": "#E69F00", "wrong": "#999999"}  # likewise

# For the same reason one thread; the models are so small that two are hardly faster.
torch.set_num_threads(1)


def pretrained(name: str) -> GPT:
    """A toy model that has read a textbook; lessons/models/README.md has the names."""
    return load_model(LESSONS / "models" / name)


def problems_of(stream: str, count: int) -> list[ChainProblem]:
    """The first problems of a stream; streams of other names hold other problems."""
    return [TASK.draw(stream, index) for index in range(count)]


def verdicts(problems: list[ChainProblem], rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(is the answer right? [N] bool, is every step right? [N] bool), as in lesson 3."""
    texts = toy_tokenizer().decode_batch(rollouts.completion_ids())
    correct = TASK.outcomes(problems, texts, rollouts.finished.tolist())
    faithful = [all(steps) for steps in TASK.steps(problems, texts, [True] * len(texts))]
    return torch.tensor(correct), torch.tensor(faithful)


def story() -> tuple[ChainProblem, Rollouts]:
    """The problem that the course follows, and sixteen rollouts by the careless model.

    Three are faithful, seven hallucinated and six wrong, in this order.
    """
    tokenizer, problem = toy_tokenizer(), TASK.draw("lesson 3", 0)
    prompts, model = tokenizer.encode_batch([problem.prompt]), pretrained("careless")
    options = dict(eos_ids=tokenizer.eos_ids, generator=torch.Generator().manual_seed(0))
    rollouts = sample(model, prompts, 16, 16, **options)
    correct, steps_right = verdicts([problem], rollouts)
    goodness = correct.long() + (correct & steps_right)  # [N] 0 wrong, 1, 2 faithful
    order = goodness.argsort(descending=True, stable=True)
    names = ("completions", "mask", "logprobs", "pooled", "finished")
    return problem, replace(rollouts, **{n: getattr(rollouts, n)[order] for n in names})


def mosaic(
    axis: plt.Axes, problem: ChainProblem, texts: list[str], notes: list[str] = ()
):
    """Draw completions of one problem, a row each, a word per tile, notes to their right.

    Blue: the word is right. Orange, framed: an operand made up. Grey, hatched: a wrong
    total or answer, and what follows the answer.
    """
    looks = {
        "faithful": {},
        "hallucinated": {"edgecolor": "black", "linewidth": 1.6},
        "wrong": {"edgecolor": "#777777", "hatch": "///"},
    }
    careful = CarelessAuthor(hallucinate=0, slip=0)
    truth = careful.solution(problem, random.Random(0)).split()
    operands = range(0, len(truth) - 2, 2)  # they stand at even places, before the #
    for y, text in enumerate(texts):
        words = text.split()
        if len(words) > len(truth):
            words[len(truth) :] = ["..."]  # a row that runs on
        for x, word in enumerate(words):
            right = truth[x : x + 1] == [word]
            kind = "faithful" if right else "hallucinated" if x in operands else "wrong"
            tile = (x + 0.03, y + 0.06), 0.92, 0.86
            axis.add_patch(plt.Rectangle(*tile, facecolor=KINDS[kind], **looks[kind]))
            middle = dict(ha="center", va="center", weight="normal" if right else "bold")
            axis.text(x + 0.49, y + 0.5, word, fontsize=10, **middle)
    longest = max(min(len(text.split()), len(truth) + 1) for text in texts)
    for y, note in enumerate(notes):
        axis.text(longest + 0.2, y + 0.5, note, va="center", fontsize=10)
    axis.set(xlim=(0, longest + (4 if notes else 0)), ylim=(len(texts), 0))
    axis.set_title(problem.prompt, loc="left")
    axis.axis("off")


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens, [N, D], from hidden [N, T, D], mask [N, T].

    What `sample` sums up token by token, in float32 or wider: in bfloat16 a long sum
    stagnates (tests/test_golden.py).
    """
    return (upcast(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def training_steps(steps: int) -> int:
    """As many steps as the lesson wants, or LESSON_STEPS if set, as the tests do."""
    return int(os.environ.get("LESSON_STEPS", steps))


def train(name: str, start: GPT, *, steps=100, **options) -> tuple[GPT, list[dict]]:
    """Train a copy of `start` on the toy; (the trained model, the metrics of each step).

    options: those of TrainConfig, else the toy's. Files go to runs/lessons/NAME.
    """
    options = TOY | {"keep_states": 0} | options | {"steps": training_steps(steps)}
    trainer = Trainer(copy.deepcopy(start), toy_tokenizer(), TASK, TrainConfig(**options))
    with contextlib.redirect_stdout(io.StringIO()):  # its lines; the progress bar stays
        history = Run(trainer, RUNS / name, name).train()
    return trainer.model, history


def show(figure: plt.Figure, name: str, caption: str) -> None:
    """Save a picture as runs/lessons/NAME.png and show it with its caption."""
    folder = Path(os.environ.get("LESSON_PICTURES", RUNS))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "Set LESSON_PICTURES to a folder that can be written"
        raise OSError(f"{error}. {hint}") from error
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=200)  # twice the size it is shown at: sharp on any screen
    plt.close(figure)
    with Image.open(path) as picture:  # lines need few colours: a third of the bytes
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    show_file(path, round(figure.get_figwidth() * 100), caption)


def show_file(path: Path, width: int, caption: str) -> None:
    """Show a PNG or GIF, so many pixels wide, with its caption; a script prints both."""
    if "ipykernel" not in sys.modules:  # a script, or IPython in a terminal
        print(f"picture: {path}: {caption}")
        return
    from IPython.display import Markdown, display  # there if and only if a notebook is

    # Not as an Image: that of IPython 7, which Colab has, knows no alt.
    kind = f"image/{path.suffix[1:]}"
    picture = base64.b64encode(path.read_bytes()).decode()
    about = {"width": width, "alt": caption, "name": path.name}  # name: for render.py
    display({kind: picture}, raw=True, metadata={kind: about})
    display(Markdown(f"*{caption}*"))


def show_training(
    histories: dict[str, list[dict]],
    name: str,
    caption: str,
    metrics=("accuracy", "hallucination_rate"),
) -> None:
    """Show metrics of runs against the training step, one panel each.

    histories: for each method, the metrics of each step.
    """
    size = (min(8, 3 * len(metrics) + 1), 3.4)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, layout="constrained")
    for axis, metric in zip(axes, metrics):
        for method, history in histories.items():
            style = STYLES[method] | {"label": STYLES[method]["label"].format("GRPO")}
            steps, values = zip(*[(line["step"], line[metric]) for line in history])
            axis.plot(steps, values, **style)
        tidy(axis, "training step", metric.replace("_", " "))
        axis.set_ylim(-0.02, 1.02)
    below = dict(loc="outside lower center", ncols=3, frameon=False)
    figure.legend(*axes[0].get_legend_handles_labels(), **below)
    show(figure, name, caption)


def tidy(axis: plt.Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Names for the axes, a faint grid, no box."""
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
