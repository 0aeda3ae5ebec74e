"""What a model answers to each problem of several sets, and what verifier and step check say of it. See transfer.py."""

import argparse
import hashlib
import re
import sys
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

from finished import finished
from tqdm import tqdm

from minclipo.checkpoint import Checkpoint
from minclipo.checkpoint.files import write_json
from minclipo.checkpoint.hub import dataset_files, model_directory
from minclipo.config import TrainConfig
from minclipo.runs.command_line import given_options
from minclipo.runs.evaluator import evaluation_size
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.machine import pick_device, pick_dtype
from minclipo.runs.measure import evaluate
from minclipo.runs.problems import BUILT_IN, make_task
from minclipo.tasks.data_files import records
from minclipo.tasks.word_problems import read_problems

sys.path.append(str(Path(__file__).resolve().parents[2]))
from train_llm import prompt_limit, tokenizer_of  # noqa: E402

TEMPLATE_FIELD = "original_id"  # the problem of GSM8K that a template of GSM-Symbolic was made from
SEED = 0  # of the order of the problems: the same ones for all models


class Subject:
    """One model, and what it answers. All that can be checked before it is asked is checked here."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name, self.arguments, self.checkpoint, self.model = name, arguments, Checkpoint(name), None
        self.config = LLMConfig(**given_options(arguments, LLMConfig) | {"model": name, "data": "see arguments"})
        room = prompt_limit(self.checkpoint.config, self.config, TrainConfig(max_new_tokens=arguments.max_new_tokens))
        tokenizer = tokenizer_of(self.checkpoint, self.config)
        self.tasks = {source: make_task(source, self.config, tokenizer, room) for source in arguments.data}
        for source, task in self.tasks.items():
            if not arguments.problems and task.size is None:
                raise ValueError(f"--problems 0 means all there are, but {source} makes problems without end")

    def questions(self, source: str) -> list[str]:
        """What it is asked: the problems that `evaluate` draws."""
        task = self.tasks[source]
        size = evaluation_size(self.arguments.problems, task)
        return [question_of(task.draw(f"evaluation {SEED}", index)) for index in range(size)]

    def check_same_problems(self, other: "Subject") -> None:
        """ValueError unless both are asked the same: only then can they be compared problem by problem."""
        for source in self.tasks:
            if self.questions(source) != other.questions(source):
                raise ValueError(
                    f"{source}: {self.name} and {other.name} would be asked different problems, because one of them "
                    "leaves out more as too long (see above): choose another --max-prompt-tokens or --max-new-tokens"
                )

    @cached_property
    def settings(self) -> dict:
        """What the answers depend on, but for the problems."""
        device = pick_device(self.config.device)
        numbers = {"device": device.type, "dtype": str(pick_dtype(self.config.dtype, device)).removeprefix("torch.")}
        chosen = {name: getattr(self.arguments, name) for name in ("problems", "max_new_tokens")}
        files = [
            path for path in model_directory(self.name).iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
        ]
        return asdict(self.config) | numbers | chosen | {"model_digest": digest(files)}

    def measured(self, source: str) -> dict:
        """What it does with a problem set: as the file of an earlier call has it, or asked now."""
        model, data = (re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in (self.name, source))
        path = self.arguments.out / "measured" / model / f"{data}.json"
        of_data = {"data": source, "data_digest": digest(dataset_files(source)) if source not in BUILT_IN else ""}
        found = finished(path, self.settings | of_data)
        if found is None:
            found = self.ask(source) | {"settings": self.settings | of_data}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        return found

    def ask(self, source: str) -> dict:
        """Greedy completions of the problems, each with its verdicts."""
        device, task = pick_device(self.config.device), self.tasks[source]
        if self.model is None:
            self.model = self.checkpoint.model(pick_dtype(self.config.dtype, device), device)
        found = evaluate(
            self.model,
            self.checkpoint.tokenizer,
            task,
            problems=evaluation_size(self.arguments.problems, task),
            max_new_tokens=self.arguments.max_new_tokens,
            seed=SEED,
            temperature=0.0,
            sampling_rows=self.arguments.sampling_rows,
            progress=partial(tqdm, desc=f"{self.name}, {source}", leave=False, disable=None),
        )
        templates, rows = templates_of(source, self.config.question_field), []
        for problem, completion, right in found["examples"]:
            question, steps = question_of(problem), task.check_steps(problem, completion)
            row = {"question": question, "template": templates.get(question, question), "completion": completion}
            rows.append(row | {"right": right, "steps_checked": len(steps), "false_step": False in steps})
        return {"finished": found["finished"], "problems": rows}


def question_of(problem) -> str:
    """What is asked, without the model's chat template; a problem of a built-in task is its prompt."""
    return getattr(problem, "question", problem.prompt)


def digest(paths: list[Path]) -> str:
    """A checksum of what stands in these files: training again leaves their names as they are."""
    found = hashlib.sha256()
    for path in sorted(paths):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                found.update(block)
    return found.hexdigest()


def templates_of(source: str, question_field: str) -> dict[str, str]:
    """What each question of a file was made from; {} where the file does not say."""
    files = [] if source in BUILT_IN else dataset_files(source)
    if not files or TEMPLATE_FIELD not in next(records(files[0]))[1]:
        return {}
    raw = read_problems(files, question_field, TEMPLATE_FIELD)
    return {q if isinstance(q, str) else q[-1]["content"]: template for _, q, template in raw}
