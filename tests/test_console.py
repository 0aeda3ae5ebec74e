"""What cannot be written to the screen never ends a run; its lines are short; it says what goes on in between."""

import io
import itertools
import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch
from conftest import small_gpt
from test_resume import EASY, EVERYTHING, ROOT

import minclipo.runs.progress as progress_module
from minclipo.checkpoint import save_model
from minclipo.config import TrainConfig
from minclipo.runs.console import WIDTH, prepare_console, say, wrapped
from minclipo.runs.evaluator import evaluation_line
from minclipo.runs.loop import Run
from minclipo.runs.machine import Memory, check_memory
from minclipo.runs.measure import COLUMNS, evaluate, log_line, number
from minclipo.runs.progress import Progress, duration, watched
from minclipo.runs.recipes import ALGORITHMS, METHODS
from minclipo.sampler import Decoder
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer
from minclipo.trainer import Trainer

TALKER = """
import sys
from tqdm import tqdm
from minclipo.runs.console import prepare_console
prepare_console()
for i in range(20000):
    print(i, "\\u4f60 \\ufffd \\ud800")
tqdm.write("\\u4f60 \\ufffd \\ud800")
for _ in tqdm(range(3)):
    print("\\u4f60", file=sys.stderr)
open(sys.argv[1], "w").write("arrived")
"""
unix = pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")


def talk(tmp_path, shell: str, **environment) -> subprocess.CompletedProcess:
    """Run TALKER in a shell; shell: what follows the command."""
    command = f'"$PYTHON" -c "$TALKER" "$DONE" {shell}'
    names = dict(PYTHON=sys.executable, TALKER=TALKER, DONE=str(tmp_path / "done"))
    environment = os.environ | dict(PYTHONPATH=str(ROOT)) | names | environment
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=60)


@unix
@pytest.mark.parametrize("encoding, wanted", [("ascii", rb"\u4f60 \ufffd \ud800"), ("cp1252", rb"\u4f60 \ufffd \ud800"),
                                              ("utf-8", "你 \ufffd ".encode() + rb"\ud800")])  # fmt: skip
def test_a_character_that_the_console_lacks_is_replaced(tmp_path, encoding, wanted):
    """Windows' cp1252, cron's ascii, half an emoji. Catches: a run that ends with its first strange completion."""
    found = talk(tmp_path, "", PYTHONIOENCODING=encoding)
    assert found.returncode == 0 and (tmp_path / "done").exists(), found.stderr
    assert wanted in found.stdout.splitlines()[-1] and b"Traceback" not in found.stderr


@unix
@pytest.mark.parametrize(
    "shell",
    ["| head -1", "2>&1 | head -1", ">&-", "2>&-", ">&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "<&- >&- 2>&-"],
)
def test_a_screen_that_is_gone_ends_nothing(tmp_path, shell):
    """Catches: BrokenPipeError, sys.stdout None, a full disk under the log, exit code 120 from the last flush."""
    found = talk(tmp_path, f'{shell}; exit "${{PIPESTATUS[0]}}"')
    assert found.returncode == 0 and (tmp_path / "done").exists(), found.stderr
    assert b"Error" not in found.stderr and b"Exception" not in found.stderr


CLOSED = """
import os, sys
from minclipo.runs.console import prepare_console
prepare_console()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    os.write(1, b"what a C library prints")
    os.write(2, b"what a C library prints")
"""


@unix
def test_no_file_gets_the_number_of_a_closed_screen(tmp_path):
    """Catches: warnings of a library in the middle of a training state, which was opened as number 1 or 2."""
    environment = os.environ | dict(PYTHONPATH=str(ROOT), PYTHON=sys.executable, CODE=CLOSED, OUT=str(tmp_path / "x"))
    assert subprocess.run(["bash", "-c", '"$PYTHON" -c "$CODE" "$OUT" <&- >&- 2>&-'], env=environment).returncode == 0
    assert (tmp_path / "x").read_text() == ""


@unix
def test_a_piped_log_grows_line_by_line():
    """Catches: a log that shows nothing until the run is over."""
    code = "import sys; from minclipo.runs.console import prepare_console; prepare_console(); print('first')"
    code += "; sys.stdin.readline(); print('second')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "first\n"  # while it waits for us
    assert process.communicate("\n")[0] == "second\n"


def test_somebody_elses_stream_is_not_replaced(monkeypatch):
    """A notebook's stdout, which has no file below it. Catches: output that never gets to the notebook."""
    notebook = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", notebook)
    prepare_console()
    prepare_console()
    assert sys.stdout is notebook
    print("here")
    assert notebook.buffer.getvalue() == b"here" + os.linesep.encode()  # at once
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    prepare_console()


@pytest.mark.parametrize("stdout", [None, "closed", "ascii"])
def test_a_line_of_the_log_needs_no_preparation(stdout, monkeypatch):
    """`Run` in somebody's own program. Catches: a run that its log ends there."""
    raw = io.BytesIO()
    stream = None if stdout is None else io.TextIOWrapper(raw, encoding="ascii")
    if stdout == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    say("ü")
    if stdout == "ascii":
        stream.flush()
        assert raw.getvalue() == rb"\xfc" + os.linesep.encode()


# ---- the scripts ----

ARGUMENTS = (
    "--data chain --steps 3 --prompts-per-step 2 --group-size 4 --max-new-tokens 5 --eval-every 1 --eval-problems 4 "
    "--show 4 --device cpu --threads 1"
).split()


@unix
@pytest.mark.parametrize("shell", ["2>&- | head -1", "| cat"])
def test_train_llm_goes_on(tmp_path, shell):
    """With completions that an ascii console cannot show: ids without a token. Catches: a run ended by its log."""
    save_model(small_gpt(vocab_size=400), toy_tokenizer(), tmp_path / "start")
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train_llm.py"), *ARGUMENTS, "--model", str(tmp_path / "start"), "--out"]
    line = f'"$@" {shell}; exit "${{PIPESTATUS[0]}}"'
    found = subprocess.run(
        ["bash", "-c", line, "-", *command, str(out)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stderr
    assert b"Traceback" not in found.stderr and (shell != "| cat" or rb"\ufffd" in found.stdout)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and (out / "model" / "model.safetensors").is_file()


@unix
def test_train_toy_goes_on(tmp_path):
    """Catches: BrokenPipeError from the toy's `| head -1`."""
    options = "--pretrain-steps 3 --steps 2 --prompts-per-step 2 --group-size 4 --eval-problems 20 --method baseline"
    command = [sys.executable, str(ROOT / "train_toy.py"), *options.split(), "--threads", "1", "--out"]
    line = '"$@" 2>&1 | head -1; exit "${PIPESTATUS[0]}"'
    found = subprocess.run(
        ["bash", "-c", line, "-", *command, str(tmp_path / "toy")], capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 0 and "Traceback" not in found.stdout
    assert (tmp_path / "toy" / "summary.json").is_file()


# ---- short lines ----

NAMES = {"llm": "train", **{method: method for method in METHODS}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("method", NAMES)
def test_the_log_line_is_short_and_has_what_the_method_uses(algorithm, method, tmp_path):
    """A real step of each; then numbers of all sizes. Catches: a line that wraps, columns of what is off, `finished`
    left out, which tells of completions that are cut off."""
    settings = ALGORITHMS[algorithm] | METHODS.get(method, {}) | dict(kl_weight=0.1)
    config = TrainConfig(**settings | dict(steps=1000, prompts_per_step=3, group_size=4, max_new_tokens=3))
    trainer = Trainer(toy_model(ToyConfig(hidden_size=8), 0), toy_tokenizer(), TASK, config)
    run = Run(trainer, tmp_path, "x")
    config.steps = 1
    metrics = run.train()[0]
    config.steps = 100
    line, paid = log_line(NAMES[method], metrics, config), (config.contrastive_weight, config.process_penalty)
    assert len(line) <= WIDTH and " fin " in line and " acc " in line and line.startswith(NAMES[method])
    assert (" contrast " in line) == (config.contrastive_weight > 0)
    assert (" all " in line) == (config.dynamic_sampling > 0)
    assert (" reward " in line) == any((*paid, config.prompt_contrast_weight, config.overlong_penalty))
    rng = random.Random(0)
    for _ in range(200):
        for name, value in metrics.items():
            if isinstance(value, float):
                metrics[name] = rng.choice([None, -1e-9, 0.0, 1.0, -1.0, 10.0 ** rng.uniform(-9, 3)])
        metrics |= {"step": 10 ** rng.randrange(6), "seconds": 10.0 ** rng.uniform(-3, 6)}
        line = log_line(NAMES[method], metrics, config)
        assert len(line) <= WIDTH and " fin " in line
        assert not {"-0.00", "-0.000", "-0.0000"} & set(line.split())


def test_nothing_has_a_negative_zero():
    """Catches: `kl -0.0000`."""
    assert number(-1e-9, "6.4f") == number(0.0, "6.4f") == "0.0000"
    assert number(-1e-9, ".0f") == "0" and number(-0.5, ".3f") == "-0.500" and number(-10.0, ".0f") == "-10"
    assert number(None, "5.3f") == "    -" and number(None, ".3f") == "-" and number(10, "2d") == "10"


def test_every_column_is_explained():
    """Catches: a label on the screen that the page about the log does not know."""
    page = (ROOT / "minclipo" / "runs" / "README.md").read_text(encoding="utf-8")
    section = page.partition("## What the log says")[2].partition("## Evaluation")[0]
    for name, label, _ in COLUMNS:
        assert f"`{name}`" in section and f"`{label}`" in section


def test_the_other_lines_are_short_too(capsys):
    """Catches: an evaluation or an estimate of memory that takes three rows of a terminal."""
    model, found = small_gpt(vocab_size=122), {}
    options = dict(problems=4, max_new_tokens=4, seed=0)
    found["greedy"] = evaluate(model, toy_tokenizer(), EASY, temperature=0, **options)
    found["greedy"] |= dict(hallucination_rate=0.5, steps_checked=12.5)
    found["sampled"] = evaluate(model, toy_tokenizer(), EASY, samples=64, **options)
    lines = f"step 100000: {evaluation_line(found)}".splitlines()
    assert max(map(len, lines)) <= WIDTH and len(lines) <= 4 and "pass@64" in lines[-1]
    fields = {name: (i + 1) * 2**33 for i, name in enumerate(Memory.__dataclass_fields__)}
    check_memory(Memory(**fields), torch.device("cpu"))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH and all(name in printed for name in fields)


def test_a_list_is_wrapped_between_its_parts():
    """Catches: a comma lost at the end of a line, a line that is one column too wide."""
    for room in range(6, 30):
        text = wrapped(["aaaa", "bbb", "cc cc", "d"], room)
        assert text.replace(",\n ", ",").replace("\n", "") == "aaaa, bbb, cc cc, d"
        assert room < 8 or max(map(len, text.splitlines())) <= room


# ---- a sign of life ----


def slow(monkeypatch, owner, name: str, seconds: float) -> None:
    original = getattr(owner, name)

    def wrapper(*arguments, **options):
        time.sleep(seconds)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapper)


def lines_of_a_run(monkeypatch, capsys, tmp_path, **changes) -> str:
    """A run that looks at itself all the time and tells of each look."""
    monkeypatch.setattr(progress_module, "LOOK", 0.002)
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    config = TrainConfig(**EVERYTHING | dict(steps=3, sampling_rows=4) | changes)
    Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, config), tmp_path, "toy").train(
        after_step=lambda step: time.sleep(0.02)
    )
    return capsys.readouterr().out


def test_a_step_tells_how_far_it_is(monkeypatch, capsys, tmp_path):
    """Catches: silence for as long as a step takes, which may be an hour."""
    slow(monkeypatch, Decoder, "round", 0.02)
    slow(monkeypatch, Trainer, "verify", 0.02)
    slow(monkeypatch, Trainer, "contrast", 0.02)
    slow(monkeypatch, Trainer, "loss_of", 0.02)
    said = lines_of_a_run(monkeypatch, capsys, tmp_path)
    for stage in (
        "sampling, ",
        "verifying",
        "contrast and rewards",
        "update, forward pass 1",
        "update, forward pass 2",
    ):
        assert f"toy 2/3: {stage}" in said
    finished = [int(line.split("sampling, ")[1].split()[0]) for line in said.splitlines() if "2/3: sampling" in line]
    assert finished == sorted(finished) and {0, 4, 8} <= set(finished) <= set(range(13))  # parts of four rows
    assert "of 12 rollouts finished, " in said and "toy: evaluation" in said
    assert "about 0 s left" in said and max(map(len, said.splitlines())) <= WIDTH


def test_dynamic_sampling_tells_which_batch_it_is_at(monkeypatch, capsys, tmp_path):
    slow(monkeypatch, Decoder, "round", 0.01)
    monkeypatch.setattr("minclipo.extensions.dapo.informative_groups", lambda rewards, size: rewards[::size] > 2)
    said = lines_of_a_run(monkeypatch, capsys, tmp_path, dynamic_sampling=3, steps=2)
    for batch in (1, 2, 3):
        assert f"toy 2/2: sampling batch {batch} of at most 3, " in said


def test_a_quiet_log_says_little(monkeypatch, capsys, tmp_path):
    """Catches: a line per token, or an estimate per step, in a log of thousands of steps."""
    monkeypatch.setattr(progress_module, "LOOK", 0.002)
    config = TrainConfig(**EVERYTHING | dict(steps=5))
    Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, config), tmp_path, "toy").train()
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_time_left_is_estimated(monkeypatch, capsys, tmp_path):
    """After the first step, and again as time goes on; a first step that compiles counts no longer than it must.
    Catches: an estimate that comes only on a terminal, or one that the first step spoils for ever."""
    config = TrainConfig(**EVERYTHING | dict(steps=1000))
    run = Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, config), tmp_path, "toy")
    clock = itertools.chain([0.0])
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = Progress(run)
    progress.began = progress.estimated = progress.shown = next(clock)
    progress.bar = type("Bar", (), {"disable": True})
    for step, seconds in enumerate([100, 8, 8, 8, 8, 8], start=1):
        now[0] += seconds
        run.trainer.last.number = step
        progress.step_done()
    said = capsys.readouterr().out.splitlines()
    assert said == ["toy: about 27 h 45 min left", "toy: about 2 h 13 min left"]
    assert [duration(x) for x in (0, 59, 600, 7800, 400_000)] == ["0 s", "59 s", "10 min", "2 h 10 min", "4 d 15 h"]


def test_the_screen_does_not_hold_the_cache(tmp_path):
    """Catches: gigabytes of keys and values that stay because somebody looks at them."""
    run = Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, TrainConfig(**EVERYTHING)), tmp_path)
    run.doing = "step"
    with Progress(run) as progress:
        run.trainer.sample([EASY.draw("x", 0)])
        assert progress.sampling.rows == 4 and progress.sampling.cache() is None
    assert not run.trainer.model._forward_pre_hooks


def test_work_outside_a_run_tells_how_far_it_is(monkeypatch, capsys):
    """Pretraining, or an evaluation by itself, in a pipe. Catches: minutes without a word."""
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    assert list(watched(range(4), "pretraining")) == [0, 1, 2, 3]
    assert [line[:22] for line in capsys.readouterr().out.splitlines()] == [
        f"pretraining: {done} of 4, a" for done in (1, 2, 3)
    ]
