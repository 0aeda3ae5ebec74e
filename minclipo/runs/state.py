"""Training states on disk: what a run needs to go on as if it had never stopped.

A state is a file states/step_000020.pt, written by torch.save and read with weights_only=True, which runs no code that
a file may hold. It is either whole or not there, whenever the process is killed.
"""

from pathlib import Path

import torch

from minclipo.checkpoint.files import PARTIAL, replacing


def save_state(folder: Path, step: int, state: dict, *, keep: int) -> None:
    """Write folder/step_NNNNNN.pt, then drop all but the newest `keep` states.

    keep: at least 1. Raises OSError if the disk is full; the states that were there stay, and nothing half-written
    does. A state of this step that is there already (after resuming) is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*" + PARTIAL):  # what a killed process had begun to write
        path.unlink()
    path = folder / f"step_{step:06}.pt"
    if path.exists():
        return
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise OSError(f"{temporary} could not be written: {error}") from error
    remove_states(saved_states(folder)[:-keep])


def saved_states(folder: Path) -> list[Path]:
    """The states in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step_*.pt") if path.stem[5:].isdigit()), key=step_of)


def step_of(state: Path) -> int:
    return int(state.stem.removeprefix("step_"))


def remove_states(states: list[Path]) -> None:
    for path in states:
        path.unlink()


def newest_state(folder: Path) -> dict | None:
    """The newest state, None if there is none. Raises ValueError naming the file if that state is damaged."""
    paths = saved_states(folder)
    if not paths:
        return None
    try:
        state = torch.load(paths[-1], map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds no dict but {type(state).__name__}")
        return state
    except Exception as error:  # on damaged bytes the unpickler may fail in any way
        kind = type(error).__name__  # torch's own text advises to switch its protection off
        raise ValueError(f"{paths[-1]} is damaged ({kind}). Remove it to go on from the state before it.") from error
