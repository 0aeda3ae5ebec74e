"""A checkpoint's chat template: the Jinja program that writes a list of messages as the text the model was trained on.

Templates come from strangers, so they run in Jinja's sandbox: they can neither reach Python's internals nor change what
they are given. They have the filters, tags and functions that transformers offers, and no others.
"""

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's words for some trainers. Here it does nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as it is, where Jinja's own filter would write < as \\u003c for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Sandbox(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj, attribute):
        """Jinja's own prints nothing unless the forbidden attribute is used; here, asking for it is an error."""
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is forbidden")


def _environment(now: datetime) -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


class ChatTemplate:
    """source: the template; path: the file it stands in, for errors; special_tokens: variables such as bos_token."""

    def __init__(self, source: str, path: str | Path, special_tokens: dict):
        self.source = source
        self.path = path
        self.special_tokens = special_tokens
        self.now = datetime.now()  # what strftime_now says: one moment for a run, so that its prompts stay the same

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _environment(self.now).from_string(self.source)

    def render(self, messages: list[dict], *, add_generation_prompt: bool = True, **variables) -> str:
        """The text of `messages`, each {"role": ..., "content": ...}; `variables` go to the template as they are.

        add_generation_prompt: end with the words that open the assistant's turn.
        """
        if not isinstance(messages, (list, tuple)) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(f"messages must be a list of at least one {{'role': ..., 'content': ...}}: {messages!r}")
        # A key without a value counts as absent: templates ask "is there a content", not "is it None".
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        given = {"tools": None, "documents": None, **self.special_tokens, **variables}
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except Exception as error:  # a template may fail as any program may: syntax, types, division by zero
            raise ValueError(f"{self.path}: chat_template failed: {type(error).__name__}: {error}") from error
