"""Training under pressure, for attack.py: large weights of the prompt contrast, and room to cheat."""

from pathlib import Path

from attack_pay import OTHERS, pay
from textbooks import start

from minclipo.config import TrainConfig
from minclipo.model import GPT
from minclipo.runs.loop import Run
from minclipo.runs.measure import evaluate
from minclipo.runs.recipes import TOY
from minclipo.tasks.chain import check_steps
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOM = 32  # tokens: the faithful completion has 11
WINDOW = 20  # last training steps whose entropy is averaged


def pressed_folder(weight: float, seed: int, out: Path) -> Path:
    return out / "attack" / f"weight_{weight:g}" / f"seed{seed}"


def press(weight: float, seed: int, count: int, problems: int, out: Path) -> dict:
    """Train the pretrained toy for `count` steps with this weight and with room to cheat, and measure it."""
    own = dict(steps=count, save_every=count, keep_states=0, keep_rollouts=0, seed=seed, max_new_tokens=ROOM)
    config = TrainConfig(**TOY | own, prompt_contrast_weight=weight, prompt_contrast_others=OTHERS)
    trainer = Trainer(start("toy", seed, out), toy_tokenizer(), TASK, config)
    run = Run(trainer, pressed_folder(weight, seed, out), f"weight {weight:g}, seed {seed}")
    last = run.train()[-WINDOW:]
    found = measure(trainer.model, seed, problems)
    return found | {"entropy": sum(line["entropy"] for line in last) / len(last)}


def measure(model: GPT, seed: int, problems: int) -> dict:
    """Accuracy, steps, length; for the right answers their pay, and how many have surplus words; a few to look at."""
    found = evaluate(model, toy_tokenizer(), TASK, problems=problems, max_new_tokens=ROOM, seed=seed)
    examples = found.pop("examples")
    right = [(problem, text) for problem, text, correct in examples if correct]
    surplus = [row for row in right if len(check_steps(*row)) > len(row[0].operands)]
    found["surplus"] = len(surplus) / max(1, len(right))
    if len(right) > OTHERS:
        paid = pay(model, *(list(part) for part in zip(*right)), seed)
        found |= {name: values.mean().item() for name, values in paid.items()}
    shown = [(problem, text) for problem, text, _ in examples[:3]] + surplus[:3]
    return found | {"shown": [f"{problem.prompt} {text}" for problem, text in shown]}
