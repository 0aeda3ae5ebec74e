"""Settings from the command line, files and earlier runs; help, errors; learning-rate schedules."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, small_gpt

from minclipo.checkpoint import load_model, load_tokenizer, save_model
from minclipo.config import TrainConfig
from minclipo.extensions.schedule import learning_rate_factor
from minclipo.runs.changes import differences
from minclipo.runs.command_line import dashed
from minclipo.runs.llm_config import LLMConfig, make_configs, say_unread_variables
from minclipo.runs.loop import Run
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402
import train_toy  # noqa: E402

SHORT = "--data chain --steps 2 --prompts-per-step 2 --group-size 3 --max-new-tokens 5 --learning-rate 1e-3 "
SHORT += "--eval-every 0 --save-every 1 --device cpu --dtype float32 --threads 1"
TOY = "--pretrain-steps 2 --steps 2 --prompts-per-step 2 --group-size 3 --eval-problems 9 --threads 1 --seeds 3 "
TOY += "--method baseline"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), folder)
    return str(folder)


def configs(*arguments: str) -> tuple[LLMConfig, TrainConfig]:
    return make_configs(train_llm.parse_arguments(list(arguments)))


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def error_of(capsys, *arguments: str, script=train_llm) -> str:
    """The one line that wrong arguments end with."""
    try:
        status = script.main(list(arguments))
    except SystemExit as exit_:
        status = exit_.code
    message = capsys.readouterr().err
    assert status in (1, 2) and message.count("\n") == 1, message
    return message


# ---- where settings come from ----


@pytest.mark.parametrize("name", ["options.json", "options.toml"])
def test_a_file_wins_over_preset_and_algorithm_and_the_command_line_over_it(tmp_path, name):
    """Catches: a file that is read and forgotten, a preset that overrides it, a key with a dash that nobody finds."""
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
        text = 'preset = "track1"\n"clip-high" = 0.3\n[training]\nclip_low = 0.1\ngroup-size = 4\n[x]\nsteps = 42\n'
    else:
        text = '{"preset": "track1", "clip-high": 0.3, "training": {"clip_low": 0.1, "group-size": 4}, "steps": 42}'
    file = written(tmp_path / name, text)
    config, training = configs("--config", file, "--algorithm", "gspo", "--clip-low", "0.2")
    assert config.model == "Qwen/Qwen2.5-3B-Instruct"  # the preset, which the file names
    assert (training.ratio, training.clip_high, training.group_size) == ("sequence", 0.3, 4)
    assert (training.clip_low, training.steps) == (0.2, 42)


def test_a_file_has_all_kinds_of_options(tmp_path):
    """Catches: a switch, an object, a list or a path that only the command line can say."""
    content = {"contrastive-center": False, "contrastive_weight": 0.1, "chat_variables": {"enable_thinking": False}}
    file = written(tmp_path / "o.json", json.dumps(content | {"model": "m", "data": "sums", "out": "somewhere"}))
    arguments = train_llm.parse_arguments(["--config", file])
    config, training = make_configs(arguments)
    assert not training.contrastive_center and config.template_variables() == {"enable_thinking": False}
    assert arguments.out == Path("somewhere") and arguments.resume is False
    file = written(tmp_path / "toy.json", '{"seeds": [2, 5], "paper": true, "method": ["clipo"]}')
    arguments, _ = train_toy.parse_arguments(["--config", file])
    assert (arguments.seeds, arguments.paper, arguments.method) == ([2, 5], True, ["clipo"])


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"learnin_rate": 1}', "there is no option learnin_rate (did you mean learning_rate?)"),
        ('{"steps": "many"}', "--steps: invalid int value: 'many'"),
        ('{"steps": true}', "steps must be one value, found true"),
        ('{"gradient_checkpointing": 1}', "gradient_checkpointing must be true or false, found 1"),
        ('{"resume": true}', "resume belongs on the command line"),
        ('{"steps": 1, "training": {"steps": 2}}', "steps is there twice"),
        ('{"steps": 1', "is not valid JSON"),
        ("[1]", "must hold options and their values, found list"),
        ('{"script": "train_toy.py"}', "is of train_toy.py, not of train_llm.py"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, capsys, text, says):
    """Catches: a misspelt key that is ignored, a traceback, an error that does not say which file."""
    file = written(tmp_path / "options.json", text)
    message = error_of(capsys, "--config", file, "--model", "m", "--data", "sums")
    assert file in message and says in message


def test_toml_without_tomllib_says_what_to_do(tmp_path, capsys, monkeypatch):
    """Python 3.10. Catches: an ImportError as a traceback."""
    monkeypatch.setitem(sys.modules, "tomllib", None)
    message = error_of(capsys, "--config", written(tmp_path / "o.toml", "steps = 3"))
    assert "TOML needs Python 3.11 or newer; write the options as JSON" in message


def test_show_settings_says_where_each_value_comes_from(tmp_path, capsys):
    """Catches: a value from the wrong place, a list of what was given only, a run that starts all the same."""
    file = written(tmp_path / "o.json", '{"num_mini_batches": 4}')
    arguments = ["--preset", "track1", "--algorithm", "gspo", "--config", file, "--steps", "42", "--show-settings"]
    assert train_llm.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    assert shown["group_size"] == ["16", "preset track1"] and shown["ratio"] == ["sequence", "algorithm gspo"]
    assert shown["num_mini_batches"] == ["4", file] and shown["steps"] == ["42", "command line"]
    assert shown["seed"] == ["0", "default"]
    assert shown["head_warmup_steps"][0] == "6"  # 13 of 84, of 42
    names = {field.name for config_class in (LLMConfig, TrainConfig) for field in dataclasses.fields(config_class)}
    assert names - shown.keys() == {"process_penalty"} and not (tmp_path / "run").exists()
    sets = [line for line in lines if line.startswith(("preset track1 sets", "algorithm gspo sets"))]
    assert len(sets) == 2 and "group_size 16" in sets[0] and "ratio sequence, clip_low 0.0003" in sets[1]
    assert "overridden: num_mini_batches 4" not in sets[0] and "steps 42" in sets[0].partition("overridden")[2]


def test_the_toy_shows_what_each_method_has_of_its_own(tmp_path, capsys):
    """Catches: --contrastive-weight shown as everybody's, the oracle's penalty missing."""
    arguments = ["--contrastive-weight", "0.3", "--show-settings", "--out", str(tmp_path / "run")]
    assert train_toy.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "method clipo\n  contrastive_weight       0.3                          command line\n" in shown
    assert "method oracle\n  process_penalty          0.5                          method oracle" in shown
    assert not (tmp_path / "run").exists()


def test_a_presets_head_warmup_keeps_its_share_of_the_steps():
    """Catches: --preset track1 --steps 2 refused for a number that nobody has given; a given one scaled."""
    warmups = [configs("--preset", "track1", "--steps", steps)[1].head_warmup_steps for steps in ("2", "84", "840")]
    assert warmups == [0, 13, 130]
    given = configs("--preset", "track1", "--steps", "840", "--head-warmup-steps", "13")[1]
    assert given.head_warmup_steps == 13


def test_a_run_that_is_made_longer_keeps_its_head_warmup(tmp_path):
    """Catches: the same command with --resume and more steps refused, for a warm-up that nobody has given."""
    arguments = ["--preset", "track1", "--out", str(tmp_path), "--resume"]
    written(tmp_path / "settings.json", '{"script": "train_llm.py", "training": {"head_warmup_steps": 13}}')
    assert configs(*arguments, "--steps", "840")[1].head_warmup_steps == 13


# ---- going on ----


def test_a_run_goes_on_with_its_own_settings(tmp_path, model, capsys):
    """--resume OUT alone, then with more steps. Catches: options that must be repeated, a default that takes the place
    of what the run had, a finished run that says nothing."""
    out = tmp_path / "run"
    arguments = [*SHORT.split(), "--model", model, "--algorithm", "gspo", "--out", str(out)]
    assert train_llm.main(arguments) == 0
    first = json.loads((out / "settings.json").read_text())
    assert first["algorithm"] == "gspo" and first["preset"] == "none"
    assert first["command_lines"][0].startswith("train_llm.py --data chain --steps 2")
    capsys.readouterr()
    assert train_llm.main(["--resume", str(out)]) == 0
    assert "all 2 steps are done; a larger --steps goes on" in capsys.readouterr().out
    assert train_llm.main(["--resume", str(out), "--steps", "3", "--ratio", "sequence"]) == 0
    then = json.loads((out / "settings.json").read_text())
    assert then["training"] == first["training"] | {"steps": 3} and then["llm"] == first["llm"]
    assert len(then["command_lines"]) == 3 and then["algorithm"] == "gspo"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_a_run_cannot_change_is_named_with_both_values(tmp_path, model, capsys):
    """Catches: "other settings for learning_rate", of which nobody sees how they differ; an algorithm that is ignored."""
    out = tmp_path / "run"
    assert train_llm.main([*SHORT.split(), "--model", model, "--out", str(out)]) == 0
    capsys.readouterr()
    changed = error_of(capsys, "--resume", str(out), "--learning-rate", "1e-5", "--seed", "1")
    assert "--resume: --learning-rate was 0.001, now 1e-05; --seed was 0, now 1. Give the options of before" in changed
    assert "--algorithm was None, now gmpo" in error_of(capsys, "--resume", str(out), "--algorithm", "gmpo")
    assert "name two folders" in error_of(capsys, "--resume", str(out), "--out", str(tmp_path / "other"))
    assert "there is no earlier run" in error_of(capsys, "--resume", str(tmp_path / "other"))


def test_a_run_from_before_an_option_existed_goes_on(tmp_path, model, capsys):
    """Catches: a new option that makes every earlier run impossible to resume; one that silently changes such a run."""
    out = tmp_path / "run"
    arguments = [*SHORT.split(), "--model", model, "--out", str(out), "--no-row-seeds"]  # this script's own is another
    assert train_llm.main(arguments) == 0
    old = json.loads((out / "settings.json").read_text())
    for name in ("learning_rate_schedule", "learning_rate_warmup", "head_kind", "row_seeds"):
        del old["training"][name]
    for name in ("command_lines", "preset", "algorithm"):
        del old[name]
    written(out / "settings.json", json.dumps(old))
    assert "--learning-rate-warmup was 0, now 2" in error_of(
        capsys, *arguments, "--resume", "--learning-rate-warmup", "2"
    )
    assert train_llm.main([*arguments, "--resume"]) == 0
    written(out / "settings.json", json.dumps(old))
    assert train_llm.main(["--resume", str(out), "--steps", "3"]) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_earlier_toy_run_compares_with_the_toys_defaults():
    """settings.json of the toy has only what was given. Catches: --steps 100 refused, which is what the run had."""
    earlier = {"script": "train_toy.py", "toy": {}, "training": {"algorithm": "gspo"}}
    same = {"algorithm": "gspo", "steps": 100, "clip_high": 4e-4, "contrastive_weight": 0.1}
    assert differences(earlier, earlier | {"training": same}) == {}
    assert differences(earlier, earlier | {"training": same | {"steps": 60}}) == {"steps": (100, 60)}


def test_the_toy_goes_on_with_its_own_settings(tmp_path, capsys):
    """Catches: seeds and methods forgotten, so that --resume OUT trains others; steps changed under a finished method."""
    out = tmp_path / "toy"
    assert train_toy.main([*TOY.split(), "--learning-rate", "1e-3", "--out", str(out)]) == 0
    capsys.readouterr()
    assert train_toy.main(["--resume", str(out)]) == 0
    assert "everything that was asked for is done" in capsys.readouterr().out
    assert [path.name for path in out.glob("seed*")] == ["seed3"]
    changed = error_of(capsys, "--resume", str(out), "--steps", "4", "--num-layers", "1", script=train_toy)
    assert "steps was 2, now 4" in changed and "--num-layers was 2, now 1" in changed
    assert train_toy.main(["--resume", str(out), "--method", "oracle"]) == 0
    lines = [json.loads(line) for line in (out / "seed3" / "oracle" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert json.loads((out / "settings.json").read_text())["method"] == ["baseline", "oracle"]


def test_settings_of_a_run_are_a_file_of_options(tmp_path, model):
    """Catches: settings.json that --config cannot read; options that are off refused as doing nothing."""
    arguments = [*SHORT.split(), "--model", model, "--out", str(tmp_path / "run")]
    assert train_llm.main(arguments) == 0
    again = configs("--config", str(tmp_path / "run"), "--seed", "7")
    wanted = configs(*arguments)
    assert again[0] == wanted[0] and again[1] == dataclasses.replace(wanted[1], seed=7)


# ---- help and errors ----


@pytest.mark.parametrize("script", [train_llm, train_toy])
def test_help_fits_two_screens(script, capsys, monkeypatch):
    """At 100 columns. Catches: fifty lines of usage, a hundred options in one heap, "(default: )"."""
    monkeypatch.setenv("COLUMNS", "100")
    pages = []
    for which in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            script.main([which])
        pages.append(capsys.readouterr().out)
    short, long = pages
    assert len(short.splitlines()) < 100 and short.startswith(f"usage: {script.__name__}.py [options]\n\n")
    assert "--learning-rate X" in short and "--advantage-epsilon" not in short and "--advantage-epsilon" in long
    assert "(default: )" not in long and "\nCLIPO:" in short and "\nrollouts:" in short


@pytest.mark.parametrize("script", [train_llm, train_toy])
@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--steps x", "--steps: invalid int value: 'x'"),
        ("--ratio x", "--ratio: invalid choice: 'x'"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--max-new-tokens 0", "--max-new-tokens must be at least 1, found 0"),
        ("--group-size 90000000000000000000", "--group-size must be at most 10000, found 9"),
        ("--steps 90000000000000000000", "--steps must be at most 1000000000, found 9"),
        ("--prompts-per-step 100000 --group-size 10000", "--prompts-per-step 100000 times --group-size 10000 must be"),
        ("--temperature 1e-40", "--temperature must be at least 1e-06"),
        ("--clip-high 1e308", "--clip-high must be at most 1000000000"),
        ("--learning-rate nan", "--learning-rate must be a finite number"),
        ("--num-mini-batches 99999", "--num-mini-batches 99999 must be at most the number of rollouts, --prompts-per"),
        ("--threads -1", "--threads: must be from "),
        ("--threads 10000", "to 1024, found 10000"),
        ("--learning-rate-warmup 5 --steps 4", "--learning-rate-warmup must be at most the number of steps, 4"),
    ],
)
def test_an_error_is_one_line_that_names_the_option(tmp_path, capsys, script, arguments, says):
    """Catches: a traceback, an error after fifty lines of usage, max_new_tokens for --max-new-tokens."""
    needed = ["--model", "m", "--data", "sums"] if script is train_llm else []
    message = error_of(capsys, *needed, *arguments.split(), "--out", str(tmp_path / "run"), script=script)
    assert says in message and not (tmp_path / "run").exists()


def test_only_names_of_options_get_dashes():
    """Catches: --steps in the middle of a sentence about steps, ----group-size."""
    message = dashed("group_size 3 times --seed of my_group_size steps; steps", ["group_size", "steps", "seed"])
    assert message == "--group-size 3 times --seed of my_group_size steps; steps"
    assert dashed("steps must be at least 1 of the steps", ["steps"]) == "--steps must be at least 1 of the steps"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--data sums --question-field q", "--question-field does nothing with sums"),
        ("--data stories --answer-field a", "--answer-field does nothing with stories"),
        ("--data chain --eval-data sums --prompt-suffix x", "--prompt-suffix does nothing with chain and sums"),
        ("--data chain --system-prompt x", "--system-prompt does nothing with chain"),
        ("--data sums --eval-temperature 1", "--eval-temperature does nothing without --eval-samples"),
        ("--data sums --eval-top-p 1", "--eval-top-p does nothing without --eval-samples"),
    ],
)
def test_an_option_that_nobody_reads_is_refused(arguments, says):
    """Catches: an experiment with a system prompt that no prompt has."""
    with pytest.raises(ValueError, match=says):
        configs("--model", "m", *arguments.split())


def test_an_option_that_one_of_two_tasks_reads_is_fine():
    configs("--model", "m", "--data", "sums", "--eval-data", "a.jsonl", "--question-field", "q")
    configs("--model", "m", "--data", "chain", "--eval-data", "sums", "--system-prompt", "x")
    configs("--preset", "track2", "--data", "sums")  # its question_field is the preset's


def test_variables_that_the_template_never_mentions_are_said(capsys):
    """Catches: '{"enable_thinkin": false}', and a model that thinks all the same."""
    tokenizer = load_tokenizer(FIXTURES / "parity" / "smollm2_like_bf16")
    tokenizer.chat_template.source = "{{ messages[0].content }}{{ enable_thinking }}"
    config = LLMConfig(model="m", data="d", chat_variables='{"enable_thinking": 1, "enable_thinkin": 1}')
    say_unread_variables(config, tokenizer)
    assert capsys.readouterr().out.startswith("--chat-variables: enable_thinkin will do nothing, ")
    tokenizer.chat_template = None
    say_unread_variables(config, tokenizer)
    assert "the model has no chat template" in capsys.readouterr().out


def test_more_prompts_than_problems_are_said(tmp_path, capsys):
    """Catches: one problem asked twenty times in a step, each time as a group of its own, without a word."""
    data = written(tmp_path / "d.jsonl", '{"question": "1 + 1?", "answer": "2"}\n')
    chat_model = str(FIXTURES / "parity" / "smollm2_like_bf16")
    small = "--steps 1 --prompts-per-step 2 --group-size 2 --max-new-tokens 2 --eval-every 0 --device cpu --threads 1"
    arguments = [*small.split(), "--model", chat_model, "--data", data, "--out", str(tmp_path / "run")]
    assert train_llm.main(arguments) == 0
    assert "--prompts-per-step 2 is more than the 1 problems of --data" in capsys.readouterr().out


def test_measuring_obeys_no_bounds_of_training(model, capsys):
    """Catches: --eval-only refused for a group size, a batch or a warm-up that only training would have."""
    training = "--group-size 1 --steps 0 --num-mini-batches 99 --head-warmup-steps 9"
    asked = "--eval-only --data chain --max-new-tokens 3 --eval-problems 2 --show 0 --device cpu --threads 1"
    assert train_llm.main([*asked.split(), *training.split(), "--model", model]) == 0
    said = capsys.readouterr().out
    assert "greedy accuracy" in said and "--group-size, --num-mini-batches, --head-warmup-steps will do nothing" in said


# ---- learning-rate schedules ----


def test_schedules_by_hand():
    """Ten steps, two of warm-up. Catches: a last step of rate 0, a warm-up that starts at 0 or never reaches 1."""
    factors = {kind: [learning_rate_factor(kind, n, 10, 2) for n in range(1, 11)] for kind in ("linear", "cosine")}
    assert factors["linear"] == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert factors["cosine"] == pytest.approx([0.5, 1] + [(1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)])
    assert [learning_rate_factor("constant", n, 10, 4) for n in (1, 2, 3, 4, 5, 10)] == [0.25, 0.5, 0.75, 1, 1, 1]
    for kind in ("linear", "cosine", "constant"):
        assert learning_rate_factor(kind, 1, 10, 0) == 1 and learning_rate_factor(kind, 10, 10, 10) == 1
    assert learning_rate_factor("linear", 11, 10, 2) == learning_rate_factor("cosine", 11, 10, 2) == 0


EASY = Task(TASK.draw, lambda problem, text, finished: len(text) % 2 == 0)


def make(out: Path, **changes) -> Run:
    settings = dict(steps=6, prompts_per_step=3, group_size=4, max_new_tokens=5, learning_rate=1e-2, save_every=2)
    config = TrainConfig(**settings | changes)
    return Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, config), out)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_optimizer_gets_the_rate_of_the_step(tmp_path, kind, monkeypatch):
    """Head warm-up included. Catches: a schedule that starts when the head is ready, a rate that is only in the log."""
    used, original = [], torch.optim.AdamW.step
    watched = lambda self, *rest: used.append(self.param_groups[0]["lr"]) or original(self, *rest)
    changes = dict(learning_rate_schedule=kind, learning_rate_warmup=3, head_warmup_steps=1, contrastive_weight=0.1)
    run = make(tmp_path, num_mini_batches=1, head_learning_rate=0.5, **changes)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    history = run.train()
    wanted = [1e-2 * learning_rate_factor(kind, n, 6, 3) for n in range(2, 7)]
    assert [rate for rate in used if rate != 0.5] == wanted
    assert "learning_rate" not in history[0] and [line["learning_rate"] for line in history[1:]] == wanted


def test_a_constant_rate_is_no_metric_and_changes_nothing(tmp_path):
    """Catches: a column of the same number in every log."""
    assert "learning_rate" not in make(tmp_path, steps=1).train()[0]


@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_a_resumed_schedule_ends_bit_equal(tmp_path, kind):
    """Stopped after step 4, as by a crash. Catches: a schedule that starts anew, or one step early or late."""
    changes = dict(learning_rate_schedule=kind, learning_rate_warmup=5)
    whole = make(tmp_path / "whole", **changes)
    whole.train()
    stopped = make(tmp_path / "parts", **changes)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.train(after_step=stop)
    make(tmp_path / "parts", **changes).train(resume=True)
    ours, theirs = load_model(tmp_path / "parts" / "model"), load_model(tmp_path / "whole" / "model")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_a_schedule_that_ends_cannot_be_made_longer(tmp_path, model, capsys):
    """Catches: a run resumed with more steps whose rate jumps up again, which no uninterrupted run has."""
    out = tmp_path / "run"
    assert (
        train_llm.main([*SHORT.split(), "--learning-rate-schedule", "linear", "--model", model, "--out", str(out)]) == 0
    )
    capsys.readouterr()
    assert "steps was 2, now 3" in error_of(capsys, "--resume", str(out), "--steps", "3")
    assert train_llm.main(["--resume", str(out)]) == 0
    assert "all 2 steps are done\n" in capsys.readouterr().out


# ---- between the parts ----


def test_an_evaluations_settings_are_no_settings_for_training(tmp_path, model):
    """Catches: a learning rate three hundred times the default, from a run that had none."""
    arguments = ["--model", model, "--data", "chain", "--max-new-tokens", "5", "--eval-problems", "2", "--eval-only"]
    assert train_llm.main([*arguments, "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "eval")]) == 0
    llm, training = configs("--config", str(tmp_path / "eval"))
    assert llm.eval_problems == 2 and training.max_new_tokens == 5
    assert training.learning_rate == 1e-6 and training.prompts_per_step == 16
    assert configs("--config", str(tmp_path / "eval"), "--algorithm", "gspo")[1].ratio == "sequence"


def test_a_resumed_run_keeps_its_threads(tmp_path, model):
    """Another number adds in another order. Catches: weights that are no longer bit-equal."""
    assert train_llm.main([*SHORT.split(), "--model", model, "--out", str(tmp_path)]) == 0
    assert train_llm.parse_arguments(["--resume", str(tmp_path)]).threads == 1


def test_a_folder_of_a_run_is_not_its_model(tmp_path, model, capsys):
    """Catches: an error that leaves the user to find out."""
    shutil.copytree(model, tmp_path / "model")
    message = error_of(capsys, *SHORT.split(), "--model", str(tmp_path), "--out", str(tmp_path / "run"))
    assert f"did you mean {tmp_path / 'model'}?" in message


def test_an_evaluation_resumes_nothing(tmp_path, capsys, model):
    """Catches: the checkpoint that a run began with, measured in the place of what it has trained."""
    assert train_llm.main([*SHORT.split(), "--model", model, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert "--model OUT/model" in error_of(capsys, "--resume", str(tmp_path), "--eval-only")


def test_a_file_may_be_called_like_a_preset(tmp_path, capsys, model):
    """Catches: a file of options announced as a preset, or a traceback."""
    file = written(tmp_path / "presets.json", '{"algorithm": "gspo", "task": "chain"}')
    assert train_llm.main(["--model", model, "--config", file, "--show-settings"]) == 0
    printed = capsys.readouterr().out
    assert "algorithm gspo sets" in printed and "presets.json sets" not in printed
    assert configs("--model", model, "--config", file)[0].data == "chain"
