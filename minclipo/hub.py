"""Where a model's files are: a local directory, or a download from the Hugging Face hub."""

import re
from pathlib import Path

# Never pickles (*.bin, *.pt, *.pth): unpickling a file runs whatever its author put there. "model*" leaves out the
# second copy of the weights that some repositories hold as consolidated.safetensors.
WEIGHTS = ["model*.safetensors"]
TEXTS = ["*.json", "*.jinja"]
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([\w.-][\w./-]*))?", re.ASCII)


def model_directory(source: str | Path, *, weights: bool = True) -> Path:
    """The local directory that `source` names: a directory, or a hub id "org/name" or "org/name@revision".

    An existing directory wins over a hub id. A hub id is downloaded (or found in the hub's local cache); without
    `weights`, only its JSON files and chat templates are.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory that holds config.json")
    match = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise FileNotFoundError(f"{path} does not exist: give a model directory, or a hub id such as 'org/name'")
    return _download(match[1], match[2], TEXTS + WEIGHTS * weights)


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # here: who reads local files should not wait for this import

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # no network, no such model, no permission, disk full: each has its own class there
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{hub_id} is no local directory, and downloading it{at} from the Hugging Face hub failed: "
            f"{type(error).__name__}: {error}. Give a local directory that holds the model instead"
        ) from error
