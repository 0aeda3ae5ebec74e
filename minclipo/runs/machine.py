"""Device, memory and disk: what the machine has, and whether a run fits."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from minclipo.config import TrainConfig
from minclipo.extensions.lora import TARGETS
from minclipo.model import GPTConfig
from minclipo.runs.available import available_memory
from minclipo.runs.memory import ESTIMATED, GIB, Memory, count_adapters, count_weights, estimate_memory


def pick_device(name: str) -> torch.device:
    """The device that --device names; auto: cuda, else mps, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch finds no CUDA device")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this PyTorch finds no MPS device")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype names; auto: bfloat16 on cuda, else float32."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def ways_to_save(room: int, shape: GPTConfig, train: TrainConfig, **options) -> dict[str, str]:
    """{option: what it takes and the estimate that results}, each on top of those before it, until the estimate is at
    most `room` bytes. Options that are on, or lower it by less than 5%, are left out. options: the estimate's own."""
    now, found = estimate_memory(shape, train, **options), {}
    longest, rows, G = options["prompt_tokens"] + train.max_new_tokens, train.sampling_rows, train.group_size
    changes = [("--gradient-checkpointing", "", dict(gradient_checkpointing=True))]
    for tokens in (n for n in (8192, 4096, 2048) if longest <= n < (train.micro_batch_tokens or n + 1)):
        changes.append(("--micro-batch-tokens", f" {tokens}", dict(micro_batch_tokens=tokens)))
    for n in (n * G for n in (8, 4, 2, 1) if n * G < (rows or train.prompts_per_step * G)):
        changes.append(("--sampling-rows", f" {n}", dict(sampling_rows=n)))
    changes += [("--lora-rank", " 16", dict(lora_rank=16))] if not options.get("lora_rank") else []
    for n in (n for n in (2, 4, 8) if options.get("processes", 1) < n <= train.prompts_per_step):
        changes.append(("--shard", f" on {n} GPUs", dict(shard=True, processes=n)))
    for name, value, change in changes * 2:  # what one lowers, another may have hidden
        of_train = {key: new for key, new in change.items() if hasattr(train, key)}
        trying = dataclasses.replace(train, **of_train)
        others = options | {key: new for key, new in change.items() if key not in of_train}
        then = estimate_memory(shape, trying, **others)
        if now.peak > room and then.peak < 0.95 * now.peak:
            now, train, options = then, trying, others
            found.pop(name, None)
            found[name] = f"{value}: {then.peak / GIB:.1f} GiB"
    return found


def advice(save: Callable[[int], dict[str, str]], room: int) -> str:
    """What `save` finds for that many bytes, a line for each option."""
    found = save(room)
    if not found:
        return "lower it with --micro-batch-tokens, --sampling-rows, --gradient-checkpointing, --lora-rank"
    lines = [f"\n  {name}{value}" for name, value in found.items()]
    return "what lowers the estimate, each with those before it:" + "".join(lines)


def check_memory(estimate: Memory, device: torch.device, save: Callable[[int], dict[str, str]] = lambda _: {}) -> None:
    """Say what a step will take if prompts and completions are as long as they may be; ValueError if it cannot fit.
    save: `ways_to_save` for this run, which takes the bytes that there are."""
    print(f"{ESTIMATED}{estimate}")
    if device.type == "cpu":
        available, here = available_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of torchrun
        warn_of_little_memory(estimate, available // here if available else available, save)
    if device.type != "cuda":
        return
    available = torch.cuda.get_device_properties(device).total_memory
    if estimate.fixed > available:
        raise ValueError(
            f"weights, optimizer and gradients alone take {estimate.fixed / GIB:.0f} GiB, this GPU has "
            f"{available / GIB:.0f}: choose a smaller --model, or\n{advice(save, available)}"
        )
    if estimate.peak > available:
        print(f"that is more than the {available / GIB:.1f} GiB of this GPU\n{advice(save, available)}")


def warn_of_little_memory(estimate: Memory, available: int | None, save: Callable[[int], dict[str, str]]) -> None:
    """On a CPU a step may still fit: others end, there may be room to swap, completions are seldom all full."""
    if available is None or estimate.peak <= available:
        return
    print(f"WARNING: that is more than the {available / GIB:.1f} GiB of memory that this process can get")
    if estimate.fixed > available:
        print(
            f"Weights, optimizer and gradients alone take {estimate.fixed / GIB:.1f} GiB: choose a smaller --model, or"
        )
    print(advice(save, available))


def bytes_on_disk(
    shape: GPTConfig, dtype: torch.dtype, keep_states: int, lora_rank: int = 0, lora_targets: Collection[str] = TARGETS
) -> int:
    """What a run needs on the disk at most: keep_states + 1 states of three float32 numbers per trained weight, two
    models; with LoRA two adapters, too."""
    weights, adapters = count_weights(shape), count_adapters(shape, lora_rank, lora_targets)
    states = 12 * (keep_states + 1 if keep_states else 0) * (adapters or weights)
    return states + 2 * (weights * dtype.itemsize + adapters * 4)


def check_room(out: Path, needed: int, resume: bool) -> None:
    """OSError now, and not after hours, if the disk of `out` has less than `needed` bytes left. The models and states
    that a resumed run has already written count as available."""
    if resume:
        written = [path for part in ("model", "states", "best") for path in (out / part).rglob("*") if path.is_file()]
        needed -= sum(path.stat().st_size for path in written)
    existing = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{out}: {needed / 2**20:,.1f} MiB are needed for the model and the training states, {free / 2**20:,.1f} "
            "MiB are free. Free some, choose another --out, or keep fewer with --keep-states"
        )


def peak_memory_mib() -> float:
    """Peak memory of this process so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
