"""Files: written whole or not at all, so that a crash leaves the earlier one; errors name the file."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # the folder in which metrics.jsonl is written until it is whole is metrics.jsonl.partial
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "files must not grow that large here, see ulimit -f",
}


@contextmanager
def replacing(path: Path):
    """Yield a temporary path to write to; it becomes `path` only once it is whole and on the disk.

    The temporary file has a folder to itself. Libraries write under names of their own before they rename: whatever a
    killed process leaves lies in that folder, and the next write of `path` removes it. OSError as in `writing`.
    """
    folder = partial_folder(path)
    remove_partial(path)
    try:
        with writing(path):
            folder.mkdir()
            temporary = folder / path.name
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask allows; a library may replace the file by a private one
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            sync_file(temporary)  # otherwise a power cut may leave the new name on empty blocks
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        remove_partial(path)


@contextmanager
def writing(path: Path):
    """Turns an OSError of the block into one that says which file could not be written, and why."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        reason = f"{REASONS[error.errno]} ({words})" if error.errno in REASONS else words
        raise OSError(f"{path} could not be written: {reason}") from error


def partial_folder(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def remove_partial(path: Path) -> None:
    """Remove what a killed process had begun to write of `path`; nothing else is touched."""
    partial = partial_folder(path)
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:  # a file, as earlier versions left it, or nothing
        partial.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the contents of `path` are on the disk."""
    with writing(path), open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (where the system can: Windows cannot open folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path):
    """The value in a JSON file. ValueError naming the file if it is not JSON or has a key twice, with two values."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_object(path: Path, *, optional: bool = False) -> dict:
    """The object in a JSON file; with `optional`, {} if there is no such file."""
    if optional and not path.exists():
        return {}
    if not path.is_file():
        inner = path.parent / "model"
        hint = f"; did you mean {inner}?" if (inner / path.name).is_file() else ""
        raise FileNotFoundError(f"{path} does not exist: {path.parent} is no model directory{hint}")
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, found {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple]) -> dict:
    result = dict(pairs)
    for key, value in pairs:
        if value is not result[key] and value != result[key]:  # NaN is not equal to itself
            raise ValueError(f"key {key!r} occurs twice with different values")
    return result


def write_lines(path: Path, records: list[dict]) -> None:
    """JSONL: one JSON object per line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def read_lines(path: Path, *needed: str) -> list[dict]:
    """The objects of a JSONL file, [] if there is none. A last line that was cut off is left out.

    ValueError naming the line that is no object, or lacks one of the keys that are `needed`.
    """
    return list(lines_of(path, *needed)) if path.is_file() else []


def lines_of(path: Path, *needed: str) -> Iterator[dict]:
    """The same one by one, of a file that is there."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        yield _line(f"{path}, line {number}", line, needed)


def _line(place: str, line: bytes, needed: tuple[str, ...]) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}. Correct or remove it") from error
    missing = [key for key in needed if not isinstance(record, dict) or key not in record]
    if not isinstance(record, dict) or missing:
        raise ValueError(f"{place} is no object with {', '.join(missing) or 'keys'}. Correct or remove it")
    return record
