"""What is on the disk is whole, checked and complete: full disks, killed processes, flipped bits, missing parts."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from conftest import small_gpt

from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.files import read_lines, write_text
from minclipo.config import TrainConfig
from minclipo.runs.folder import prepare_out
from minclipo.runs.loop import Run
from minclipo.runs.state import read_state, save_state
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent
EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
posix = pytest.mark.skipif(os.name == "nt", reason="limits, signals and permissions of POSIX")


def make(out, **changes) -> Run:
    """A run of a small model, with everything that has a state: 6 steps, saved after 2, 4 and 6."""
    settings = dict(steps=6, save_every=2, prompts_per_step=2, group_size=4, max_new_tokens=5, learning_rate=1e-2)
    settings |= dict(contrastive_weight=0.2, contrastive_level="batch", head_size=4)
    return Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, TrainConfig(**settings | changes)), out)


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in read_lines(out / "metrics.jsonl")]


def names_in(folder: Path) -> list[str]:
    """Every file and folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("finished") / "run"
    make(out).train()
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of that folder, to damage."""
    out = tmp_path / "run"
    for path in finished.rglob("*"):
        if path.is_file():
            (out / path.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (out / path.relative_to(finished)).write_bytes(path.read_bytes())
    return out


# ---------------------------------------------------------------- full disks


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes: the system then refuses to write, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def run_under_limits(out: Path) -> None:
    """In a process of its own: runs with a limit on the size of files from step 3 on, lifted later or not."""
    import resource

    from minclipo.runs.plots import plot_evaluation

    def train(name: str, limits: dict[int, int], **changes) -> None:
        print(f"== {name}")
        try:
            run = make(out / name, **changes)
            run.train(after_step=lambda step: limit_files(limits[step]) if step in limits else None)
        except OSError as error:
            print(f"ended after step {run.step}: {error}")
        limit_files(resource.RLIM_INFINITY)

    train("everything", {2: 1, 5: resource.RLIM_INFINITY})
    train("log", {5: 1, 6: resource.RLIM_INFINITY})
    train("state", {2: 30_000}, steps=4)  # a state takes 56 kB, the model 25
    train("model", {2: 10_000}, steps=5, keep_states=0)
    limit_files(10_000)
    train("start", {})
    print("== picture")
    plot_evaluation([], [], out / "curves.png")
    before = (out / "curves.png").read_bytes()
    limit_files(1000)
    with contextlib.suppress(OSError):
        plot_evaluation([], [], out / "curves.png")
    print("the same" if (out / "curves.png").read_bytes() == before else "another")


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """(folder, what was printed by name): the runs of `run_under_limits`."""
    out = tmp_path_factory.mktemp("limited")
    code = "import sys; from pathlib import Path; from test_storage import *; run_under_limits(Path(sys.argv[1]))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return out, dict(part.split("\n", 1) for part in found.stdout.split("== ")[1:])


@posix
def test_a_full_disk_does_not_end_a_run(limited):
    """Full from step 3 to step 5. Catches: the end of the run by any write, lines of the log that are lost."""
    out, printed = limited
    for step, name in ((3, "metrics.jsonl"), (4, "metrics.jsonl")):
        assert (
            f"step {step}: {out / 'everything' / name} could not be written: files must not grow"
            in (printed["everything"])
        )
    assert "ended" not in printed["everything"] and steps_of(out / "everything") == [1, 2, 3, 4, 5, 6]
    assert sorted(os.listdir(out / "everything" / "states")) == ["step_000002.pt", "step_000006.pt"]


@posix
def test_the_log_is_complete_before_a_state_is(limited):
    """The last line does not fit, the last state does. Catches: a step that is in no log, and that resuming never
    writes again."""
    out, printed = limited
    assert "step 6: " in printed["log"] and "ended" not in printed["log"]
    assert steps_of(out / "log") == [1, 2, 3, 4, 5, 6]


@posix
@pytest.mark.parametrize("part, name", [("state", "states/step_000004.pt"), ("model", "model/model.safetensors")])
def test_a_file_that_does_not_fit_is_named(limited, part, name):
    """The errors of PyTorch and safetensors at the last save. Catches: "unexpected pos 576 vs 534", a name that nobody
    has given, half a file that stays."""
    out, printed = limited
    reason = "could not be written: files must not grow that large here, see ulimit -f (File too large)"
    assert f"ended after step {4 if part == 'state' else 5}: {out / part / name} {reason}\n" in printed[part]
    assert (f"step 4: {out / part / name} {reason}; training goes on\n" in printed[part]) == (part == "model")
    left = {"state": ["states/step_000000.pt", "states/step_000002.pt"], "model": []}[part]
    assert [path for path in names_in(out / part) if "states/" in path or "partial" in path or "tmp" in path] == left
    assert load_model(out / part / "model").norm.weight.isfinite().all()


@posix
def test_a_disk_that_is_full_at_the_start_is_said(limited):
    """Catches: PyTorch's own words, a run that starts all the same."""
    out, printed = limited
    assert printed["start"].startswith(
        f"ended after step 0: {out / 'start' / 'states' / 'step_000000.pt'} could not be"
    )
    assert names_in(out / "start") == ["metrics.jsonl", "states"]


@posix
def test_a_picture_that_does_not_fit_leaves_the_earlier_one(limited):
    """Catches: half a PNG."""
    assert limited[1]["picture"] == "the same\n"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_really_is_full(small_disk, capsys):
    """Filled up after step 2, emptied after step 5. Catches: a difference between a limit and a full disk."""
    filler = small_disk / "filler"

    def fill(step: int) -> None:
        if step == 2:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        if step == 5:
            filler.unlink()

    assert len(make(small_disk / "run").train(after_step=fill)) == 6
    assert "step_000004.pt could not be written: the disk is full (No space left on device); training goes on" in (
        capsys.readouterr().out
    )
    assert steps_of(small_disk / "run") == [1, 2, 3, 4, 5, 6]
    assert sorted(os.listdir(small_disk / "run" / "states")) == ["step_000002.pt", "step_000006.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_screen_on_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch):
    """`train_toy.py > log.txt`, on the disk that is full. Catches: a run ended by its own report."""
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", open(full.fileno(), "w", buffering=1, closefd=False))
        assert len(make(tmp_path).train()) == 6
        with contextlib.suppress(OSError):
            sys.stdout.close()
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- killed processes

KILLED = """
import resource, signal, sys
from pathlib import Path
import torch
from minclipo.checkpoint import save_tensors
from minclipo.runs.state import save_state
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
out, what, tensors = Path(sys.argv[1]), sys.argv[2], {"a": torch.ones(10**5)}
save_state(out / "states", 6, tensors, keep=2) if what == "state" else save_tensors(tensors, out / "model" / what)
"""


@posix
@pytest.mark.parametrize("what", ["state", "model.safetensors"])
def test_what_a_killed_process_had_begun_to_write_goes(copied, what):
    """The system kills it in the middle of the file. What a user keeps beside it stays.

    Catches: safetensors' .tmpXXXXXX, one copy of the weights for each kill; a broom that sweeps too wide."""
    (copied / "states" / "step_000006.pt").unlink()
    for name in ("model/.tmpA1b2C3", "model/notes.partial", "states/mine.partial", "states/.tmpA1b2C3"):
        (copied / name).write_text("the user's")
    before = names_in(copied)
    killed = subprocess.run([sys.executable, "-c", KILLED, copied, what], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGXFSZ, killed.stderr
    assert len(names_in(copied)) > len(before)
    make(copied).train(resume=True)
    assert names_in(copied) == sorted({*before, "states/step_000006.pt"})


def test_a_run_killed_in_its_very_first_file_can_be_started_again(tmp_path):
    """Catches: "exists and is no earlier run of this script" about a folder that holds nothing else."""
    (tmp_path / "out" / "settings.json.partial").mkdir(parents=True)
    prepare_out(tmp_path / "out", {"script": "x"}, resume=True)
    assert names_in(tmp_path / "out") == ["lock", "settings.json"]


@posix
def test_a_killed_toy_ends_as_if_nothing_had_happened(tmp_path):
    """The benchmark in short: three kills at random moments. Catches: whatever a kill in the middle of a write spoils,
    and a benchmark that has not followed the code that it kills. (tests/test_resume.py kills train_llm.py.)"""
    script = ROOT / "tests" / "benchmarks" / "sigkill.py"
    arguments = ["--scripts", "train_toy.py", "--kills", "3", "--json", str(tmp_path / "found.json")]
    ended = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())["scripts"]["train_toy.py"]
    assert sum(found["kills"].values()) == 3 and found["resumed"] >= 2 and found["differences"] == []


# ---------------------------------------------------------------- permissions


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    """Catches: weights that only their owner may read, since safetensors writes to a private file first."""
    earlier = os.umask(umask)
    try:
        save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path / "model")
        save_state(tmp_path / "states", 1, {"x": torch.ones(1)}, keep=1)
        write_text(tmp_path / "text", "")
    finally:
        os.umask(earlier)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 7 and modes == dict.fromkeys(modes, 0o666 & ~umask)


@pytest.fixture
def as_nobody(tmp_path, monkeypatch):
    """In tmp_path, without the rights of root, which may read everything."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    yield lambda: os.seteuid(65534) if root else None
    if root:
        os.seteuid(0)


@posix
def test_files_that_may_not_be_read_are_not_called_missing_or_damaged(tmp_path, as_nobody):
    """Catches: "No such file or directory" about weights that are there, "damaged" about a state that is whole."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path)
    save_state(tmp_path, 1, {"x": torch.ones(1)}, keep=1)
    for name in ("model.safetensors", "step_000001.pt"):
        (tmp_path / name).chmod(0)
    as_nobody()
    with pytest.raises(ValueError, match="^model.safetensors cannot be read: Permission denied$"):
        load_model(".")
    with pytest.raises(PermissionError, match="Permission denied: 'step_000001.pt'"):
        read_state(Path("step_000001.pt"))


# ---------------------------------------------------------------- damaged states


def saved(state: dict) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_flipped_bit_in_a_state_is_noticed(finished, tmp_path):
    """At 80 places of the file. Where nothing is noticed, nothing has changed: archives have some idle bytes.

    Catches: other weights, moments or random numbers than were saved; PyTorch does not look at the checksums."""
    whole = (finished / "states" / "step_000006.pt").read_bytes()
    path, state, noticed = tmp_path / "step_000006.pt", read_state(finished / "states" / "step_000006.pt"), 0
    for place in random.Random(0).sample(range(len(whole)), 80):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert saved(read_state(path)) == saved(state)
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged")
            noticed += 1
    assert noticed > 50


def test_a_damaged_state_never_reaches_the_model(copied):
    """A bit of the weights. Catches: a good model overwritten before anybody has looked, an error without a way out."""
    path, good = copied / "states" / "step_000006.pt", (copied / "model" / "model.safetensors").read_bytes()
    weights = read_state(path)["optimizer"]["masters"]["embed_tokens.weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weights) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        make(copied, steps=8).train(resume=True)
    assert str(caught.value).startswith(f"{path} is damaged: archive/data/")
    assert str(caught.value).endswith(
        "does not match its checksum. Remove it to go on from the state before it, step_000004.pt"
    )
    assert (copied / "model" / "model.safetensors").read_bytes() == good


def test_the_only_state_leaves_no_other_way_than_to_start_anew(tmp_path):
    """Catches: advice to remove the last state there is, after which the run refuses to go on."""
    (tmp_path / "step_000006.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="There is no state before it: start anew without --resume"):
        read_state(tmp_path / "step_000006.pt")


def change(state: dict, place: str, value=None) -> None:
    """Put another value at a place such as "optimizer.masters"; None: take it away."""
    *keys, last = [int(key) if key.isdigit() else key for key in place.split("|")]
    for key in keys:
        state = state[key]
    state.pop(last) if value is None else state.update({last: value})


@pytest.mark.parametrize(
    "place, value, problem",
    [
        ("step", None, "it has no step"),
        ("step", -3, "its content says -3"),
        ("step", "6", "its content says '6'"),
        ("problems_drawn", -1, "problems_drawn is -1"),
        ("generator", None, "it has no generator"),
        ("generator", torch.zeros(5056, dtype=torch.uint8), "Invalid mt19937 state"),
        ("generator", torch.zeros(16, dtype=torch.uint8), "generator is of shape (16,), not of shape (5056,)"),
        ("optimizer", None, "it has no optimizer"),
        ("optimizer", [], "optimizer is no dict but list"),
        ("optimizer|state", None, "optimizer has no state"),
        ("optimizer|state|0|exp_avg", None, "optimizer: exp_avg of weight 0 is missing or of another shape"),
        ("optimizer|masters", None, "only one of the two has optimizer.masters"),
        ("optimizer|masters|norm.weight", None, "only one of the two has optimizer.masters.norm.weight"),
        ("optimizer|masters|norm.weight", torch.ones(3), "norm.weight is of shape (3,), not of shape (16,)"),
        ("head", None, "it has no head"),
        ("head_optimizer|param_groups", None, "head_optimizer has no param_groups"),
        ("other", {}, "it holds other, which this run does not have"),
    ],
)
def test_what_is_missing_or_wrong_in_a_state_is_named(copied, place, value, problem):
    """Edited by hand, or another run's. Catches: tracebacks, a run of step -3, a model overwritten, a wrong cause, no
    way out, more than one line."""
    path, good = copied / "states" / "step_000006.pt", (copied / "model" / "model.safetensors").read_bytes()
    state = read_state(path)
    change(state, place, value)
    torch.save(state, path)
    with pytest.raises(ValueError) as caught:
        make(copied, steps=8).train(resume=True)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit this run's settings: ") and problem in message
    assert message.endswith("Remove it to go on from the state before it, step_000004.pt") and "\n" not in message
    assert (copied / "model" / "model.safetensors").read_bytes() == good


def test_a_state_that_is_none_is_named(copied):
    torch.save([1, 2], copied / "states" / "step_000006.pt")
    with pytest.raises(ValueError, match="step_000006.pt is damaged: it holds no dict but list"):
        make(copied).train(resume=True)


def test_a_damaged_model_is_made_good_by_resuming(copied):
    """The state is whole. Catches: a resumed run that leaves a broken model beside it."""
    weights = copied / "model" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (copied / "model" / "config.json").unlink()
    make(copied).start(resume=True)
    assert weights.read_bytes() == good and load_model(copied / "model")


# ---------------------------------------------------------------- damaged logs


def test_steps_that_the_log_has_lost_are_said(copied, capsys):
    """Catches: a gap in metrics.jsonl that nobody hears of."""
    log = copied / "metrics.jsonl"
    log.write_text("".join(line for line in log.open() if json.loads(line)["step"] not in (2, 5)))
    make(copied).train(resume=True)
    assert f"{log} lacks 2 of these steps, the first is step 2\n" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["[]", "3", '{"reward": 1}', "{", "\x00\x00", "[" * 100_000])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    """Catches: tracebacks from what is no object or has no step."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'metrics.jsonl'}, line 2 is .*remove it$"):
        read_lines(tmp_path / "metrics.jsonl", "step")


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe{}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not JSON"):
        read_lines(tmp_path / "metrics.jsonl")
