"""What the lessons share and none of them teaches: the toy's pretrained models, colours, pictures, training runs.

Run a lesson as a script and its pictures go to runs/lessons/; open it as a notebook and they appear in place.
"""

import contextlib
import copy
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

# x86 processors with AVX-512 add up in another order than those without, and after a hundred training steps that is
# another run. torch reads this variable before its first operation.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
matplotlib.use("Agg")  # draw to files: there may be no screen
import matplotlib.pyplot as plt
import torch
from minclipo.checkpoint import load_model
from minclipo.config import TrainConfig
from minclipo.model import GPT, upcast
from minclipo.runs.loop import Run
from minclipo.runs.plots import STYLES
from minclipo.runs.recipes import TOY
from minclipo.sampler import Rollouts, sample
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer
from torch import Tensor

LESSONS = Path(__file__).parent
RUNS = LESSONS.parent / "runs" / "lessons"
METHODS = {
    name: style["color"] for name, style in STYLES.items()
}  # one colour per method, everywhere
KINDS = {
    "faithful": "#56B4E9",
    "hallucinated": "#E69F00",
    "wrong": "#999999",
}  # what a rollout can be, everywhere

# Sums in another order round differently, and after a hundred training steps that is another run. One thread, so that a
# lesson prints what its page says; the models are so small that two are hardly faster.
torch.set_num_threads(1)


def pretrained(name: str) -> GPT:
    """A toy model that has read a textbook, "careless", "shared_step" or "believed": see lessons/models/README.md."""
    return load_model(LESSONS / "models" / name)


def problems_of(stream: str, count: int) -> list[ChainProblem]:
    """The first problems of a stream. Equal names give equal problems; no other stream holds the same ones."""
    return [TASK.draw(stream, index) for index in range(count)]


def verdicts(problems: list[ChainProblem], rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(is the answer right? [N] bool, is every step right? [N] bool) of the toy's rollouts, as in lesson 3."""
    texts = toy_tokenizer().decode_batch(rollouts.completion_ids())
    correct = TASK.outcomes(problems, texts, rollouts.finished.tolist())
    faithful = [all(steps) for steps in TASK.steps(problems, texts, [True] * len(texts))]
    return torch.tensor(correct), torch.tensor(faithful)


def story() -> tuple[ChainProblem, Rollouts]:
    """The problem that the course follows, and sixteen rollouts of it by the careless model.

    Three are faithful, seven hallucinated and six wrong, in this order. pooled, logprobs and mask come with them.
    """
    tokenizer, problem = toy_tokenizer(), TASK.draw("lesson 3", 0)
    prompts, generator = (
        tokenizer.encode_batch([problem.prompt]),
        torch.Generator().manual_seed(0),
    )
    rollouts = sample(
        pretrained("careless"),
        prompts,
        16,
        16,
        eos_ids=tokenizer.eos_ids,
        generator=generator,
    )
    correct, steps_right = verdicts([problem], rollouts)
    order = (2 - correct.long() - (correct & steps_right).long()).argsort(
        stable=True
    )  # faithful, hallucinated, wrong
    rows = {
        name: getattr(rollouts, name)[order]
        for name in ("completions", "mask", "logprobs", "pooled", "finished")
    }
    return problem, replace(rollouts, **rows)


def mosaic(
    axis: plt.Axes, problem: ChainProblem, texts: list[str], notes: list[str] = ()
) -> None:
    """Draw completions of one problem, one row each, a word per tile; a note stands to the right of each row.

    Blue: the word is right. Orange, framed: an operand made up. Grey, hatched: a wrong total or answer.
    """
    truth = [
        word
        for pair in zip(problem.operands, problem.totals)
        for word in (f"{pair[0]:+d}", str(pair[1]))
    ]
    truth += ["#", str(problem.totals[-1])]
    for y, text in enumerate(texts):
        for x, word in enumerate(
            text.split()[: len(truth) + 2]
        ):  # a row that runs on shows two words of it
            right = x < len(truth) and word == truth[x]
            kind = (
                "faithful"
                if right
                else "hallucinated"
                if x % 2 == 0 and x < len(truth) - 2
                else "wrong"
            )
            frame = {
                "faithful": {},
                "hallucinated": {"ec": "black", "lw": 1.6},
                "wrong": {"ec": "#777777", "hatch": "///"},
            }
            axis.add_patch(
                plt.Rectangle(
                    (x + 0.03, y + 0.06), 0.92, 0.86, fc=KINDS[kind], **frame[kind]
                )
            )
            axis.text(
                x + 0.49,
                y + 0.5,
                word,
                ha="center",
                va="center",
                fontsize=10,
                weight="normal" if right else "bold",
            )
    for y, note in enumerate(notes):
        axis.text(len(truth) + 0.2, y + 0.5, note, va="center", fontsize=10)
    axis.set(xlim=(0, len(truth) + (4 if notes else 0)), ylim=(len(texts), 0))
    axis.set_title(problem.prompt, loc="left")
    axis.axis("off")


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state over the masked tokens, [N, D] float32 or wider, from hidden [N, T, D] and mask [N, T].

    What `sample` sums up token by token. In bfloat16 a long sum stagnates (tests/test_golden.py shows how far off).
    """
    return (upcast(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def training_steps(steps: int) -> int:
    """As many steps as the lesson wants, or LESSON_STEPS where that is set (the tests set it to 2)."""
    return int(os.environ.get("LESSON_STEPS", steps))


def train(
    name: str, start: GPT, *, steps: int = 100, **options
) -> tuple[GPT, list[dict]]:
    """Train a copy of `start` on the toy; (the trained model, the metrics of each step).

    options: those of TrainConfig, else the toy's. The run's files go to runs/lessons/NAME.
    """
    config = TrainConfig(
        **TOY | {"keep_states": 0} | options | {"steps": training_steps(steps)}
    )
    trainer = Trainer(copy.deepcopy(start), toy_tokenizer(), TASK, config)
    with contextlib.redirect_stdout(
        io.StringIO()
    ):  # one line per step; the progress bar stays
        history = Run(trainer, RUNS / name, name).train()
    return trainer.model, history


def show(figure: plt.Figure, name: str, caption: str) -> None:
    """Save a picture as NAME.png and show it with its caption: in the notebook and its page; a script prints its path."""
    folder = Path(os.environ.get("LESSON_PICTURES", RUNS))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{error}. Set LESSON_PICTURES to a folder that can be written"
        ) from error
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=200)
    plt.close(figure)
    if "ipykernel" not in sys.modules:  # a script, or IPython in a terminal
        print(f"picture: {path}: {caption}")
        return
    from IPython.display import (
        Image,
        Markdown,
        display,
    )  # there if and only if a notebook is

    display(
        Image(path, width=round(figure.get_figwidth() * 100), alt=caption),
        Markdown(f"*{caption}*"),
    )


def show_training(
    histories: dict[str, list[dict]],
    name: str,
    caption: str,
    metrics=("accuracy", "hallucination_rate"),
) -> None:
    """Show metrics of runs, one panel each, against the training step; histories: a method's metrics of each step."""
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(3 * len(metrics) + 1, 3.4), layout="constrained"
    )
    for axis, metric in zip(axes, metrics):
        for method, history in histories.items():
            style = STYLES[method] | {"label": STYLES[method]["label"].format("GRPO")}
            axis.plot(
                [line["step"] for line in history],
                [line[metric] for line in history],
                **style,
            )
        tidy(axis, "training step", metric.replace("_", " "))
        axis.set_ylim(-0.02, 1.02)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    show(figure, name, caption)


def tidy(axis: plt.Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Names for the axes, a faint grid, no box."""
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
