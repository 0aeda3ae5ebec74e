"""Solution of exercise 13. Compare minclipo/checkpoint/, without headers."""

import json
import math

from torch import Tensor

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number


def read_header(data: bytes) -> dict[str, dict]:
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < max(8, end):  # slices would only come out short
        raise ValueError(f"{len(data)} bytes, but the header ends at {end}")
    header = json.loads(data[8:end])  # its errors are ValueErrors
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    covered = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in SIZES or stop - start != SIZES[
            entry["dtype"]
        ] * math.prod(entry["shape"]):
            raise ValueError(
                f"{name}: {stop - start} bytes for {entry['dtype']} {entry['shape']}"
            )
        if start != covered:
            raise ValueError(
                f"{name} starts at {start}, but the one before it ends at {covered}"
            )
        covered = stop
    if covered != len(data) - end:
        raise ValueError(f"the tensors end at {covered}, the data at {len(data) - end}")
    return tensors


def to_halves(rows: Tensor, heads: int) -> Tensor:
    pairs = rows.unflatten(0, (heads, -1, 2))  # [heads, C / 2, 2, ...]
    return pairs.transpose(1, 2).flatten(0, 2)


def cut(ids: list[int], eos: int | list[int] | None) -> tuple[list[int], bool]:
    ends = {eos} if isinstance(eos, int) else set(eos or [])  # `if eos` would lose id 0
    for i, token in enumerate(ids):
        if token in ends:
            return ids[: i + 1], True
    return ids, False
