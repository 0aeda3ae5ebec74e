"""Training states on disk: what a run needs to go on as if it had never stopped.

A state is a file states/step_000020.pt, written by torch.save and read with weights_only=True, which runs no code that
a file may hold. It is either whole or not there, whenever the process is killed. It is a zip archive with a checksum
for each tensor. torch.load does not look at the checksums; `read_state` does, which takes half a second per GB.
"""

import zipfile
from pathlib import Path

import torch

from minclipo.checkpoint.files import PARTIAL, remove_partial, replacing


def save_state(folder: Path, step: int, state: dict, *, keep: int) -> None:
    """Write folder/step_NNNNNN.pt, then drop all but the newest `keep` states.

    keep: at least 1. Raises OSError if the disk is full; the states that were there stay, and nothing half-written
    does. A state of this step that is there already (after resuming) is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob("step_*.pt" + PARTIAL):  # what a killed process had begun to write
        remove_partial(partial.with_name(partial.name.removesuffix(PARTIAL)))
    path = folder / f"step_{step:06}.pt"
    if path.exists():
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:  # given a path, torch.save loses the reason
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise _system_error(error) from error
    remove_states(saved_states(folder)[:-keep])


def _system_error(error: RuntimeError) -> OSError:
    """The system's own error, which PyTorch met first, or one with PyTorch's words."""
    met = error.__context__
    while met is not None and not isinstance(met, OSError):
        met = met.__context__
    return met or OSError(str(error))


def saved_states(folder: Path) -> list[Path]:
    """The states in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step_*.pt") if path.stem[5:].isdigit()), key=step_of)


def step_of(state: Path) -> int:
    return int(state.stem.removeprefix("step_"))


def remove_states(states: list[Path]) -> None:
    for path in states:
        path.unlink()


def newest_state(folder: Path) -> dict | None:
    """The newest state, None if there is none. Errors as in `read_state`."""
    paths = saved_states(folder)
    return read_state(paths[-1]) if paths else None


def read_state(path: Path) -> dict:
    """The state in a file. ValueError naming the file if a bit of it has changed; OSError if it cannot be read."""
    with open(path, "rb") as file:
        try:
            damaged = zipfile.ZipFile(file).testzip()
            file.seek(0)
            state = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # on damaged bytes zipfile and the unpickler may fail in any way
            kind = type(error).__name__  # torch's own text advises to switch its protection off
            raise ValueError(f"{path} is damaged ({kind}). {way_out(path)}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} in it does not match its checksum. {way_out(path)}")
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: it holds no dict but {type(state).__name__}. {way_out(path)}")
    return state


def way_out(path: Path) -> str:
    """What to do about a state that is of no use."""
    before = [state.name for state in saved_states(path.parent) if step_of(state) < step_of(path)]
    if before:
        return f"Remove it to go on from the state before it, {before[-1]}"
    return "There is no state before it: start anew without --resume"
