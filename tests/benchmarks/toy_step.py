"""Where the time of a training step of the toy goes. A benchmark: it decides nothing and pytest does not collect it.

python train_toy.py
python tests/benchmarks/toy_step.py runs/toy/seed0/pretrained/model
"""

import argparse
import time
from collections import defaultdict

import torch

from minclipo.checkpoint import Checkpoint
from minclipo.config import TrainConfig
from minclipo.runs.measure import timed_step
from minclipo.toy import TASK
from minclipo.trainer import Trainer

STAGES = ("sample", "verify", "contrast", "update_policy")


def timed(trainer: Trainer, stage: str, seconds: dict[str, float]) -> None:
    """Replace a method of the trainer by one that adds up its seconds."""
    method = getattr(trainer, stage)

    def watched(*args):
        started = time.perf_counter()
        result = method(*args)
        seconds[stage] += time.perf_counter() - started
        return result

    setattr(trainer, stage, watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory that train_toy.py wrote")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = Checkpoint(arguments.model)
    trainer = Trainer(checkpoint.model(), checkpoint.tokenizer, TASK, TrainConfig(contrastive_weight=0.1))
    trainer.step()  # the first step pays for allocations
    seconds: dict[str, float] = defaultdict(float)
    for stage in STAGES:
        timed(trainer, stage, seconds)
    total = sum(timed_step(trainer)["seconds"] for _ in range(arguments.steps))
    print(f"{1000 * total / arguments.steps:.0f} ms per step ({arguments.steps} steps, {arguments.threads} threads)")
    for stage in STAGES:
        print(f"  {stage:14} {100 * seconds[stage] / total:4.1f}%")
    print(f"  {'the rest':14} {100 * (1 - sum(seconds.values()) / total):4.1f}%")


if __name__ == "__main__":
    main()
