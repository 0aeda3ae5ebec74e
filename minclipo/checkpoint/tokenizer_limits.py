"""How much longer tokenizer.json makes a text, judged before the tokenizers library, which has no limit, sees the file.

Its replacements run one after another: a dozen that each make ten letters of one turn a letter into 10^12.
"""

from base64 import b64decode
from itertools import chain
from math import prod

STEPS = ("normalizer", "pre_tokenizer", "decoder")
SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # where a Sequence of them keeps its parts
# The most that other kinds of steps make of a text, in bytes of UTF-8; a kind that is not here makes it no longer.
GROWTH = {
    "BertNormalizer": 6,  # takes characters apart, and puts spaces around Chinese ones
    "ByteLevel": 2,
    "Lowercase": 2,
    "Metaspace": 5,  # what stands for a space has up to four bytes, and one more is put in front
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,  # one character stands for a sentence of 18
    "NFKD": 11,
}
MOST_GROWTH = 1000  # a SentencePiece table of NFKC may come to 33, and to 165 with Metaspace
LONGEST_TOKEN = 1000  # characters; those of published tokenizers are far shorter
BYTES_AT_ONCE = 2**25  # of one text, when it has grown; the library takes about 100 bytes of memory for each


def check_growth(says: dict) -> float:
    """How much longer a text may become when it is encoded; says: what tokenizer.json holds.

    ValueError if that is too much, for encoding or decoding, or cannot be seen.
    """
    try:
        found = {key: growth(says.get(key)) for key in STEPS}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{' or '.join(STEPS)} is not as it should be: {type(error).__name__}: {error}") from error
    encoding = found["normalizer"] * found["pre_tokenizer"]
    for key, grows in (("normalizer and pre_tokenizer", encoding), ("decoder", found["decoder"])):
        if grows > MOST_GROWTH:
            raise ValueError(f"{key} may make a text {grows:.3g} times as long; at most {MOST_GROWTH} is allowed")
    return encoding


def growth(step: dict | None) -> float:
    """At most so many times as long is a text after this step of tokenizer.json."""
    if step is None:
        return 1
    kind = step["type"]  # the library goes by it alone, whatever other keys there are
    if kind == "Sequence":
        return prod(growth(part) for part in chain(*(step[key] for key in SEQUENCES if key in step)))
    if kind == "Prepend":
        return 1 + size(step["prepend"])
    if kind == "Precompiled":
        return longest_replacement(step["precompiled_charsmap"])
    if kind == "Replace":  # a regular expression may match nothing between any two bytes, and so may an empty text
        content, replaced = size(step["content"]), size(step["pattern"].get("String", ""))
        return max(1, content / replaced) if replaced else 1 + content
    return GROWTH.get(kind, 1)


def size(text: str) -> int:
    return len(text.encode())


def longest_replacement(charsmap: str | None) -> int:
    """SentencePiece's table: the length of an index, the index, and what it points to, each text followed by a 0."""
    table = b64decode(charsmap or "")
    index = int.from_bytes(table[:4], "little")
    return max(1, *map(len, table[4 + index :].split(b"\0")))
