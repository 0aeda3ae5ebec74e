"""Where settings come from: defaults, preset, algorithm, a file or an earlier run, the command line. Later ones win."""

import argparse
import dataclasses
import difflib
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from minclipo.checkpoint.files import read_json
from minclipo.runs.command_line import Parser, flag

SECTIONS = ("llm", "toy", "training")  # of settings.json: a script's own options, those of every run
NAMES = ("preset", "algorithm")  # bundles of settings that settings.json has by name as well
NOT_IN_FILES = ("config", "resume", "show_settings", "help", "help_all")


class Layer(NamedTuple):
    """Settings of one source."""

    source: str  # preset track1, command line
    values: dict  # {option: value}
    asked: bool = True  # written by hand; False: what a run wrote down, or a default
    whole: bool = False  # has a value for every option


def merged(layers: Iterable[Layer]) -> dict[str, tuple]:
    """{option: (value, source)} of the last layer that has it."""
    return {name: (value, layer.source) for layer in layers for name, value in layer.values.items()}


def asked_for(layers: Iterable[Layer]) -> dict:
    """What somebody has written by hand: such an option should do something."""
    return {name: value for layer in layers if layer.asked for name, value in layer.values.items()}


# ---- the command line and the file that it names ----


def read_arguments(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments, from --resume OUT, --config and the command line. Ends with one line if they are wrong.

    Besides the options: `layers`, where they come from; `command_line`, as one would type it. `resume` is a bool, since
    its value has become `out`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = parser.given(argv)
    try:
        layers = [*file_layers(parser, command), Layer("command line", command)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    own = {name: value for name, value in parser.defaults().items() if value is not None}
    layers.insert(0, Layer("default", own, asked=False))
    found = argparse.Namespace(**parser.defaults())
    for layer in layers:
        vars(found).update(layer.values)
    found.resume = bool(found.resume)
    found.layers, found.command_line = layers, shlex.join([parser.prog, *argv])
    return found


def file_layers(parser: Parser, command: dict) -> list[Layer]:
    """What the run of --resume OUT has written down, and the options in the file of --config."""
    layers, resume, path = [], command.get("resume"), command.get("config")
    if isinstance(resume, Path):
        if command.get("out", resume) != resume:
            raise ValueError(f"--resume {resume} and --out {command['out']} name two folders; leave --out out")
        if not (resume / "settings.json").is_file():
            raise ValueError(f"--resume {resume}: there is no earlier run of {parser.prog} (no settings.json)")
        layer = read_layer(parser, resume / "settings.json")
        layers.append(layer._replace(values=layer.values | {"out": resume}))
    if path is not None:
        layers.append(read_layer(parser, path / "settings.json" if path.is_dir() else path))
    for layer in layers:
        refuse_names(layer, command)
    return layers


def refuse_names(layer: Layer, command: dict) -> None:
    """A preset or an algorithm would do nothing beside a file that has every option already."""
    for name in NAMES:
        if layer.whole and command.get(name, layer.values.get(name)) != layer.values.get(name):
            raise ValueError(
                f"{flag(name)} was {layer.values.get(name)}, now {command[name]}; {layer.source} has a value for every "
                "option, so give the options themselves, or leave the file out"
            )


def read_layer(parser: Parser, path: Path) -> Layer:
    """The options in a file. ValueError or OSError names the file, and the key that is wrong."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, or is no file; --config takes a .json or .toml file of options"
        )
    content = read_toml(path) if path.suffix == ".toml" else read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold options and their values, found {type(content).__name__}")
    script = content.get("script")
    if script not in (None, parser.prog):
        raise ValueError(f"{path} is of {script}, not of {parser.prog}")
    values = options_of(content, parser, path)
    try:
        values = values_of(parser, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Layer(str(path), values, asked=script is None, whole=script is not None and "llm" in content)


def read_toml(path: Path) -> dict:
    try:
        import tomllib
    except ImportError as error:
        raise ValueError(f"{path}: TOML needs Python 3.11 or newer; write the options as JSON") from error
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def options_of(content: dict, parser: Parser, path: Path) -> dict:
    """{option: value} of a file, tables and sections unfolded; ValueError for a key that is no option."""
    known, found = parser.defaults().keys() - set(NOT_IN_FILES), {}
    of_a_run = "script" in content
    pairs = [(name_of(key), value) for key, value in content.items()]
    if of_a_run:  # what else it holds describes the run
        pairs = [(name, value) for name, value in pairs if name in known or name in SECTIONS]
    for name, value in pairs:
        is_table = isinstance(value, dict) and name != "chat_variables"
        for inner, inner_value in value.items() if is_table else [(name, value)]:
            inner = name_of(inner)
            if inner in found:
                raise ValueError(f"{path}: {inner} is there twice")
            found[inner] = inner_value
    for name in found.keys() - known:
        if of_a_run and found[name] in (0, None):  # an option of the other script, off
            del found[name]
    unknown = sorted(found.keys() - known)
    if unknown:
        raise ValueError(f"{path}: " + ", ".join(unknown_name(name, known) for name in unknown))
    return found


def name_of(key: str) -> str:
    return key.lstrip("-").replace("-", "_")


def unknown_name(name: str, known: Iterable[str]) -> str:
    if name in NOT_IN_FILES:
        return f"{name} belongs on the command line"
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no option {name}" + (f" (did you mean {close[0]}?)" if close else "; see --help-all")


def values_of(parser: Parser, options: dict) -> dict:
    """The options with values of their types, by the rules of the command line; ValueError as there."""
    words = [word for name, value in options.items() for word in as_words(parser, name, value)]
    refuse = parser.error
    parser.error = raise_value_error
    try:
        return parser.given(words)
    finally:
        parser.error = refuse


def raise_value_error(message: str):
    raise ValueError(message.removeprefix("argument "))


def as_words(parser: Parser, name: str, value) -> list[str]:
    """An option and its value as they would stand on the command line."""
    action = next(action for action in parser._actions if action.dest == name)
    if value is None:
        return []
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, found {value!r}")
        off = [flag("no_" + name)] if flag("no_" + name) in action.option_strings else []
        return [flag(name)] if value else off
    if action.nargs == "+" and isinstance(value, list):
        return [flag(name), *map(str, value)]
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, (list, bool)):
        raise ValueError(f"{name} must be one value, found {json.dumps(value)}")
    return [f"{flag(name)}={value}"]


# ---- on the screen ----


def announce(layers: list[Layer], source: str, final: dict[str, tuple]) -> None:
    """One line: what a preset or an algorithm sets, and which of it is otherwise in the end.

    final: {option: (value, source)} of the run.
    """
    place = next(i for i, layer in enumerate(layers) if layer.source == source)
    before = merged(layers[:place])
    pairs = {name: value for name, value in layers[place].values.items() if before[name][0] != value}
    text = ", ".join(f"{name} {written(value)}" for name, value in pairs.items())
    lost = [f"{name} {written(final[name][0])}" for name, value in pairs.items() if final[name][0] != value]
    print(
        f"{source} sets {text or 'nothing: its values are the defaults'}"
        + f"; overridden: {', '.join(lost)}" * bool(lost)
    )


def written(value) -> str:
    """A value in one line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    plain = str(value)
    return plain if plain and plain == plain.strip() else repr(value)


def show(found: dict[str, tuple], *config_classes: type) -> None:
    """All settings {option: (value, source)} in the groups of --help, each with where it comes from."""
    fields = [field for config_class in config_classes for field in dataclasses.fields(config_class)]
    groups = {field.name: field.metadata["group"] for field in fields if field.name in found}
    show_group("script", {name: found[name] for name in found if name not in groups and name not in NOT_IN_FILES})
    for title in dict.fromkeys(groups.values()):
        show_group(title, {name: found[name] for name, group in groups.items() if group == title})


def show_group(title: str, found: dict[str, tuple]) -> None:
    if found:
        print(f"\n{title}")
    for name, (value, source) in found.items():
        print(f"  {name:24} {written(value):28} {source}")
