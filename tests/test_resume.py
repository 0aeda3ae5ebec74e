"""An interrupted run and an uninterrupted one end with bit-equal weights, wherever the interruption came."""

import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from conftest import small_gpt

import minclipo.runs.loop as loop_module
import minclipo.runs.problems as problems
import minclipo.runs.state as state_module
from minclipo.checkpoint import load_model, save_model
from minclipo.config import TrainConfig
from minclipo.runs.loop import Run
from minclipo.runs.state import newest_state, save_state, saved_states
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
# Everything that has a state: a head with an optimizer, positives drawn at random, a reference model, mini-batches.
EVERYTHING = dict(
    steps=6,
    prompts_per_step=3,
    group_size=4,
    max_new_tokens=5,
    learning_rate=1e-2,
    contrastive_weight=0.2,
    contrastive_loss="infonce",
    contrastive_level="batch",
    kl_weight=0.05,
    head_size=4,
    save_every=2,
)


def start():
    return small_gpt(vocab_size=122)


def make(out, dtype=torch.float32, **changes) -> Run:
    return Run(Trainer(start().to(dtype), toy_tokenizer(), EASY, TrainConfig(**EVERYTHING | changes)), out)


def equal(a, b) -> bool:
    """Two states, tensors compared bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.parametrize(
    "changes", [{}, dict(head_learning_rate=0.0), dict(contrastive_weight=0.0), dict(num_mini_batches=1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_bit_equal(tmp_path, dtype, changes):
    """Stopped after 4 of 6 steps. Catches: anything that a step depends on and the state does not hold: moments, step
    counts, masters, the head, the generator, the position in the data, the reference of the KL penalty."""
    whole = make(tmp_path / "whole", dtype, **changes)
    wanted = whole.train()
    make(tmp_path / "parts", dtype, **changes | dict(steps=4)).train()
    resumed = make(tmp_path / "parts", dtype, **changes)
    history = resumed.train(resume=True)
    assert without_times(history) == without_times(wanted) and len(history) == 6
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    assert equal(resumed.trainer.state_dict(), whole.trainer.state_dict())
    weights = zip(resumed.trainer.model.parameters(), whole.trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_bfloat16_model_is_trained(tmp_path):
    """Catches: gradients that stay with the model and never reach its float32 masters."""
    trainer = make(tmp_path, torch.bfloat16).trainer
    before = {name: master.clone() for name, master in trainer.optimizer.masters.items()}
    assert trainer.step().metrics["gradient_norm"] > 0
    assert all(not torch.equal(master, before[name]) for name, master in trainer.optimizer.masters.items())
    assert all(weight.dtype == torch.bfloat16 for weight in trainer.model.parameters())


def test_resume_before_the_first_state_starts_at_the_beginning(tmp_path):
    """Killed before the first save, say. Catches: an error where there is nothing to go on from."""
    assert [line["step"] for line in make(tmp_path).train(resume=True)] == [1, 2, 3, 4, 5, 6]


def test_resume_never_starts_anew_over_a_trained_model(tmp_path):
    """Without states (keep_states 0, or removed by hand). Catches: hours of training overwritten by the start."""
    make(tmp_path, keep_states=0).train()
    trained = load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="holds 6 steps, but no training state to go on from"):
        make(tmp_path).train(resume=True)
    assert torch.equal(load_model(tmp_path / "model").norm.weight, trained.norm.weight)


def test_no_state_is_older_than_the_model_beside_it(tmp_path):
    """4 steps, then 10 with keep_states 0, then resumed again. Catches: going back behind the newer model, and
    overwriting it."""
    make(tmp_path, steps=4).train()
    make(tmp_path, steps=10, keep_states=0).train(resume=True)
    trained = load_model(tmp_path / "model")
    assert saved_states(tmp_path / "states") == []
    with pytest.raises(ValueError, match="holds 10 steps, but no training state to go on from"):
        make(tmp_path, steps=12, keep_states=0).train(resume=True)
    assert torch.equal(load_model(tmp_path / "model").embed_tokens.weight, trained.embed_tokens.weight)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10


def test_without_a_newer_model_the_state_stays(tmp_path, monkeypatch):
    """keep_states 0, killed before the next save, or the disk is full then. Catches: a state thrown away that was the
    only way to go on."""
    make(tmp_path, steps=4).train()
    stopped = make(tmp_path, steps=10, keep_states=0, save_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "save_model", lambda *_: full_disk() if stopped.step > 4 else None)
        with pytest.raises(OSError, match="No space left"):
            stopped.train(resume=True)
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000004.pt"]
    history = make(tmp_path).train(resume=True)
    assert [line["step"] for line in history] == [1, 2, 3, 4, 5, 6]


def test_the_newest_state_is_that_of_the_highest_step(tmp_path):
    """Catches: the order of names, in which step_1000000 comes before step_999999."""
    for step in (999_998, 999_999, 1_000_000):
        save_state(tmp_path, step, {"step": step}, keep=2)
    assert newest_state(tmp_path)["step"] == 1_000_000
    assert [path.name for path in saved_states(tmp_path)] == ["step_999999.pt", "step_1000000.pt"]


@pytest.mark.parametrize("new_run", [False, True])
def test_a_trainer_that_has_done_steps_goes_on(tmp_path, new_run):
    """A notebook that raises the number of steps and trains again. Catches: the log and the states of the steps before
    thrown away as an earlier run's."""
    whole = make(tmp_path / "whole")
    wanted = whole.train()
    run = make(tmp_path / "parts", steps=4)
    run.train()
    run.config.steps = 6
    history = (Run(run.trainer, run.out) if new_run else run).train()
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and without_times(lines) == without_times(wanted) and len(lines) == 6
    assert equal(run.trainer.state_dict(), whole.trainer.state_dict())
    assert equal(newest_state(tmp_path / "parts" / "states"), newest_state(tmp_path / "whole" / "states"))


def test_a_lost_log_never_has_a_step_twice(tmp_path):
    """Resumed without the log of the first four steps, stopped after two more, resumed. Catches: lines cut by their
    place and not by the step that they name."""
    make(tmp_path, steps=4).train()
    (tmp_path / "metrics.jsonl").unlink()
    stopped = make(tmp_path, steps=8, save_every=100)

    def stop(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.train(resume=True, after_step=stop)
    make(tmp_path, steps=8).train(resume=True)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [5, 6, 7, 8]


def test_a_new_run_forgets_the_states_of_an_old_one(tmp_path):
    """Catches: resuming from a state of another run that used the folder before, that of its step 0 included."""
    make(tmp_path, keep_states=9).train()
    make(tmp_path, steps=2, seed=1).train()
    states = saved_states(tmp_path / "states")
    assert [path.name for path in states] == ["step_000000.pt", "step_000002.pt"]
    fresh = make(tmp_path / "other", seed=1).trainer.generator.get_state()
    assert torch.equal(torch.load(states[0], weights_only=True)["generator"], fresh)


def test_metrics_of_steps_after_the_state_are_written_again(tmp_path):
    """Killed at step 5, the last state is of step 4. Catches: step 5 twice in metrics.jsonl, half a line left there."""
    make(tmp_path, steps=4).train()
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 5, "reward": 123}\n{"step": 6, "rew')
    history = make(tmp_path).train(resume=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_only_the_last_states_stay(tmp_path):
    """Catches: a disk that fills up; the new state thrown away instead of the oldest."""
    make(tmp_path, keep_states=2).train()
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000004.pt", "step_000006.pt"]
    make(tmp_path / "none", keep_states=0).train()
    assert not (tmp_path / "none" / "states").exists()


def test_other_settings_are_refused(tmp_path):
    """Catches: a state squeezed into a run that it does not fit."""
    make(tmp_path).train()
    for changes in (dict(head_size=5), dict(contrastive_weight=0.0), dict(head_learning_rate=0.0)):
        with pytest.raises(ValueError, match=f"{tmp_path}/states/step_000006.pt does not fit this run's settings"):
            make(tmp_path, **changes, steps=8).train(resume=True)


@pytest.mark.parametrize("damage", ["cut off", "empty", "another file", "a program"])
def test_a_damaged_state_is_named(tmp_path, damage):
    """Catches: going on from garbage, an error that does not say what to do, a file that runs what it holds."""
    make(tmp_path).train()
    file = tmp_path / "states" / "step_000006.pt"
    if damage == "a program":
        torch.save({"step": Path("anything but tensors, numbers and text")}, file)
    else:
        file.write_bytes({"cut off": file.read_bytes()[:-10], "empty": b"", "another file": b"{}\n" * 99}[damage])
    with pytest.raises(ValueError, match="step_000006.pt is damaged.*Remove it to go on from the state before it"):
        make(tmp_path, steps=8).train(resume=True)
    file.unlink()
    assert make(tmp_path, steps=8).train(resume=True)[-1]["step"] == 8


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_earlier_states_and_the_run(tmp_path, monkeypatch, capsys):
    """Catches: hours of training lost to a save that fails, half a state taken for a whole one."""
    original = torch.save

    def sometimes_full(state, file):
        original(state, file)
        if state["step"] == 4:
            file.truncate(100)
            full_disk()

    monkeypatch.setattr(torch, "save", sometimes_full)
    assert len(make(tmp_path, steps=8).train()) == 8
    printed = capsys.readouterr().out
    assert (
        "step_000004.pt could not be written: the disk is full (No space left on device); training goes on" in printed
    )
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000006.pt", "step_000008.pt"]
    assert not list((tmp_path / "states").glob("*.partial"))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from minclipo.checkpoint import Tokenizer, save_tensors
from minclipo.runs.state import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for save in (lambda: save_state(Path(sys.argv[1]), 1, {"a": torch.ones(10**6)}, keep=1),
             lambda: save_tensors({"a": torch.ones(10**6)}, Path(sys.argv[1]) / "a.safetensors"),
             lambda: Tokenizer.from_words(["<eos>", *map(str, range(10**4))], "<eos>").save(sys.argv[1])):
    try:
        save()
    except OSError as error:
        print("OSError:", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
def test_a_file_that_really_does_not_fit_is_an_oserror(tmp_path):
    """A real limit on the size of files, in a process of its own. Catches: RuntimeError, SafetensorError and Exception,
    by which three libraries report a full disk, and which would end the run; half a file left behind."""
    found = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.count("OSError:") == 3, found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_could_not_be_written_is_made_up_for(tmp_path, monkeypatch):
    """The disk is full in the middle of a line. Catches: the run ended by its log, half a line left in the file."""
    run, original = make(tmp_path), Run.log

    def sometimes_full(self, history):
        if self.step == 3:
            self.log_is_whole = False
            with open(tmp_path / "metrics.jsonl", "a") as log:
                log.write('{"step": 3, "rew')
            full_disk()
        original(self, history)

    monkeypatch.setattr(Run, "log", sometimes_full)
    history = run.train(after_step=lambda step: full_disk() if step == 5 else None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and len(history) == 6


def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch):
    save_state(tmp_path, 1, {"x": torch.ones(2)}, keep=1)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"x": torch.zeros(2)}, keep=1)
    assert (newest_state(tmp_path)["x"] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.pt"]


def test_what_a_killed_process_had_begun_is_thrown_away(tmp_path):
    """Catches: half a state that takes room on the disk for ever."""
    (tmp_path / "step_000001.pt.partial").write_bytes(b"half")
    save_state(tmp_path, 2, {"x": torch.ones(2)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002.pt"]


def test_a_run_that_cannot_save_at_all_does_not_start(tmp_path, monkeypatch):
    """Catches: a full disk that is noticed after the first twenty steps."""
    monkeypatch.setattr(state_module, "save_state", full_disk)
    monkeypatch.setattr(torch, "save", full_disk)
    run = make(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert run.step == 0


# ---- real processes, really killed ----

ARGUMENTS = (
    "--data chain --steps 4 --save-every 1 --keep-states 2 --prompts-per-step 2 --group-size 4 --max-new-tokens 5 "
    "--learning-rate 1e-3 --contrastive-weight 0.2 --contrastive-loss infonce --contrastive-level batch "
    "--kl-weight 0.01 --head-size 4 --eval-every 2 --eval-problems 4 --device cpu --threads 1"
).split()
# Counts the renames that make a file or a state whole, and dies at the one whose number is given: before or after it.
# Every file is written under another name first, so these are the moments that matter.
KILLER = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import test_resume, train_llm
import minclipo.runs.problems as problems
problems.CHAIN_TASK = test_resume.EASY
at, before, calls, original = int(sys.argv[2]), sys.argv[3] == "before", 0, os.replace
def replace(*arguments):
    global calls
    calls += 1
    if calls == at and before:
        os.kill(os.getpid(), signal.SIGKILL)
    original(*arguments)
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
sys.exit(train_llm.main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that learns: the task gives rewards, so that its weights, head and moments all move."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    save_model(start(), toy_tokenizer(), folder / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "CHAIN_TASK", EASY)
        assert train_llm.main([*ARGUMENTS, "--model", str(folder / "start"), "--out", str(folder / "run")]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["gradient_norm"] > 0 and line["contrastive_loss"] > 0 for line in lines)
    return folder


# Before the first state is whole; after it, before the model; before a later state is whole; when it is and the oldest
# is still there; between state and evaluation; between the last state and the last model; after everything.
KILLS = [(10, "after"), (16, "before")]  # tests/benchmarks/sigkill.py has a hundred


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("at, when", KILLS)
def test_a_killed_process_goes_on_bit_equal(uninterrupted, tmp_path, at, when, monkeypatch):
    """SIGKILL in the middle of saves and between steps, then --resume. Catches: a file or a state that is half-written
    and looks whole, evaluations or metrics lost or doubled."""
    arguments = [*ARGUMENTS, "--model", str(uninterrupted / "start"), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", KILLER, str(ROOT), str(at), when, *arguments]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setattr(problems, "CHAIN_TASK", EASY)
    assert train_llm.main([*arguments, "--resume"]) == 0
    theirs, ours = uninterrupted / "run", tmp_path / "run"
    model, wanted = load_model(ours / "model"), load_model(theirs / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters()))
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        lines, wanted = ([json.loads(line) for line in (run / name).read_text().splitlines()] for run in (ours, theirs))
        assert without_times(lines) == without_times(wanted)
    assert not list(ours.rglob("*.partial"))


def test_a_stray_file_among_the_states_is_left_alone(tmp_path):
    """Catches: a run that ends, or cannot go on, because somebody has copied a state under another name."""
    save_state(tmp_path, 1, {"x": torch.ones(2)}, keep=1)
    (tmp_path / "step_best.pt").write_bytes((tmp_path / "step_000001.pt").read_bytes())
    save_state(tmp_path, 2, {"x": torch.zeros(2)}, keep=1)
    assert (newest_state(tmp_path)["x"] == 0).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002.pt", "step_best.pt"]
