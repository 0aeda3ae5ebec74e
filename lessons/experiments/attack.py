"""What would a policy do to earn the prompt contrast without merit?

    python lessons/experiments/attack.py --seeds 0 1 2 --out runs/experiments

Four looks at minclipo/extensions/prompt_contrast.py, with the toy's chains:

1. Pressure: training with weights up to 25 times the toy's own, and with room for twice the words.
2. Prices: completions written by hand, with the right answer and without merit: is any paid more than the faithful one?
3. Prices once learned: what is a policy paid that has been taught to write like that and nothing else?
4. Neighbours: how the pay of the faithful completion depends on the other prompts that it is compared with.

Writes OUT/attack/table.md and results.json. Ctrl-C keeps what is finished; the same command does the rest.
Look 1 is in attack_pressure.py, the others in attack_pay.py; attack_completions.py has the completions.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from attack_completions import attack_problems
from attack_pay import OTHERS, learned_prices, neighbours, price_list
from attack_pressure import press, pressed_folder
from attack_report import report
from finished import finished
from tables import write_results
from textbooks import TEXTBOOKS, start

from minclipo.checkpoint import load_model
from minclipo.checkpoint.files import write_json
from minclipo.model import GPT


def once(path: Path, settings: dict, compute: Callable[[], dict]) -> dict:
    """What compute() returned when it was first called, from the file `path`. ValueError if that had other settings."""
    result = finished(path, settings)
    if result is None:
        began = time.perf_counter()
        found = compute()
        result = {"found": found, "seconds": time.perf_counter() - began, "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return result["found"]


def models(seeds: list[int], weights: list[float], out: Path) -> dict[str, Callable[[int], GPT]]:
    """Who is asked for prices: the pretrained model, and those trained models that are there for all seeds."""
    folders = {"60 steps, weight 0.2": lambda seed: out / "toy-60" / "prompt_contrast" / f"seed{seed}"}
    for weight in weights:
        folders[f"pressed, weight {weight:g}"] = lambda seed, weight=weight: pressed_folder(weight, seed, out)
    found = {"pretrained": lambda seed: start("toy", seed, out)}
    for name, folder in folders.items():
        if all((folder(seed) / "result.json").is_file() for seed in seeds):
            found[name] = lambda seed, folder=folder: load_model(folder(seed) / "model")
    return found


def attack(arguments: argparse.Namespace) -> dict:
    """All four looks."""
    out, seeds, weights = arguments.out, sorted(set(arguments.seeds)), arguments.weights
    problems = {seed: attack_problems(seed, arguments.problems) for seed in seeds}
    toy, results = dataclasses.asdict(TEXTBOOKS["toy"].config), {"seeds": seeds, "pressure": {}}
    trained = {"toy": toy, "steps": arguments.steps, "problems": arguments.eval_problems}
    for weight in weights:
        results["pressure"][f"{weight:g}"] = [
            once(
                pressed_folder(weight, seed, out) / "result.json",
                trained | {"weight": weight},
                partial(press, weight, seed, arguments.steps, arguments.eval_problems, out),
            )
            for seed in seeds
        ]
    results["prices"] = {
        name: [price_list(model(seed), problems[seed], seed) for seed in seeds]
        for name, model in models(seeds, weights, out).items()
    }
    taught = {"toy": toy, "teach_steps": arguments.teach_steps, "problems": arguments.problems}
    results["learned"] = [
        once(
            out / "attack" / "learned" / f"seed{seed}.json",
            taught,
            partial(learned_prices, seed, problems[seed], arguments.teach_steps, out),
        )
        for seed in seeds
    ]
    results["neighbours"] = [neighbours(start("toy", seed, out), seed, arguments.problems) for seed in seeds]
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="default: runs/experiments")
    parser.add_argument("--problems", type=int, default=200, help="problems with hand-made completions (default: 200)")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.2, 1.0, 5.0], help="default: 0 0.2 1 5")
    parser.add_argument("--steps", type=int, default=150, help="training steps under pressure (default: 150)")
    parser.add_argument("--eval-problems", type=int, default=1000, help="problems of the evaluation (default: 1000)")
    parser.add_argument(
        "--teach-steps", type=int, default=300, help="steps of teaching one way to write (default: 300)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args(argv)
    if arguments.problems <= OTHERS:
        parser.error(f"--problems must be more than {OTHERS}, found {arguments.problems}")
    torch.set_num_threads(max(1, arguments.threads))
    sys.stdout.reconfigure(line_buffering=True)
    try:
        results = attack(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        return 130
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return 1
    write_results(results, report(results), arguments.out / "attack")
    return 0


if __name__ == "__main__":
    sys.exit(main())
