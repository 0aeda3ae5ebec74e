"""Where files are: a local path, or a download from the Hugging Face hub."""

import fnmatch
import re
from pathlib import Path

# Never pickles (*.bin, *.pt, *.pth): unpickling a file runs the code that its author put there. "model*" leaves out the
# second copy of the weights that some repositories have as consolidated.safetensors.
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
    return _download(match[1], TEXTS + WEIGHTS * weights, "a local directory that holds the model", revision=match[2])


def dataset_files(source: str) -> list[Path]:
    """The files that `source` names: a local one, or those of a hub dataset, "org/name:pattern", downloaded."""
    if Path(source).is_file():
        return [Path(source)]
    name, _, pattern = source.partition(":")
    if name.count("/") != 1 or not pattern or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{source} does not exist. Give a .jsonl or .parquet file, or a hub dataset as ORGANISATION/NAME:PATTERN, "
            "for example openai/gsm8k:main/train-*"
        )
    folder = _download(name, [pattern], "a local .jsonl or .parquet file", repo_type="dataset")
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jsonl", ".parquet") and path.is_file())
    matching = [path for path in files if fnmatch.fnmatch(path.relative_to(folder).as_posix(), pattern)]
    if not matching:
        raise FileNotFoundError(f"{name} on the Hugging Face hub has no .jsonl or .parquet file like {pattern}")
    return matching


def _download(hub_id: str, patterns: list[str], instead: str, **options) -> Path:
    """The local copy of a repository's files that match; an error says what to give instead."""
    from huggingface_hub import snapshot_download  # here: local files need not wait for this import

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, **options))
    except Exception as error:  # no network, no such model, no permission, disk full: each has its own class there
        at = f" at revision {options['revision']}" if options.get("revision") else ""
        raise FileNotFoundError(
            f"{hub_id} is no local path, and downloading it{at} from the Hugging Face hub failed: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Give {instead} instead"
        ) from error
