"""The command line: options made from the `option` lines of a config class, help in groups, errors in one line."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """--help has the common options, --help-all every one. An error is one line, since usage has a hundred."""

    def __init__(self, script: str, description: str):
        layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=29)
        installed = Path(sys.argv[0]).stem  # minclipo-toy, say
        name = installed if installed.startswith("minclipo") else script
        super().__init__(prog=name, usage="%(prog)s [options]", description=description, formatter_class=layout)
        self.script, self.everything = script, False
        self.add_argument(
            "--help-all", action=HelpAll, nargs=0, help="every option, not only the common ones, and exit"
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")

    def format_help(self) -> str:
        rare = [] if self.everything else [action for action in self._actions if not getattr(action, "common", True)]
        texts = [action.help for action in rare]
        for action in rare:
            action.help = argparse.SUPPRESS
        text = super().format_help()
        for action, help_text in zip(rare, texts):
            action.help = help_text
        return text

    def given(self, arguments: list[str]) -> dict:
        """{option: value} of what `arguments` really say, without any defaults."""
        unset = object()
        found = self.parse_args(arguments, argparse.Namespace(**{action.dest: unset for action in self._actions}))
        return {name: value for name, value in vars(found).items() if value is not unset}

    def defaults(self) -> dict:
        """{option: default}; None for those whose default only their config class knows."""
        actions = [action for action in self._actions if action.default is not argparse.SUPPRESS]
        return {action.dest: action.default for action in actions}


class HelpAll(argparse.Action):
    def __call__(self, parser, *_):
        parser.everything = True
        parser.print_help()
        parser.exit()


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def expanded_path(text: str) -> Path:
    """--out=~/runs: a shell leaves that ~ alone."""
    return Path(text).expanduser()


def whole_number(at_least: int, at_most: int) -> Callable[[str], int]:
    """A type for argparse."""

    def parse(text: str) -> int:
        if not at_least <= int(text) <= at_most:
            raise argparse.ArgumentTypeError(f"must be from {at_least} to {at_most}, found {text}")
        return int(text)

    parse.__name__ = "whole number"  # what argparse calls it where int() fails
    return parse


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What both scripts can do with settings: go on with those of a run, read them from a file, show them."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=expanded_path,
        metavar="OUT",
        help="go on from the last training state; with OUT, with the settings of the run there",
    )
    parser.add_argument(
        "--config", type=expanded_path, metavar="FILE", help="options in JSON or TOML, or the settings.json of a run"
    )
    parser.add_argument(
        "--show-settings", action="store_true", help="print all settings and where each comes from, and exit"
    )


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
        text = help_text(field, (other_defaults or {}).get(field.name, field.default))
        kind = type(field.default)
        if kind is bool:
            kwargs = dict(action=argparse.BooleanOptionalAction)
        else:
            kwargs = dict(
                type=kind, choices=choices, metavar=None if choices else {int: "N", float: "X"}.get(kind, "TEXT")
            )
        action = group.add_argument(flag(field.name), default=None, help=text, **kwargs)
        action.common = field.metadata["common"]


def help_text(field: dataclasses.Field, default) -> str:
    """The option's sentence and its default, if there is something to say about that."""
    text = field.metadata["help"]
    if default != "":
        shown = {"True": "on", "False": "off"}.get(str(default), str(default))
        shown = shown if shown == shown.strip() else repr(shown)
        text += f" (default: {shown})"
    return text.replace("%", "%%")  # argparse formats help with %


def given_options(arguments: argparse.Namespace, config_class: type) -> dict:
    """The options of config_class that the user really gave, as keyword arguments for it."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(config_class)}
    return {name: value for name, value in values.items() if value is not None}


def made(config_class: type, values: dict):
    """A config_class of these values. An error names options as the command line does: --max-new-tokens."""
    try:
        return config_class(**values)
    except ValueError as error:
        raise ValueError(dashed(str(error), [field.name for field in dataclasses.fields(config_class)])) from error


def dashed(message: str, names: list[str]) -> str:
    """The message with --group-size for group_size. Names of one word may be words: only the first of all is replaced."""
    options = [name for name in names if "_" in name or message.startswith(f"{name} ")]
    for name in options:
        once = 0 if "_" in name else 1
        message = re.sub(rf"(?<![\w-]){name}(?!\w)", flag(name), message, count=once)
    return message


def needed_by(config_class: type) -> dict[str, str]:
    """For each option that does nothing by itself, the option that it needs, or "one or the_other"."""
    fields = dataclasses.fields(config_class)
    return {field.name: field.metadata["needs"] for field in fields if field.metadata["needs"]}


def refuse_idle(given: dict, chosen: dict, config_class: type) -> None:
    """ValueError if a given option does nothing with these settings. given, chosen: {option: value}."""
    for name, switches in needed_by(config_class).items():
        switches = switches.split(" or ")
        if name in given and not any(map(chosen.get, switches)):
            raise ValueError(f"{flag(name)} does nothing without {' or '.join(map(flag, switches))}")


def changeable_later(*config_classes: type) -> set[str]:
    """Options that may be other than before when a run is resumed."""
    fields = [field for config_class in config_classes for field in dataclasses.fields(config_class)]
    return {field.name for field in fields if field.metadata["later"]}
