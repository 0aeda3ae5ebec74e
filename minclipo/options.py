"""Command-line options made from a dataclass: each field says its default and one sentence, and that is all there is."""

import argparse
import dataclasses


def option(default, sentence: str, choices: tuple | None = None):
    """A dataclass field with its one sentence of help and, if its values are few, what they are."""
    return dataclasses.field(default=default, metadata={"help": sentence, "choices": choices})


def add_options(
    parser: argparse.ArgumentParser, config_class: type, skip: tuple = (), other_defaults: dict | None = None
) -> None:
    """One --option a field of config_class, of the type of its default.

    Fields in `skip` get none; `other_defaults` are what the help says where a script has defaults of its own.
    """
    group = parser.add_argument_group(config_class.__name__)
    for field in dataclasses.fields(config_class):
        if field.name in skip:
            continue
        default = (other_defaults or {}).get(field.name, field.default)
        flag, text = "--" + field.name.replace("_", "-"), f"{field.metadata['help']} (default: {default})"
        text = text.replace("%", "%%")  # argparse formats help with %
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(
                flag, type=type(field.default), choices=field.metadata["choices"], default=None, help=text
            )


def given_options(arguments: argparse.Namespace, config_class: type) -> dict:
    """The options of config_class that the user really gave, as keyword arguments for it."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(config_class)}
    return {name: value for name, value in values.items() if value is not None}


def check_options(config) -> None:
    """ValueError for a field whose value is not among its choices (argparse checks the command line; this, Python callers)."""
    for field in dataclasses.fields(config):
        choices, value = field.metadata["choices"], getattr(config, field.name)
        if choices is not None and value not in choices:
            raise ValueError(f"{field.name} must be one of {', '.join(map(str, choices))}; found {value!r}")
