"""Which model trains on which card, and what the paper's recipes need on 1, 2 and 8 GPUs: by the estimate alone.

    python tests/benchmarks/cards.py

prints the tables of tests/benchmarks/README.md. No weights are made and no GPU is asked.
"""

import dataclasses

import torch
from memory_table import SHAPES

from minclipo.config import TrainConfig
from minclipo.model import GPTConfig
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.memory import GIB, Memory, estimate_memory
from minclipo.runs.recipes import LLM, PRESETS

CARDS = (8, 16, 24, 80)  # GiB
FREE = 2  # GiB of a card that stay free: CUDA's context takes about half of one, the allocator wastes some
MODELS = ("SmolLM2-135M", "Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B", "Qwen2.5-7B")  # shapes: memory_table.py
PROMPT = LLMConfig.max_prompt_tokens  # 512 tokens
SIZE = dict(prompts_per_step=8, group_size=8, max_new_tokens=512)  # 64 rows of 512 + 512 tokens
UPDATES = {  # (gradient checkpointing, micro-batch tokens), the fastest first
    "A": (False, 8192),
    "B": (False, 4096),
    "C": (True, 8192),
}
LORA = "--lora-rank 16 --lora-alpha 32"
TRACKS = {"track1": "Qwen2.5-3B", "track2": "Qwen2.5-7B"}


def shape_of(name: str) -> GPTConfig:
    V, D, layers, H, K, mlp, tied = SHAPES[name]
    return GPTConfig(V, D, layers, H, K, mlp, tie_embeddings=tied, qkv_bias=name.startswith("Qwen2.5"))


def estimate(name: str, settings: dict, checkpointing: bool, **options) -> Memory:
    """Of a step in bfloat16 with these settings of TrainConfig."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    train = TrainConfig(**{name: value for name, value in (LLM | settings).items() if name in names})
    options |= dict(prompt_tokens=PROMPT, dtype=torch.bfloat16, gradient_checkpointing=checkpointing)
    return estimate_memory(shape_of(name), train, **options)


def fastest(name: str, card: int, lora_rank: int) -> str:
    """The first settings that fit the card, and GiB: "C: 21.0" say, or "-"."""
    room = (card - FREE) * GIB
    for letter, (checkpointing, tokens) in UPDATES.items():
        found = estimate(name, SIZE | dict(micro_batch_tokens=tokens), checkpointing, lora_rank=lora_rank)
        if found.peak <= room:
            return f"{letter}: {found.peak / GIB:.1f}"
    return "-"


def cards() -> str:
    lines = ["| model | trained | " + " | ".join(f"{card} GB" for card in CARDS) + " |", "|---" * 6 + "|"]
    for name in MODELS:
        for trained, rank in (("all weights", 0), ("LoRA, rank 16", 16)):
            cells = [fastest(name, card, rank) for card in CARDS]
            lines.append(f"| {name} | {trained} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def letters() -> str:
    lines = ["| | options |", "|---|---|"]
    for letter, (checkpointing, tokens) in UPDATES.items():
        lines.append(f"| {letter} | `{'--gradient-checkpointing ' * checkpointing}--micro-batch-tokens {tokens}` |")
    return "\n".join(lines)


def tracks() -> str:
    """What each GPU holds under the paper's presets, in GiB."""
    lines = ["| preset | GPUs | | `--shard` | LoRA | LoRA, `--shard` |", "|---" * 6 + "|"]
    for preset, name in TRACKS.items():
        settings = PRESETS[preset]
        for processes in (1, 2, 8):
            cells = []
            for options in ({}, dict(shard=True), dict(lora_rank=16), dict(lora_rank=16, shard=True)):
                found = estimate(name, settings, settings["gradient_checkpointing"], processes=processes, **options)
                cells.append("" if processes == 1 and "shard" in options else f"{found.peak / GIB:.0f}")
            lines.append(f"| {preset} | {processes} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def commands() -> str:
    """One for each number of GPUs, and the 7B model on 24 GB."""
    size = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in SIZE.items())
    small = f"--model Qwen/Qwen2.5-7B-Instruct --data 'openai/gsm8k:main/train-*' {size} --max-prompt-tokens {PROMPT}"
    lines = [f"    python train_llm.py {small} --gradient-checkpointing {LORA}"]  # C: 8192 is the default
    for preset in TRACKS:
        lines.append(f"    python train_llm.py --preset {preset}")
        lines.append(f"    python train_llm.py --preset {preset} {LORA}")
        for processes in (2, 8):
            lines.append(
                f"    torchrun --standalone --nproc-per-node {processes} train_llm.py --preset {preset} --shard"
            )
    return "\n".join(lines)


def page() -> list[str]:
    return [letters(), cards(), tracks(), commands()]


if __name__ == "__main__":
    print("\n\n".join(page()))
