"""Text to token ids and back: a thin wrapper around `tokenizers.Tokenizer`, for the toy and for real models.

On disk a tokenizer is tokenizer.json (the algorithm), tokenizer_config.json (which tokens are special),
chat_template.jinja, and the ids that end a completion, in generation_config.json and config.json.
Left out: tokenizers without a tokenizer.json, and chat templates other than the one named "default".
"""

from collections.abc import Callable
from contextlib import contextmanager
from itertools import groupby, takewhile
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from minclipo.checkpoint.chat_template import ChatTemplate, read_chat_template
from minclipo.checkpoint.files import read_object, write_json, write_text
from minclipo.checkpoint.hub import model_directory
from minclipo.checkpoint.tokenizer_limits import BYTES_AT_ONCE, LONGEST_TOKEN, check_growth

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # stands for an id without text; it has no digits that could be an answer
# A class of transformers, old and new, that takes tokenizer.json as it is.
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


class Tokenizer:
    """tokenizer: a `tokenizers.Tokenizer`; eos_ids: the ids that end a completion; settings: tokenizer_config.json
    without its chat template; chat_template: a ChatTemplate, or None for a model that has none; growth: how much longer
    the tokenizer may make a text, which limits what it is given."""

    def __init__(
        self,
        tokenizer: FastTokenizer,
        eos_ids: list[int],
        settings: dict | None = None,
        chat_template: ChatTemplate | None = None,
        growth: float = 1,
    ):
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.settings = SETTINGS | {"eos_token": tokenizer.id_to_token(eos_ids[0])} | (settings or {})
        self.chat_template = chat_template
        vocabulary = tokenizer.get_vocab()
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)  # counts gaps between ids, if any
        self.ids_with_text = {index for text, index in vocabulary.items() if text}
        self.most_bytes = int(BYTES_AT_ONCE / growth)  # of a text

    @classmethod
    def from_words(cls, words: list[str], eos: str) -> "Tokenizer":
        """One token per word, words separated by spaces; `eos` is one of the words."""
        if eos not in words or len(set(words)) != len(words):
            raise ValueError(f"words must be distinct and contain the eos word {eos!r}")
        vocabulary = {word: i for i, word in enumerate(words)}
        # No word stands for unknown ones: to encode one is an error, never a silent replacement.
        tokenizer = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([eos])
        return cls(tokenizer, [vocabulary[eos]])

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids. add_special_tokens: also what the tokenizer puts around a text, a bos token say; a chat template
        writes those itself."""
        with self._checked([text]):
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens added. ValueError for a text that has none, or is endless."""
        with self._checked(texts):
            return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    @contextmanager
    def _checked(self, texts: list[str]):
        with library_errors("the model's tokenizer cannot encode this"):
            longest = max((len(text.encode()) for text in texts), default=0)
            if longest > self.most_bytes:
                raise ValueError(f"it takes {self.most_bytes:,} bytes at once, found {longest:,}")
            yield

    def decode_batch(self, rows: list[list[int]]) -> list[str]:
        """Texts of the rows of ids, with all that the model wrote: special tokens as their names, ids without a token
        (an embedding may have more rows) as U+FFFD. A verifier that does not see them pays for 4<|im_start|>2 as 42."""
        with library_errors("the model's tokenizer cannot decode this"):
            texts = self.tokenizer.decode_batch(rows, skip_special_tokens=False)
        return [text if self.ids_with_text.issuperset(row) else self._by_parts(row) for row, text in zip(rows, texts)]

    def _by_parts(self, row: list[int]) -> str:
        """The text of a row in which the library would leave out ids without text."""
        parts = [(known, list(ids)) for known, ids in groupby(row, self.ids_with_text.__contains__)]
        decode = lambda ids: self.tokenizer.decode(ids, skip_special_tokens=False)
        return "".join(decode(ids) if known else NO_TEXT * len(ids) for known, ids in parts)

    def stop_at(self, tokens: list[str]) -> None:
        """Let these tokens end a completion, too. ValueError if one is not in the vocabulary."""
        for token in tokens:
            if self.tokenizer.token_to_id(token) is None:
                raise ValueError(f"--stop-tokens: {token!r} is no token of the model's tokenizer.json")
        self.eos_ids = list(dict.fromkeys(self.eos_ids + [self.tokenizer.token_to_id(token) for token in tokens]))

    def stop_tokens(self) -> list[str]:
        """The tokens that end a completion."""
        return [self.tokenizer.id_to_token(index) for index in self.eos_ids]

    def chat(self, messages: list[dict], *, add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation in the model's own format, to be encoded as it is: see ChatTemplate.render."""
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat_template: give it plain text")
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    def control_tokens(self) -> list[str]:
        """The special tokens, each one id wherever it stands in a text, also in one that a stranger wrote."""
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]

    def special_ids(self) -> dict:
        """The special token ids that config.json and generation_config.json state."""
        ids = {f"{name}_token_id": self._named_id(f"{name}_token") for name in ("bos", "pad")}
        eos = self.eos_ids[0] if len(self.eos_ids) == 1 else self.eos_ids
        return {key: value for key, value in (ids | {"eos_token_id": eos}).items() if value is not None}

    def _named_id(self, key: str) -> int | None:
        token = self.settings.get(key)
        return None if token is None else self.tokenizer.token_to_id(token)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, generation_config.json and, if there is one, the template."""
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        write_json(directory / "tokenizer_config.json", self.settings)
        write_json(directory / "generation_config.json", self.special_ids())
        if self.chat_template is not None:
            write_text(directory / "chat_template.jinja", self.chat_template.source)
        else:
            (directory / "chat_template.jinja").unlink(missing_ok=True)  # one that another model left here


@contextmanager
def library_errors(what: str):
    """The errors of the tokenizers library as ValueErrors: it raises bare Exceptions, and panics, which are not even
    those: a panic is a BaseException whose class has no name that could be imported."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from error


def prompt_writer(
    tokenizer: Tokenizer, *, suffix: str = "", system_prompt: str = "", variables: dict | None = None
) -> Callable[[str], str]:
    """A function that writes a question as the model expects it: in its chat template, or as plain text without one.

    suffix: added to every question; variables: further variables for the chat template.
    """

    def as_chat(question: str) -> str:
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return tokenizer.chat([*system, {"role": "user", "content": question + suffix}], **variables or {})

    def as_text(question: str) -> str:
        parts = [system_prompt, question + suffix]
        return opening(tokenizer) + "\n".join(part for part in parts if part) + "\n"

    return as_text if tokenizer.chat_template is None else as_chat


def opening(tokenizer: Tokenizer) -> str:
    """What this tokenizer puts before a text, a bos token say: we add no special tokens when encoding prompts."""
    encode, text = tokenizer.tokenizer.encode, tokenizer.stop_tokens()[0]  # one that every tokenizer can encode
    with library_errors("the model's tokenizer cannot encode its own end"):
        found = encode(text, add_special_tokens=True)
        added = takewhile(lambda pair: pair[1] is None, zip(found.tokens, found.sequence_ids))
        if not (start := "".join(token for token, _ in added)):
            return ""
        # Some (Mistral 7B v0.3) put a space before a text, too, but not where a bos token is written before it.
        wanted = encode("a", add_special_tokens=True).ids
        same = lambda text: (ids := encode(text, add_special_tokens=False).ids) == wanted[: len(ids)]
        return f"{start} " if same(f"{start} a") and not same(f"{start}a") else start


def load_tokenizer(directory_or_hub_id: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or hub id; ValueError or FileNotFoundError naming the file that is wrong."""
    directory = model_directory(directory_or_hub_id, weights=False)
    return read_tokenizer(directory, read_object(directory / "config.json"))


def read_tokenizer(directory: Path, config: dict) -> Tokenizer:
    """The tokenizer of a model directory whose config.json says `config`."""
    tokenizer, growth = _read_algorithm(directory / "tokenizer.json")
    settings = _read_settings(directory)
    source = settings.pop("chat_template", None)
    special = {key: settings[key] for key in (*NAMED_TOKENS, "additional_special_tokens") if key in settings}
    template = read_chat_template(directory, source, special)
    _mark_special_tokens(tokenizer, settings)
    eos_ids = _read_eos_ids(directory, config, tokenizer, settings)
    eos_ids += _end_of_turn(tokenizer, template)
    if not eos_ids:
        raise ValueError(f"{directory / 'config.json'}: eos_token_id is missing, and no other file names one")
    return Tokenizer(tokenizer, list(dict.fromkeys(eos_ids)), settings, template, growth)


def _read_algorithm(path: Path) -> tuple[FastTokenizer, float]:
    """The tokenizer, and how much longer it may make a text."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {path.parent} holds no tokenizer")
    with library_errors(f"{path} cannot be read"):
        growth = check_growth(read_object(path))
        tokenizer = FastTokenizer.from_file(str(path))
        if (longest := max(map(len, tokenizer.get_vocab()), default=0)) > LONGEST_TOKEN:
            raise ValueError(f"it has a token of {longest:,} characters; at most {LONGEST_TOKEN} are allowed")
        # Some files still carry how their author cut and padded his own batches.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return _without_normalized_specials(tokenizer), growth


def _without_normalized_specials(tokenizer: FastTokenizer) -> FastTokenizer:
    """Old files call special tokens normalized: within a text they are not found once a normalizer has changed it."""
    sides = lambda token: dict(lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word)
    old = [token for token in tokenizer.get_added_tokens_decoder().values() if token.special and token.normalized]
    if not old:
        return tokenizer
    tokenizer.add_special_tokens([AddedToken(token.content, normalized=False, **sides(token)) for token in old])
    return FastTokenizer.from_str(tokenizer.to_str())  # read anew: it would still decode the normalized names


def _read_settings(directory: Path) -> dict:
    """tokenizer_config.json with the special tokens as strings, whichever of their three notations it uses."""
    path = directory / "tokenizer_config.json"
    settings = read_object(path, optional=True)
    if "added_tokens_decoder" not in settings:  # before that key existed, a file of its own had the last word
        settings = settings | read_object(directory / "special_tokens_map.json", optional=True)
    for key in NAMED_TOKENS:
        token = settings.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            settings.pop(key, None)
        elif isinstance(token, str):
            settings[key] = token
        else:
            raise ValueError(f"{path}: {key} must be a string or null, found {token!r}")
    return settings


def _mark_special_tokens(tokenizer: FastTokenizer, settings: dict) -> None:
    """Make tokens special that only tokenizer_config.json calls so: one token wherever they stand in a text."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = {settings[key] for key in NAMED_TOKENS if key in settings}
    tokenizer.add_special_tokens([token for token in sorted(named - known) if tokenizer.token_to_id(token) is not None])


def _read_eos_ids(directory: Path, config: dict, tokenizer: FastTokenizer, settings: dict) -> list[int]:
    """Every id that any file of the model calls its end, in the order generation, model, tokenizer."""
    found, generation = [], directory / "generation_config.json"
    for path, says in ((generation, read_object(generation, optional=True)), (directory / "config.json", config)):
        eos = says.get("eos_token_id")
        ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        for token in ids:
            if type(token) is not int or token < 0 or tokenizer.id_to_token(token) is None:
                raise ValueError(f"{path}: eos_token_id {token!r} is no id of the vocabulary in tokenizer.json")
        found += ids
    named = tokenizer.token_to_id(settings["eos_token"]) if "eos_token" in settings else None
    found += [] if named is None else [named]
    return found


def _end_of_turn(tokenizer: FastTokenizer, template: ChatTemplate | None) -> list[int]:
    """The token that the chat template writes right after an assistant's message, in a list, if it is one of a kind.

    No other file of a base model may name it; then the model would go on after its answer, as the user."""
    after = "" if template is None else template.after_reply().strip()
    try:
        with library_errors("the end of a turn"):
            first = tokenizer.encode(after, add_special_tokens=False).ids[:1]
    except ValueError:  # words that this vocabulary lacks. Whoever asks a question will hear of them
        return []
    return [index for index in first if index in tokenizer.get_added_tokens_decoder()]
