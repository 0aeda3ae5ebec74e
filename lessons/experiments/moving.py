"""A moving picture: one problem's sixteen rollouts while GRPO, and CLIPO beside it, train the same model.

    python lessons/experiments/moving.py           # trains both, writes rollouts.json and rollouts.gif: some minutes
    python lessons/experiments/moving.py --draw    # draws rollouts.gif again from rollouts.json

Toy settings, seed 0, from lessons/models/careless. Every few steps the story's problem is sampled sixteen times, and the
shares are measured on problems that no training sees; always with the same random numbers.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # lessons/, where common.py is
from common import KINDS, LESSONS, mosaic, plt, pretrained, problems_of, story, verdicts

from minclipo.checkpoint.files import write_text
from minclipo.config import TrainConfig
from minclipo.model import GPT
from minclipo.runs.plots import STYLES
from minclipo.runs.recipes import METHODS, TOY
from minclipo.sampler import sample
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

FOLDER = LESSONS / "results" / "toy"
SHOWN = {"baseline": "GRPO", "clipo": "CLIPO"}  # left, right
STEPS, EVERY, GROUP, MEASURED = 100, 4, 16, 2000
WIDTH, PAUSE, REST = 9.0, 320, 3200  # inches at 100 dpi; milliseconds of a frame, and of the last one
KEY = "blue: the word is right     orange, framed: a made-up number     grey, hatched: a wrong total or answer, or surplus"


def kinds_of(model: GPT, problems: list[ChainProblem], group_size: int) -> tuple[list[str], list[str]]:
    """The rollouts' texts, and what each is: a name in KINDS. The random numbers are the same every time."""
    tokenizer = toy_tokenizer()
    prompts, generator = tokenizer.encode_batch([problem.prompt for problem in problems]), torch.Generator()
    rollouts = sample(model, prompts, group_size, 16, eos_ids=tokenizer.eos_ids, generator=generator.manual_seed(0))
    names = [
        "wrong" if not right else "faithful" if clean else "hallucinated"
        for right, clean in zip(*verdicts(problems, rollouts))
    ]
    return tokenizer.decode_batch(rollouts.completion_ids()), names


def look(model: GPT, problem: ChainProblem, fresh: list[ChainProblem]) -> dict:
    """One frame of one method: the problem's rollouts, those of a kind together, and the share of each kind elsewhere."""
    rows = zip(*kinds_of(model, [problem], GROUP))
    texts = [text for text, _ in sorted(rows, key=lambda row: list(KINDS).index(row[1]))]
    names = kinds_of(model, fresh, 1)[1]
    return {"texts": texts, "shares": {kind: names.count(kind) / len(names) for kind in KINDS}}


def record(steps: int = STEPS, every: int = EVERY, measured: int = MEASURED) -> list[dict]:
    """Train both methods, and look at the model at the start and after every few steps."""
    problem, fresh = story()[0], problems_of("moving", measured)
    frames = [{"step": step} for step in range(0, steps + 1, every)]
    for name in SHOWN:
        trainer = Trainer(pretrained("careless"), toy_tokenizer(), TASK, TrainConfig(**TOY | METHODS[name]))
        for frame in frames:
            while trainer.last.number < frame["step"]:
                trainer.step()
            frame[name] = look(trainer.model, problem, fresh)
    return frames


def hallucination_rate(shares: dict[str, float]) -> float:
    """Of the right rollouts, those with a made-up step."""
    return shares["hallucinated"] / max(shares["faithful"] + shares["hallucinated"], 1e-9)


def draw(frames: list[dict], path: Path) -> None:
    """Write the frames as an endless GIF; it rests on the last one."""
    problem = story()[0]
    pictures = [picture(problem, frame) for frame in frames]
    palette = pictures[0].quantize(64)  # one for all frames: colours of their own would flicker
    pictures = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures]
    pauses = [PAUSE] * (len(frames) - 1) + [REST]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=pauses, loop=0, optimize=True)


def picture(problem: ChainProblem, frame: dict) -> Image.Image:
    """Two mosaics side by side; above each the share of rollouts of each kind on the fresh problems."""
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 4.9), dpi=100, height_ratios=(1, 20), layout="constrained")
    figure.suptitle(f"{problem.prompt} ?     training step {frame['step']}", fontsize=13, family="monospace")
    for (bar, axis), (name, label) in zip(axes.T, SHOWN.items()):
        shares, left = frame[name]["shares"], 0.0
        for kind, share in shares.items():
            bar.barh(0, share, left=left, color=KINDS[kind], edgecolor="black", linewidth=0.6)
            left += share
        bar.set(xlim=(0, 1))
        bar.axis("off")
        color, rate = STYLES[name]["color"], hallucination_rate(shares)
        bar.set_title(
            f"{label}: {rate:.0%} of right answers have a made-up step", color=color, weight="bold", fontsize=11
        )
        mosaic(axis, problem, frame[name]["texts"])
        axis.set_title("", loc="left")
        axis.set_xlim(0, 11)  # ten words, and the mark of a row that runs on
    figure.supxlabel(KEY, fontsize=10)
    figure.canvas.draw()
    image = Image.frombuffer("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()).convert("RGB")
    plt.close(figure)
    return image


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="draw from rollouts.json, without training")
    numbers = FOLDER / "rollouts.json"
    if not parser.parse_args(argv).draw:
        write_text(numbers, json.dumps({"measured": MEASURED, "frames": record()}, indent=1) + "\n")
    draw(json.loads(numbers.read_text(encoding="utf-8"))["frames"], numbers.with_suffix(".gif"))


if __name__ == "__main__":
    main()
