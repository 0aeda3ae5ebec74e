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
from safetensors.torch import load_file, save_file

import minclipo.state as state_module
from minclipo.checkpoint import load_model, save_model
from minclipo.config import TrainConfig
from minclipo.state import newest_state, save_state, saved_states
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


def make(out, dtype=torch.float32, **changes) -> Trainer:
    return Trainer(start().to(dtype), toy_tokenizer(), EASY, TrainConfig(**EVERYTHING | changes), out)


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.parametrize(
    "changes", [{}, dict(head_learning_rate=0.0), dict(contrastive_weight=0.0), dict(mini_batches=1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_bit_equal(tmp_path, dtype, changes):
    """Stopped after 4 of 6 steps. Catches: anything that a step depends on and the state does not hold: moments, step
    counts, masters, the head, the generator, the position in the data, the reference of the KL penalty."""
    whole = make(tmp_path / "whole", dtype, **changes)
    wanted = whole.run()
    make(tmp_path / "parts", dtype, **changes | dict(steps=4)).run()
    resumed = make(tmp_path / "parts", dtype, **changes)
    history = resumed.run(resume=True)
    assert without_times(history) == without_times(wanted) and len(history) == 6
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    (ours, numbers), (theirs, same) = resumed.state(), whole.state()
    assert numbers == same and ours.keys() == theirs.keys()
    for file in ours:
        assert ours[file].keys() == theirs[file].keys()
        assert all(torch.equal(ours[file][name], theirs[file][name]) for name in ours[file]), file
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters()))


def test_a_bfloat16_model_is_trained(tmp_path):
    """Catches: gradients that stay with the model and never reach its float32 masters."""
    trainer = make(tmp_path, torch.bfloat16)
    before = {name: master.clone() for name, master in trainer.optimizer.masters.items()}
    assert trainer.step()["gradient_norm"] > 0
    assert all(not torch.equal(master, before[name]) for name, master in trainer.optimizer.masters.items())
    assert all(weight.dtype == torch.bfloat16 for weight in trainer.model.parameters())


def test_resume_before_the_first_state_starts_at_the_beginning(tmp_path):
    """Killed before the first save, say. Catches: an error where there is nothing to go on from."""
    assert [line["step"] for line in make(tmp_path).run(resume=True)] == [1, 2, 3, 4, 5, 6]


def test_resume_never_starts_anew_over_a_trained_model(tmp_path):
    """Without states (keep_states 0, or removed by hand). Catches: hours of training overwritten by the start."""
    make(tmp_path, keep_states=0).run()
    trained = load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="holds 6 steps, but no training state to go on from"):
        make(tmp_path).run(resume=True)
    assert torch.equal(load_model(tmp_path / "model").norm.weight, trained.norm.weight)


def test_a_new_run_forgets_the_states_of_an_old_one(tmp_path):
    """Catches: resuming from a state of another run that used the folder before."""
    make(tmp_path).run()
    make(tmp_path, steps=2, seed=1).run()
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000000", "step_000002"]


def test_metrics_of_steps_after_the_state_are_written_again(tmp_path):
    """Killed at step 5, the last state is of step 4. Catches: step 5 twice in metrics.jsonl, half a line left there."""
    make(tmp_path, steps=4).run()
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 5, "reward": 123}\n{"step": 6, "rew')
    history = make(tmp_path).run(resume=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_only_the_last_states_stay(tmp_path):
    """Catches: a disk that fills up; the new state thrown away instead of the oldest."""
    make(tmp_path, keep_states=2).run()
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000004", "step_000006"]
    make(tmp_path / "none", keep_states=0).run()
    assert not (tmp_path / "none" / "states").exists()


def test_other_settings_are_refused(tmp_path):
    """Catches: a state squeezed into a run that it does not fit."""
    make(tmp_path).run()
    with pytest.raises(ValueError, match="saved head has other tensors than this run"):
        make(tmp_path, head_size=5, steps=8).run(resume=True)
    with pytest.raises(ValueError, match="saved head"):
        make(tmp_path, contrastive_weight=0.0, steps=8).run(resume=True)


def test_a_damaged_state_is_named(tmp_path):
    """Catches: going on from garbage, or an error that does not say what to do."""
    make(tmp_path).run()
    file = tmp_path / "states" / "step_000006" / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="step_000006 is damaged.*Remove that folder"):
        make(tmp_path, steps=8).run(resume=True)


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_earlier_states_and_the_run(tmp_path, monkeypatch, capsys):
    """Catches: hours of training lost to a save that fails, half a state taken for a whole one."""
    trainer = make(tmp_path, steps=8)
    original, calls = state_module.save_tensors, []

    def sometimes_full(tensors, path):
        calls.append(path)
        return full_disk() if "step_000004" in str(path) and "head" in path.name else original(tensors, path)

    monkeypatch.setattr(state_module, "save_tensors", sometimes_full)
    assert len(trainer.run()) == 8
    printed = capsys.readouterr().out
    assert "step 4: [Errno 28] No space left on device. It could not be written; training goes on" in printed
    assert [path.name for path in saved_states(tmp_path / "states")] == ["step_000006", "step_000008"]
    assert not list((tmp_path / "states").glob("*.partial"))


def test_a_log_that_could_not_be_written_is_made_up_for(tmp_path, monkeypatch):
    """The disk is full in the middle of a line. Catches: the run ended by its log, half a line left in the file."""
    trainer, original = make(tmp_path), Trainer.log

    def sometimes_full(self, history):
        if self.step_number == 3:
            self.log_is_whole = False
            with open(tmp_path / "metrics.jsonl", "a") as log:
                log.write('{"step": 3, "rew')
            full_disk()
        original(self, history)

    monkeypatch.setattr(Trainer, "log", sometimes_full)
    history = trainer.run(after_step=lambda step: full_disk() if step == 5 else None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and len(history) == 6


def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch):
    save_state(tmp_path, 1, {"a": {"x": torch.ones(2)}}, {"step": 1}, keep=1)
    monkeypatch.setattr(state_module, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"a": {"x": torch.zeros(2)}}, {"step": 2}, keep=1)
    tensors, numbers = newest_state(tmp_path)
    assert numbers == {"step": 1} and (tensors["a"]["x"] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_a_state_that_is_half_removed_does_not_look_whole(tmp_path, monkeypatch):
    """The process dies while it removes the oldest state. Catches: half a state that --resume takes for a whole one."""
    save_state(tmp_path, 1, {"a": {"x": torch.ones(2)}}, {"step": 1}, keep=1)
    monkeypatch.setattr(state_module.shutil, "rmtree", lambda *_, **__: None)
    save_state(tmp_path, 2, {"a": {"x": torch.zeros(2)}}, {"step": 2}, keep=1)
    assert [path.name for path in saved_states(tmp_path)] == ["step_000002"]


def test_a_run_that_cannot_save_at_all_does_not_start(tmp_path, monkeypatch):
    """Catches: a full disk that is noticed after the first twenty steps."""
    monkeypatch.setattr(state_module, "save_tensors", full_disk)
    trainer = make(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    assert trainer.step_number == 0


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
train_llm.CHAIN_TASK = test_resume.EASY
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
        patch.setattr(train_llm, "CHAIN_TASK", EASY)
        assert train_llm.main([*ARGUMENTS, "--model", str(folder / "start"), "--out", str(folder / "run")]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["gradient_norm"] > 0 and line["contrastive_loss"] > 0 for line in lines)
    return folder


@pytest.mark.parametrize("damage", ["missing file", "missing moment", "misshapen moment"])
def test_moments_that_do_not_fit_are_refused(tmp_path, damage):
    """Catches: Adam that starts anew without a word."""
    make(tmp_path).run()
    file = tmp_path / "states" / "step_000006" / "policy_moments.safetensors"
    moments = load_file(file)
    if damage == "missing file":
        file.unlink()
    else:
        for key in [key for key in moments if key.startswith("norm.weight/")]:
            moments[key] = torch.zeros(7)
            if damage == "missing moment":
                del moments[key]
        save_file(moments, file)
    with pytest.raises(ValueError, match="saved (policy_)?moments.*settings are not the same"):
        make(tmp_path, steps=8).run(resume=True)


# In the first state; before a state is whole; when it is; when the oldest is half gone; between state and evaluation;
# between the last state and the last model; after all states, with the half-gone one left.
KILLS = [
    (5, "before"), (21, "before"), (34, "after"), (35, "after"), (41, "before"), (64, "before"), (63, "after"),
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("at, when", KILLS)
def test_a_killed_process_goes_on_bit_equal(uninterrupted, tmp_path, at, when, monkeypatch):
    """SIGKILL in the middle of saves and between steps, then --resume. Catches: a file or a state that is half-written
    and looks whole, evaluations or metrics lost or doubled."""
    arguments = [*ARGUMENTS, "--model", str(uninterrupted / "start"), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", KILLER, str(ROOT), str(at), when, *arguments]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setattr(train_llm, "CHAIN_TASK", EASY)
    assert train_llm.main([*arguments, "--resume"]) == 0
    theirs, ours = uninterrupted / "run", tmp_path / "run"
    model, wanted = load_model(ours / "model"), load_model(theirs / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters()))
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        lines, wanted = ([json.loads(line) for line in (run / name).read_text().splitlines()] for run in (ours, theirs))
        assert without_times(lines) == without_times(wanted)
    assert not list(ours.rglob("*.partial"))
