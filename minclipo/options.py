"""Command-line options made from a dataclass: a field says its default, one sentence and its bounds; that is all."""

import argparse
import dataclasses
import math


def option(default, sentence: str, *, choices: tuple | None = None, at_least=None, above=None, at_most=None):
    """A dataclass field with its one sentence of help and, where not every value will do, which ones will."""
    metadata = {"help": sentence, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


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
            choices = field.metadata["choices"]
            group.add_argument(flag, type=type(field.default), choices=choices, default=None, help=text)


def given_options(arguments: argparse.Namespace, config_class: type) -> dict:
    """The options of config_class that the user really gave, as keyword arguments for it."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(config_class)}
    return {name: value for name, value in values.items() if value is not None}


def check_options(config) -> None:
    """ValueError naming the first field whose value its `option` does not allow, and what was found."""
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata
        if allowed["choices"] is not None and value not in allowed["choices"]:
            raise ValueError(f"{field.name} must be one of {', '.join(allowed['choices'])}; found {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, found {value}")
        if allowed["at_least"] is not None and value < allowed["at_least"]:
            raise ValueError(f"{field.name} must be at least {allowed['at_least']}, found {value}")
        if allowed["above"] is not None and value <= allowed["above"]:
            raise ValueError(f"{field.name} must be above {allowed['above']}, found {value}")
        if allowed["at_most"] is not None and value > allowed["at_most"]:
            raise ValueError(f"{field.name} must be at most {allowed['at_most']}, found {value}")
