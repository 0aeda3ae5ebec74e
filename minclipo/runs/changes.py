"""What a run that is resumed may change of its settings, and what has changed."""

import dataclasses
from pathlib import Path

from minclipo.config import TrainConfig
from minclipo.runs.command_line import changeable_later
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.recipes import ALGORITHMS, METHODS, SWITCHES, TOY
from minclipo.runs.state import saved_states, step_of
from minclipo.toy import ToyConfig

FILES = "files"  # the section of what was read: minclipo/runs/inputs.py compares it


def may_change(config: TrainConfig) -> set[str]:
    """Options of train_llm.py that may be other than before. The number of steps only where no schedule ends with it."""
    return changeable_later(LLMConfig, TrainConfig) - (
        {"steps"} if config.learning_rate_schedule != "constant" else set()
    )


def say_if_done(out: Path, config: TrainConfig) -> None:
    states = saved_states(out / "states")
    done = step_of(states[-1]) if states else 0
    if done >= config.steps:
        more = "; a larger --steps goes on" if "steps" in may_change(config) else ""
        print(f"all {done} steps are done{more}")


def defaults_of(script: str, algorithm: str) -> dict:
    """What an option is in a run whose settings.json does not have it."""
    classes = (TrainConfig, ToyConfig) if script == "train_toy.py" else (TrainConfig, LLMConfig)
    defaults = {field.name: field.default for config_class in classes for field in dataclasses.fields(config_class)}
    own = {switch: METHODS[method][switch] for method, switch in SWITCHES.items()}
    return defaults | (TOY | own | ALGORITHMS.get(algorithm, {}) if script == "train_toy.py" else {})


def differences(earlier: dict, settings: dict) -> dict[str, tuple]:
    """{option: (then, now)} of the options whose values differ, between what two settings.json say.

    One that is missing had its default: the version that wrote the file did not have it, or the toy was not given it.
    """
    algorithm = (earlier.get("training") or {}).get("algorithm", "grpo")  # the toy's
    defaults, found = defaults_of(settings["script"], algorithm), {}
    sections = [name for name, value in settings.items() if isinstance(value, dict) and name != FILES]
    for section in sections:
        old, new = earlier.get(section) or {}, settings[section]
        for name in sorted(old.keys() | new.keys()):
            then, now = (options.get(name, defaults.get(name)) for options in (old, new))
            if then != now:
                found[name] = (then, now)
    return found
