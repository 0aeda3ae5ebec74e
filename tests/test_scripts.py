"""Options, intervals, pictures, and train_toy.py run as a user runs it, only shorter."""

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from minclipo.config import TrainConfig, option
from minclipo.runs.command_line import add_options, changeable_later, given_options, needed_by
from minclipo.runs.folder import prepare_out
from minclipo.runs.intervals import mean_interval, share_interval
from minclipo.runs.plots import plot_training
from minclipo.runs.recipes import METHODS, SWITCHES
from minclipo.runs.report import marked
from minclipo.tasks.chain import ChainProblem

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_toy  # noqa: E402

SHORT = "--pretrain-steps 3 --steps 2 --prompts-per-step 2 --group-size 4 --eval-problems 20 --threads 1".split()


@dataclass
class Sample:
    count: int = option(3, "how many, 5% say", group="size")
    rate: float = option(0.5, "how fast", group="speed")
    kind: str = option("a", "which", group="size", choices=("a", "b"))
    on: bool = option(True, "whether", group="size", needs="count", later=True)


def test_an_option_says_what_it_needs_and_whether_it_may_change():
    """Catches: a switch that no option has, a method without the option that makes it, a seed changed on the way."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    needs = needed_by(TrainConfig)
    assert set(needs.values()) <= names and needed_by(Sample) == {"on": "count"}
    assert all(
        name.partition("_")[0] in ("contrastive", "head") for name in needs if needs[name] == "contrastive_weight"
    )
    assert all(METHODS[method][switch] > 0 for method, switch in SWITCHES.items())
    assert changeable_later(Sample) == {"on"}
    assert changeable_later(TrainConfig) == {
        "steps", "save_every", "keep_states", "keep_rollouts", "sampling_rows", "micro_batch_tokens"
    }  # fmt: skip


def test_options_give_what_was_given():
    """Catches: defaults reported as given (they would override a method's preset), a flag that cannot be off."""
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    text = parser.format_help()  # a % in a sentence must not break the help
    assert text.count("size:") == text.count("speed:") == 1 and text.index("--kind") < text.index("speed:")
    assert given_options(parser.parse_args([]), Sample) == {}
    given = given_options(parser.parse_args("--count 4 --no-on --kind b".split()), Sample)
    assert given == {"count": 4, "on": False, "kind": "b"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--kind", "c"])


def test_share_interval_covers_the_truth_about_95_times_in_100():
    """Catches: a normal interval, which fails near 0. 2000 draws of 50 at p = 0.03; 3% is 6 standard errors."""
    rng, hits = random.Random(0), 0
    for _ in range(2000):
        interval = share_interval(sum(rng.random() < 0.03 for _ in range(50)), 50)
        hits += interval.low <= 0.03 <= interval.high
    assert 0.92 < hits / 2000 <= 1


def test_mean_interval_by_hand():
    """Mean 0.3, standard deviation 0.1, n = 3: half width 4.303 * 0.1 / sqrt(3). Catches: z for t, n for n - 1."""
    interval = mean_interval([0.2, 0.3, 0.4])
    assert interval.mean == pytest.approx(0.3)
    assert interval.high == pytest.approx(0.3 + 4.303 * 0.1 / 3**0.5)
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([0.5])


def test_a_picture_of_unequal_runs_is_drawn(tmp_path):
    """Catches: a crash when Ctrl-C left one seed shorter than the others."""
    run = [dict(step=i, accuracy=i / 9, hallucination_rate=0.5) for i in range(1, 9)]
    plot_training({"baseline": [run, run[:3]], "clipo": [run]}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_the_accuracy_of_dynamic_sampling_is_that_of_all_it_has_sampled(tmp_path, monkeypatch):
    """Catches: a curve of the prompts that were kept because they fail now and then, beside other methods' of all."""
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, xs, ys, **_: drawn.append(list(ys)) or [])
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda self, **_: None)  # of lines that are not there
    run = [dict(step=1, accuracy=0.5, accuracy_sampled=0.9, hallucination_rate=0.1)]
    plot_training({"clipo": [run]}, tmp_path / "x.png")
    assert drawn == [[0.9], [0.1]]


def test_contrastive_options_reach_clipo_only():
    """Catches: --contrastive-weight turning the GRPO baseline into CLIPO; the paper's setting mixed with ours."""
    given = dict(contrastive_weight=0.7, process_penalty=0.9, contrastive_level="batch", steps=84)
    config = {method: train_toy.method_config(method, given, 0) for method in train_toy.METHODS}
    assert [config[m].contrastive_weight for m in ("baseline", "clipo", "oracle", "clipo_paper")] == [0, 0.7, 0, 0.2]
    assert [config[m].process_penalty for m in ("baseline", "clipo", "oracle", "clipo_paper")] == [0, 0, 0.9, 0]
    paper = config["clipo_paper"]
    assert (paper.contrastive_level, paper.contrastive_loss, paper.contrastive_temperature) == (
        "group",
        "infonce",
        0.05,
    )
    assert paper.head_warmup_steps == 13 and not paper.contrastive_center


def test_every_method_trains_with_the_algorithm_and_options_win():
    """Catches: GSPO for the baseline and GRPO for CLIPO, or a preset that overrides the command line."""
    for method in ("baseline", "clipo", "oracle", "prompt_contrast"):
        config = train_toy.method_config(method, {"clip_low": 0.1}, 0, "gspo")
        assert (config.ratio, config.aggregation, config.clip_high) == ("sequence", "sequence_mean", 4e-4)
        assert config.clip_low == 0.1
    assert train_toy.method_config("baseline", {}, 0).ratio == "token"


def test_prompt_contrast_options_reach_prompt_contrast_only():
    """Catches: our extension switched on in the baseline or in CLIPO."""
    given = dict(prompt_contrast_weight=0.7)
    weights = {m: train_toy.method_config(m, given, 0).prompt_contrast_weight for m in train_toy.METHODS}
    assert {method for method, weight in weights.items() if weight} == {"prompt_contrast"}


def test_wrong_steps_are_marked():
    problem = ChainProblem(7, (5, -3))
    assert marked(problem, "+5 12 -4 9 # 9", colour=False) == "+5 12 [-4 9] # 9"
    assert "\033[1;31m-4 9\033[0m" in marked(problem, "+5 12 -4 9 # 9", colour=True)
    assert marked(problem, "+5 12 -3 9 +1 10 # 10", colour=False) == "+5 12 -3 9 [+1 10] # 10"


def run_toy(*arguments, out: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train_toy.py"), *SHORT, "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_train_toy_from_end_to_end(tmp_path):
    """Two seeds, all four methods; then --resume does nothing again, and a second start keeps the first run."""
    out = tmp_path / "toy"
    first = run_toy("--seeds", "0", "1", "--paper", out=out)
    assert first.returncode == 0, first.stderr
    assert "\033[" not in first.stdout  # no colour codes where nobody sees colours
    summary = json.loads((out / "summary.json").read_text())
    for method in ("baseline", "clipo", "oracle", "clipo_paper"):
        for measure in ("accuracy", "hallucination_rate", "faithful_accuracy"):
            interval = summary[method][measure]
            if interval["seeds"] < 2:  # a seed where nothing is right has no hallucination rate
                assert measure == "hallucination_rate" and interval["low"] is interval["high"] is None
                continue
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
        assert summary[method]["seconds"] > 0 and summary[method]["peak_memory_mib"] > 0
        for file in ("metrics.jsonl", "model/config.json", "model/model.safetensors", "model/tokenizer.json"):
            assert (out / "seed1" / method / file).is_file()
    assert (out / "curves.png").stat().st_size > 5000

    again = run_toy("--method", "baseline", "--resume", out=out)  # less is asked for, all is reported
    assert again.returncode == 0 and "pretraining" not in again.stdout and " 1/2 " not in again.stdout
    assert json.loads((out / "summary.json").read_text()) == summary

    other = run_toy("--method", "baseline", out=out)
    assert other.returncode == 0 and "is now in" in other.stdout
    assert (tmp_path / "toy-1" / "summary.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_ctrl_c_keeps_what_there_is(tmp_path):
    """Catches: results of finished methods lost with the unfinished one."""
    out = tmp_path / "toy"
    arguments = [*SHORT, "--steps", "100000", "--method", "baseline", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_toy.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # pytest in the background ignores it
    )
    log = out / "seed0" / "baseline" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by Ctrl-C: saved after step" in text and "Traceback" not in text
    assert "pretrained" in json.loads((out / "summary.json").read_text())
    assert (out / "curves.png").is_file()


def test_a_full_disk_ends_with_a_message(tmp_path, capsys, monkeypatch):
    """Catches: a traceback, and the results of what had been finished before not reported."""
    out = tmp_path / "toy"
    assert train_toy.main([*SHORT, "--method", "baseline", "--out", str(out)]) == 0

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_toy, "save_model", full_disk)
    status = train_toy.main([*SHORT, "--method", "baseline", "--seeds", "0", "1", "--resume", "--out", str(out)])
    printed = capsys.readouterr()
    assert status == 1 and "stopped: [Errno 28] No space left on device" in printed.err
    assert json.loads((out / "summary.json").read_text())["baseline"]["seeds"] == [0]


def test_a_damaged_state_ends_with_a_message(tmp_path, capsys):
    """Catches: a traceback from --resume, and the results of finished methods not reported."""
    out = tmp_path / "toy"
    assert train_toy.main([*SHORT, "--method", "baseline", "--out", str(out)]) == 0
    (out / "seed0" / "baseline" / "result.json").unlink()
    state = sorted((out / "seed0" / "baseline" / "states").iterdir())[-1]
    state.write_bytes(state.read_bytes()[:-9])
    assert train_toy.main([*SHORT, "--method", "baseline", "--resume", "--out", str(out)]) == 1
    assert "is damaged" in capsys.readouterr().err


def message_of(*arguments, out: Path, capsys) -> str:
    with pytest.raises(SystemExit) as exit_:
        train_toy.main([*SHORT, "--out", str(out), *arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_bad_command_lines_end_at_once(tmp_path, capsys):
    """Catches: minutes of pretraining before a typo is noticed, a user's folder overwritten."""
    assert "--temperature must be above 0" in message_of("--temperature", "-1", out=tmp_path / "a", capsys=capsys)
    assert not (tmp_path / "a").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all my work")
    assert "is no earlier run of this script" in message_of(out=mine, capsys=capsys)
    assert (mine / "thesis.tex").read_text() == "all my work"
    (tmp_path / "file").write_text("")
    assert "is no earlier run" in message_of(out=tmp_path / "file", capsys=capsys)
    (mine / "settings.json").write_text('{"editor.fontSize": 12}')  # somebody else's settings.json
    for arguments in ([], ["--resume"]):
        assert "is no earlier run" in message_of(*arguments, out=mine, capsys=capsys)
    assert "makes 130 tokens" in message_of("--max-new-tokens", "120", out=tmp_path / "a", capsys=capsys)
    assert "finite number" in message_of("--contrastive-floor", "nan", out=tmp_path / "a", capsys=capsys)
    assert "--seeds: must be from 0 to" in message_of("--seeds", "0", str(2**64), out=tmp_path / "a", capsys=capsys)
    ignored = message_of("--method", "baseline", "--head-size", "8", out=tmp_path / "a", capsys=capsys)
    assert "--head-size is an option of clipo, which --method leaves out" in ignored
    idle = message_of("--kl-kind", "k2", out=tmp_path / "a", capsys=capsys)
    assert "--kl-kind does nothing without --kl-weight" in idle
    prepare_out(tmp_path / "b", {"script": "train_toy.py", "toy": {}, "training": {"steps": 5}}, resume=False)
    assert "choose another --out" in message_of("--resume", out=tmp_path / "b", capsys=capsys)
