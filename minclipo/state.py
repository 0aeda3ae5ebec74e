"""Training states on disk: what a run needs to go on as if it had never stopped. safetensors and JSON, no pickle.

A state is a folder states/step_000020. It is written under another name, synced to the disk and renamed, so that it is
either whole or not there, whenever the process is killed.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minclipo.checkpoint import save_tensors
from minclipo.files import read_json, write_json

PARTIAL = ".partial"


def moments(optimizer: torch.optim.Optimizer, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's tensors for the named parameters, as "NAME/exp_avg" and so on. Empty before its first step."""
    return {
        f"{name}/{key}": tensor
        for name, parameter in named.items()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_moments(optimizer: torch.optim.Optimizer, named: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Give the optimizer, made with the named parameters in this order, what `moments` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    places = {name: place for place, name in enumerate(named)}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        if name not in named or tensor.numel() > 1 and tensor.shape != named[name].shape:
            raise ValueError(f"the saved moments of {path!r} fit no weight of this run: the settings are not the same")
        state.setdefault(places[name], {})[key] = tensor
    if tensors and state.keys() != set(places.values()):
        raise ValueError("the saved moments lack some of this run's weights: the settings are not the same")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], numbers: dict, *, keep: int) -> None:
    """Write folder/step_NNNNNN with a file FILE.safetensors for each entry of `tensors`; then drop all but `keep`.

    Raises OSError if the disk is full; the states that were there stay, and nothing half-written does. A state of this
    step that is there already (after resuming) is left as it is.
    """
    target = folder / f"step_{step:06}"
    remove_partial(folder)
    if target.exists():
        return
    partial = target.with_name(target.name + PARTIAL)
    try:
        partial.mkdir(parents=True)
        for file, named in tensors.items():
            save_tensors(named, partial / f"{file}.safetensors")
        write_json(partial / "state.json", numbers)
        sync_folder(partial)
        os.replace(partial, target)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    remove_states(saved_states(folder)[:-keep])


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (where the system can: Windows cannot open folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def saved_states(folder: Path) -> list[Path]:
    """The whole states in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if not path.name.endswith(PARTIAL))


def remove_states(states: list[Path]) -> None:
    """Renamed first: what is left of a state if the process dies here must not look like a whole one."""
    for state in states:
        doomed = state.with_name(state.name + PARTIAL)
        os.replace(state, doomed)
        shutil.rmtree(doomed)


def remove_partial(folder: Path) -> None:
    """Throw away what a killed process had begun to write."""
    for path in folder.glob("step_*" + PARTIAL):
        shutil.rmtree(path)


def newest_state(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """(tensors by file, numbers) of the newest state, None if there is none.

    Raises ValueError naming the file if that state is damaged: an older one is used if the damaged folder is removed.
    """
    found = saved_states(folder)
    if not found:
        return None
    path = found[-1]
    try:
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        return tensors, read_json(path / "state.json")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Remove that folder to go on from the state before it."
        ) from error
