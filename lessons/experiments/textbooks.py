"""The textbooks that the experiments start from, and the models that have read them."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minclipo.checkpoint import load_model, save_model
from minclipo.evaluation import evaluate
from minclipo.files import write_json
from minclipo.model import GPT
from minclipo.toy import ToyConfig, pretrained_toy, toy_task, toy_tokenizer

SHORT = 1000  # pretraining steps where a textbook makes no mistakes of its own kind, or where there are many textbooks


@dataclass(frozen=True)
class Textbook:
    """What the author does, and how long the chains are (fewest, most operations)."""

    config: ToyConfig
    operations: tuple[int, int] = (4, 4)
    max_new_tokens: int = 16


def shared(share: float) -> Textbook:
    """No made-up operands, but this share of the solutions quotes +1 in the second step, whatever the operand."""
    return Textbook(ToyConfig(hallucinate=0.0, shared_step=share, pretrain_steps=SHORT))


def made_up(probability: float) -> Textbook:
    """The toy's textbook with another probability of a made-up operand."""
    return Textbook(ToyConfig(hallucinate=probability, pretrain_steps=SHORT))


TEXTBOOKS = {
    "toy": Textbook(ToyConfig()),
    "shared10": shared(0.1),
    "shared30": shared(0.3),
    "shared50": shared(0.5),
    "shared70": shared(0.7),
    "shared90": shared(0.9),
    "made_up05": made_up(0.05),
    "made_up15": made_up(0.15),
    "made_up30": made_up(0.30),
    "made_up50": made_up(0.50),
    "two_ways": Textbook(ToyConfig(total_first=0.5)),
    "weak": Textbook(ToyConfig(slip=0.4, pretrain_steps=SHORT)),
    "lengths": Textbook(ToyConfig(), operations=(3, 7), max_new_tokens=24),
}


def start(name: str, seed: int, out: Path) -> GPT:
    """The model that has read that textbook, from out/starts; it reads it now if it has not yet."""
    textbook, folder, tokenizer = TEXTBOOKS[name], out / "starts" / name / f"seed{seed}", toy_tokenizer()
    if not (folder / "result.json").is_file():
        print(f"\nseed {seed}: reading the textbook {name!r}, {textbook.config.pretrain_steps} steps", flush=True)
        began = time.perf_counter()
        model = pretrained_toy(textbook.config, tokenizer, seed, textbook.operations)
        save_model(model, tokenizer, folder / "model")
        seconds = time.perf_counter() - began
        found = evaluate(
            model,
            tokenizer,
            toy_task(textbook.operations),
            problems=textbook.config.eval_problems,
            max_new_tokens=textbook.max_new_tokens,
            seed=seed,
        )
        found.pop("examples")
        write_json(folder / "result.json", found | {"seconds": seconds, "textbook": asdict(textbook)})
    return load_model(folder / "model")
