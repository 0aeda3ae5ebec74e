"""What is told of each training step as it happens: a protocol of one method, and TensorBoard as an example of it."""

from pathlib import Path
from typing import Protocol

from minclipo.runs.measure import reward_parts
from minclipo.trainer import Step


class Callback(Protocol):
    """Anything with this method; it is called after each step's line is in metrics.jsonl.

    step: everything that the step saw and did. metrics: that line; None stands for a mean over nothing.
    """

    def after_step(self, step: Step, metrics: dict[str, float | None]) -> None: ...


def call(callback: Callback, step: Step, metrics: dict[str, float | None]) -> None:
    """Call it; an error says whose it is. A write that failed stays an OSError, which does not end a run."""
    try:
        callback.after_step(step, metrics)
    except Exception as error:
        message = f"callback {type(callback).__name__}: {type(error).__name__}: {error}"
        if isinstance(error, OSError):
            raise OSError(message) from error
        raise RuntimeError(f"step {step.number}: {message}") from error


class TensorBoard:
    """Every metric, the parts of the reward and the evaluations as scalars, for `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path):
        """ValueError if the package is missing. Nothing is written yet."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--tensorboard needs the tensorboard package: pip install tensorboard ({error})"
            ) from error
        self.make_writer, self.folder, self.writer = SummaryWriter, folder, None

    def after_step(self, step: Step, metrics: dict[str, float | None]) -> None:
        parts = {f"reward/{name}": value for name, value in reward_parts(metrics).items()}
        values = {f"training/{name}": value for name, value in metrics.items() if name != "step"}
        self.write(values | parts, step.number, first=step.number)

    def after_evaluation(self, line: dict) -> None:
        """line: one of evaluation.jsonl."""
        step, values = line["step"], {}
        for decoding, found in line.items():
            if isinstance(found, dict):
                numbers = {name: value for name, value in found.items() if name != "pass_at"}
                numbers |= {f"pass@{k}": value for k, value in found.get("pass_at", {}).items()}
                values |= {f"evaluation_{decoding}/{name}": value for name, value in numbers.items()}
        self.write(values, step, first=step + 1)

    def write(self, values: dict[str, float | None], step: int, first: int) -> None:
        """first: the step from which on a resumed run does anew what TensorBoard may have seen before."""
        if self.writer is None:
            self.writer = self.make_writer(str(self.folder), purge_step=first)
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)
        self.writer.flush()  # it writes in a thread of its own, which dies with the process
