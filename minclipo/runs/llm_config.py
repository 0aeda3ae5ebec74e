"""The options of train_llm.py: which model, which data, which evaluation, and how they are put together."""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from functools import partial

from minclipo.config import TrainConfig, check, option
from minclipo.runs.command_line import given_options, refuse_idle
from minclipo.runs.recipes import ALGORITHMS, LLM, PRESETS

ON_OFF = ("auto", "on", "off")
BOXED = "\nLet's think step by step and output the final answer within \\boxed{}."
_input = partial(option, group="model and data")
_evaluation = partial(option, group="evaluation", later=True)


@dataclass
class LLMConfig:
    """Model, data and evaluation; TrainConfig has the rest."""

    model: str = _input(
        "", "directory of a checkpoint, or its id on the Hugging Face hub (ORGANISATION/NAME@REVISION)", common=True
    )
    data: str = _input("", "training problems: a file, ORGANISATION/NAME:PATTERN, sums, stories or chain", common=True)
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
        False, "less memory for activations, a third more time for the update", later=True, common=True
    )
    compile: str = _input(
        "auto",
        "fuse the update's kernels: a slower first step, faster others; auto: on cuda",
        choices=ON_OFF,
        later=True,
    )
    eval_data: str = _evaluation("", "held-out problems, like data; built-in tasks bring their own", common=True)
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

    def __post_init__(self):
        check(self)
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed: {self.__dataclass_fields__[name].metadata['help']}")
        self.template_variables()

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


def make_configs(arguments: argparse.Namespace) -> tuple[LLMConfig, TrainConfig]:
    """Defaults, then the preset, then the algorithm, then what was given on the command line."""
    given = given_options(arguments, TrainConfig)
    algorithm = ALGORITHMS[arguments.algorithm] if arguments.algorithm else {}
    chosen = LLM | PRESETS[arguments.preset] | algorithm | given_options(arguments, LLMConfig) | given
    refuse_idle(given, chosen, TrainConfig)
    if not chosen.get("contrastive_weight"):
        chosen.pop("head_warmup_steps", None)  # a preset's: without CLIPO there is no head
    fields = {field.name for field in dataclasses.fields(LLMConfig)}
    llm = {name: value for name, value in chosen.items() if name in fields}
    if arguments.eval_only:
        llm.setdefault("data", llm.get("eval_data", ""))
    return LLMConfig(**llm), TrainConfig(**{name: value for name, value in chosen.items() if name not in fields})
