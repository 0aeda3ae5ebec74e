"""A training run: a Trainer's steps with a log, copies on disk, and a way to go on after an interruption."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minclipo.checkpoint import save_model, save_tensors
from minclipo.checkpoint.files import read_lines, remove_partial, sync_file, write_lines, writing
from minclipo.extensions.lora import merged
from minclipo.extensions.processes import every, rank, several
from minclipo.extensions.sharding import whole, whole_state
from minclipo.model import GPT
from minclipo.runs.callbacks import Callback, call
from minclipo.runs.console import say
from minclipo.runs.measure import log_line, timed_step
from minclipo.runs.progress import Progress
from minclipo.runs.rollouts import RolloutLog, show_examples
from minclipo.runs.signals import Listener, Stopped, check_signals, name_of, signal_of, stop_signals
from minclipo.runs.state import read_state, remove_states, save_state, saved_states, step_of, way_out
from minclipo.runs.state_check import misfit
from minclipo.trainer import Step, Trainer


class Run:
    """A trainer and its folder: OUT/metrics.jsonl, OUT/rollouts.jsonl, OUT/model, OUT/states.

    Of several processes the first one writes; the others do the same without a trace.
    """

    def __init__(
        self, trainer: Trainer, out: str | Path, description: str = "training", callbacks: Sequence[Callback] = ()
    ):
        self.trainer, self.config, self.out, self.description = trainer, trainer.config, Path(out), description
        self.saved_step, self.log_is_whole, self.history = 0, True, []
        self.rollouts = RolloutLog(self.out / "rollouts.jsonl", self.config.keep_rollouts)
        self.writes = rank() == 0
        self.callbacks = (self.rollouts, *callbacks) if self.writes else ()
        self.before_writing: Callable[[], None] = lambda: None
        self.save_adapter: Callable[[GPT], None] = lambda model: None  # with LoRA, OUT/adapter beside the merged model
        self.doing = "starting"  # or "step", "evaluation", "saving": the screen shows it, and a signal depends on it
        self.before: dict = {}  # what the sampling of the step that is running uses up, as it was before

    def train(self, *, resume: bool = False, after_step: Callable[[int], None] | None = None) -> list[dict[str, float]]:
        """Train up to step config.steps; one log line per step on the screen, one JSON line in OUT/metrics.jsonl.

        Every save_every steps the model goes to OUT/model and the training state to OUT/states; `resume` goes on from
        the newest state there. (A trainer that has done steps already goes on from its last one.) `after_step` is
        called with the number of the step at the start and after each step. A step that fails numerically leaves its
        batch in OUT/failed_batch.safetensors and the last saved model where it is, and raises FloatingPointError saying
        so. Where writing fails (a full disk), the run says so and goes on; OSError is raised at the start and at the
        end only. Ctrl-C, SIGTERM and SIGHUP save and raise Stopped, a KeyboardInterrupt. Returns the metrics of all
        steps.
        """
        after_step = after_step or (lambda step: None)
        check_signals()
        with stop_signals(self.may_stop) as signals:
            history = self.start(resume)
            with tqdm(total=self.config.steps, initial=self.step, desc=self.description, disable=None) as bar:
                try:
                    with Progress(self) as progress:
                        self.evaluate(signals, after_step, self.step)
                        while self.step < self.config.steps:
                            history.append(self.one_step(signals))
                            self.show(history[-1])
                            bar.update()
                            progress.step_done()
                            self.or_warn(self.log, history)
                            for callback in self.callbacks:
                                self.or_warn(self.tell, callback, history[-1])
                            if self.step % self.config.save_every == 0 and self.step < self.config.steps:
                                self.or_warn(self.save)
                            self.evaluate(signals, self.or_warn, after_step, self.step)
                        if self.saved_step < self.step:
                            self.save()
                        signals.check()
                except FloatingPointError as error:
                    raise self.failure(error) from error
                except KeyboardInterrupt as stop:
                    raise self.stopped(stop) from None
        signals.check()  # it came while the bars were being closed
        return self.history

    def one_step(self, signals: Listener) -> dict[str, float]:
        """One training step; its metrics."""
        drawn, generator = self.trainer.problems_drawn, self.trainer.generator.get_state()
        self.before = {"step": self.step, "problems_drawn": drawn, "generator": generator}
        self.doing = "step"
        signals.check()
        metrics = timed_step(self.trainer)
        self.doing = "saving"
        return metrics

    def evaluate(self, signals: Listener, measure: Callable, *arguments) -> None:
        """Measure something. A signal ends it at once; it begins anew when the run is resumed."""
        self.doing = "evaluation"
        signals.check()
        measure(*arguments)
        self.doing = "saving"

    def may_stop(self) -> bool:
        """Whether a signal may end what is running: an evaluation, or a step that has changed no weights yet."""
        if several():  # they stop together
            return False
        return self.doing == "evaluation" or self.doing == "step" and not self.may_have_learnt()

    def may_have_learnt(self) -> bool:
        """Whether the step that is running has got past sampling and verifying. `Trainer.step` fills in the verdicts at
        the end of these, with dynamic sampling after the last batch. What learns, policy and head, needs them."""
        return self.step > self.before["step"] and self.trainer.last.correct is not None

    def stopped(self, stop: KeyboardInterrupt) -> Stopped:
        """Save the last finished step, as if the one that is running had never begun. Returns what to raise."""
        number, steps, last = signal_of(stop), self.config.steps, self.saved_step
        try:
            if getattr(stop, "twice", False):
                raise stop
            if self.doing == "step":
                self.undo()
            self.doing = "saving"
            if self.writes:
                self.complete_log()
            if self.saved_step < self.step:
                self.save()
            what = f"saved after step {self.step} of {steps}"
        except KeyboardInterrupt:
            what = f"not saved, because of a second Ctrl-C. The last step that was saved is {last} of {steps}"
        except Exception as error:  # a full disk, a broken model, a lost GPU: whatever it is, say what there is
            what = f"not saved: {error}. The last step that was saved is {last} of {steps}"
        states = "" if self.config.keep_states else " (without a training state: keep_states is 0)"
        return Stopped(number, f"stopped by {name_of(number)}: {what}{states}", can_go_on=not states)

    def undo(self) -> None:
        """Forget the step that is running. It will draw the same problems and the same random numbers again."""
        if self.may_have_learnt():  # an interruption that did not come as a signal, or not to the main thread
            raise RuntimeError(f"the update of step {self.step} is half done")
        self.trainer.last, self.trainer.problems_drawn = Step(self.before["step"]), self.before["problems_drawn"]
        self.trainer.generator.set_state(self.before["generator"])

    @property
    def step(self) -> int:
        return self.trainer.last.number

    def start(self, resume: bool) -> list[dict[str, float]]:
        """Make the folder ready; returns the metrics of the steps that are already done."""
        if resume:
            self.load()
        if self.writes:
            self.tidy(resume)
        self.save()  # after resuming, too: the process may have died between saving the state and saving the model
        return self.history

    def tidy(self, resume: bool) -> None:
        """The folder without what is not from before this step."""
        self.out.mkdir(parents=True, exist_ok=True)
        for file in ("failed_batch.safetensors", "model/model.safetensors", "adapter/adapter_model.safetensors"):
            remove_partial(self.out / file)  # what a killed process had begun to write may take the room that is needed
        if not resume:  # what is not from before this step is an earlier run's; its model goes, too
            remove_states([state for state in saved_states(self.out / "states") if step_of(state) >= self.step])
        lines = read_lines(self.out / "metrics.jsonl", "step") if self.step else []
        self.history = [line for line in lines if line["step"] <= self.step]
        write_lines(self.out / "metrics.jsonl", self.history)
        self.rollouts.start(self.step)

    def load(self) -> None:
        """Load the newest training state in OUT/states, if there are any. Raises ValueError if it is damaged or another
        run's, and if there are steps but no state: to start anew would overwrite what they led to."""
        history, paths = read_lines(self.out / "metrics.jsonl", "step"), saved_states(self.out / "states")
        if not paths and history:
            raise ValueError(
                f"{self.out} holds {len(history)} steps, but no training state to go on from (keep_states was 0, or "
                "they were removed). Choose another folder, or start anew without --resume"
            )
        if paths:
            self.load_state(paths[-1])
            if self.step < self.config.steps:
                say(f"{self.description}: going on after step {self.step} of {self.config.steps}")
            lost = sorted(set(range(1, self.step + 1)) - {line["step"] for line in history})
            if lost:
                say(f"{self.out / 'metrics.jsonl'} lacks {len(lost)} of these steps, the first is step {lost[0]}")

    def load_state(self, path: Path) -> None:
        """Load the state of this file, once it is known to be whole and to fit: ValueError otherwise."""
        state = read_state(path)
        try:
            problem = misfit(state, self.trainer.state_dict(), step_of(path))
            if problem is None:
                return self.trainer.load_state_dict(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit this run's settings: {problem}. Resume with the settings that it was made with. If "
            f"they are the same, the file has been changed. {way_out(path)}"
        )

    def show(self, metrics: dict[str, float]) -> None:
        say(log_line(self.description, metrics, self.config))
        if metrics.get("filled_up"):
            found = self.config.prompts_per_step - metrics["filled_up"]
            say(
                f"dynamic sampling gives up: of {metrics['batches_sampled']} batches {found} problems are solved "
                f"sometimes but not always; {metrics['filled_up']} others fill the batch"
            )

    def show_rollouts(self, number: int) -> None:
        """The first rollouts of the last step, to look at."""
        step = self.trainer.last
        if step.texts:
            problems = [problem for problem in step.problems for _ in range(step.rollouts.group_size)]
            show_examples(list(zip(problems, step.texts, step.correct.tolist()))[:number])

    def tell(self, callback: Callback, metrics: dict[str, float]) -> None:
        self.before_writing()
        call(callback, self.trainer.last, metrics)

    def log(self, history: list[dict[str, float]]) -> None:
        """Append the newest metrics to OUT/metrics.jsonl; after a write that failed half-way, write all of them."""
        if not self.writes:
            return
        self.before_writing()
        if self.log_is_whole and (self.out / "metrics.jsonl").is_file():
            self.log_is_whole = False
            with writing(self.out / "metrics.jsonl"), open(self.out / "metrics.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(history[-1]) + "\n")
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            write_lines(self.out / "metrics.jsonl", history)
        self.log_is_whole = True

    def complete_log(self) -> None:
        """The lines of all steps are on the disk before a state is: who goes on from it never writes them again."""
        self.before_writing()
        path = self.out / "metrics.jsonl"
        if not self.log_is_whole or not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_lines(path, self.history)
            self.log_is_whole = True
        sync_file(path)

    def or_warn(self, write: Callable, *arguments) -> None:
        """Write something, but a full disk or a lost folder does not end a run that may have taken hours."""
        try:
            write(*arguments)
        except OSError as error:
            say(f"step {self.step}: {error}; training goes on")

    @torch.no_grad()
    def save(self) -> None:
        """Write the model to OUT/model and the state to OUT/states, unless the model cannot compute any more: then
        the good weights stay there. A model without a state removes those before it: resuming would overwrite it."""
        trainer, rollouts = self.trainer, self.trainer.last.rollouts
        model, state = whole(trainer.model), whole_state(trainer.state_dict())  # every process has a part, if sharded
        if self.step:  # one row will do: a weight that is not finite spoils every one
            start = torch.zeros(1, 1, dtype=torch.long, device=trainer.generator.device)
            hidden = model(start if rollouts is None else rollouts.completions[:1])[0, -1]
            if not model.logits(hidden).isfinite().all():
                raise FloatingPointError("the updated model's logits are not finite")
        failed = None
        try:
            if self.writes:
                self.write(model, state)
        except OSError as error:
            failed = error
        if not any(every(failed is not None)):  # all processes know whether it is saved
            self.saved_step = self.step
        if failed is not None:
            raise failed

    def write(self, model: GPT, state: dict) -> None:
        self.before_writing()
        self.complete_log()
        if self.config.keep_states:
            save_state(self.out / "states", self.step, state, keep=self.config.keep_states)
        save_model(merged(model), self.trainer.tokenizer, self.out / "model")
        self.save_adapter(model)
        if not self.config.keep_states:
            remove_states([state for state in saved_states(self.out / "states") if step_of(state) < self.step])

    def failure(self, error: FloatingPointError) -> FloatingPointError:
        """The error with all that helps, and the batch on the disk."""
        number = f"_of_process_{rank()}" if rank() else ""  # it may have failed alone
        path = self.out / f"failed_batch{number}.safetensors"
        try:
            self.before_writing()
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
