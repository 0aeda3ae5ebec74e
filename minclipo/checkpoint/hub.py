"""Where files are: a local path, or a download from the Hugging Face hub."""

import fnmatch
import glob
import re
import sys
from pathlib import Path

# Never pickles (*.bin, *.pt, *.pth): unpickling a file runs the code that its author put there. "model*" leaves out the
# second copy of the weights that some repositories have as consolidated.safetensors.
WEIGHTS = ["model*.safetensors"]
TEXTS = ["*.json", "*.jinja"]
# What is read of a model besides its weights. All but the index is saved again with the trained model.
READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
READ += ("chat_template.jinja", "model.safetensors.index.json")
MOST_MIB = 128  # of one of these; the largest published ones have 35
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([\w.-][\w./-]*))?", re.ASCII)


def model_directory(source: str | Path, *, weights: bool = True) -> Path:
    """The local directory that `source` names: a directory, or a hub id "org/name" or "org/name@revision".

    An existing directory wins over a hub id. A hub id is downloaded (or found in the hub's local cache); without
    `weights`, only its JSON files and chat templates are.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return checked(path)
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory that holds config.json")
    match = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise FileNotFoundError(f"{path} does not exist: give a model directory, or a hub id such as 'org/name'")
    files = TEXTS + WEIGHTS * weights
    return checked(_download(match[1], files, "a local directory that holds the model", revision=match[2]))


def checked(directory: Path) -> Path:
    """The directory. ValueError if a file that is read is far too large, or a link to somewhere else.

    In an archive from a stranger, chat_template.jinja may be a link to a private file of its reader's. It would be read
    as a template, saved with the trained model, and published with it. Weights may be links, which saves space: they
    are numbers, as many as config.json says.
    """
    home = directory.resolve()
    for path in (directory / name for name in READ):
        # A link may lead to the hub's cache, which keeps models/*/snapshots/<revision> as links to models/*/blobs.
        target = path.resolve()
        if target.parent not in (home, home.parent.parent / "blobs"):
            raise ValueError(
                f"{path} is a link that leaves the directory, to {target}: if that is meant, copy the file"
            )
        if path.is_file() and path.stat().st_size > MOST_MIB * 2**20:
            raise ValueError(f"{path} has {path.stat().st_size / 2**20:,.0f} MiB: at most {MOST_MIB} are read")
    return directory


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
    ending = lambda path: path.name.lower().removesuffix(".gz").rpartition(".")[2]
    data = [path for path in files if ending(path) in ("jsonl", "parquet", "arrow")]
    return data or [path for path in files if ending(path) == "json"]


def _download(hub_id: str, patterns: list[str], instead: str, **options) -> Path:
    """The local copy of a repository's files that match; an error says what to give instead."""
    print(f"looking for {hub_id} on the Hugging Face hub, or in what was downloaded before", file=sys.stderr)
    from huggingface_hub import snapshot_download  # here: local files need not wait for this import

    silent = hub_is_silent(hub_id, **options)
    only = {"local_files_only": True} if silent else {}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, **options, **only))
    except Exception as error:  # no network, no such model, no permission, disk full: each has its own class there
        why = "it does not answer" if silent else f"{type(error).__name__}: {str(error).rstrip('.')}"
        at = f" at revision {options['revision']}" if options.get("revision") else ""
        raise FileNotFoundError(
            f"{hub_id} is no local path, and downloading it{at} from the Hugging Face hub failed: {why}. Give {instead} "
            "instead"
        ) from error


def hub_is_silent(hub_id: str, **options) -> bool:
    """True if the hub, or a proxy before it, takes the question and gives no answer: snapshot_download would wait for
    it without end."""
    from huggingface_hub import HfApi, constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT  # the library's own setting, an environment variable of this name
    try:
        HfApi().repo_info(hub_id, timeout=seconds, **options)
    except Exception as error:
        if "Timeout" in type(error).__name__:  # httpx's or requests', as the library's version has it
            print(f"no answer in {seconds} s (HF_HUB_ETAG_TIMEOUT sets how long to wait)", file=sys.stderr)
            return True
    return False  # any other error is snapshot_download's, which knows what to do without a network
