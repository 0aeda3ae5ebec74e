"""SIGKILL at random moments of training and saving, again and again: does every run end as if nothing had happened?

python tests/benchmarks/sigkill.py                             # 100 kills, 50 of each script; writes sigkill.json
python tests/benchmarks/sigkill.py --kills 10 --json try.json

Each script runs once undisturbed. Then it runs again and is killed; the same command with --resume goes on and is
killed, until it comes to its end. Then it starts anew, until there have been enough kills. What the runs leave must be
equal: each metric but the times, each bit of weights and states. Not a file more, not one less.

A kill waits for a stage of the run, and then for a random part of the time that this stage takes. So all stages get
their share, the short ones too. A line of the log is written in two halves, as on a slow disk, or hardly a kill would
meet one. The processes are forked from this one, which saves importing PyTorch a hundred times; the undisturbed one is
not.
"""

import argparse
import dataclasses
import json
import mmap
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT))

import safetensors  # noqa: E402
import torch  # noqa: E402

import train_llm  # noqa: E402
import train_toy  # noqa: E402
from minclipo.checkpoint import save_model  # noqa: E402
from minclipo.runs import loop, problems  # noqa: E402
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer  # noqa: E402
from minclipo.trainer import Trainer  # noqa: E402

STAGES = ("start", "sampling", "update", "log", "state", "model", "between")
TIMES = {"seconds", "peak_memory_mib"}  # of what is written; these may differ
SMALL = "--steps 16 --save-every 2 --prompts-per-step 2 --group-size 4 --head-size 4 --threads 1 "
ARGUMENTS = {
    "train_toy.py": SMALL
    + "--method clipo --hidden-size 16 --num-layers 1 --num-heads 2 --intermediate-size 24 --pretrain-steps 3 "
    "--pretrain-batch 4 --eval-problems 8",
    "train_llm.py": SMALL
    + "--data chain --max-new-tokens 5 --learning-rate 1e-3 --contrastive-weight 0.2 --contrastive-loss infonce "
    "--contrastive-level batch --kl-weight 0.01 --eval-every 8 --eval-problems 4 --device cpu",
}


# ---------------------------------------------------------------- the process that is killed


class Board:
    """What a run tells about itself in memory that outlives it: its stage, and how often it has entered each."""

    def __init__(self):
        self.bytes, self.since = mmap.mmap(-1, 1 + len(STAGES)), time.perf_counter()
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    @property
    def stage(self) -> str:
        return STAGES[self.bytes[0]]

    def enter(self, stage: str) -> None:
        self.seconds[self.stage].append(time.perf_counter() - self.since)
        self.since, number = time.perf_counter(), STAGES.index(stage)
        self.bytes[1 + number] = min(255, self.bytes[1 + number] + 1)
        self.bytes[0] = number

    def entered(self, stage: str) -> int:
        return self.bytes[1 + STAGES.index(stage)]

    def clear(self) -> None:
        self.bytes[:] = bytes(len(self.bytes))

    def watch(self, owner, name: str, stage: str) -> None:
        """Replace owner.name by a function that does the same and says so."""
        original = getattr(owner, name)

        def watched(*arguments, **options):
            self.enter(stage)
            try:
                return original(*arguments, **options)
            finally:
                self.enter("between")

        setattr(owner, name, watched)


def in_two_halves(path, mode="r", **options):
    """`open` for the log: what is written is on the disk in halves, with a little time between them."""
    file = open(path, mode, **options)
    write = file.write

    def slowly(text: str) -> None:
        write(text[: len(text) // 2])
        file.flush()
        time.sleep(0.004)
        write(text[len(text) // 2 :])

    if mode == "a":
        file.write = slowly
    return file


def run_script(script: str, arguments: list[str], board: Board) -> int:
    """main() of a script, watched, on a task that rewards every second answer: there is something to learn at once."""
    easy = dataclasses.replace(TASK, check_outcome=lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
    train_toy.TASK = problems.CHAIN_TASK = easy
    loop.open = in_two_halves
    for owner, name, stage in [
        (Trainer, "sample", "sampling"),
        (Trainer, "update_policy", "update"),
        (loop.Run, "log", "log"),
        (loop, "save_state", "state"),
        (loop, "save_model", "model"),
    ]:
        board.watch(owner, name, stage)
    torch.set_num_threads(1)
    return {"train_toy.py": train_toy, "train_llm.py": train_llm}[script].main(arguments)


def fork(script: str, arguments: list[str], board: Board, log: Path) -> int:
    """The id of a process that runs the script and writes what it prints to `log`."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        status = run_script(script, arguments, board)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def undisturbed(script: str, arguments: list[str], report: Path) -> int:
    """In a process that was not forked: the run, and how long its stages take."""
    board = Board()
    status = run_script(script, arguments, board)
    report.write_text(json.dumps(board.seconds))
    return status


# ---------------------------------------------------------------- the one that kills


def kill_in(stage: str, process: int, board: Board, seconds: list[float], chance: random.Random) -> str | None:
    """Kill at a random moment after the process has entered `stage` one to three times. Returns the stage in which
    it was, None if it had come to its end: then its status must be 0."""
    times, wait = 0 if stage == "start" else chance.randint(1, 3), chance.random() * chance.choice(seconds)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return check_end(status)
        if board.stage == stage and board.entered(stage) >= times:
            break
        time.sleep(0.0002)
    time.sleep(wait)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return board.stage if os.WIFSIGNALED(status) else check_end(status)


def check_end(status: int) -> None:
    if status:
        raise RuntimeError(f"a run ended with status {os.waitstatus_to_exitcode(status)}")


def half_written(out: Path) -> bool:
    """Has the last kill left anything that is not whole?"""
    logs = (path.read_bytes() for path in out.rglob("*.jsonl"))
    return any(out.rglob("*.partial")) or any(log and not log.endswith(b"\n") for log in logs)


def torture(script: str, arguments: list[str], kills: int, folder: Path, seconds: dict, seed: int) -> dict:
    """Kill and resume until there were `kills` kills and the run that was killed last has come to its end."""
    chance, board, left = random.Random(f"{script} {seed}"), Board(), folder / "undisturbed"
    found = {"kills": Counter(dict.fromkeys(STAGES, 0)), "half-written": 0, "resumed": 0, "runs": 0, "differences": []}
    while sum(found["kills"].values()) < kills:
        found["runs"] += 1
        out, resume, ended = folder / f"killed{found['runs']}", [], False
        while not ended:
            board.clear()
            process = fork(script, [*arguments, "--out", str(out), *resume], board, folder / "log.txt")
            found["resumed"] += bool(resume)
            enough = sum(found["kills"].values()) >= kills
            rarest = min(STAGES, key=lambda stage: (found["kills"][stage], chance.random()))
            if enough:
                check_end(os.waitpid(process, 0)[1])
                ended = True
            else:
                hit = kill_in(rarest, process, board, seconds[rarest], chance)
                ended = hit is None
                found["kills"].update([hit] if hit else [])
                found["half-written"] += bool(hit) and half_written(out)
            resume = ["--resume"]
        found["differences"] += [f"{out.name}: {text}" for text in differences(contents(left), contents(out))]
    return found


# ---------------------------------------------------------------- what is left


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def in_bytes(value):
    """A training state with its tensors as bytes, which == compares bit by bit."""
    if isinstance(value, dict):
        return {name: in_bytes(part) for name, part in value.items()}
    if isinstance(value, list):
        return [in_bytes(part) for part in value]
    return (value.dtype, value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def content(path: Path):
    """What must be equal in two runs of the same command. Of settings, lock and pictures, that they are there."""
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name in ("settings.json", "lock") or path.suffix == ".png":
        return None
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".pt":
        return in_bytes(torch.load(path, weights_only=True))
    return path.read_bytes()


def contents(out: Path) -> dict[str, object]:
    return {str(path.relative_to(out)): content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def differences(wanted: dict, found: dict) -> list[str]:
    return [
        *(f"{name} is missing" for name in wanted.keys() - found.keys()),
        *(f"{name} is stray" for name in found.keys() - wanted.keys()),
        *(f"{name} is another" for name in wanted.keys() & found.keys() if wanted[name] != found[name]),
    ]


def machine() -> dict:
    cpu = Path("/proc/cpuinfo")
    model = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "safetensors": safetensors.__version__}
    return {"cpu": model[0] if model else platform.machine(), "system": platform.system(), **versions}


def experiment(script: str, kills: int, folder: Path, seed: int) -> dict:
    """The script undisturbed, then tortured."""
    folder.mkdir()
    arguments = ARGUMENTS[script].split()
    if script == "train_llm.py":
        save_model(
            toy_model(ToyConfig(hidden_size=16, num_layers=1, num_heads=2), 0), toy_tokenizer(), folder / "start"
        )
        arguments += ["--model", str(folder / "start")]
    command = [sys.executable, HERE, "--undisturbed", folder / "seconds.json", script]
    subprocess.run([*command, *arguments, "--out", folder / "undisturbed"], check=True, stdout=subprocess.DEVNULL)
    logs = [content(path) for path in (folder / "undisturbed").rglob("metrics.jsonl")]
    assert all(line["gradient_norm"] > 0 for log in logs for line in log), "runs that learn nothing are always equal"
    try:
        return torture(script, arguments, kills, folder, json.loads((folder / "seconds.json").read_text()), seed)
    except RuntimeError as error:
        raise SystemExit(f"{script}: {error}\n{(folder / 'log.txt').read_text()}") from error


def main() -> int:
    if sys.argv[1:2] == ["--undisturbed"]:
        return undisturbed(sys.argv[3], sys.argv[4:], Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all scripts together (default: 100)")
    parser.add_argument("--scripts", nargs="+", choices=list(ARGUMENTS), default=list(ARGUMENTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", type=Path, default=HERE.with_suffix(".json"), help="where the result goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        for number, script in enumerate(arguments.scripts):
            kills = (arguments.kills + number) // len(arguments.scripts)
            found[script] = experiment(script, kills, Path(folder) / script.removesuffix(".py"), arguments.seed)
    print(f"{'killed in':16}" + "".join(f"{script:>16}" for script in found))
    for stage in STAGES:
        print(f"{stage:16}" + "".join(f"{result['kills'][stage]:>16}" for result in found.values()))
    for row in ("half-written", "resumed", "runs"):
        print(f"{row:16}" + "".join(f"{result[row]:>16}" for result in found.values()))
    for script, result in found.items():
        print(f"{script}: " + ("; ".join(result["differences"]) or "every run equal, bit by bit, and no stray file"))
    result = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "seconds": round(time.perf_counter() - started)}
    arguments.json.write_text(json.dumps(result | {"seed": arguments.seed, "scripts": found}, indent=2) + "\n")
    return int(any(result["differences"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
