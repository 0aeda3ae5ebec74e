"""A checkpoint's chat template: the Jinja program that writes a list of messages as the text the model was trained on.

Templates come from strangers, so they run in a sandbox. They get copies of what they are given, have the tags and
functions that transformers offers and all filters but four for web pages, and see the date of the run.
"""

import copy
import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import jinja2

from minclipo.checkpoint.sandbox import Sandbox

LONGEST = 100_000  # characters of a template; Jinja takes 40 s and 2 GiB to compile ten times as many
REPLY = "The answer is 4."


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as it is, where Jinja's own filter would write < as \\u003c for web pages."""
    if isinstance(indent, int) and indent > 16 or isinstance(indent, str) and len(indent) > 16:
        raise jinja2.TemplateError("tojson indents by at most 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    if len(source) > LONGEST:
        raise jinja2.TemplateError(f"it has {len(source):,} characters: at most {LONGEST:,} are read")
    sandbox = Sandbox({"tojson": _tojson})
    sandbox.globals["raise_exception"] = _raise_exception
    return sandbox.template(source)


class ChatTemplate:
    """source: the template; path: the file it stands in, for errors; special_tokens: variables such as bos_token."""

    def __init__(self, source: str, path: str | Path, special_tokens: dict):
        self.source = source
        self.path = path
        self.special_tokens = special_tokens
        self.now = datetime.now()  # what strftime_now says: one moment for a run, so that its prompts stay the same

    def _strftime_now(self, format: str) -> str:
        if len(format) > 100:
            raise jinja2.TemplateError("strftime_now takes a format of at most 100 characters")
        return self.now.strftime(format)

    def render(self, messages: list[dict], *, add_generation_prompt: bool = True, **variables) -> str:
        """The text of `messages`, each {"role": ..., "content": ...}; `variables` go to the template as they are.

        add_generation_prompt: end with the words that open the assistant's turn.
        """
        if not isinstance(messages, (list, tuple)) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(f"messages must be a list of at least one {{'role': ..., 'content': ...}}: {messages!r}")
        # A key without a value counts as absent: templates ask "is there a content", not "is it None".
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        given = {"tools": None, "documents": None, **self.special_tokens, **variables}
        given |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            template = compiled(self.source)
            template.environment.start(given)
            text = template.render(copy.deepcopy(given), strftime_now=self._strftime_now)
            text.encode()  # half a surrogate pair is no text
        except Exception as error:  # a template may fail as any program may: syntax, types, division by zero
            raise ValueError(f"{self.path}: chat_template failed: {type(error).__name__}: {error}") from error
        return text

    def after_reply(self) -> str:
        """What the template writes after an assistant's last message; "" if it writes no such message."""
        chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": REPLY}]
        try:
            _, reply, after = self.render(chat, add_generation_prompt=False).rpartition(REPLY)
        except ValueError:  # a template for something else, or one that fails: whoever asks a question will hear of it
            return ""
        return after if reply else ""


def read_chat_template(directory: Path, named: str | list | None, special_tokens: dict) -> ChatTemplate | None:
    """The template in chat_template.jinja, else `named`, the one in tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), path, special_tokens)
        except ValueError as error:
            raise ValueError(f"{path}: chat_template cannot be read: {error}") from error
    path = directory / "tokenizer_config.json"
    source = _default_of(named, path) if isinstance(named, list) else named
    if not isinstance(source, str | None):
        raise ValueError(f"{path}: chat_template must be a string or a list, found {type(source).__name__}")
    return None if source is None else ChatTemplate(source, path, special_tokens)


def _default_of(templates: list, path: Path) -> str:
    """The template named default. Without it, which one is meant? To ask in plain text would be another prompt."""
    try:
        by_name = {template["name"]: template["template"] for template in templates}
    except (TypeError, KeyError) as error:
        raise ValueError(f'{path}: chat_template must be a list of {{"name", "template"}}: {templates!r}') from error
    if by_name.get("default") is None:
        raise ValueError(
            f"{path}: no chat_template of {list(by_name)} is named default; copy the one to use to "
            f"{path.with_name('chat_template.jinja')}"
        )
    return by_name["default"]
