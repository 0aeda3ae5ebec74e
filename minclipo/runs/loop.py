"""A training run: a Trainer's steps with a log, copies on disk, and a way to go on after an interruption."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minclipo.checkpoint import save_model, save_tensors
from minclipo.checkpoint.files import read_lines, write_lines
from minclipo.runs.callbacks import Callback, call
from minclipo.runs.measure import log_line, timed_step
from minclipo.runs.rollouts import RolloutLog, show_examples
from minclipo.runs.state import newest_state, remove_states, save_state, saved_states, step_of
from minclipo.trainer import Step, Trainer


class Run:
    """A trainer and its folder: OUT/metrics.jsonl, OUT/rollouts.jsonl, OUT/model, OUT/states."""

    def __init__(
        self, trainer: Trainer, out: str | Path, description: str = "training", callbacks: Sequence[Callback] = ()
    ):
        self.trainer, self.config, self.out, self.description = trainer, trainer.config, Path(out), description
        self.saved_step, self.log_is_whole = 0, True
        self.rollouts = RolloutLog(self.out / "rollouts.jsonl", self.config.keep_rollouts)
        self.callbacks = (self.rollouts, *callbacks)
        trainer.progress = lambda parts: tqdm(parts, "sampling", leave=False, disable=None if len(parts) > 1 else True)

    def train(self, *, resume: bool = False, after_step: Callable[[int], None] | None = None) -> list[dict[str, float]]:
        """Train up to step config.steps; one log line per step on the screen, one JSON line in OUT/metrics.jsonl.

        Every save_every steps the model goes to OUT/model and the training state to OUT/states; `resume` goes on from
        the newest state there. (A trainer that has done steps already goes on from its last one.) `after_step` is
        called with the number of the step at the start and after each step. A step that fails numerically leaves its
        batch in OUT/failed_batch.safetensors and the last saved model where it is, and raises FloatingPointError saying
        so. Where writing fails (a full disk), the run says so and goes on; OSError is raised at the start and at the
        end only. Returns the metrics of all steps.
        """
        after_step = after_step or (lambda step: None)
        history = self.start(resume)
        with tqdm(total=self.config.steps, initial=self.step, desc=self.description, disable=None) as bar:
            after_step(self.step)
            try:
                while self.step < self.config.steps:
                    history.append(timed_step(self.trainer))
                    self.show(history[-1])
                    bar.update()
                    self.or_warn(self.log, history)
                    for callback in self.callbacks:
                        self.or_warn(call, callback, self.trainer.last, history[-1])
                    if self.step % self.config.save_every == 0 and self.step < self.config.steps:
                        self.or_warn(self.save)
                    self.or_warn(after_step, self.step)
                if self.saved_step < self.step:
                    self.save()
            except FloatingPointError as error:
                raise self.failure(error) from error
        return history

    @property
    def step(self) -> int:
        return self.trainer.last.number

    def start(self, resume: bool) -> list[dict[str, float]]:
        """Make the folder ready; returns the metrics of the steps that are already done."""
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self.load()
        else:  # what is not from before this step is an earlier run's; its model goes, too
            remove_states([state for state in saved_states(self.out / "states") if step_of(state) >= self.step])
        lines = read_lines(self.out / "metrics.jsonl") if self.step else []
        history = [line for line in lines if line["step"] <= self.step]
        write_lines(self.out / "metrics.jsonl", history)
        self.rollouts.start(self.step)
        self.save()  # after resuming, too: the process may have died between saving the state and saving the model
        return history

    def load(self) -> None:
        """Load the newest training state in OUT/states, if there are any. Raises ValueError if there are steps but no
        state: to start anew would overwrite what they led to."""
        history, state = read_lines(self.out / "metrics.jsonl"), newest_state(self.out / "states")
        if state is None and history:
            raise ValueError(
                f"{self.out} holds {len(history)} steps, but no training state to go on from (keep_states was 0, or "
                "they were removed). Choose another folder, or start anew without --resume"
            )
        if state is not None:
            try:
                self.trainer.load_state_dict(state)
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"the state in {self.out} does not fit this run's settings: {error}") from error
            tqdm.write(f"{self.description}: going on after step {self.step} of {self.config.steps}")

    def show(self, metrics: dict[str, float]) -> None:
        tqdm.write(log_line(self.description, metrics, self.config.steps))
        if metrics.get("filled_up"):
            found = self.config.prompts_per_step - metrics["filled_up"]
            tqdm.write(
                f"dynamic sampling gives up: of {metrics['batches_sampled']} batches {found} problems are solved "
                f"sometimes but not always; {metrics['filled_up']} others fill the batch"
            )

    def show_rollouts(self, number: int) -> None:
        """The first rollouts of the last step, to look at."""
        step = self.trainer.last
        if step.texts:
            problems = [problem for problem in step.problems for _ in range(step.rollouts.group_size)]
            show_examples(list(zip(problems, step.texts, step.correct.tolist()))[:number])

    def log(self, history: list[dict[str, float]]) -> None:
        """Append the newest metrics to OUT/metrics.jsonl; after a write that failed half-way, write all of them."""
        if self.log_is_whole:
            self.log_is_whole = False
            with open(self.out / "metrics.jsonl", "a") as log:
                log.write(json.dumps(history[-1]) + "\n")
        else:
            write_lines(self.out / "metrics.jsonl", history)
        self.log_is_whole = True

    def or_warn(self, write: Callable, *arguments) -> None:
        """Write something, but a full disk or a lost folder does not end a run that may have taken hours."""
        try:
            write(*arguments)
        except OSError as error:
            tqdm.write(f"step {self.step}: {error}. It could not be written; training goes on")

    @torch.no_grad()
    def save(self) -> None:
        """Write the model to OUT/model and the state to OUT/states, unless the model cannot compute any more: then
        the good weights stay there. A model without a state removes those before it: resuming would overwrite it."""
        trainer, rollouts = self.trainer, self.trainer.last.rollouts
        if rollouts is not None:  # one row will do: a weight that is not finite spoils every one
            hidden = trainer.model(rollouts.completions[:1])[0, -1]
            if not trainer.model.logits(hidden).isfinite().all():
                raise FloatingPointError("the updated model's logits are not finite")
        if self.config.keep_states:
            save_state(self.out / "states", self.step, trainer.state_dict(), keep=self.config.keep_states)
        save_model(trainer.model, trainer.tokenizer, self.out / "model")
        if not self.config.keep_states:
            remove_states([state for state in saved_states(self.out / "states") if step_of(state) < self.step])
        self.saved_step = self.step

    def failure(self, error: FloatingPointError) -> FloatingPointError:
        """The error with all that helps, and the batch on the disk."""
        path = self.out / "failed_batch.safetensors"
        try:
            save_tensors(step_tensors(self.trainer.last, self.trainer.tokenizer), path)
            batch = f"The batch is in {path}"
        except OSError as full:
            batch = f"The batch could not be written: {full}"
        return FloatingPointError(
            f"step {self.step}: {error}. {batch}; the weights after step {self.saved_step} are in "
            f"{self.out / 'model'}. First thing to try: start anew with a smaller learning_rate or max_grad_norm"
        )


def step_tensors(step: Step, tokenizer) -> dict[str, Tensor]:
    """What a step has got so far, as tensors by name."""
    prompts = tokenizer.encode_batch([problem.prompt for problem in step.problems])
    tensors = {f"prompt_{b}": torch.tensor(prompt) for b, prompt in enumerate(prompts)}
    if step.rollouts is not None:
        tensors |= {name: value for name, value in vars(step.rollouts).items() if isinstance(value, Tensor)}
    return tensors | {name: value for name, value in vars(step).items() if isinstance(value, Tensor)}
