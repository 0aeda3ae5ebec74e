"""Text to token ids and back: a thin wrapper around `tokenizers.Tokenizer`, for the toy and for real models."""

from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers


class Tokenizer:
    """tokenizer: a `tokenizers.Tokenizer`; eos_ids: the ids that end a completion."""

    def __init__(self, tokenizer: FastTokenizer, eos_ids: list[int]):
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids

    @classmethod
    def from_words(cls, words: list[str], eos: str) -> "Tokenizer":
        """One token a word, words separated by blanks; `eos` is one of the words and is left out when decoding."""
        if eos not in words or len(set(words)) != len(words):
            raise ValueError(f"words must be distinct and contain the eos word {eos!r}")
        vocabulary = {word: i for i, word in enumerate(words)}
        # No word stands for unknown ones: to encode one is an error, never a silent replacement.
        tokenizer = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([eos])
        return cls(tokenizer, [vocabulary[eos]])

    @classmethod
    def from_file(cls, path: str | Path, eos_ids: list[int]) -> "Tokenizer":
        """Read a tokenizer.json."""
        try:
            return cls(FastTokenizer.from_file(str(path)), eos_ids)
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} cannot be read: {error}") from error

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode_batch(self, rows: list[list[int]]) -> list[str]:
        """Texts of the rows of ids, special tokens left out."""
        return self.tokenizer.decode_batch(rows, skip_special_tokens=True)

    def save(self, directory: str | Path) -> None:
        self.tokenizer.save(str(Path(directory) / "tokenizer.json"))
