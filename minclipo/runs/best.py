"""The best model so far: OUT/best, an ordinary model directory with the numbers that made it the best."""

import os
import shutil
from pathlib import Path

from minclipo.checkpoint import Tokenizer, save_model
from minclipo.checkpoint.files import PARTIAL, read_json, write_json
from minclipo.extensions.lora import merged
from minclipo.extensions.processes import rank
from minclipo.extensions.sharding import whole
from minclipo.model import GPT
from minclipo.runs.console import say
from minclipo.tasks import Task

METRICS = {"accuracy": 1, "faithful_accuracy": 1, "hallucination_rate": -1}  # is more better, or less?


class KeepBest:
    """Saves the model after an evaluation that is better than the one of the model in `folder`.

    What is in the folder is the memory: a resumed run reads it there. The folder is replaced as a whole; should the
    process be killed between two renames, the earlier model is at folder.old, and is put back at the next start.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, folder: Path, metric: str):
        self.model, self.tokenizer, self.folder, self.metric = model, tokenizer, folder, metric
        self.partial, self.old = (folder.with_name(folder.name + end) for end in (PARTIAL, ".old"))
        if rank() == 0:
            self.tidy()

    def tidy(self) -> None:
        """Undo what a killed process had begun."""
        if self.old.exists() and not self.folder.exists():
            os.replace(self.old, self.folder)
        for folder in (self.old, self.partial):
            shutil.rmtree(folder, ignore_errors=True)

    def after_evaluation(self, line: dict) -> None:
        """line: one of evaluation.jsonl, of the model as it is now. Greedy completions decide."""
        model = whole(self.model)
        if rank() > 0:  # the first process writes
            return
        value, best = self.value(line), self.value(self.kept())
        if value is None or best is not None and value <= best:  # the same: the earlier one stays
            if self.kept().get("step", 0) > line["step"]:  # of a course that a resumed run has gone back from
                say(f"{self.folder} still holds the model of step {self.kept()['step']}, until one beats it")
            return
        self.tidy()
        try:
            save_model(merged(model), self.tokenizer, self.partial)
            write_json(self.partial / "evaluation.json", line | {"kept_for": self.metric})
            if self.folder.exists():
                os.replace(self.folder, self.old)
            os.replace(self.partial, self.folder)
        finally:
            self.tidy()
        say(f"step {line['step']}: the best {self.metric} so far; the model is in {self.folder}")

    def kept(self) -> dict:
        """The evaluation of the model in the folder, {} if there is none."""
        path = self.folder / "evaluation.json"
        return read_json(path) if path.is_file() else {}

    def value(self, line: dict) -> float | None:
        """The metric, the larger the better. None: it has no value there, as a rate of nothing."""
        found = line.get("greedy", {}).get(self.metric)
        return None if found is None else METRICS[self.metric] * found


def check_keep_best(config, task: Task | None) -> None:
    """ValueError if --keep-best has nothing to go by. config: an LLMConfig; task: the held-out problems, if any."""
    if config.keep_best != "off" and task is None:
        raise ValueError(f"--keep-best {config.keep_best} needs held-out problems: give --eval-data")
    if config.keep_best not in ("off", "accuracy") and task.check_steps is None:
        raise ValueError(f"--keep-best {config.keep_best} needs a step check, which this task has not")
    if config.keep_best != "off" and not config.eval_every:
        raise ValueError(f"--keep-best {config.keep_best} needs evaluations: --eval-every is 0")
