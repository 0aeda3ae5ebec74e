"""How does CLIPO find made-up steps? Three looks at the pooled states of a group's rollouts.

    python lessons/experiments/separation.py --seeds 0 1 2 --out runs/experiments

1. Separation: how often does a hallucinated right rollout have a larger contrastive loss than a clean one of its group?
2. Signal: how much of that loss reaches the reward, and in how many groups?
3. Map: where are clean, hallucinated and wrong rollouts, and where do GRPO and CLIPO move them? (First seed only.)

Everything goes to OUT/separation: table.md, results.json, map.png. It starts from OUT/starts (made if need be), and
takes the GRPO model of part 2 from OUT/toy-100/GRPO, if `run.py algorithms` has made it.
Left out: the head that training learns; here heads are random, as in training's first step, or there is none.

The parts are in separation_auc.py, separation_signal.py and separation_map.py.
"""

import argparse
import sys
from pathlib import Path

import torch
from separation_auc import score_losses
from separation_map import make_map
from separation_report import report
from separation_signal import signals
from separation_states import look
from tables import write_results
from textbooks import fresh_problems, start
from variants import Variant

from minclipo.checkpoint import load_model
from minclipo.runs.recipes import TOY

TRAINED = Variant("GRPO", steps=TOY["steps"])  # whose model part 2 compares with the pretrained one


def three_looks(arguments: argparse.Namespace) -> dict:
    """What the three parts find, for all seeds."""
    out, seeds = arguments.out, sorted(set(arguments.seeds))
    before, after = {}, {}  # what part 2 says, by seed
    found = {
        "separation": {},
        "signal": {"after pretraining": before, f"after {TRAINED.steps} steps of GRPO": after},
    }
    for seed in seeds:
        problems = fresh_problems(f"separation {seed}", arguments.groups)
        states = look(start("toy", seed, out), problems, arguments.group_size, seed)
        found["separation"][seed] = score_losses(states, arguments.heads, seed)
        before[seed] = signals(states, arguments.heads, seed)
        trained = out / TRAINED.folder / f"seed{seed}"
        if (trained / "result.json").is_file():  # it is written last: without it the run is not finished
            states = look(load_model(trained / "model"), problems, arguments.group_size, seed)
            after[seed] = signals(states, arguments.heads, seed)
        print(f"seed {seed}: parts 1 and 2 done", flush=True)
    found["map"] = make_map(seeds[0], out, sorted(set(arguments.map_steps)), arguments.map_prompts)
    found["arguments"] = {name: value for name, value in vars(arguments).items() if name != "out"}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="default: runs/experiments")
    parser.add_argument("--groups", type=int, default=64, help="prompts of parts 1 and 2 (default: 64)")
    parser.add_argument("--group-size", type=int, default=16, help="rollouts of each of them (default: 16)")
    parser.add_argument("--heads", type=int, default=5, help="random heads to average over (default: 5)")
    parser.add_argument("--map-prompts", type=int, default=40, help="prompts of the map (default: 40)")
    parser.add_argument(
        "--map-steps", nargs="+", type=int, default=[0, 20, 40, 60], help="its columns; training ends with the last"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(max(1, arguments.threads))
    folder = arguments.out / "separation"
    folder.mkdir(parents=True, exist_ok=True)
    found = three_looks(arguments)
    print()
    write_results(found, report(found), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
