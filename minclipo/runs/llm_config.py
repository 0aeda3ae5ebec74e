"""The options of train_llm.py: which model, which data, which evaluation, and how they are put together."""

import argparse
import dataclasses
import json
import re
from dataclasses import dataclass
from functools import partial

from minclipo.checkpoint import Tokenizer
from minclipo.checkpoint.adapter import read_adapter_config
from minclipo.config import TrainConfig, check, option
from minclipo.extensions.lora import TARGETS
from minclipo.runs.best import METRICS
from minclipo.runs.command_line import flag, made, refuse_idle
from minclipo.runs.problems import brings_evaluation
from minclipo.runs.recipes import ALGORITHMS, LLM, PRESETS, scaled_warmup
from minclipo.runs.settings import Layer, announce, asked_for, merged, show
from minclipo.tasks import Task

ON_OFF = ("auto", "on", "off")
BOXED = "\nLet's think step by step and output the final answer within \\boxed{}."
_input = partial(option, group="model and data")
_lora = partial(option, group="LoRA")
_evaluation = partial(option, group="evaluation", later=True)


@dataclass
class LLMConfig:
    """Model, data and evaluation; TrainConfig has the rest."""

    model: str = _input(
        "", "directory of a checkpoint, or its id on the Hugging Face hub (ORGANISATION/NAME@REVISION)", common=True
    )
    data: str = _input(
        "", "training problems: a file, ORGANISATION/NAME:PATTERN, FILE.py:NAME, sums, stories or chain", common=True
    )
    question_field: str = _input(
        "question", "field of the data that holds the question, a text or a chat; a.b: field b within a", common=True
    )
    answer_field: str = _input(
        "answer", "field of the data that holds the answer, or a solution that ends in it", common=True
    )
    system_prompt: str = _input("", "system message of the chat; empty: the template's own")
    chat_variables: str = _input("", "JSON object of variables for the chat template: '{\"enable_thinking\": false}'")
    stop_tokens: str = _input("", "more tokens that end a completion, separated by spaces: '<|im_end|>'")
    prompt_suffix: str = _input(BOXED, "added to every question of a file that is no chat")
    max_prompt_tokens: int = _input(512, "problems with a longer prompt are left out", at_least=1, common=True)
    dtype: str = _input(
        "auto",
        "numbers the model computes in; auto: bfloat16 on cuda",
        choices=("auto", "float32", "bfloat16"),
        common=True,
    )
    device: str = _input("auto", "auto: cuda, else mps, else cpu", choices=("auto", "cuda", "mps", "cpu"), common=True)
    gradient_checkpointing: bool = _input(
        False, "less memory for activations, a third more update time", later=True, common=True
    )
    shard: bool = _input(
        False,
        "spread weights, gradients and optimizer over the processes of torchrun: slower, for models that one GPU cannot hold",
        later=True,
    )
    compile: str = _input(
        "auto",
        "fuse the update's kernels: a slower first step, faster others; auto: on cuda",
        choices=ON_OFF,
        later=True,
    )
    lora_rank: int = _lora(
        0,
        "rank of adapters that train beside frozen weights; 0: none",
        at_least=0,
        at_most=4096,
        common=True,
    )
    lora_alpha: float = _lora(
        32.0, "what they add is scaled by alpha / rank", above=0, needs="lora_rank or init_adapter"
    )
    lora_targets: str = _lora(
        " ".join(TARGETS), "linear layers that have one, separated by spaces", needs="lora_rank or init_adapter"
    )
    init_adapter: str = _lora(
        "", "begin with the adapters in this directory, as PEFT or OUT/adapter; brings the other three"
    )
    eval_data: str = _evaluation(
        "", "held-out problems, like data; built-in tasks and FILE.py:NAME bring their own", common=True
    )
    eval_every: int = _evaluation(10, "steps between two evaluations; 0: none", at_least=0, common=True)
    eval_problems: int = _evaluation(
        200, "problems per evaluation; 0: all there are", at_least=0, at_most=1_000_000, common=True
    )
    eval_samples: int = _evaluation(
        0,
        "completions per problem (N) for avg@N and pass@k; 0: only the greedy one",
        at_least=0,
        at_most=10_000,
        common=True,
    )
    eval_temperature: float = _evaluation(
        0.6, "sampling temperature of those", above=0, at_least=1e-6, needs="eval_samples"
    )
    eval_top_p: float = _evaluation(0.95, "their top-p", above=0, at_most=1, needs="eval_samples")
    show: int = _evaluation(2, "completions shown at each evaluation", at_least=0)
    keep_best: str = _evaluation(
        "off", "keep the model that is best by this, held out, in OUT/best, too", choices=("off", *METRICS)
    )

    def __post_init__(self):
        check(self)
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed: {self.__dataclass_fields__[name].metadata['help']}")
        self.template_variables()
        unknown = [name for name in self.lora_targets.split() if name not in TARGETS]
        if unknown or not self.lora_targets.split():
            raise ValueError(f"--lora-targets must be some of {' '.join(TARGETS)}; found {self.lora_targets!r}")
        self.lora_targets = " ".join(dict.fromkeys(self.lora_targets.split()))  # each once

    def template_variables(self) -> dict:
        try:
            variables = json.loads(self.chat_variables or "{}")
        except ValueError as error:
            raise ValueError(f"--chat-variables {self.chat_variables} is not JSON: {error}") from error
        if not isinstance(variables, dict):
            raise ValueError(f"--chat-variables must be a JSON object, found {self.chat_variables}")
        for name in ("messages", "add_generation_prompt"):
            if name in variables:
                raise ValueError(f"--chat-variables: {name} is not yours to set, each prompt has its own")
        return variables


READ_BY_EVALUATION = ("max_new_tokens", "sampling_rows", "row_seeds")  # of TrainConfig
TRAINING_ONLY = {field.name for field in dataclasses.fields(TrainConfig)} - set(READ_BY_EVALUATION)
TRAINING_ONLY |= {
    "gradient_checkpointing",
    "compile",
    "eval_every",
    "keep_best",
    "tensorboard",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
}  # what --eval-only does not read


def layers_of(arguments: argparse.Namespace) -> list[Layer]:
    """Defaults, then the preset, then the algorithm, then a file, then the command line."""
    fields = [field for config_class in (LLMConfig, TrainConfig) for field in dataclasses.fields(config_class)]
    layers = [Layer("default", {field.name: field.default for field in fields} | LLM, asked=False)]
    if arguments.preset != "none":
        layers.append(Layer(f"preset {arguments.preset}", PRESETS[arguments.preset]))
    if arguments.algorithm:
        layers.append(Layer(f"algorithm {arguments.algorithm}", ALGORITHMS[arguments.algorithm]))
    return layers + arguments.layers


def settled(arguments: argparse.Namespace) -> dict[str, tuple]:
    """{option: (value, source)} of all options, those of the script itself included."""
    found = merged(layers_of(arguments))
    warmup, steps, preset = found["head_warmup_steps"], found["steps"], f"preset {arguments.preset}"
    if not found["contrastive_weight"][0]:
        found["head_warmup_steps"] = (0, "there is no head without CLIPO")
    elif warmup[1] == preset and "training" in arguments.earlier:  # a run that is made longer keeps what it had
        found["head_warmup_steps"] = (arguments.earlier["training"].get("head_warmup_steps", 0), str(arguments.out))
    elif warmup[1] == preset != steps[1]:
        scaled = scaled_warmup(PRESETS[arguments.preset], steps[0])
        found["head_warmup_steps"] = (scaled, f"{preset}: {warmup[0]} of its steps, scaled to yours")
    if arguments.eval_only and not found["data"][0]:
        found["data"] = found["eval_data"]
    if found["init_adapter"][0]:
        found |= of_adapter(found["init_adapter"][0], found)
    return found


def of_adapter(directory: str, found: dict[str, tuple]) -> dict[str, tuple]:
    """The settings that --init-adapter brings. ValueError where something else was asked for."""
    says = read_adapter_config(directory, TARGETS)
    brought = {"lora_rank": says.rank, "lora_alpha": says.alpha, "lora_targets": " ".join(says.targets)}
    for name, value in brought.items():
        asked, source = found[name]
        same = set(asked.split()) == set(value.split()) if name == "lora_targets" else asked == value
        if source != "default" and not same:
            raise ValueError(f"{flag(name)} {asked} contradicts {directory}, which has {value}: leave it out")
    return {name: (value, directory) for name, value in brought.items()}


def say_settings(arguments: argparse.Namespace) -> None:
    """A line for the preset and one for the algorithm; with --show-settings all of them."""
    layers, found = layers_of(arguments), settled(arguments)
    for source in (f"preset {arguments.preset}", f"algorithm {arguments.algorithm}"):
        if source in [layer.source for layer in layers]:
            announce(layers, source, found)
    if arguments.eval_only:
        idle = ", ".join(flag(name) for name in asked_for(arguments.layers) if name in TRAINING_ONLY)
        if idle:
            print(f"--eval-only trains nothing: {idle} will do nothing")
    if arguments.show_settings:
        del found["process_penalty"]  # the toy's
        show(found, LLMConfig, TrainConfig)


def make_configs(arguments: argparse.Namespace) -> tuple[LLMConfig, TrainConfig]:
    """The settings of a run. ValueError, in the words of the command line, for one that is wrong or that nobody reads."""
    values = {name: value for name, (value, _) in settled(arguments).items()}
    asked = asked_for(arguments.layers)
    for config_class in [LLMConfig] if arguments.eval_only else [LLMConfig, TrainConfig]:
        refuse_idle(asked, values, config_class)
    of = lambda config_class: {field.name: values[field.name] for field in dataclasses.fields(config_class)}
    config = made(LLMConfig, of(LLMConfig))
    refuse_unread(asked, config, arguments.eval_only)
    training = of(TrainConfig)
    if arguments.eval_only:  # no other option of training is read, so none may be wrong
        rows = training["sampling_rows"] or LLM["prompts_per_step"] * LLM["group_size"]
        training = {name: training[name] for name in READ_BY_EVALUATION} | {"sampling_rows": rows}
    return config, made(TrainConfig, training)


def refuse_unread(asked: dict, config: LLMConfig, eval_only: bool) -> None:
    """ValueError for an option about files that reads none, and for one about chats with a task that has none."""
    sources = [config.eval_data or config.data] if eval_only else [config.data, config.eval_data or config.data]
    said = " and ".join(dict.fromkeys(sources))
    for name in ("question_field", "answer_field", "prompt_suffix"):
        if name in asked and all(map(brings_evaluation, sources)):
            raise ValueError(f"{flag(name)} does nothing with {said}, which writes its own questions")
    for name in ("system_prompt", "chat_variables"):
        if name in asked and set(sources) == {"chain"}:
            raise ValueError(f"{flag(name)} does nothing with chain, whose prompts are no chats")


def say_unread_variables(config: LLMConfig, tokenizer: Tokenizer) -> None:
    source = None if tokenizer.chat_template is None else tokenizer.chat_template.source
    mentioned = lambda name: source is not None and re.search(rf"\b{re.escape(name)}\b", source)
    unread = [name for name in config.template_variables() if not mentioned(name)]
    if unread:
        why = "the model has no chat template" if source is None else "the model's chat template never mentions them"
        print(f"--chat-variables: {', '.join(unread)} will do nothing, {why}")


def say_repeats(task: Task, training: TrainConfig) -> None:
    if task.size and task.size < training.prompts_per_step:
        print(
            f"--prompts-per-step {training.prompts_per_step} is more than the {task.size} problems of --data: a step "
            "asks the same problem several times, each time as a group of its own"
        )
