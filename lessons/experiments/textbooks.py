"""The textbooks that the experiments start from, the models that have read them, and problems to look at them with."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

from finished import finished

from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.files import write_json
from minclipo.model import GPT
from minclipo.tasks import Task
from minclipo.tasks.chain import OPERANDS, ChainProblem
from minclipo.toy import TASK, ToyConfig, pretrained_toy, toy_task, toy_tokenizer


@dataclass(frozen=True)
class Textbook:
    """What the author does, and how long the chains are (fewest, most operations)."""

    config: ToyConfig
    operations: tuple[int, int] = (4, 4)
    max_new_tokens: int = 16
    training: Task = TASK  # what reinforcement learning trains on
    tests: dict[str, Task] = field(default_factory=dict)  # what else it is tested on


def shared(share: float) -> Textbook:
    """No made-up operands, but this share of the solutions quotes +1 in the second step, whatever the operand."""
    return Textbook(ToyConfig(hallucinate=0.0, shared_step=share))


def made_up(probability: float) -> Textbook:
    """The toy's textbook with another probability of a made-up operand."""
    return Textbook(ToyConfig(hallucinate=probability))


def believed(probability: float) -> Textbook:
    """The toy's textbook, but its author adds a made-up operand as quoted with this probability."""
    return Textbook(ToyConfig(believe=probability))


HELD_OUT = (-7, -4, 4, 7)  # operands that the textbook has, and reinforcement learning does not
TRAINED = tuple(operand for operand in OPERANDS if operand not in HELD_OUT)
LENGTHS = Textbook(
    ToyConfig(),
    operations=(3, 7),
    max_new_tokens=24,
    training=toy_task((3, 5), TRAINED),
    tests={
        "6 operations": toy_task((6, 6), TRAINED),
        "7 operations": toy_task((7, 7), TRAINED),
        "other operands": toy_task((3, 5), HELD_OUT),
        "7 operations, other operands": toy_task((7, 7), HELD_OUT),
    },
)
TEXTBOOKS = {
    "toy": Textbook(ToyConfig()),
    "shared10": shared(0.1),
    "shared30": shared(0.3),
    "shared50": shared(0.5),
    "shared70": shared(0.7),
    "shared90": shared(0.9),
    "made_up05": made_up(0.05),
    "made_up50": made_up(0.50),
    "wide": Textbook(ToyConfig(hidden_size=128, intermediate_size=384)),
    "toy3000": Textbook(ToyConfig(pretrain_steps=3000)),
    "believed10": believed(0.1),
    "believed20": believed(0.2),
    "believed50": believed(0.5),
    "believed100": believed(1.0),
    "two_ways": Textbook(ToyConfig(total_first=0.5)),
    "weak": Textbook(ToyConfig(slip=0.35)),
    "lengths": LENGTHS,
}


def start(name: str, seed: int, out: Path) -> GPT:
    """The model that has read that textbook, from out/starts; if it is not there yet, it reads the textbook now."""
    textbook, folder, tokenizer = TEXTBOOKS[name], out / "starts" / name / f"seed{seed}", toy_tokenizer()
    settings = {"toy": asdict(textbook.config), "operations": list(textbook.operations)}
    if finished(folder / "result.json", settings) is None:
        print(f"\nseed {seed}: reading the textbook {name!r}, {textbook.config.pretrain_steps} steps", flush=True)
        began = time.perf_counter()
        model = pretrained_toy(textbook.config, tokenizer, seed, textbook.operations)
        save_model(model, tokenizer, folder / "model")
        seconds = time.perf_counter() - began
        write_json(folder / "result.json", {"seconds": seconds, "settings": settings})
    return load_model(folder / "model")


def fresh_problems(
    stream: str, number: int, wanted: Callable[[ChainProblem], bool] = lambda problem: True
) -> list[ChainProblem]:
    """The toy's first problems that are wanted, from a stream that neither training nor evaluation draws from."""
    drawn = (TASK.draw(stream, index) for index in count())
    return list(islice(filter(wanted, drawn), number))
