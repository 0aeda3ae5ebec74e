"""Exercise 13: what stands between a folder of files and a model that answers.

Minutes: 40. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/13_checkpoints.py` tells right from
wrong; with --solution it checks lessons/solutions/13_checkpoints.py, which is there to be
read afterwards.
"""

import json

import torch
from checking import expect, expect_true, report
from torch import Tensor

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number


def read_header(data: bytes) -> dict[str, dict]:
    """{name: {"dtype": ..., "shape": ..., "data_offsets": ...}} of a safetensors file.

    data is the whole file. "__metadata__" is left out. Nothing is believed. ValueError if
    * the file ends before its header does, or the header is not a JSON object;
    * a dtype is none of SIZES, or a tensor does not have just as many bytes as its dtype
      and shape need;
    * a byte of the data belongs to no tensor or to two, or a tensor lies beyond the data.
    The names may stand in another order than their bytes. A shape may be [] (one number)
    or hold a 0 (no number).
    """
    raise NotImplementedError(
        "Sorted by where they start, each tensor begins where the one before it ends."
    )


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a q_proj or k_proj, moved from Meta's order to Hugging Face's; same shape.

    rows [heads * C, ...]: a weight [heads * C, D] or a bias [heads * C]. In each head
    Meta turns two neighbours together, Hugging Face a channel and the one C/2 further on.
    It is the way back from the lesson's to_neighbours.
    """
    raise NotImplementedError(
        "First view the rows as heads, pairs and the two of a pair."
    )


def cut(ids: list[int], eos: int | list[int] | None) -> tuple[list[int], bool]:
    """(ids up to the first end token, that one included; whether there is one).

    eos as config.json may have it: an id, a list of ids, or null. Where there is no end,
    all ids come back, and False.
    """
    raise NotImplementedError(
        "Make one kind of eos of the three first. The toy's eos is id 0."
    )


# The checks. Reading them is allowed.


def file_of(header, data: int, *, more_length: int = 0) -> bytes:
    """A safetensors file with this header and so many bytes of data."""
    text = json.dumps(header).encode()
    return (len(text) + more_length).to_bytes(8, "little") + text + bytes(data)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def check_read_header(read_header):
    def refuses(data: bytes, what: str) -> None:
        try:
            read_header(data)
        except ValueError:
            return
        expect_true(False, f"{what}: no ValueError")

    def accepts(header: dict, data: int, what: str) -> None:
        wanted = {name: value for name, value in header.items() if name != "__metadata__"}
        try:
            found = read_header(file_of(header, data))
        except ValueError as error:
            expect_true(False, f"{what}: refused with ValueError: {error}")
        expect_true(found == wanted, f"{what}: expected {wanted}, found {found}")

    two = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "BF16")}
    accepts(two, 32, "two tensors")
    accepts({"__metadata__": {"format": "pt"}} | two, 32, "two tensors and metadata")
    accepts(
        {"b": two["b"], "a": two["a"]}, 32, "the names in another order than the bytes"
    )
    accepts(
        {"a": entry([], 0, 4), "b": entry([3, 0], 4, 4), "c": entry([1], 4, 8)},
        8,
        "shapes [] and [3, 0]",
    )
    accepts(
        {"b": entry([1], 0, 4), "a": entry([0], 0, 0)},
        4,
        "an empty tensor that starts where another one starts",
    )
    accepts({}, 0, "no tensors at all")
    refuses(file_of(two, 32)[:-1], "the last byte is missing")
    refuses(file_of(two, 33), "a byte too many at the end")
    refuses(file_of(two, 32)[:20], "the file ends within the header")
    refuses(bytes(5), "a file of five bytes")
    refuses(
        file_of({}, 0, more_length=9),
        "the header is said to be longer than the file, though its JSON is whole",
    )
    refuses(
        file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
        "four bytes that belong to nobody",
    )
    refuses(file_of({"a": entry([1], 4, 8)}, 8), "data that begins with bytes of nobody")
    refuses(
        file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
        "two tensors that share bytes",
    )
    what = "four bytes of two tensors and four of none: the total is right"
    refuses(file_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 8), what)
    refuses(file_of({"a": entry([2, 3], 0, 20)}, 20), "20 bytes for six numbers of four")
    refuses(
        file_of({"a": entry([3], 0, 12, "F16")}, 12), "12 bytes for three numbers of two"
    )
    refuses(file_of({"a": entry([4], 0, 4, "I8")}, 4), "a dtype that is none of SIZES")
    refuses(file_of([1, 2], 0), "a header that is a list")
    refuses((3).to_bytes(8, "little") + b"{a}", "a header that is no JSON")


def check_to_halves(to_halves):
    expect(
        to_halves(torch.arange(6), 1),
        [0, 2, 4, 1, 3, 5],
        "one head of six: pairs (0, 1), (2, 3), (4, 5)",
    )
    expect(
        to_halves(torch.arange(8), 2),
        [0, 2, 1, 3, 4, 6, 5, 7],
        "two heads of four: no row leaves its head",
    )
    weight = torch.arange(24).view(12, 2)
    wanted = weight[[0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]]
    expect(to_halves(weight, 2), wanted, "a weight [12, 2] of two heads: whole rows move")
    expect(to_halves(torch.ones(4, 3, 2), 1).shape, (4, 3, 2), "the shape stays")


def check_cut(cut):
    def check(ids, eos, wanted, what):
        before, found = list(ids), cut(ids, eos)
        expect_true(ids == before, f"{what}: the list that was given has been changed")
        expect_true(
            found == wanted, f"{what}: cut({ids}, {eos}) must be {wanted}, found {found}"
        )

    check([5, 7, 2, 9], 2, ([5, 7, 2], True), "one id")
    check(
        [5, 7, 2, 9, 3],
        [3, 2],
        ([5, 7, 2], True),
        "two ids: whichever comes first in the text",
    )
    check([5, 7], [2, 3], ([5, 7], False), "unfinished")
    check([5, 7], None, ([5, 7], False), "eos null")
    check([5, 0, 7], 0, ([5, 0], True), "id 0 is an id")
    check([2, 2, 5], 2, ([2], True), "an empty answer")


if __name__ == "__main__":
    report(globals())
