"""Command-line options made from the `option` lines of a config class."""

import argparse
import dataclasses


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_options(
    parser: argparse.ArgumentParser, config_class: type, skip: tuple = (), other_defaults: dict | None = None
) -> None:
    """One --option for each field of config_class, of the type of its default, under the heading of its group.

    Fields in `skip` get none; `other_defaults` are what the help says where a script has defaults of its own.
    """
    groups = {group.title: group for group in parser._action_groups}
    for field in dataclasses.fields(config_class):
        if field.name in skip:
            continue
        title, choices = field.metadata["group"], field.metadata["choices"]
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        default = (other_defaults or {}).get(field.name, field.default)
        text = f"{field.metadata['help']} (default: {default})".replace("%", "%%")  # argparse formats help with %
        if isinstance(field.default, bool):
            group.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            kind = type(field.default)
            group.add_argument(flag(field.name), type=kind, choices=choices, default=None, help=text)


def given_options(arguments: argparse.Namespace, config_class: type) -> dict:
    """The options of config_class that the user really gave, as keyword arguments for it."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(config_class)}
    return {name: value for name, value in values.items() if value is not None}


def needed_by(config_class: type) -> dict[str, str]:
    """For each option that does nothing by itself, the option that it needs."""
    fields = dataclasses.fields(config_class)
    return {field.name: field.metadata["needs"] for field in fields if field.metadata["needs"]}


def refuse_idle(given: dict, chosen: dict, config_class: type) -> None:
    """ValueError if a given option does nothing with these settings. given, chosen: {option: value}."""
    for name, switch in needed_by(config_class).items():
        if name in given and not chosen.get(switch):
            raise ValueError(f"{flag(name)} does nothing without {flag(switch)}")


def changeable_later(*config_classes: type) -> set[str]:
    """Options that may be other than before when a run is resumed."""
    fields = [field for config_class in config_classes for field in dataclasses.fields(config_class)]
    return {field.name for field in fields if field.metadata["later"]}
