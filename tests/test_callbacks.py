"""What watches a run: callbacks, TensorBoard, CSV, the pictures, and the best model."""

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import FIXTURES, small_gpt

import minclipo.runs.plots as plots
from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.files import read_lines
from minclipo.config import TrainConfig
from minclipo.runs.best import KeepBest, check_keep_best
from minclipo.runs.callbacks import TensorBoard
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.loop import Run
from minclipo.runs.measure import reward_parts
from minclipo.runs.plots import plot_evaluation
from minclipo.runs.to_csv import main as to_csv
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Step, Trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402
import train_toy  # noqa: E402

CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
SHORT = "--steps 2 --prompts-per-step 2 --group-size 3 --max-new-tokens 6 --eval-every 1 --eval-problems 3 --device cpu"
TINY = dict(steps=3, prompts_per_step=2, group_size=2, max_new_tokens=3)
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def make(out, callbacks=(), **changes) -> Run:
    trainer = Trainer(small_gpt(vocab_size=122), toy_tokenizer(), TASK, TrainConfig(**TINY | changes))
    return Run(trainer, out, callbacks=callbacks)


def llm(*arguments: str) -> int:
    return train_llm.main([*SHORT.split(), "--model", CHAT_MODEL, *arguments])


# ---- callbacks ----


class Watch:
    def __init__(self, out: Path):
        self.out, self.seen = out, []

    def after_step(self, step: Step, metrics: dict) -> None:
        assert read_lines(self.out / "metrics.jsonl")[-1] == metrics and len(step.texts) == 4
        self.seen.append((step.number, metrics))


class Fails:
    def __init__(self, error: Exception):
        self.error = error

    def after_step(self, step: Step, metrics: dict) -> None:
        raise self.error


def test_a_callback_is_told_of_each_step(tmp_path):
    """After its line is in the log. Catches: the first or the last step left out, metrics of another step."""
    watch = Watch(tmp_path)
    history = make(tmp_path, [watch]).train()
    assert watch.seen == [(number, history[number - 1]) for number in (1, 2, 3)]


def test_a_resumed_run_tells_of_its_own_steps_only(tmp_path):
    """Catches: steps that were told of before the interruption sent a second time."""
    make(tmp_path, steps=2).train()
    watch = Watch(tmp_path)
    make(tmp_path, [watch]).train(resume=True)
    assert [number for number, _ in watch.seen] == [3]


def test_a_callback_that_cannot_write_does_not_end_the_run(tmp_path, capsys):
    """Nor keeps the others from being called. Catches: hours lost to a network that is down."""
    watch = Watch(tmp_path)
    make(tmp_path, [Fails(ConnectionResetError("no network")), watch]).train()
    assert len(watch.seen) == 3
    assert "step 1: callback Fails: ConnectionResetError: no network" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyError("loss"), FloatingPointError("1/0"), ValueError("x")])
def test_a_callback_with_a_mistake_is_named(tmp_path, error):
    """Catches: "the loss is not finite" or "bad option" for a mistake in somebody's callback."""
    with pytest.raises(RuntimeError, match=f"step 1: callback Fails: {type(error).__name__}") as found:
        make(tmp_path, [Fails(error)]).train()
    assert found.value.__cause__ is error and not (tmp_path / "failed_batch.safetensors").exists()


# ---- TensorBoard ----


class FakeWriter:
    def __init__(self, folder: str, purge_step: int):
        self.purged, self.flushed, self.scalars = purge_step, 0, []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed = len(self.scalars)


def board(tmp_path) -> TensorBoard:
    board = TensorBoard.__new__(TensorBoard)  # without the package
    board.make_writer, board.folder, board.writer = FakeWriter, tmp_path, None
    return board


def test_every_metric_becomes_a_scalar(tmp_path):
    """Catches: None sent as a number, parts of the reward that do not add up, scalars lost when the process ends."""
    found = board(tmp_path)
    (metrics,) = make(tmp_path, [found], steps=1, contrastive_weight=0.1, group_size=4).train()
    scalars = {name: value for name, value, step in found.writer.scalars if step == 1}
    numbers = {f"training/{name}": value for name, value in metrics.items() if name != "step" and value is not None}
    assert numbers.items() <= scalars.items() and None not in scalars.values() and len(metrics) > len(numbers)
    parts = sum(scalars[f"reward/{name}"] for name in ("outcome", "contrastive", "extra"))
    assert parts == pytest.approx(metrics["reward"]) and found.writer.flushed == len(found.writer.scalars)


def test_what_a_resumed_run_does_again_replaces_what_was_shown(tmp_path):
    """Catches: two curves from the state on; a step purged that is not done again."""
    after_step, after_evaluation = board(tmp_path), board(tmp_path)
    after_step.after_step(Step(21), dict(step=21, reward=0.5, accuracy=0.5))
    after_evaluation.after_evaluation({"step": 20, "greedy": {"accuracy": 0.5}})  # of the state itself
    assert after_step.writer.purged == after_evaluation.writer.purged == 21


def test_evaluations_become_scalars(tmp_path):
    found, rates = board(tmp_path), {"accuracy": 0.5, "hallucination_rate": None, "pass_at": {1: 0.4, 2: 0.6}}
    found.after_evaluation({"step": 4, "greedy": rates, "sampled": {"accuracy": 0.25}})
    assert found.writer.scalars == [
        ("evaluation_greedy/accuracy", 0.5, 4),
        ("evaluation_greedy/pass@1", 0.4, 4),
        ("evaluation_greedy/pass@2", 0.6, 4),
        ("evaluation_sampled/accuracy", 0.25, 4),
    ]


def test_without_the_package_the_door_says_what_to_install(tmp_path, monkeypatch, capsys):
    """Both scripts, before anything is written. Catches: an ImportError after the model was loaded."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what Python does for "there is no such module"
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    assert llm("--data", "sums", "--tensorboard", "--out", str(tmp_path / "llm")) == 1
    assert "pip install tensorboard" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_toy.main(
            "--tensorboard --pretrain-steps 1 --steps 1 --eval-problems 1 --out".split() + [str(tmp_path / "toy")]
        )
    assert "pip install tensorboard" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs the tensorboard package: pip install tensorboard")
def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    """The real package. Catches: a folder that TensorBoard cannot read, evaluations that nobody tells it of."""
    assert llm("--data", "sums", "--tensorboard", "--out", str(tmp_path / "run")) == 0
    events = events_in(tmp_path / "run" / "tensorboard")
    assert [event.step for event in events.Scalars("training/reward")] == [1, 2]
    assert [event.step for event in events.Scalars("evaluation_greedy/accuracy")] == [0, 1, 2]
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert events.Scalars("training/entropy")[1].value == pytest.approx(metrics[1]["entropy"])


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs the tensorboard package: pip install tensorboard")
def test_tensorboard_shows_a_resumed_run_as_one(tmp_path):
    """Stopped after step 3, the last state is of step 2. Catches: step 3 shown twice, with two values."""

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, [TensorBoard(tmp_path / "board")], steps=4, save_every=2).train(after_step=stop)
    time.sleep(1.1)  # TensorBoard orders the files of a folder by the second
    make(tmp_path, [TensorBoard(tmp_path / "board")], steps=4, save_every=2).train(resume=True)
    assert [event.step for event in events_in(tmp_path / "board").Scalars("training/reward")] == [1, 2, 3, 4]


def events_in(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


# ---- CSV ----


def test_metrics_as_csv(tmp_path, capsys):
    """Read back by the standard library. Catches: a column that only later steps have left out, None as a word."""
    lines = [{"step": 1, "reward": 0.5, "kl": None}, {"step": 2, "reward": 0.25, "greedy": {"pass_at": {"1": 0.5}}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert to_csv([str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == {"step": "1", "reward": "0.5", "kl": "", "greedy.pass_at.1": ""}
    assert rows[1] == {"step": "2", "reward": "0.25", "kl": "", "greedy.pass_at.1": "0.5"}
    assert to_csv([str(tmp_path / "metrics.jsonl"), "--to", str(tmp_path / "x.csv")]) == 0
    assert list(csv.DictReader((tmp_path / "x.csv").open())) == rows


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        to_csv([str(tmp_path)])
    assert f"{tmp_path / 'metrics.jsonl'} does not exist or is empty" in capsys.readouterr().err


def test_csv_as_a_user_calls_it(tmp_path):
    """A real process. Catches: a module called csv that hides the standard library's."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    command = [sys.executable, "-m", "minclipo.runs.to_csv", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "step,reward\n1,0.5\n"


# ---- pictures ----


def metrics_of(step: int, **changes) -> dict:
    found = dict(step=step, reward=0.4, accuracy=0.5, completion_length=11.0, hallucination_rate=0.3)
    return found | dict(contrastive_loss=1.0, contrastive_penalty=0.2) | changes


def evaluation(step: int, correct: int, faithful: int) -> dict:
    rate = (correct - faithful) / correct if correct else None
    counts = dict(problems=100, correct=correct, faithful=faithful, accuracy=correct / 100, hallucination_rate=rate)
    return {"step": step, "greedy": counts | {"completion_length": 11.0}}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a picture and returns its four axes."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))

    def draw(*arguments):
        plot_evaluation(*arguments)
        figures[-1].canvas.draw()
        return figures[-1].axes

    yield draw
    plt.close("all")


def curve(axis, label: str) -> tuple[list, list]:
    (line,) = [line for line in axis.lines if line.get_label() == label]
    return list(line.get_xdata()), [None if np.isnan(y) else float(y) for y in line.get_ydata()]


def test_a_rate_of_nothing_is_a_gap(drawn):
    """Catches: 0, the best there is, where nothing was right; an evaluation left out of the other panels."""
    history = [metrics_of(1), metrics_of(2, hallucination_rate=None), metrics_of(3)]
    accuracy, rate, _, length = drawn(history, [evaluation(0, 50, 40), evaluation(3, 0, 0)], "x", 16)
    assert curve(rate, "training rollouts") == ([1, 2, 3], [0.3, None, 0.3])
    assert curve(rate, "held out, greedy") == ([0, 3], [0.2, None])
    assert curve(accuracy, "held out, greedy") == ([0, 3], [0.5, 0])
    assert curve(length, "held out, greedy") == ([0, 3], [11, 11])


def test_no_held_out_point_is_hidden(drawn):
    """At the edges, above the training rollouts. Catches: half a point at 0 and 1, a point under a legend."""
    axes = drawn([metrics_of(n) for n in (1, 2, 3, 4)], [evaluation(0, 0, 0), evaluation(4, 100, 100)], "x", 11)
    for axis in (axes[0], axes[1], axes[3]):
        (held_out,) = [line for line in axis.lines if line.get_label().startswith("held out")]
        others = [line for line in axis.lines if line is not held_out]
        assert all(held_out.get_zorder() > line.get_zorder() for line in others) and held_out.get_marker() == "o"
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        values = [y for y in held_out.get_ydata() if y == y]
        assert left < 0 and right > 4 and low < min(values) and high > max(values)
        assert axis.get_legend() is None


def test_a_constant_length_is_not_drawn_on_the_edge(drawn):
    """And the limit is seen where lengths come near it. Catches: a curve that is half cut off."""
    for limit, is_line in ((11, True), (16, True), (1024, False), (None, False)):
        length = drawn([metrics_of(1), metrics_of(2)], [], "x", limit)[3]
        low, high = length.get_ylim()
        assert low == 0 and 11 * 1.1 < high < 40
        lines = [list(line.get_ydata()) for line in length.lines if line.get_label() != "training rollouts"]
        assert lines == ([[limit, limit]] if is_line else [])
        assert any(f"--max-new-tokens {limit}" in text.get_text() for text in length.texts) == (limit is not None)


def test_steps_are_whole_numbers(drawn):
    """Catches: ticks at step 0.5."""
    for last in (0, 1, 3, 40):
        for axis in drawn([metrics_of(n) for n in range(1, last + 1)], [evaluation(0, 1, 1)], "x", 16):
            assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_the_parts_of_the_reward_add_up(drawn):
    """Catches: a contrastive penalty, which is a mean over the right ones, drawn as one over all."""
    plain = drawn([metrics_of(1, reward=0.5, contrastive_penalty=None)], [], "x", 16)[2]
    assert [line.get_label() for line in plain.lines] == ["reward"]
    assert reward_parts(metrics_of(1)) == pytest.approx({"outcome": 0.5, "contrastive": -0.1, "extra": 0.0})
    reward = drawn([metrics_of(1), metrics_of(2, reward=0.25)], [], "x", 16)[2]
    parts = [curve(reward, name)[1] for name in ("outcome", "contrastive", "extra")]
    assert np.allclose(np.sum(parts, 0), [0.4, 0.25])
    assert len({line.get_linestyle() for line in reward.lines}) == 4  # told apart without colours


def test_without_held_out_problems_there_is_a_picture_too(tmp_path, capsys):
    """Catches: a picture that the README promises and nobody draws."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    for every in ("1", "0"):
        out = tmp_path / f"run{every}"
        assert llm("--data", str(data), "--eval-every", every, "--out", str(out)) == 0
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and not list(out.glob("*.partial"))


# ---- the best model ----


def keeper(out: Path, metric: str = "accuracy", seed: int = 0) -> KeepBest:
    return KeepBest(small_gpt(seed, vocab_size=122), toy_tokenizer(), out / "best", metric)


def told(keep: KeepBest, step: int, **rates) -> tuple[int, float]:
    """Tell it of an evaluation of a model that has the step as its weights; (step, weight) of the one that is kept."""
    with torch.no_grad():
        keep.model.norm.weight.fill_(step)
    keep.after_evaluation({"step": step, "greedy": rates})
    if not keep.folder.exists():
        return None
    step = json.loads((keep.folder / "evaluation.json").read_text())["step"]
    assert load_model(keep.folder).norm.weight[0] == step, "the numbers are of another model"
    return step


def test_the_best_is_kept_and_ties_keep_the_earlier(tmp_path):
    """Catches: the newest or the largest step kept; a tie that replaces."""
    keep = keeper(tmp_path)
    found = [told(keep, step, accuracy=value) for step, value in enumerate([0.25, 0.5, 0.5, 0.375, 0.75, 0.0], 1)]
    assert found == [1, 2, 2, 2, 5, 5] and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_of_the_hallucination_rate_the_lowest_is_best(tmp_path):
    """And a rate that does not exist is none. Catches: a collapsed model, which has nothing right, kept as the best."""
    keep = keeper(tmp_path, "hallucination_rate")
    found = [told(keep, step, hallucination_rate=value) for step, value in enumerate([None, 0.5, 0.625, None, 0.25], 1)]
    assert found == [None, 2, 2, 2, 5]
    assert told(keeper(tmp_path, "faithful_accuracy"), 6, accuracy=0.9) == 5  # of a task without a step check


def test_after_a_resume_the_best_is_known(tmp_path, capsys):
    """It may be of a step after the state that the run goes back to. Catches: a worse model over a better one; silence
    about a model that is of no evaluation in evaluation.jsonl."""
    told(keeper(tmp_path), 30, accuracy=0.75)
    resumed = keeper(tmp_path)
    assert told(resumed, 20, accuracy=0.5) == 30
    assert "still holds the model of step 30" in capsys.readouterr().out
    assert told(resumed, 30, accuracy=0.75) == 30  # the same step again: a tie
    assert told(resumed, 40, accuracy=0.875) == 40


def test_a_process_killed_between_two_renames_loses_nothing(tmp_path):
    """Catches: no best model at all, or half of one, after a kill at the worst moment."""
    told(keeper(tmp_path), 1, accuracy=0.5)
    (tmp_path / "best").rename(tmp_path / "best.old")  # what a process killed after its first rename leaves
    save_model(small_gpt(9, vocab_size=122), toy_tokenizer(), tmp_path / "best.partial")
    assert told(keeper(tmp_path), 2, accuracy=0.25) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")  # and after its second
    assert told(keeper(tmp_path), 3, accuracy=0.625) == 3 and [path.name for path in tmp_path.iterdir()] == ["best"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_callbacks import keeper, told
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
keep = keeper(Path(sys.argv[1]))
told(keep, 1, accuracy=0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    told(keep, 2, accuracy=0.75)
except OSError as error:
    print("OSError:", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
def test_a_full_disk_keeps_the_best_so_far(tmp_path):
    """A real limit on the size of files. Catches: the good model thrown away for one that cannot be written."""
    found = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert "OSError:" in found.stdout, found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert told(keeper(tmp_path), 3, accuracy=0.25) == 1


def test_keep_best_from_end_to_end(tmp_path, capsys):
    """An ordinary model directory, which --eval-only measures as it was measured. Catches: an option nobody reads."""
    out = tmp_path / "run"
    arguments = ["--data", "sums", "--keep-best", "accuracy", "--learning-rate", "1e-2"]
    assert llm(*arguments, "--out", str(out)) == 0
    kept = json.loads((out / "best" / "evaluation.json").read_text())
    lines = read_lines(out / "evaluation.jsonl")
    assert kept.pop("kept_for") == "accuracy" and json.loads(json.dumps(lines[0])) == kept  # all wrong: a tie
    again = ["--model", str(out / "best"), "--data", "sums", "--eval-only", "--out", str(tmp_path / "eval")]
    assert llm(*again) == 0
    assert json.loads((tmp_path / "eval" / "evaluation.json").read_text())["greedy"] == kept["greedy"]


def test_keep_best_needs_what_it_measures():
    """Catches: a hallucination rate waited for from a task that cannot see steps."""
    task = Task(TASK.draw, TASK.check_outcome)
    check_keep_best(LLMConfig(model="m", data="d", keep_best="accuracy"), task)
    with pytest.raises(ValueError, match="--keep-best hallucination_rate needs a step check"):
        check_keep_best(LLMConfig(model="m", data="d", keep_best="hallucination_rate"), task)


@pytest.mark.parametrize(
    "given, cure", [(["--data", "FILE"], "give --eval-data"), (["--data", "sums", "--eval-every", "0"], "--eval-every")]
)
def test_keep_best_needs_evaluations(tmp_path, capsys, given, cure):
    """Catches: a best model that is waited for and never comes."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    given = [str(data) if word == "FILE" else word for word in given]
    assert llm(*given, "--keep-best", "accuracy", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert "--keep-best accuracy needs" in message and cure in message and not (tmp_path / "run").exists()
