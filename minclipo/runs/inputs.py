"""The files that a run reads, checkpoint and data: remembered by size and checksum, so that it resumes with the same.

settings.json holds {"files": {"model": {name: {"bytes", "sha256"}}, "data": ..., "eval_data": ...}}, and "adapter" where
a run begins with one.
"""

import glob
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minclipo.checkpoint.adapter import CONFIG, WEIGHTS
from minclipo.checkpoint.files import read_object
from minclipo.checkpoint.hub import HUB_ID, READ, dataset_files
from minclipo.checkpoint.weights import weights_file
from minclipo.runs.changes import FILES
from minclipo.runs.console import say
from minclipo.runs.folder import way_out
from minclipo.runs.problems import BUILT_IN
from minclipo.tasks.own import is_own, own_file

Files = dict[str, dict[str, dict]]
LARGE = 2 * 10**9  # bytes: a second or two


def refuse_inside(out: Path, sources: dict[str, str]) -> None:
    """ValueError naming the option whose file is in `out`: a run writes there, and the next one renames it."""
    home = Path(os.path.realpath(out))
    for option, source in sources.items():
        path = os.path.expanduser(source)
        for found in [path] if os.path.exists(path) else glob.glob(path, recursive=True):
            if Path(os.path.realpath(found)).is_relative_to(home):
                raise ValueError(f"{option} {source} is inside --out {out}, which is written to: choose another --out")


def what_was_read(
    out: Path,
    directory: Path,
    data: str,
    eval_data: str,
    earlier: dict | None,
    reference: bool,
    adapter: str = "",
    frozen: bool = False,
) -> dict:
    """For settings.json: the files that a run reads, and the revision of a model from the hub.

    directory: the checkpoint's; adapter: that of --init-adapter. earlier: the settings of the run in `out` that is
    resumed, else None. reference: is there a KL penalty to the weights it began with? frozen: do the checkpoint's stay as
    they are? ValueError naming the files if training would go on with others.
    """
    files = remember(directory, data, eval_data, adapter)
    if earlier is not None:
        needed = {group for group, needs in (("model", reference or frozen), ("adapter", reference)) if needs}
        files = same_files(out, earlier.get(FILES), files, needed)
    revision = directory.name if directory.parent.name == "snapshots" else None  # how the hub's cache is built
    return {FILES: files} | ({"model_revision": revision} if revision else {})


def model_files(directory: Path) -> dict[str, Path]:
    """The files of a checkpoint that are read, by name."""
    path = weights_file(directory)
    shards = [] if path.suffix != ".json" else sorted(set(read_object(path)["weight_map"].values()))
    return {name: directory / name for name in (*READ, path.name, *shards) if (directory / name).is_file()}


def data_files_by_name(source: str) -> dict[str, Path]:
    """The files that --data or --eval-data names, by the part of their paths in which they differ."""
    if is_own(source):
        return {own_file(source).name: own_file(source)}
    files = [] if not source or source in BUILT_IN else dataset_files(source)
    if not files:
        return {}
    folder = os.path.commonpath([path.parent for path in files])
    return {Path(os.path.relpath(path, folder)).as_posix(): path for path in files}


def adapter_files(directory: str) -> dict[str, Path]:
    """The files of an adapter, by name; {} without one."""
    home = Path(directory).expanduser()
    return {name: home / name for name in (CONFIG, WEIGHTS) if directory and (home / name).is_file()}


def remember(directory: Path, data: str, eval_data: str, adapter: str = "") -> Files:
    """Size and checksum of every file of a run, for settings.json."""
    groups = {
        "model": model_files(directory),
        "data": data_files_by_name(data),
        "eval_data": data_files_by_name(eval_data),
    } | ({"adapter": adapter_files(adapter)} if adapter else {})
    size = sum(path.stat().st_size for files in groups.values() for path in files.values())
    if size > LARGE:
        say(f"checksums of {size / 1e9:.1f} GB of model and data, so that --resume knows them again")
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        return {group: dict(zip(files, pool.map(fingerprint, files.values()))) for group, files in groups.items()}


def fingerprint(path: Path) -> dict:
    """{"bytes", "sha256"} of a file; {} of a pipe, which can be read only once."""
    if not path.is_file():
        return {}
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return {"bytes": size, "sha256": digest.hexdigest()}


def same_files(out: Path, earlier: Files | None, now: Files, needed: set[str]) -> Files:
    """What to remember of a resumed run: the files it began with, and today's evaluation set.

    earlier: what it began with; None, of a version that did not remember it. needed: the groups, of "model" and
    "adapter", whose weights are. Others are not, since what is trained is in the training state. A task of one's own may
    be repaired on the way.
    """
    if earlier is None:
        say(f"{out} was begun by a version that did not remember its files: whether they are the same is not known")
        return now
    changed = {group: changed_files(earlier.get(group, {}), now[group]) for group in now}
    free = lambda group: [name for name in changed.get(group, {}) if group not in needed and ".safetensors" in name]
    weights, adapter = free("model"), free("adapter")
    programs = [name for name in changed["data"] if name.endswith(".py")]
    refused = {
        "--model": [text for name, text in changed["model"].items() if name not in weights],
        "--init-adapter": [text for name, text in changed.get("adapter", {}).items() if name not in adapter],
        "--data": [text for name, text in changed["data"].items() if name not in programs],
    }
    if any(refused.values()):
        texts = "; ".join(f"{option}: {', '.join(said)}" for option, said in refused.items() if said)
        raise ValueError(f"--resume: since {out} was begun, {texts}. Put the earlier files back, or {way_out(out)}")
    for option, group, names, then in (
        ("--model", "model", weights, "The run goes on from its own weights"),
        ("--init-adapter", "adapter", adapter, "The run goes on from its own adapters"),
        ("--data", "data", programs, "The run goes on with what it says now"),
        ("--eval-data", "eval_data", changed["eval_data"], "Evaluations before and after are not comparable"),
    ):
        if names:
            say(f"since {out} was begun, {option}: {', '.join(changed[group][name] for name in names)}. {then}")
    return now | {group: earlier.get(group, now[group]) for group in now if group != "eval_data"}


def changed_files(earlier: dict[str, dict], now: dict[str, dict]) -> dict[str, str]:
    """For each file that has changed what has happened to it, in words."""
    names = [name for name in earlier | now if earlier.get(name) != now.get(name)]
    return {
        name: f"{name} {'is gone' if name not in now else 'is new' if name not in earlier else 'has changed'}"
        for name in names
    }


def same_revision(model: str, earlier: dict | None) -> str:
    """The hub id at the revision that a resumed run began with: the hub may have a newer one by now."""
    revision = (earlier or {}).get("model_revision")
    return f"{model}@{revision}" if revision and HUB_ID.fullmatch(model) and "@" not in model else model
