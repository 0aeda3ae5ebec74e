"""train_llm.py under torchrun: real processes, one folder. tests/test_processes.py has what they compute."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several_processes as processes
import torch
from conftest import small_gpt
from safetensors.torch import load_file
from several_processes import SHARDS

import train_llm
from minclipo.checkpoint import save_model
from minclipo.config import TrainConfig
from minclipo.runs import launch
from minclipo.runs.launch import Launch, check_processes, check_shares, is_lost
from minclipo.runs.llm_config import LLMConfig
from minclipo.toy import toy_tokenizer

SCRIPT = Path(train_llm.__file__)
OPTIONS = (
    "--max-new-tokens 6 --prompts-per-step 4 --group-size 4 --num-mini-batches 2 --learning-rate 1e-4 --seed 1 --show 0 "
    "--contrastive-weight 0.2 --eval-every 2 --eval-problems 2 --eval-samples 2 --keep-best accuracy --keep-rollouts 1 "
    "--threads 1 --save-every 2 --micro-batch-tokens 60 --device cpu"
).split()
TASK = """
import os, signal, time, zlib
from pathlib import Path
from minclipo.tasks import Task
from minclipo.toy import TASK

RANK, WAY, OUT = (os.environ.get(name, "") for name in ("RANK", "WAY", "FOLDER"))
seen = 0

class Problem:
    def __init__(self, stream, index):
        self.prompt = TASK.draw(stream, index).prompt
        self.right = lambda text: zlib.crc32(text.encode()) % 2 == 0  # which no process can send to another

def check_outcome(problem, text, finished):
    global seen
    seen += 1
    time.sleep(float(os.environ.get("SLOW", 0)))
    if RANK == "1" and WAY == "killed" and seen > 30:  # in step 3
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == "1" and WAY == "fails" and seen > 30:
        raise RuntimeError("cannot judge this")
    if RANK == "0" and WAY == "lost folder" and seen == 30:
        os.rename(OUT, OUT + ".away")
        Path(OUT).write_text("no folder")
    if RANK == "0" and WAY == "lost folder" and seen == 45:  # in step 5
        os.remove(OUT)
        os.rename(OUT + ".away", OUT)
    return problem.right(text)

task = Task(Problem, check_outcome)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model and a task for which it is right half of the time."""
    folder = tmp_path_factory.mktemp("start")
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), folder / "model")
    (folder / "task.py").write_text(TASK)
    return [*OPTIONS, "--model", str(folder / "model"), "--task", f"{folder / 'task.py'}:task"]


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The run of one process, without torchrun."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert train_llm.main([*start, "--steps", "6", "--out", str(out)]) == 0
    return out


def torchrun(count: int | str, *arguments, **environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), SCRIPT]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([*command, *arguments], env=settings, stdout=-1, stderr=-1, text=True)


class Started:
    """Processes as torchrun starts them, without torchrun, which takes seconds."""

    def __init__(self, log: Path, count: int, *arguments: str, **environment: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        of = lambda rank: environment | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        self.log = log
        self.processes = [processes.start(processes.run_train_llm, log, of(rank), arguments) for rank in range(count)]

    def end(self) -> tuple[list[int], str]:
        """Their exit codes, and what all of them have printed."""
        return processes.end(self.processes), self.log.read_text()


def finished(process: subprocess.Popen) -> tuple[str, str]:
    printed = process.communicate(timeout=240)
    assert process.returncode == 0, "\n".join(printed)
    return printed


def assert_same_run(out: Path, other: Path) -> None:
    lines = lambda folder, name: [json.loads(line) for line in (folder / name).read_text().splitlines()]
    files = lambda folder: {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert files(out) == files(other)
    texts = [
        [(line["step"], line["completion"]) for line in lines(folder, "rollouts.jsonl")] for folder in (out, other)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 6 * 16
    for ours, theirs in zip(lines(out, "metrics.jsonl"), lines(other, "metrics.jsonl"), strict=True):
        assert ours | {"seconds": 0} == pytest.approx(theirs | {"seconds": 0}, abs=1e-5)
    assert lines(out, "evaluation.jsonl") == lines(other, "evaluation.jsonl")
    assert_same_weights(out, other)


def assert_same_weights(out: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, other))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)


def test_two_processes_leave_the_files_of_one(start, alone, tmp_path):
    """Catches: files written twice or not at all, rows logged per process, an evaluation of one process's problems only,
    a line on the screen per process, problems sent from process to process."""
    arguments = [*start, "--steps", "6", "--out", str(tmp_path / "run")]
    printed, _ = finished(torchrun(2, *arguments))
    assert printed.count("train   3/6") == 1 and "2 processes" in printed
    assert_same_run(tmp_path / "run", alone)


def test_a_process_that_dies_ends_the_run_with_one_message_and_resume_goes_on(start, alone, tmp_path):
    """With more processes than evaluation problems, sharded where this PyTorch can. Catches: survivors that wait for
    ever, a message per process, a run that cannot go on, a process that has no problem and fetches no weights."""
    arguments = [*start, "--steps", "6", "--out", str(tmp_path / "run")]
    process = torchrun(2, *arguments, WAY="killed")
    printed = "".join(process.communicate(timeout=240))
    assert process.returncode and printed.count(launch.LOST) == 1 and printed.count("--resume") == 1
    codes, printed = Started(tmp_path / "log", 3, *arguments, "--resume", *["--shard"] * SHARDS).end()
    assert codes == [0, 0, 0], printed
    assert_same_run(tmp_path / "run", alone)


def test_an_error_in_one_process_is_told_once(start, tmp_path):
    """In the second one, which has no voice otherwise. Catches: silence; the first one's complaint that it is alone."""
    started = Started(tmp_path / "log", 2, *start, "--steps", "6", "--out", str(tmp_path / "run"), WAY="fails")
    codes, printed = started.end()
    assert codes == [1, 1] and printed.count("cannot judge this") == 1 and launch.LOST not in printed


def test_sigterm_saves_and_the_run_goes_on_in_one_process(start, alone, tmp_path):
    """Sent to the second of two. Catches: processes that stop in different steps, and wait for each other."""
    arguments, out = [*start, "--steps", "6", "--out", str(tmp_path / "run")], tmp_path / "run"
    started = Started(tmp_path / "log", 2, *arguments, SLOW="0.02")
    while started.processes[0].is_alive() and not (
        (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text()
    ):
        time.sleep(0.1)  # the first step
    started.processes[1].terminate()
    codes, printed = started.end()
    assert codes == [143, 143] and printed.count("stopped by SIGTERM: saved after step") == 1, printed
    assert train_llm.main([*arguments, "--resume"]) == 0
    assert_same_run(out, alone)


def test_a_folder_that_is_lost_for_a_while_does_not_end_the_run(start, alone, tmp_path):
    """Sharded, a save in every step. Catches: a first process that cannot write and so skips what the others wait for."""
    out, often = tmp_path / "run", ["--save-every", "1", *["--shard"] * SHARDS]
    started = [*start, "--steps", "6", "--out", str(out), *often]
    codes, printed = Started(tmp_path / "log", 2, *started, WAY="lost folder", FOLDER=str(out)).end()
    assert codes == [0, 0] and "training goes on" in printed and not out.with_name("run.away").exists()
    assert_same_weights(out, alone)


def test_numbers_that_are_not_finite_end_all_processes(start, tmp_path):
    """Catches: processes that write the batch to one file at the same time, and spoil it."""
    wild = ["--learning-rate", "1e9", "--max-grad-norm", "1e9"]
    codes, printed = Started(tmp_path / "log", 2, *start, "--steps", "6", "--out", str(tmp_path / "run"), *wild).end()
    assert codes == [1, 1] and printed.count("First thing to try") == 1 and "could not be written" not in printed
    assert load_file(tmp_path / "run" / "failed_batch.safetensors")


def test_two_processes_measure_as_one(start, tmp_path):
    """Catches: --eval-only that wants options of training; answers to one process's problems."""
    chosen = (
        "--model",
        "--task",
        "--eval-problems",
        "--eval-samples",
        "--max-new-tokens",
        "--device",
        "--sampling-rows",
    )
    pairs = dict(zip(start[::2], start[1::2])) | {"--eval-problems": "5"}
    options = [word for name in chosen if name in pairs for word in (name, pairs[name])] + ["--eval-only"]
    assert Started(tmp_path / "log", 2, *options, "--out", str(tmp_path / "two")).end()[0] == [0, 0]
    assert train_llm.main([*options, "--out", str(tmp_path / "one")]) == 0
    for name in ("evaluation.json", "answers.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


# ---- without starting anything ----


def test_more_processes_than_prompts_are_refused(monkeypatch):
    monkeypatch.setattr(launch, "count", lambda: 3)
    monkeypatch.setattr(launch, "several", lambda: True)
    check_shares(TrainConfig(prompts_per_step=3))
    with pytest.raises(ValueError, match="--prompts-per-step 2 must be at least 3"):
        check_shares(TrainConfig(prompts_per_step=2))


def check(training: dict, **llm) -> None:
    config = LLMConfig(model="m", data="d", **llm)
    check_processes(TrainConfig(**training), config, torch.bfloat16, torch.device("cuda"))


def test_what_does_not_go_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(launch, "several", lambda: True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu126")
    check(dict(row_seeds=True), shard=True, lora_rank=4)
    with pytest.raises(ValueError, match="need --row-seeds"):
        check({})
    with pytest.raises(ValueError, match="--compile on does not work with --shard"):
        check(dict(row_seeds=True), shard=True, compile="on")
    monkeypatch.setattr(torch, "__version__", "2.7.1+cu126")
    check(dict(row_seeds=True), shard=True)
    with pytest.raises(ValueError, match="needs PyTorch 2.8 or --dtype float32"):
        check(dict(row_seeds=True), shard=True, lora_rank=4)


def test_a_model_is_not_spread_over_one_process(start, tmp_path, capsys):
    assert train_llm.main([*start, "--shard", "--out", str(tmp_path / "run")]) == 1
    assert "torchrun --nproc-per-node" in capsys.readouterr().err


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    """Catches: two processes that share the first GPU, and run out of memory an hour later."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="more processes than this machine has GPUs, 1: give it --nproc-per-node gpu"):
        Launch().join(torch.device("cuda"))


def test_only_the_first_process_speaks_before_they_have_joined(monkeypatch, capsys):
    """A wrong option is wrong for all alike. Catches: the same message N times."""
    streams = sys.stdout, sys.stderr
    for rank, told in ((0, True), (1, False)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        Launch().says("no such option")
        sys.stdout, sys.stderr = streams
        assert ("no such option" in capsys.readouterr().err) == told


def test_a_lost_process_is_not_taken_for_a_fault_of_ones_own(monkeypatch):
    monkeypatch.setattr(launch, "several", lambda: True)
    gone = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:6154"
    assert is_lost(RuntimeError(gone)) and not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    monkeypatch.setattr(launch, "several", lambda: False)
    assert not is_lost(RuntimeError(gone))
