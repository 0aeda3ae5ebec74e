"""The command line and the file that it names: --config FILE, or what the run of --resume OUT has written down."""

import argparse
import difflib
import json
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from minclipo.checkpoint.files import read_json
from minclipo.runs.changes import defaults_of
from minclipo.runs.command_line import Parser, flag
from minclipo.runs.folder import earlier_settings
from minclipo.runs.settings import BUNDLES, NOT_SETTINGS, Layer

SECTIONS = ("llm", "toy", "training")  # of settings.json: a script's own options, those of every run


def read_arguments(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments, from --resume OUT, --config and the command line. Ends with one line if they are wrong.

    Besides the options: `layers`, where they come from; `command_line`, as one would type it; `earlier`, what the
    settings.json says of the run that is resumed, {} if there is none. `resume` is a bool, since its value has become `out`.
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
    found.layers, found.command_line = layers, f"{parser.prog} {shlex.join(argv)}"
    found.earlier = {}
    if found.resume and (found.out / "settings.json").is_file():
        with suppress(ValueError):  # whoever prepares the folder says so, and what to do
            found.earlier = earlier_settings(found.out, parser.script) or {}
    return found


def file_layers(parser: Parser, command: dict) -> list[Layer]:
    """What the run of --resume OUT has written down, and the options in the file of --config."""
    layers, resume, path = [], command.get("resume"), command.get("config")
    if isinstance(resume, Path):
        if command.get("out", resume) != resume:
            raise ValueError(f"--resume {resume} and --out {command['out']} name two folders; leave --out out")
        if not (resume / "settings.json").is_file():
            raise ValueError(f"--resume {resume}: there is no earlier run of {parser.script} (no settings.json)")
        layer = read_layer(parser, resume / "settings.json")
        layers.append(layer._replace(values=layer.values | {"out": resume}))
    if path is not None:
        layers.append(read_layer(parser, path / "settings.json" if path.is_dir() else path))
    for layer in layers:
        refuse_names(layer, command)
    return layers


def refuse_names(layer: Layer, command: dict) -> None:
    """A preset or an algorithm would do nothing beside a file that has every option already."""
    for name in BUNDLES:
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
    if script is not None and str(script).partition(" ")[0] != parser.script:
        raise ValueError(f"{path} is of {script}, not of {parser.script}")
    values = options_of(content, parser, path)
    try:
        values = values_of(parser, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    whole = script == parser.script and "llm" in content
    if whole:  # what the version that wrote it did not have
        known = parser.defaults().keys()
        values = {name: value for name, value in defaults_of(script, "").items() if name in known} | values
    return Layer(str(path), values, asked=script is None, whole=whole)


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
    known, found = parser.defaults().keys() - set(NOT_SETTINGS), {}
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
    name = key.lstrip("-").replace("-", "_")
    return "data" if name == "task" else name


def unknown_name(name: str, known: Iterable[str]) -> str:
    if name in NOT_SETTINGS:
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
