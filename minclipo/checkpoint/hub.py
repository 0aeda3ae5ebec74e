"""Where files are: a local path, or a download from the Hugging Face hub."""

import fnmatch
import glob
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
    """The files that `source` names: a local one, local ones by a pattern, or "org/name:pattern", of a hub dataset."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{source} is a folder: name a file in it, or several by a pattern, such as '{path}/train-*'")
    if path.exists():  # a pipe, too
        return [path]
    if path.is_symlink():
        raise FileNotFoundError(f"{source} is a link to a file that does not exist")
    if local := data_files([Path(name) for name in glob.glob(str(path), recursive=True)]):
        return local
    name, _, pattern = source.partition(":")
    if name.count("/") != 1 or not pattern or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{source} does not exist. Give a .jsonl, .json, .parquet or .arrow file, or a hub dataset as "
            "ORGANISATION/NAME:PATTERN, for example openai/gsm8k:main/train-*"
        )
    folder = _download(name, [pattern], "a local .jsonl or .parquet file", repo_type="dataset")
    found = [path for path in folder.rglob("*") if fnmatch.fnmatch(path.relative_to(folder).as_posix(), pattern)]
    matching = data_files(found)
    if not matching:
        raise FileNotFoundError(
            f"{name} on the Hugging Face hub has no .jsonl, .json, .parquet or .arrow file like {pattern}"
        )
    return matching


def data_files(paths: list[Path]) -> list[Path]:
    """Those of the paths that hold data, in order. A .json file beside others is what the datasets library notes."""
    files = sorted(path for path in paths if path.is_file())
    data = [path for path in files if path.suffix.lower() in (".jsonl", ".parquet", ".arrow")]
    return data or [path for path in files if path.suffix.lower() == ".json"]


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
