"""How much memory this process can still get on a CPU, and what to say when it was not enough."""

import os
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

LOWER = (
    "Try smaller --sampling-rows (for the rollouts) and --micro-batch-tokens (for the update), or "
    "--gradient-checkpointing; with --resume they go on from the last training state."
)


def available_memory() -> int | None:
    """Bytes: the least of what the machine has left and what limits leave. None where the system does not tell."""
    found = [room for room in (machine_room(), container_room(), address_room()) if room is not None]
    return max(0, min(found)) if found else None


def machine_room(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What the machine can give without swapping; where only its whole memory is known, that (macOS)."""
    if kib := number_after(meminfo, "MemAvailable:"):
        return kib * 2**10
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def container_room(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the tightest memory limit leaves of the control groups that this process is in (containers, Slurm)."""
    rooms = []
    for line in read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root  # version 1 has a tree of its own for memory
        group = top / path.lstrip("/")
        rooms += [room_in(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min((room for room in rooms if room is not None), default=None)


def room_in(group: Path) -> int | None:
    """What one control group's limit leaves; files in its cache do not count, they make room."""
    limits = [read(group / name).strip() for name in ("memory.max", "memory.limit_in_bytes")]
    limit = next((int(text) for text in limits if text.isdigit()), None)  # not "max"
    stat = group / "memory.stat"
    used = number_after(stat, "anon ") or number_after(stat, "total_rss ") or 0
    return None if limit is None else limit - used


def address_room() -> int | None:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource and hasattr(resource, "RLIMIT_AS") else None
    if limit is None or limit == resource.RLIM_INFINITY:
        return None
    return limit - (number_after(Path("/proc/self/status"), "VmSize:") or 0) * 2**10


def read(path: Path) -> str:
    """A file's text, "" if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def number_after(path: Path, name: str) -> int | None:
    """The number in the line of a file that begins with `name`."""
    line = next((line for line in read(path).splitlines() if line.startswith(name)), "")
    words = line.removeprefix(name).split()
    return int(words[0]) if words and words[0].isdigit() else None


def advice_on(error: BaseException) -> str | None:
    """What helps against an error that is no fault of ours; None if it may be."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return LOWER
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # the compiler's two halves
        return "Compiling failed: try --compile off, with --resume if steps are done."
    return None
