"""Prepare the output folder of a run without overwriting anything, and keep it for this run alone."""

import argparse
import json
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from minclipo.checkpoint.files import PARTIAL, read_json, write_json
from minclipo.runs.changes import FILES, differences
from minclipo.runs.command_line import expanded_path, flag
from minclipo.runs.console import say
from minclipo.runs.lock import LOCK, Lock, Taken, refuse_taken

SETTINGS = "settings.json"
BEGUN = {LOCK, SETTINGS + PARTIAL}  # what a process leaves that was killed before the run began


class RunFolder:
    """A folder that no other process trains in, until `release`, the end of `with` or of the process."""

    def __init__(self, folder: Path, settings: dict, lock: Lock):
        self.folder, self.settings, self.lock = folder, settings, lock

    def keep(self) -> None:
        """Before each write: if somebody has deleted the folder or what marks it, make that anew, so that --resume
        finds the run. ValueError if the folder has become another run's by now: it is not ours to write to."""
        marker = self.folder / SETTINGS
        if not self.lock.in_place():
            try:
                lock = Lock(self.folder)
            except Taken as error:
                raise Taken(f"{self.folder} has been moved away. {error}") from error
            if marker.is_file() and read_json(marker) != json.loads(json.dumps(self.settings)):
                lock.release()
                raise Taken(f"{self.folder} has been moved away, and another run has been there since")
            self.lock.release()
            self.lock = lock
        if not marker.is_file():
            say(f"{marker} was gone and is written anew; what else was deleted comes back with the next save")
            write_json(marker, self.settings)

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.release()


class FolderOfAnother:
    """The folder as the processes see it that do not write: the first one has it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self) -> None:
        pass

    def __enter__(self) -> "FolderOfAnother":
        return self

    def __exit__(self, *_) -> None:
        pass


def out_path(text: str) -> Path:
    """What --out names; ~ is the user's home, also in --out=~/x, where the shell leaves it."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    return expanded_path(text)


def earlier_settings(out: Path, script: str) -> dict | None:
    """What settings.json of an earlier run of `script` says, None if `out` holds no such run.

    ValueError if the file is damaged.
    """
    marker = out / SETTINGS
    if not marker.is_file():
        return None
    try:
        settings = read_json(marker)
        if not isinstance(settings, dict) or settings.get("script") != script:
            return None
        check_settings(settings)
    except ValueError as error:
        reason = str(error).removeprefix(f"{marker} ")
        raise ValueError(f"{marker} {reason}. Repair it, or {way_out(out)}") from error
    return settings


def check_settings(settings: dict) -> None:
    """ValueError if what one of our scripts reads there is of another type than it wrote."""
    for section in ("llm", "toy", "training", FILES):
        if not isinstance(settings.get(section, {}), dict):
            raise ValueError(f"is damaged: {section} must be an object")
    for name, value in settings.get(FILES, {}).items():
        if not isinstance(value, dict):
            raise ValueError(f"is damaged: {name} of {FILES} must be an object")
    try:
        datetime.fromtimestamp(settings.get("started", 0))
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise ValueError(f"is damaged: started must be a time in seconds, found {settings['started']!r}") from error


def way_out(out: Path) -> str:
    model = out / "model"
    further = f" (--model {model} trains its model further)" if (model / "config.json").is_file() else ""
    return "choose another --out" + further


def check_out(out: Path, settings: dict, resume: bool, may_differ: Collection[str] = ()) -> None:
    """ValueError if `out` is not a run of ours, if another process trains there or, with `resume`, if it is a run with
    other settings. Changes nothing.

    settings: {"script": name, section: {option: value}, ...}; options in `may_differ` may be other than in the run that
    is resumed.
    """
    if out.is_symlink() and not out.exists():
        raise ValueError(f"--out {out} is a link to nothing: make the folder {os.readlink(out)}, or {way_out(out)}")
    refuse_taken(out)
    earlier = earlier_settings(out, settings["script"])
    if earlier is None:
        check_free(out)
    elif resume:
        check_equal(out, earlier, settings, may_differ)
    else:
        check_renaming(real_folder(out))


def check_equal(out: Path, earlier: dict, settings: dict, may_differ: Collection[str]) -> None:
    """ValueError naming the options of the run in `out` that differ and may not."""
    changed = {name: pair for name, pair in differences(earlier, settings).items() if name not in may_differ}
    if changed:
        pairs = [f"{flag(name)} was {then!r}, now {now!r}" for name, (then, now) in changed.items()]
        raise ValueError(
            f"--resume: {'; '.join(pairs)}. Give the options of before, or --resume {out}, which takes them from there; "
            "or choose another --out"
        )


def check_free(out: Path) -> None:
    """ValueError if there is anything in `out`, or if it is no folder."""
    if not out.exists() or out.is_dir() and {path.name for path in out.iterdir()} <= BEGUN:
        return
    if (out / "metrics.jsonl").exists() and not (out / SETTINGS).exists():
        raise ValueError(f"--out {out} exists and is no earlier run of this script: no {SETTINGS}; {way_out(out)}")
    raise ValueError(f"--out {out} exists and is no earlier run of this script; {way_out(out)}")


def check_renaming(folder: Path) -> None:
    """ValueError if an earlier run's folder will not be renamed, as a new run in the same place needs."""
    instead = f"Choose another --out, such as {folder / 'run2'}, or go on with --resume"
    if os.path.ismount(folder):
        raise ValueError(f"--out {folder} is a mount point: the earlier run in it cannot be renamed. {instead}")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(f"--out {folder}: this process runs in it, so the earlier run keeps its name. {instead}")
    for lock in folder.rglob(LOCK):  # of runs in folders within
        refuse_taken(lock.parent)


def real_folder(out: Path) -> Path:
    """The folder itself where `out` is a link, to a larger disk say: the link stays, and so does the disk."""
    return out.resolve() if out.is_symlink() or out.name in ("", "..") else out


def prepare_out(out: Path, settings: dict, resume: bool, may_differ: Collection[str] = ()) -> RunFolder:
    """Make `out` ready for this process alone: resume an equal run, rename an earlier run, never touch anything else.

    Arguments and ValueErrors as in `check_out`; OSError where nothing can be written. Nothing is changed before the
    lock is ours.
    """
    check_out(out, settings, resume, may_differ)
    begun, folder = earlier_settings(out, settings["script"]) is not None, real_folder(out)
    run = RunFolder(folder, settings, Lock(folder))
    try:
        earlier = earlier_settings(out, settings["script"])  # again: another process may have been there in between
        if resume and begun and earlier is None:
            raise ValueError(f"--resume: another start has just renamed the earlier run in {out}; look beside it")
        if resume and earlier is not None:
            check_equal(out, earlier, settings, may_differ)
        elif resume:
            say(f"there is no earlier run in {out}: this one begins at its first step")
        elif earlier is not None:
            run.lock = start_anew(out, folder, run.lock)
        write_json(folder / SETTINGS, settings)
    except BaseException:
        run.release()
        raise
    return run


def start_anew(out: Path, folder: Path, lock: Lock) -> Lock:
    """Rename the earlier run; the lock of a new folder in its place. Whoever waits for the old one sees that it is
    no longer in place."""
    kept = rename(folder, lock)
    say(f"the earlier run in {out} is now in {kept}")
    try:
        return Lock(folder)
    finally:
        lock.release()


def rename(folder: Path, lock: Lock) -> Path:
    """Move an earlier run to the first free name beside it; OSError with a way out where that cannot be."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    if os.name == "nt":  # it renames no folder with an open file in it: our lock must go, and another's protects it
        lock.release()
    try:
        return folder.rename(kept)
    except OSError as error:  # a mount point that does not look like one; no permission beside it
        raise OSError(
            f"the earlier run in {folder} cannot be renamed to {kept}: {error.strerror}. Choose another --out, such as "
            f"{folder / 'run2'}, or go on with --resume"
        ) from error
