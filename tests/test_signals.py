"""Ctrl-C and SIGTERM save first: real signals, at every kind of moment, and a resumed run that ends bit-equal."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from conftest import small_gpt
from test_resume import EVERYTHING, ROOT, equal, without_times

import minclipo.runs.loop as loop_module
import minclipo.sampler as sampler_module
from minclipo.checkpoint import save_model
from minclipo.config import TrainConfig
from minclipo.runs.lock import Taken
from minclipo.runs.loop import Run
from minclipo.runs.progress import watched
from minclipo.runs.signals import SIGNALS, Stopped, exit_code, stop_signals
from minclipo.runs.state import newest_state
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself a signal there")

RARE = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 8 == 0)
KINDS = {
    "grpo": dict(contrastive_weight=0.0),
    "clipo": {},
    "dapo": dict(contrastive_weight=0.0, dynamic_sampling=4, overlong_penalty=0.5),
}


def make(out, kind: str = "clipo", **changes) -> Run:
    config = TrainConfig(**EVERYTHING | KINDS[kind] | dict(save_every=100) | changes)
    return Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), RARE, config), out)


def send(number: int, at: int, owner, name: str, monkeypatch) -> list[int]:
    """Send this process the signal when owner.name is called for the `at`-th time. Returns what counts the calls."""
    original, calls = getattr(owner, name), []

    def wrapper(*arguments, **options):
        calls.append(len(calls) + 1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapper)
    return calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by kind: (history, state)."""
    runs = {kind: make(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    return {kind: (run.train(), run.trainer.state_dict()) for kind, run in runs.items()}


# When the signal comes: what is called then, for the how-manieth time; what the last saved step will be. Five rounds
# of the sampler are a batch of five tokens. Contrast, update and save are finished first.
MOMENTS = [
    ("grpo", "sampling", sampler_module.Decoder, "round", 13, 2),
    ("clipo", "sampling, first step", sampler_module.Decoder, "round", 2, 0),
    ("clipo", "verifying", Trainer, "verify", 3, 2),
    ("clipo", "contrast", Trainer, "contrast", 3, 3),
    ("clipo", "second mini-batch", Trainer, "loss_of", 6, 3),
    ("clipo", "last update", Trainer, "loss_of", 12, 6),
    ("clipo", "metrics", loop_module, "log_line", 3, 3),
    ("clipo", "save", loop_module, "save_state", 2, 6),
    ("dapo", "sampling", sampler_module.Decoder, "round", 19, None),
    ("dapo", "verifying", Trainer, "verify", 5, None),
    ("dapo", "update", Trainer, "update_policy", 3, 3),
]  # fmt: skip


@pytest.mark.parametrize("kind, moment, owner, name, at, saved", MOMENTS, ids=lambda value: str(value)[:20])
def test_a_run_that_is_stopped_and_resumed_ends_bit_equal(
    whole, tmp_path, monkeypatch, kind, moment, owner, name, at, saved
):
    """Catches: a step lost or done twice, random numbers or problems used up by a step that never was, weights saved in
    the middle of an update, a line of metrics lost."""
    with monkeypatch.context() as patch:
        calls = send(signal.SIGTERM, at, owner, name, patch)
        run = make(tmp_path, kind)
        with pytest.raises(Stopped) as stop:
            run.train()
    if saved is not None:
        assert str(stop.value) == f"stopped by SIGTERM: saved after step {saved} of 6" and run.saved_step == saved
    if name in ("round", "verify"):
        assert len(calls) == at  # at once: nothing was sampled or verified after it
    assert exit_code(stop.value) == 143 and newest_state(tmp_path / "states")["step"] == run.step
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, run.step + 1))
    resumed, (history, state) = make(tmp_path, kind), whole[kind]
    assert without_times(resumed.train(resume=True)) == without_times(history)
    assert equal(resumed.trainer.state_dict(), state)


def test_the_signal_among_several_batches_came_in_one(whole):
    """What the two moments of DAPO above rest on: rounds 16 to 20 are not the first batch of a step."""
    taken = [line["batches_sampled"] for line in whole["dapo"][0]]
    starts = [sum(taken[:i]) for i in range(6)]  # batches before each step
    assert max(taken) > 1 and 18 // 5 not in starts and 4 not in starts


def test_a_run_goes_on_in_the_same_process(whole, tmp_path, monkeypatch):
    """A notebook: interrupted while sampling, trained further. Catches: a trainer left half-way in a step."""
    run = make(tmp_path)
    with monkeypatch.context() as patch:
        send(signal.SIGINT, 13, sampler_module.Decoder, "round", patch)
        with pytest.raises(KeyboardInterrupt, match="stopped by Ctrl-C: saved after step 2 of 6"):
            run.train()
    assert without_times(run.train()) == without_times(whole["clipo"][0])
    assert equal(run.trainer.state_dict(), whole["clipo"][1])


def test_an_evaluation_is_ended_at_once(tmp_path):
    """Catches: minutes of evaluation that nobody waits for, and its step lost."""
    ended = []

    def evaluate(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            ended.append(step)

    with pytest.raises(Stopped, match="saved after step 2 of 6"):
        make(tmp_path).train(after_step=evaluate)
    assert ended == [] and newest_state(tmp_path / "states")["step"] == 2


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    """In the update that the first one lets finish. Catches: a run that cannot be stopped, half an update saved."""
    run = make(tmp_path, save_every=2)
    send(signal.SIGINT, 9, Trainer, "loss_of", monkeypatch)  # of step 5
    send(signal.SIGINT, 10, Trainer, "loss_of", monkeypatch)
    with pytest.raises(Stopped, match="not saved, because of a second Ctrl-C. The last step that was saved is 4 of 6"):
        run.train()
    assert newest_state(tmp_path / "states")["step"] == 4


def test_a_second_ctrl_c_while_the_first_saves(tmp_path, monkeypatch):
    """Catches: half a file left behind, or a message that promises what was not saved."""
    run = make(tmp_path)
    send(signal.SIGINT, 13, sampler_module.Decoder, "round", monkeypatch)
    send(signal.SIGINT, 3, torch, "save", monkeypatch)  # the first is that of step 0
    calls = send(signal.SIGINT, 2, torch, "save", monkeypatch)
    with pytest.raises(Stopped, match="not saved, because of a second Ctrl-C. The last step that was saved is 0 of 6"):
        run.train()
    assert len(calls) == 2 and not list(tmp_path.rglob("*.partial"))


def test_sigterm_that_comes_twice_is_one(tmp_path, monkeypatch):
    """`timeout` and Slurm send it again. Catches: a save that the second one cuts off."""
    run = make(tmp_path)
    send(signal.SIGTERM, 5, Trainer, "loss_of", monkeypatch)
    send(signal.SIGTERM, 6, Trainer, "loss_of", monkeypatch)
    send(signal.SIGTERM, 2, torch, "save", monkeypatch)
    with pytest.raises(Stopped, match="stopped by SIGTERM: saved after step 3 of 6"):
        run.train()


def test_an_interruption_that_is_no_signal_is_honest(tmp_path, monkeypatch):
    """KeyboardInterrupt out of nowhere, in an update. Catches: half an update saved as if it were a whole one."""

    def interrupted(*_):
        raise KeyboardInterrupt

    run = make(tmp_path)
    monkeypatch.setattr(Trainer, "loss_of", interrupted)
    with pytest.raises(Stopped, match="not saved: the update of step 1 is half done. The last .* is 0 of 6"):
        run.train()


def test_a_folder_that_is_another_runs_by_now_is_left_alone(tmp_path, monkeypatch):
    """OUT was moved away, another run began there, then Ctrl-C. Catches: that run's log cut, its model replaced."""

    def refuse():
        raise Taken("it has been moved away, and another run has been there since")

    run = make(tmp_path)
    send(signal.SIGINT, 3, Trainer, "verify", monkeypatch)
    monkeypatch.setattr(loop_module, "log_line", lambda *_: setattr(run, "before_writing", refuse) or "")
    monkeypatch.setattr(run, "or_warn", lambda *_: setattr(run, "log_is_whole", False))
    with pytest.raises(Stopped, match="not saved: it has been moved away"):
        run.train()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"" and os.listdir(tmp_path / "states") == ["step_000000.pt"]


def test_a_signal_at_the_very_end_is_not_lost(tmp_path, monkeypatch):
    """While the bars are being closed. Catches: a toy that trains the next method to its end."""
    send(signal.SIGTERM, 1, loop_module.Progress, "__exit__", monkeypatch)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        make(tmp_path, steps=1).train()


def test_a_stop_comes_whole_from_another_process():
    """As from a pool of processes. Catches: an error about pickling in the place of what was saved."""
    stop = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "saved after step 7", twice=True, can_go_on=True)))
    assert str(stop) == "saved after step 7" and vars(stop) == dict(number=signal.SIGTERM, twice=True, can_go_on=True)


def test_without_states_nothing_is_promised(tmp_path, monkeypatch):
    """--keep-states 0. Catches: "--resume goes on", which then refuses to."""
    send(signal.SIGTERM, 3, Trainer, "verify", monkeypatch)
    with pytest.raises(Stopped, match="saved after step 2 of 6 .without a training state: keep_states is 0") as stop:
        make(tmp_path, keep_states=0).train()
    assert not stop.value.can_go_on


def test_signals_are_given_back(tmp_path, monkeypatch):
    """Catches: a notebook or a program whose own handlers are gone; what nohup ignores heard again."""
    own, before = lambda *_: None, signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, own)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = []
        make(tmp_path, steps=1).train(after_step=lambda _: seen.append(list(map(signal.getsignal, SIGNALS))))
        assert seen[0][1] is not own and seen[0][SIGNALS.index(signal.SIGHUP)] is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(ValueError), stop_signals():
            raise ValueError
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)


class DropsTheSignal:
    """What is raised in a destructor, Python reports and drops."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_drops_comes_again(tmp_path):
    """In a loop outside a run, and where a run begins. Catches: a program that has heard SIGTERM and trains on."""
    with stop_signals():
        done = []
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            for part in watched(range(3), "work"):
                done.append(part)
                DropsTheSignal()
        assert done == [0]
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            make(tmp_path).train()
    make(tmp_path, steps=1).train()


def test_training_in_another_thread_works(tmp_path):
    """Catches: "signal only works in main thread" from a notebook's or a server's thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(make(tmp_path, steps=2).train()))
    thread.start()
    thread.join()
    assert [line["step"] for line in found[0]] == [1, 2]


# ---- the scripts, as processes ----

LLM = (
    "--data chain --steps 100000 --save-every 100000 --prompts-per-step 2 --group-size 4 --max-new-tokens 5 "
    "--eval-every 0 --eval-problems 4 --device cpu --threads 1"
).split()
# Ctrl-C is ignored by what pytest starts in the background of a shell.
DEFAULT = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def started(*command, **options) -> subprocess.Popen:
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **DEFAULT, **options)


def wait_for(what, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_train_llm_saves_and_says_how_to_go_on(tmp_path, number, code, name):
    """At a moment that nobody has chosen. Catches: up to --save-every steps lost to Slurm or to Ctrl-C."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path / "start")
    log = tmp_path / "run" / "metrics.jsonl"
    process = started(ROOT / "train_llm.py", *LLM, "--model", tmp_path / "start", "--out", tmp_path / "run")
    wait_for(lambda: log.is_file() and log.read_text().count("\n") >= 3, process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    steps = len(log.read_text().splitlines())
    assert process.returncode == code and "Traceback" not in text
    assert text.endswith(
        f"stopped by {name}: saved after step {steps} of 100000. The same command with --resume goes on.\n"
    )
    assert newest_state(tmp_path / "run" / "states")["step"] == steps


def test_train_toy_says_that_pretraining_starts_anew(tmp_path):
    """Catches: "goes on from here" where all of it is gone; a traceback; the exit code of success."""
    arguments = ["--pretrain-steps", "100000", "--threads", "1", "--out", tmp_path / "toy"]
    process = started("-u", ROOT / "train_toy.py", *arguments)
    lines = iter(process.stdout)
    assert any("pretraining on the careless textbook" in line for line in lines)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    text = "".join(lines)
    assert process.wait(timeout=60) == 143 and "Traceback" not in text
    assert "stopped by SIGTERM: the pretraining of seed 0 is not finished and starts anew." in text


FULL = """
import os, resource, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
import test_signals

def fill(step):
    if step == 2:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        os.kill(os.getpid(), signal.SIGTERM)

test_signals.make(Path(sys.argv[2])).train(after_step=fill)
"""


def test_a_save_that_fails_is_told(tmp_path):
    """A real limit on the size of files. Catches: "saved" of what is not on the disk."""
    found = subprocess.run([sys.executable, "-c", FULL, ROOT, tmp_path], capture_output=True, text=True)
    assert "stopped by SIGTERM: not saved: " in found.stderr and "could not be written" in found.stderr
    assert found.stderr.strip().endswith("The last step that was saved is 0 of 6")
    assert newest_state(Path(tmp_path) / "states")["step"] == 0
