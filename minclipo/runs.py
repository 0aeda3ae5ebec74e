"""The folder of a run: made ready without touching anybody's files, and what the machine has to say about it."""

import shutil
import sys
from pathlib import Path

from minclipo.files import read_json, write_json


def earlier_settings(out: Path, script: str) -> dict | None:
    """What settings.json of an earlier run of `script` says, None if `out` holds no such run."""
    marker = out / "settings.json"
    settings = read_json(marker) if marker.is_file() else None
    return settings if isinstance(settings, dict) and settings.get("script") == script else None


def prepare_out(out: Path, settings: dict, resume: bool, may_differ: tuple[str, ...] = ()) -> None:
    """Make `out` ready: resume an equal run, keep an earlier run under another name, never touch anything else.

    settings: {"script": name, section: {option: value}, ...}; options in `may_differ` may be other than in the run that
    is resumed. Raises ValueError naming what differs, and OSError where nothing can be written.
    """
    earlier = earlier_settings(out, settings["script"])
    if earlier is not None and resume:
        differing = [name for name in differences(earlier, settings) if name not in may_differ]
        if differing:
            raise ValueError(f"--resume: {out} has other settings for {', '.join(differing)}; choose another --out")
    elif earlier is not None:
        number = 1
        while (kept := out.with_name(f"{out.name}-{number}")).exists():
            number += 1
        out.rename(kept)
        print(f"the earlier run in {out} is now in {kept}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and is no earlier run of this script; choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", settings)


def differences(earlier: dict, settings: dict) -> list[str]:
    """Names of the options whose values differ."""
    sections = [name for name, value in settings.items() if isinstance(value, dict)]
    pairs = [(earlier.get(section) or {}, settings[section]) for section in sections]
    return sorted({name for old, new in pairs for name in old.keys() | new.keys() if old.get(name) != new.get(name)})


def check_room(out: Path, needed: int) -> None:
    """OSError now, and not after hours, if the disk of `out` has less than `needed` bytes left."""
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out}: {needed / 2**30:.1f} GiB are needed for the model and the training states, {free / 2**30:.1f} GiB "
            "are free. Free some, choose another --out, or keep fewer with --keep-states"
        )


def peak_memory_mib() -> float:
    """Most memory that this process has held so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
