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


def check_out(out: Path, settings: dict, resume: bool, may_differ: tuple[str, ...] = ()) -> None:
    """ValueError if `out` is somebody else's folder or, with `resume`, a run with other settings. Changes nothing.

    settings: {"script": name, section: {option: value}, ...}; options in `may_differ` may be other than in the run that
    is resumed.
    """
    earlier = earlier_settings(out, settings["script"])
    if earlier is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and is no earlier run of this script; choose another")
    if earlier is not None and resume:
        differing = [name for name in differences(earlier, settings) if name not in may_differ]
        if differing:
            raise ValueError(f"--resume: {out} has other settings for {', '.join(differing)}; choose another --out")


def prepare_out(out: Path, settings: dict, resume: bool, may_differ: tuple[str, ...] = ()) -> None:
    """Make `out` ready: resume an equal run, keep an earlier run under another name, never touch anything else.

    Arguments and ValueErrors as in `check_out`; OSError where nothing can be written.
    """
    check_out(out, settings, resume, may_differ)
    if earlier_settings(out, settings["script"]) is not None and not resume:
        number = 1
        while (kept := out.with_name(f"{out.name}-{number}")).exists():
            number += 1
        out.rename(kept)
        print(f"the earlier run in {out} is now in {kept}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", settings)


def differences(earlier: dict, settings: dict) -> list[str]:
    """Names of the options whose values differ."""
    sections = [name for name, value in settings.items() if isinstance(value, dict)]
    pairs = [(earlier.get(section) or {}, settings[section]) for section in sections]
    return sorted({name for old, new in pairs for name in old.keys() | new.keys() if old.get(name) != new.get(name)})


def check_room(out: Path, needed: int, resume: bool) -> None:
    """OSError now, and not after hours, if the disk of `out` has less than `needed` bytes left. What a run that is
    resumed has written already counts as there."""
    if resume:
        needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    there = next(folder for folder in [out, *out.resolve().parents] if folder.exists())
    free = shutil.disk_usage(there).free
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
