"""What stands in a data file, record by record: JSONL, one JSON list of objects, parquet or Arrow (these need pyarrow).

The first bytes say which it is: names lie, and have endings in capitals or none at all.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # how such files begin
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # what ">" writes in Windows PowerShell


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of everything in a file."""
    data = path.read_bytes()
    if data.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        yield from ((f"{path}, row {number}", record) for number, record in enumerate(rows(path, data), 1))
        return
    try:
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")  # sig: an editor's mark at the start
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (a compressed file? unpack it): {error}") from error
    if text.lstrip().startswith("["):
        yield from ((f"{path}, item {number}", item) for number, item in enumerate(parsed(f"{path}", text), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", parsed(f"{path}, line {number}", line)


def parsed(place: str, text: str):
    """The value of a JSON text."""
    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}. Give one object per line, or one list of objects") from error


def distinct(pairs: list[tuple]) -> dict:
    """The object of these keys and values. A key that occurs twice is an error: which value was meant?"""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} occurs twice")
    return record


def rows(path: Path, data: bytes) -> Iterator[dict]:
    """The rows of a parquet or Arrow file, a few at a time: as Python objects they take ten times the room."""
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: parquet and Arrow files need pyarrow: pip install pyarrow") from error
    try:
        if data.startswith(PARQUET):
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        else:
            opened = pyarrow.ipc.open_file if data.startswith(ARROW_FILE) else pyarrow.ipc.open_stream
            table = opened(data).read_all()
        for batch in table.to_batches(max_chunksize=1000):
            yield from batch.to_pylist()
    except Exception as error:  # damaged files and a lack of memory: each has its own class there
        raise ValueError(
            f"{path} cannot be read: {type(error).__name__}: {error}. Write it or download it anew"
        ) from error
