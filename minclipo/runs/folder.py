"""Prepare the output folder of a run without overwriting anything."""

from collections.abc import Collection
from pathlib import Path

from minclipo.checkpoint.files import partial_folder, read_json, write_json
from minclipo.runs.changes import differences


def earlier_settings(out: Path, script: str) -> dict | None:
    """What settings.json of an earlier run of `script` says, None if `out` holds no such run."""
    marker = out / "settings.json"
    settings = read_json(marker) if marker.is_file() else None
    return settings if isinstance(settings, dict) and settings.get("script") == script else None


def check_out(out: Path, settings: dict, resume: bool, may_differ: Collection[str] = ()) -> None:
    """ValueError if `out` is not a run of ours or, with `resume`, one with other settings. Changes nothing.

    settings: {"script": name, section: {option: value}, ...}; options in `may_differ` may be other than in the run that
    is resumed.
    """
    earlier = earlier_settings(out, settings["script"])
    if earlier is None and out.exists() and (not out.is_dir() or holds_anything(out)):
        raise ValueError(f"--out {out} exists and is no earlier run of this script; choose another")
    if earlier is not None and resume:
        changed = {name: pair for name, pair in differences(earlier, settings).items() if name not in may_differ}
        if changed:
            pairs = [f"{name} was {then!r}, now {now!r}" for name, (then, now) in changed.items()]
            raise ValueError(f"--resume: {'; '.join(pairs)}; choose another --out")


def holds_anything(out: Path) -> bool:
    """Other than the first file of a run that was killed before it was whole."""
    return any(path != partial_folder(out / "settings.json") for path in out.iterdir())


def prepare_out(out: Path, settings: dict, resume: bool, may_differ: Collection[str] = ()) -> None:
    """Make `out` ready: resume an equal run, rename an earlier run, never touch anything else.

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
