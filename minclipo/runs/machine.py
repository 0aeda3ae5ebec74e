"""Device, memory and disk: what the machine has, and whether a run fits."""

import shutil
import sys
from pathlib import Path

import torch

from minclipo.model import GPTConfig
from minclipo.runs.available import available_memory
from minclipo.runs.memory import ESTIMATED, GIB, Memory, count_weights, estimate_memory


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


def check_memory(estimate: Memory, device: torch.device) -> None:
    """Say what a step will take if prompts and completions are as long as they may be; ValueError if it cannot fit."""
    print(f"{ESTIMATED}{estimate}")
    if device.type == "cpu":
        warn_of_little_memory(estimate, available_memory())
    if device.type != "cuda":
        return
    available = torch.cuda.get_device_properties(device).total_memory
    if estimate.fixed > available:
        raise ValueError(
            f"weights, optimizer and gradients alone take {estimate.fixed / GIB:.0f} GiB, this GPU has "
            f"{available / GIB:.0f}: choose a smaller --model"
        )
    if estimate.peak > available:
        print("that is more than this GPU has: try --micro-batch-tokens, --sampling-rows, --gradient-checkpointing")


def warn_of_little_memory(estimate: Memory, available: int | None) -> None:
    """On a CPU a step may still fit: others end, there may be room to swap, completions are seldom all full."""
    if available is None or estimate.peak <= available:
        return
    print(f"WARNING: that is more than the {available / GIB:.1f} GiB of memory that this process can get")
    if estimate.fixed > available:
        print(f"Weights, optimizer and gradients alone take {estimate.fixed / GIB:.1f} GiB: choose a smaller --model")
    else:
        print("Lower it with --micro-batch-tokens, --sampling-rows, --gradient-checkpointing")


def bytes_on_disk(shape: GPTConfig, dtype: torch.dtype, keep_states: int) -> int:
    """What a run needs on the disk at most: keep_states + 1 states of three float32 numbers per weight, two models."""
    return count_weights(shape) * (12 * (keep_states + 1 if keep_states else 0) + 2 * dtype.itemsize)


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
