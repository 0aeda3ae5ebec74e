"""The table of minclipo/runs/README.md: estimated memory of a training step for models of published shapes, in GiB.

    python tests/benchmarks/memory_table.py

A GPU, bfloat16, prompts of 256 tokens, completions of 1024, 64 rollouts sampled at a time, 8192 tokens per forward
pass, no reference model.
"""

import torch

from minclipo.config import TrainConfig
from minclipo.model import GPTConfig
from minclipo.runs.machine import GIB, estimate_memory

# Shapes as published in each model's config.json: V, D, layers, H, K, MLP, tied.
SHAPES = {
    "SmolLM2-135M": (49152, 576, 30, 9, 3, 1536, True),
    "Qwen2.5-0.5B": (151936, 896, 24, 14, 2, 4864, True),
    "Llama-3.2-1B": (128256, 2048, 16, 32, 8, 8192, True),
    "Qwen2.5-1.5B": (151936, 1536, 28, 12, 2, 8960, True),
    "Qwen2.5-3B": (151936, 2048, 36, 16, 2, 11008, True),
    "Qwen2.5-7B": (152064, 3584, 28, 28, 4, 18944, False),
}
TRAIN = TrainConfig(prompts_per_step=16, group_size=16, max_new_tokens=1024, sampling_rows=64, micro_batch_tokens=8192)


def table() -> str:
    lines = ["| model | weights | sampling | update | update, gradient checkpointing |", "|---|---|---|---|---|"]
    for name, (V, D, layers, H, K, mlp, tied) in SHAPES.items():
        config = GPTConfig(V, D, layers, H, K, mlp, tie_embeddings=tied)
        plain, checkpointed = (
            estimate_memory(
                config, TRAIN, prompt_tokens=256, dtype=torch.bfloat16, gradient_checkpointing=checkpointing
            )
            for checkpointing in (False, True)
        )
        cells = [plain.weights, plain.sampling, plain.update, checkpointed.update]
        lines.append(f"| {name} | " + " | ".join(f"{cell / GIB:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
