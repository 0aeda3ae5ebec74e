"""Seconds and memory of a training step on a real checkpoint. A benchmark: pytest does not collect it.

python tests/benchmarks/llm_step.py DIRECTORY --prompts 2 --group-size 4 --tokens 24 --threads 2

Every completion has exactly --tokens tokens (no token ends it), so that the work can be compared with other tools'.
Prints one JSON line. matmul_gflops is what this machine makes of a large float32 matrix product at the same time.
"""

import argparse
import json
import time

import torch
from shapes import even_task, one_update

from minclipo.checkpoint import Checkpoint
from minclipo.runs.machine import peak_memory_mib
from minclipo.runs.measure import timed_step
from minclipo.trainer import Trainer

STAGES = ("sample", "update_policy")


def matmul_gflops(size: int = 2048, repeats: int = 3) -> float:
    a, b = torch.randn(2, size, size)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = Checkpoint(arguments.model)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer
    model.gradient_checkpointing = arguments.gradient_checkpointing
    tokenizer.eos_ids = []

    task = even_task(lambda question: tokenizer.chat([{"role": "user", "content": question}]))
    config = one_update(arguments.prompts, arguments.group_size, arguments.tokens, arguments.micro_batch_tokens)
    trainer, seconds = Trainer(model, tokenizer, task, config), dict.fromkeys(STAGES, 0.0)

    def timed(stage: str):
        method = getattr(trainer, stage)

        def watched(*args):
            started = time.perf_counter()
            result = method(*args)
            seconds[stage] += time.perf_counter() - started
            return result

        return watched

    steps = [timed_step(trainer)["seconds"]]  # the first pays for allocations
    for stage in STAGES:
        setattr(trainer, stage, timed(stage))
    steps += [timed_step(trainer)["seconds"] for _ in range(arguments.steps - 1)]
    later = len(steps) - 1
    found = {"step_s": [round(s, 3) for s in steps], "mean_step_s_after_first": round(sum(steps[1:]) / later, 3)}
    found |= {f"{stage}_s": round(value / later, 3) for stage, value in seconds.items()}
    found |= {"peak_mib": round(peak_memory_mib()), "matmul_gflops": round(matmul_gflops())}
    print(json.dumps(vars(arguments) | found))


if __name__ == "__main__":
    main()
