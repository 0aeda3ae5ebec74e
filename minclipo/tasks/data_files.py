"""What stands in a data file, record by record: JSONL, one JSON list of objects, parquet or Arrow (these need pyarrow).

The first bytes say which it is: names lie, and have endings in capitals or none at all. Files come from strangers, and a
small one may unpack to more than any machine holds: what is read at once has a limit.
"""

import codecs
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

GZIP, PARQUET, ARROW_FILE, ARROW_STREAM = b"\x1f\x8b", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # how such files begin
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # what ">" writes in Windows PowerShell
LARGEST_FILE = 2**30  # bytes, unpacked
LARGEST_JSON = 2**28  # characters of a line or a list; as Python objects they may take twenty times as many bytes
LARGEST_ROWS = 2**28  # bytes of the rows of a table that are Python objects at the same time


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of everything in a file."""
    data = contents(path)
    if data.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        yield from ((f"{path}, row {number}", record) for number, record in enumerate(rows(path, data), 1))
        return
    encoding = "utf-16" if data.startswith(UTF_16) else "utf-8-sig"  # sig: an editor's mark at the start
    text = io.TextIOWrapper(io.BytesIO(data), encoding, newline="\n")
    try:
        if data[:1000].decode(encoding, "ignore").lstrip().startswith("["):
            yield from (
                (f"{path}, item {number}", item) for number, item in enumerate(parsed(f"{path}", text.read()), 1)
            )
            return
        for number, line in enumerate(text, 1):
            if line.strip():
                yield f"{path}, line {number}", parsed(f"{path}, line {number}", line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (a compressed file? unpack it): {error}") from error


def contents(path: Path) -> bytes:
    """All bytes of a file, unpacked if gzip has packed it."""
    with open(path, "rb") as file:  # once: a pipe cannot be read again
        data = file.read(LARGEST_FILE + 1)
    if data.startswith(GZIP):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST_FILE + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is packed by gzip, but cannot be unpacked: {error}. Download it anew") from error
    if len(data) > LARGEST_FILE:
        raise ValueError(
            f"{path} holds more than {LARGEST_FILE / 2**30:g} GiB, unpacked: split it, or use a part of it"
        )
    return data


def parsed(place: str, text: str):
    """The value of a JSON text."""
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{place} is one JSON text of {len(text):,} characters: write one object per line instead")
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


def without_commands(text: str, but: str = "") -> str:
    """A text for the screen in which a stranger may have put commands for it, such as to clear it; but: what may stay."""
    return "".join(character if character.isprintable() or character in but else "?" for character in text)


def rows(path: Path, data: bytes) -> Iterator[dict]:
    """The rows of a parquet or Arrow file, a few at a time: as Python objects they take ten times the room."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{path}: parquet and Arrow files need pyarrow: pip install pyarrow") from error
    try:
        for batch in parquet_batches(data) if data.startswith(PARQUET) else arrow_batches(data):
            yield from batch.to_pylist()
    except Exception as error:  # damaged files and a lack of memory: each has its own class there
        raise ValueError(
            f"{path} cannot be read: {type(error).__name__}: {error}. Write it or download it anew"
        ) from error


def parquet_batches(data: bytes) -> Iterator:
    """Its rows in batches. A dictionary may repeat one value of a megabyte for all of a million rows."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    # No value is larger than its column is unpacked; lists hold values, which are counted.
    largest = [max(column.total_uncompressed_size, 8 * column.num_values) for column in columns]
    return file.iter_batches(batch_size=rows_at_once(largest))


def arrow_batches(data: bytes) -> Iterator:
    import pyarrow.ipc

    if data.startswith(ARROW_FILE):
        file = pyarrow.ipc.open_file(data)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(data))
    for batch in batches:
        count = rows_at_once([batch.get_total_buffer_size()])
        yield from (batch.slice(first, count) for first in range(0, batch.num_rows, count))


def rows_at_once(sizes: Iterable[int]) -> int:
    """How many rows may be Python objects at the same time, if a value may have the largest of these sizes in bytes."""
    largest = max(sizes, default=0)
    if largest > LARGEST_FILE:
        raise ValueError(f"a column takes {largest / 2**30:.1f} GiB: write fewer rows into a group")
    return max(1, min(1000, LARGEST_ROWS // max(1, largest)))
