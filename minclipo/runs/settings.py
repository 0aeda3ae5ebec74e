"""Where settings come from: defaults, preset, algorithm, a file or an earlier run, the command line. Later ones win."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

BUNDLES = ("preset", "algorithm")  # bundles of settings that settings.json has by name as well
NOT_SETTINGS = ("config", "resume", "show_settings", "help", "help_all")


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
    show_group("script", {name: found[name] for name in found if name not in groups and name not in NOT_SETTINGS})
    for title in dict.fromkeys(groups.values()):
        show_group(title, {name: found[name] for name, group in groups.items() if group == title})


def show_group(title: str, found: dict[str, tuple]) -> None:
    if found:
        print(f"\n{title}")
    for name, (value, source) in found.items():
        print(f"  {name:24} {written(value):28} {source}")
