"""Word problems, sums, evaluation, and train_llm.py run as a user runs it, only on tiny models."""

import dataclasses
import json
import shutil
import sys
import zlib
from datetime import datetime
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, small_gpt

import minclipo.runs.evaluator as evaluator_module
import minclipo.sampler as sampler
from minclipo.checkpoint import load_tokenizer, save_model
from minclipo.checkpoint.files import read_lines, write_lines
from minclipo.checkpoint.hub import dataset_files
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.config import TrainConfig
from minclipo.extensions.micro_batches import micro_batches
from minclipo.model import GPT
from minclipo.runs.llm_config import LLMConfig, make_configs
from minclipo.runs.machine import check_room
from minclipo.runs.measure import Answers, evaluate, pass_at_k, score, timed_step
from minclipo.tasks import Task
from minclipo.tasks.sums import check_outcome, is_held_out, sums_task
from minclipo.tasks.word_problems import WordProblem, read_problems, word_problem_task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
SHORT = "--steps 2 --prompts-per-step 2 --group-size 3 --max-new-tokens 6 --eval-every 1 --eval-problems 3 --device cpu"


def jsonl(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


PROBLEMS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(10)]


# ---- problems ----


def test_every_epoch_has_every_problem_once_in_its_own_order():
    """Catches: drawing with replacement, every epoch in the same order, streams that share an order."""
    task = word_problem_task([WordProblem(prompt=str(n), question=str(n), truth="1") for n in range(20)])
    epochs = [[task.draw("training 0", 20 * epoch + i).question for i in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [task.draw("training 1", i).question for i in range(20)] != epochs[0]
    assert task.size == 20 and task.draw("training 0", 33).question == epochs[1][13]


@pytest.mark.parametrize(
    "lines, names",
    [
        ('{"question": "a", "answer": "1"}\n{"question": "b"\n', r"data.jsonl, line 2 is not JSON"),
        ('{"prompt": "a", "answer": "1"}\n', r"data.jsonl, line 1: no field 'question' .*found: prompt, answer"),
        ('\n{"question": "a", "answer": ""}\n', r"data.jsonl, line 2: no field 'answer' with something in it"),
        ('["a", "1"]\n', r"data.jsonl, item 1: no field 'question'.*found: str"),
        ("\n", "data.jsonl holds no problems"),
    ],
)
def test_broken_files_are_named(tmp_path, lines, names):
    (tmp_path / "data.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=names):
        read_problems([tmp_path / "data.jsonl"], "question", "answer")


def test_numbers_may_be_answers(tmp_path):
    """Catches: 0 taken for no answer."""
    file = jsonl(tmp_path / "a.jsonl", [{"q": "3 - 3?", "a": 0}, {"q": "1 / 2?", "a": 0.5}])
    assert [problem[1:] for problem in read_problems([Path(file)], "q", "a")] == [("3 - 3?", "0"), ("1 / 2?", "0.5")]


def test_parquet_needs_pyarrow_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="a.parquet: parquet and Arrow files need pyarrow"):
        read_problems([tmp_path / "a.parquet"], "question", "answer")


def test_a_source_that_is_nothing_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist. Give a .jsonl, .json, .parquet or"):
        dataset_files("nowhere.jsonl")


def test_a_hub_dataset_is_downloaded_by_pattern(tmp_path, monkeypatch):
    """Catches: all of a repository downloaded, files of another split read, an error that names nothing."""
    import huggingface_hub

    (tmp_path / "main").mkdir()
    for name in ("main/train-0.jsonl", "main/test-0.jsonl"):
        jsonl(tmp_path / name, [{"question": name, "answer": "1"}])
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    assert dataset_files("openai/gsm8k:main/train-*") == [tmp_path / "main" / "train-0.jsonl"]
    assert asked == [(("openai/gsm8k",), dict(repo_type="dataset", allow_patterns=["main/train-*"]))]
    with pytest.raises(FileNotFoundError, match="openai/gsm8k on the Hugging Face hub has no .* like other/"):
        dataset_files("openai/gsm8k:other/*")

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="openai/gsm8k.*ConnectionError: no network. Give a local"):
        dataset_files("openai/gsm8k:main/train-*")


def test_word_problems_are_judged_by_answer_and_equations():
    task = word_problem_task([WordProblem("How many?", "How many?", "48/2 = 24 clips\n#### 24")])
    problem = task.draw("training 0", 0)
    assert task.check_outcome(problem, "48/2 = 24, so \\boxed{24}", True)
    assert not task.check_outcome(problem, "so \\boxed{25}", True)
    assert task.check_steps(problem, "48/2 = 24 and 24 + 1 = 24, so \\boxed{24}") == [True, False]


def test_sums_hold_out_a_fifth_of_all_pairs():
    """Catches: held-out pairs seen in training, the other way round included."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    assert sum(is_held_out(a, b) for a, b in pairs) / len(pairs) == pytest.approx(0.2, abs=0.01)
    assert all(is_held_out(a, b) == is_held_out(b, a) for a, b in pairs)
    task = sums_task(lambda question: question)
    training = {(p.a, p.b) for p in (task.draw("training 0", i) for i in range(2000))}
    held_out = {(p.a, p.b) for p in (task.draw("evaluation 0", i) for i in range(500))}
    assert not any(is_held_out(*pair) for pair in training) and all(is_held_out(*pair) for pair in held_out)


@pytest.mark.parametrize(
    "completion, finished, right",
    [
        ("42", True, True),
        ("7 + 35 = 42.", True, True),
        ("42", False, False),
        ("42 or 43", True, False),
        ("142", True, False),
        ("-42", True, False),
        ("", True, False),
        ("४२", True, False),
    ],
)
def test_the_last_number_of_a_sum_counts(completion, finished, right):
    problem = sums_task(lambda question: question).draw("training 0", 0)
    problem = type(problem)(problem.prompt, 7, 35)
    assert check_outcome(problem, completion, finished) == right


def test_a_sum_that_does_not_add_up_is_seen():
    task = sums_task(lambda question: question)
    problem = task.draw("training 0", 0)
    assert task.check_steps(problem, "40 + 3 = 42, so 7 + 35 = 42") == [False, True]


# ---- evaluation ----


@pytest.mark.parametrize("n, c, k", [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 3, 7)])
def test_pass_at_k_equals_enumeration(n, c, k):
    """Over all subsets of k of the n samples. Catches: 1 - (1 - c/n)^k, which is too small."""
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_samples_of_a_problem_are_counted_together():
    """Catches: avg@k and pass@k over rows that belong to different problems."""
    task = Task(TASK.draw, lambda problem, text, finished: problem.start % 3 == 0)  # all samples of a problem alike
    found = evaluate(
        small_gpt(vocab_size=122),
        toy_tokenizer(),
        task,
        problems=30,
        samples=6,
        max_new_tokens=3,
        seed=0,
        sampling_rows=20,
    )
    assert found["pass_at"].keys() == {1, 2, 4}
    assert all(value == pytest.approx(found["accuracy"]) for value in found["pass_at"].values())
    assert len(found["examples"]) == 180 and 0 < found["accuracy"] < 1
    assert found["accuracy"] == pytest.approx(sum(p.start % 3 == 0 for p, _, _ in found["examples"]) / 180)


def test_evaluation_never_grows_more_rows_than_it_may(monkeypatch):
    """Catches: a bound on the problems instead of on their completions, eight times the memory for avg@8."""
    grown, original = [], sampler.Decoder.run
    watched = lambda decoder, *random: grown.append(len(decoder.rows)) or original(decoder, *random)
    monkeypatch.setattr(sampler.Decoder, "run", watched)
    model, task = small_gpt(vocab_size=122), Task(TASK.draw, lambda problem, text, finished: True)
    evaluate(model, toy_tokenizer(), task, problems=9, samples=8, max_new_tokens=2, seed=0, sampling_rows=20)
    assert sum(grown) == 72 and max(grown) == 16


def test_evaluation_options_arrive(tmp_path, monkeypatch):
    """Catches: an evaluation that takes more memory than training may; sampling at another temperature."""
    asked = []
    monkeypatch.setattr(evaluator_module, "answer", lambda *_, **options: asked.append(options) or {})
    config = LLMConfig(model="m", data="d", eval_samples=2, eval_temperature=0.9, eval_top_p=0.8)
    task = Task(TASK.draw, lambda *_: True, size=5)
    train_llm.make_evaluator(config, TrainConfig(sampling_rows=7), None, None, task).measure()
    greedy, sampled = asked
    assert greedy["temperature"] == 0 and greedy["sampling_rows"] == sampled["sampling_rows"] == 7
    assert greedy["seed"] == sampled["seed"] == 0  # the same problems in every run
    assert (sampled["temperature"], sampled["top_p"], sampled["samples"], sampled["problems"]) == (0.9, 0.8, 2, 5)


def test_a_resumed_run_forgets_later_evaluations(tmp_path, monkeypatch):
    """Evaluated at step 4, but the last state is of step 2. Catches: a result of a model that no longer exists."""
    evaluator = train_llm.make_evaluator(LLMConfig(model="m", data="d"), TrainConfig(), None, None, TASK)
    options = dict(every=2, last=8, out=tmp_path, show=2)
    problems, right = [TASK.draw("evaluation", index) for index in range(2)], [True, False]
    found = Answers(1, problems, ["", ""], right, [True, True], [3, 3], step_verdicts=[[], None])
    write_lines(tmp_path / "evaluation.jsonl", [{"step": step, "greedy": score(found)} for step in (0, 2, 4)])
    (tmp_path / "evaluations").mkdir()
    later = tmp_path / "evaluations" / "step_000004.jsonl"
    later.write_text("answers of a model that no longer exists")
    monkeypatch.setattr(evaluator, "measure", lambda: {"greedy": found})
    evaluator.after_step(2, **options)
    assert [line["step"] for line in evaluator.lines] == [0, 2] and not later.exists()
    assert [line["step"] for line in read_lines(tmp_path / "evaluation.jsonl")] == [0, 2]
    evaluator.after_step(4, **options)
    assert read_lines(tmp_path / "evaluation.jsonl")[2]["greedy"]["accuracy"] == 0.5


def test_greedy_evaluation_does_not_depend_on_how_it_is_cut():
    model, task = small_gpt(vocab_size=122), Task(TASK.draw, lambda problem, text, finished: True)
    settings = dict(problems=10, max_new_tokens=5, seed=0, temperature=0.0)
    texts = [
        [text for _, text, _ in evaluate(model, toy_tokenizer(), task, **settings, sampling_rows=rows)["examples"]]
        for rows in (1, 4, 100)
    ]
    assert texts[0] == texts[1] == texts[2]


# ---- prompts ----


def test_questions_go_through_the_chat_template():
    """Catches: a chat model asked in plain text, the suffix after the assistant's opening, a system prompt lost."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    write = prompt_writer(tokenizer, suffix=" Box it.", system_prompt="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1? Box it."}]
    assert write("1 + 1?") == tokenizer.chat(messages)


def test_without_a_chat_template_the_question_is_plain_text():
    """Catches: a bos token left out for tokenizers that put one before every text, or made up for others."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    tokenizer.chat_template = None
    assert prompt_writer(tokenizer, suffix="?")("1 + 1") == "1 + 1?\n"
    for name in ("llama_untied_fp32", "llama3_rope_scaling", "mistral_no_window", "qwen2_tied_qkv_bias"):
        tokenizer = load_tokenizer(FIXTURES / "parity" / name)
        tokenizer.chat_template = None
        text = prompt_writer(tokenizer)("1 + 1")
        assert tokenizer.encode(text) == tokenizer.encode("1 + 1\n", add_special_tokens=True)


# ---- train_llm.py ----


def run(*arguments: str) -> int:
    return train_llm.main([*SHORT.split(), *arguments])


@pytest.mark.parametrize("name", ["smollm2_like_bf16", "llama_sharded_fp16"])
def test_a_model_from_the_hub_is_trained_and_its_weights_are_remembered(name, tmp_path, monkeypatch):
    """Catches: checksums of weights that are not downloaded yet: the first run fails, or no shard is remembered."""
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)

    def snapshot_download(repo_id, *, revision=None, allow_patterns):
        """As the hub's: only the files that were asked for are there."""
        for path in (FIXTURES / "parity" / name).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert run("--model", "org/name", "--data", "sums", "--steps", "1", "--out", str(tmp_path / "out")) == 0
    files = json.loads((tmp_path / "out" / "settings.json").read_text())["files"]["model"]
    assert {path.name for path in snapshot.glob("*.safetensors")} <= files.keys()


def test_train_llm_from_end_to_end(tmp_path, capsys):
    """A bfloat16 chat model, problems from a file, CLIPO; then what it left is measured and trained on."""
    data, out = jsonl(tmp_path / "data.jsonl", PROBLEMS), tmp_path / "run"
    settings = ["--model", CHAT_MODEL, "--data", data, "--eval-data", data, "--contrastive-weight", "0.2"]
    assert run(*settings, "--out", str(out), "--eval-samples", "4", "--micro-batch-tokens", "200") == 0
    printed = capsys.readouterr().out
    assert "10 problems" in printed and "step 2: greedy accuracy" in printed and "pass@4" in printed
    lines = [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert {"accuracy", "hallucination_rate", "steps_checked", "completion_length"} <= lines[0]["greedy"].keys()
    assert lines[0]["sampled"]["samples"] == 4
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert "steps_checked" in metrics[0] and len(metrics) == 2
    assert (out / "curves.png").stat().st_size > 5000
    tokenizer = load_tokenizer(out / "model")
    assert tokenizer.chat([{"role": "user", "content": "x"}]) == load_tokenizer(CHAT_MODEL).chat(
        [{"role": "user", "content": "x"}]
    )
    assert run("--model", str(out / "model"), "--eval-data", data, "--eval-only", "--out", str(tmp_path / "eval")) == 0
    assert "greedy accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval" / "evaluation.json").read_text())["greedy"]["problems"] == 3
    assert run("--model", str(out / "model"), "--data", "sums", "--out", str(tmp_path / "more")) == 0


def test_the_toys_own_model_trains_on(tmp_path):
    """One code path for both: the model that train_toy.py saves, its task, its tokenizer without a chat template."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path / "toy")
    assert run("--model", str(tmp_path / "toy"), "--data", "chain", "--out", str(tmp_path / "run")) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "hallucination_rate" in metrics[-1]


def test_a_resumed_run_does_not_need_its_room_twice(tmp_path, monkeypatch):
    """Catches: a run that once fitted the disk and can no longer be resumed, since it is on it."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "step_000002.pt").write_bytes(b"x" * 900)
    (tmp_path / "rollouts.jsonl").write_bytes(b"x" * 900)  # which nothing will replace
    check_room(tmp_path, 1000, resume=True)
    with pytest.raises(OSError, match="MiB are needed"):
        check_room(tmp_path, 1100, resume=True)
    with pytest.raises(OSError, match="MiB are needed"):
        check_room(tmp_path, 1000, resume=False)


def test_running_out_of_memory_names_the_cure(tmp_path, monkeypatch, capsys):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(Trainer, "step", out_of_memory)
    message = message_of("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run"), capsys=capsys)
    assert "80 GiB" in message and "--sampling-rows" in message and "--resume" in message


@pytest.mark.parametrize("wanted, on_cuda, compiled", [("on", 0, 1), ("off", 1, 0), ("auto", 0, 0), ("auto", 1, 1)])
def test_compile_arrives(tmp_path, monkeypatch, wanted, on_cuda, compiled):
    """Catches: an option that is read by nobody; minutes of compiling on a CPU that nobody has asked for."""
    seen = []
    monkeypatch.setattr(train_llm.Run, "train", lambda run, **_: seen.append(run.trainer.model.compiled))
    if on_cuda:
        device = lambda name: type("Device", (), {"type": "cuda"})()
        monkeypatch.setattr(train_llm, "pick_device", device)
        monkeypatch.setattr(train_llm, "check_memory", lambda *_: None)
        monkeypatch.setattr(train_llm.Checkpoint, "model", lambda *_: small_gpt(vocab_size=122))
    run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run"), "--compile", wanted)
    assert seen == [bool(compiled)]


@pytest.mark.parametrize("half", ["torch._dynamo.exc", "torch._inductor.exc"])
def test_a_failed_compilation_names_the_way_out(tmp_path, monkeypatch, capsys, half):
    """No compiler, say: PyTorch 2.6 calls that an error of dynamo, later ones of inductor. Catches: a hundred lines of
    traceback."""

    def fail(*_):
        raise type("Failed", (RuntimeError,), {"__module__": half})("no C++ compiler was found")

    monkeypatch.setattr(Trainer, "step", fail)
    assert run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run")) == 1
    assert "no C++ compiler was found\nCompiling failed: try --compile off" in capsys.readouterr().err


def test_gradient_checkpointing_arrives(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train_llm, "Trainer", lambda m, *rest: seen.append(m.gradient_checkpointing) or Trainer(m, *rest)
    )
    assert run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "a"), "--gradient-checkpointing") == 0
    assert run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "b")) == 0
    assert seen == [True, False]


def test_a_run_never_reads_the_model_that_it_writes(tmp_path, capsys):
    """Catches: --model runs/llm/model with --out runs/llm, whose reference model would change when it is resumed."""
    assert run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run")) == 0
    inside = message_of(
        "--model", str(tmp_path / "run" / "model"), "--data", "sums", "--out", str(tmp_path / "run"), capsys=capsys
    )
    assert "is inside --out" in inside and (tmp_path / "run" / "metrics.jsonl").is_file()


def test_without_eval_data_rollouts_are_shown(tmp_path, capsys):
    """Catches: a run of which nobody ever sees a completion."""
    data = jsonl(tmp_path / "data.jsonl", PROBLEMS)
    assert run("--model", CHAT_MODEL, "--data", data, "--out", str(tmp_path / "run"), "--show", "3") == 0
    assert capsys.readouterr().out.count("verdict    wrong") == 6  # 3 after each of two steps


def test_template_variables_and_the_date_reach_the_prompt(monkeypatch):
    """Catches: Qwen3 that cannot be told not to think; prompts that change when a run is resumed on another day."""
    tokenizer = load_tokenizer(CHAT_MODEL)
    tokenizer.chat_template.source = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }} {{ enable_thinking }}"
    tokenizer.chat_template.now = datetime(2024, 2, 29)
    config = LLMConfig(model="m", data="d", chat_variables='{"enable_thinking": false}')
    write = prompt_writer(tokenizer, variables=config.template_variables())
    assert write("1 + 1?") == "2024-02-29 1 + 1? False"


def test_a_resumed_run_keeps_the_date_of_its_first_start(tmp_path, monkeypatch):
    """Catches: prompts that change when a run goes on on another day."""
    years, day = [], 86400
    watched = lambda model, tokenizer, *rest: (
        years.append(tokenizer.chat_template.now.year) or Trainer(model, tokenizer, *rest)
    )
    monkeypatch.setattr(train_llm, "Trainer", watched)
    for now, more in ((20000 * day, []), (30000 * day, ["--resume", "--steps", "3"])):
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert run("--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run"), *more) == 0
    assert years == [2024, 2024]


# Table 3.9 of the options that the paper's two recipes share, and where they differ.
RECIPE = dict(
    group_size=16, temperature=1.0, learning_rate=1e-6, weight_decay=0.01, max_grad_norm=1.0, clip_low=0.2,
    clip_high=0.2, dual_clip=3.0, aggregation="token_mean", advantage_scale="std", kl_weight=0.001, kl_kind="k3",
    contrastive_weight=0.2, contrastive_loss="infonce", contrastive_level="group", contrastive_temperature=0.05,
    contrastive_floor=-0.5, contrastive_center=False, contrastive_similarity="cosine", contrastive_anchors="correct",
    head_kind="linear", head_learning_rate=1e-3, head_weight_decay=0.01, max_prompt_tokens=512,
)  # fmt: skip
TRACKS = {
    "track1": dict(
        prompts_per_step=512, num_mini_batches=2, max_new_tokens=2048, head_size=512, head_warmup_steps=13, steps=84,
        eval_every=7, eval_samples=0, model="Qwen/Qwen2.5-3B-Instruct",
    ),
    "track2": dict(
        prompts_per_step=128, num_mini_batches=1, max_new_tokens=4096, head_size=2048, head_warmup_steps=57, steps=580,
        eval_every=29, eval_samples=16, eval_temperature=0.6, eval_top_p=0.95, model="Qwen/Qwen2.5-7B-Instruct",
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", TRACKS)
def test_presets_are_the_paper(preset):
    """Catches: any value that drifts from the recipe, also through a default that somebody changes for the toy."""
    configs = make_configs(train_llm.parse_arguments(["--preset", preset]))
    values = dataclasses.asdict(configs[0]) | dataclasses.asdict(configs[1])
    wanted = RECIPE | TRACKS[preset]
    assert {name: values[name] for name in wanted} == wanted


def test_the_paper_without_clipo_is_its_baseline():
    """Catches: --contrastive-weight 0 refused for the sake of the preset's own head warm-up."""
    arguments = train_llm.parse_arguments(["--preset", "track1", "--contrastive-weight", "0"])
    _, training = make_configs(arguments)
    assert training.contrastive_weight == 0 and training.head_warmup_steps == 0


@pytest.mark.parametrize("preset", ["track1", "track2"])
def test_presets_are_whole_and_can_be_overridden(preset):
    """Catches: a preset with a misspelt or impossible option; a preset that wins over the command line."""
    arguments = train_llm.parse_arguments(["--preset", preset, "--group-size", "4", "--model", "mine"])
    llm, training = make_configs(arguments)
    assert (llm.model, training.group_size, training.contrastive_weight) == ("mine", 4, 0.2)
    assert training.head_warmup_steps == {"track1": 13, "track2": 57}[preset]
    assert training.steps == {"track1": 84, "track2": 580}[preset]


def message_of(*arguments: str, capsys) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_bad_command_lines_end_with_a_message(tmp_path, monkeypatch, capsys):
    """Catches: a traceback, or minutes of loading before a typo is noticed."""
    data = jsonl(tmp_path / "data.jsonl", PROBLEMS)
    out = ["--out", str(tmp_path / "run")]
    assert "--model is needed" in message_of("--data", data, *out, capsys=capsys)
    assert "--data is needed" in message_of("--model", CHAT_MODEL, *out, capsys=capsys)
    model = ["--model", CHAT_MODEL, "--data", data]
    long = message_of(*model, *out, "--max-prompt-tokens", "3", capsys=capsys)
    assert "every prompt is longer than 3 tokens; see --max-prompt-tokens" in long
    room = message_of(*model, *out, "--max-new-tokens", "100000", capsys=capsys)
    assert "--max-new-tokens 100000 leaves no room for a prompt" in room
    assert not (tmp_path / "run").exists()
    ignored = message_of(*model, *out, "--contrastive-loss", "infonce", capsys=capsys)
    assert "--contrastive-loss does nothing without --contrastive-weight" in ignored
    assert "--chat-variables {x is not JSON" in message_of(*model, *out, "--chat-variables", "{x", capsys=capsys)
    endless = message_of("--model", CHAT_MODEL, "--data", "sums", *out, "--eval-problems", "0", capsys=capsys)
    assert "--eval-problems 0 means all there are" in endless
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all my work")
    other = message_of(*model, "--out", str(tmp_path / "mine"), capsys=capsys)
    assert "is no earlier run of this script" in other and (tmp_path / "mine" / "thesis.tex").is_file()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this PyTorch finds no CUDA device" in message_of(*model, *out, "--device", "cuda", capsys=capsys)


def test_prompts_that_the_tokenizer_cannot_write_are_named(tmp_path, capsys):
    """The toy's tokenizer knows no words but its own. Catches: a traceback from a library, or an empty prompt."""
    save_model(small_gpt(vocab_size=122), toy_tokenizer(), tmp_path / "toy")
    toy = ["--model", str(tmp_path / "toy"), "--out", str(tmp_path / "run")]
    assert "sums: the model's tokenizer cannot encode" in message_of(*toy, "--data", "sums", capsys=capsys)
    data = jsonl(tmp_path / "data.jsonl", [{"question": "2", "answer": "2"}, {"question": "\u2003", "answer": "1"}])
    empty = message_of(*toy, "--data", data, capsys=capsys)
    assert f"{data}, line 2: field 'question' must be one text" in empty and not (tmp_path / "run").exists()


def test_resume_with_other_settings_is_refused_unless_they_do_not_matter(tmp_path, capsys):
    """Catches: a run that quietly goes on with another learning rate; a run that cannot be made longer."""
    arguments = ["--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run")]
    assert run(*arguments) == 0
    changed = message_of(*arguments, "--resume", "--learning-rate", "1", capsys=capsys)
    assert "--resume: --learning-rate was 1e-06, now 1.0. Give the options of before, or --resume " in changed
    assert run(*arguments, "--resume", "--steps", "3", "--micro-batch-tokens", "300") == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_small_disk_is_noticed_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    arguments = ["--model", CHAT_MODEL, "--data", "sums", "--out", str(tmp_path / "run")]
    assert "MiB are needed" in message_of(*arguments, capsys=capsys)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_no_forward_pass_is_larger_than_micro_batch_tokens(tmp_path, monkeypatch):
    """One long rollout among short ones, and what the model really gets. Catches: short rows padded to the longest row
    of the whole batch."""
    trainer = micro_batch_trainer(micro_batch_tokens=40)
    original, seen = GPT.forward, []
    rollouts = trainer.sample([TASK.draw("training 0", i) for i in range(4)])
    rollouts.mask[1:, 2:] = False  # one rollout of 6 tokens, fifteen of 2
    monkeypatch.setattr(
        GPT, "forward", lambda self, tokens, *rest: seen.append(tokens.numel()) or original(self, tokens, *rest)
    )
    parts = micro_batches(rollouts, torch.arange(16), 40)
    trainer.update_on(parts, torch.arange(16), rollouts.logprobs, rollouts.mask, torch.randn(16).double())
    assert len(seen) > 2 and max(seen) <= 40


def micro_batch_trainer(**changes) -> Trainer:
    easy = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
    settings = dict(prompts_per_step=4, group_size=4, max_new_tokens=6, learning_rate=1e-3, seed=1)
    return Trainer(small_gpt(vocab_size=122).double(), toy_tokenizer(), easy, TrainConfig(**settings | changes))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_the_step_does_not_depend_on_its_micro_batches(tmp_path, monkeypatch, aggregation):
    """The gradient of every mini-batch, in float64. Catches: a mean of means, a KL penalty weighed by part."""
    seen, original = [], torch.nn.utils.clip_grad_norm_

    def watched(weights, max_norm):
        weights = list(weights)
        seen.append(torch.cat([weight.grad.flatten() for weight in weights]).clone())
        return original(weights, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    runs = []
    for tokens in (0, 30, 1):
        trainer = micro_batch_trainer(aggregation=aggregation, micro_batch_tokens=tokens, kl_weight=0.1)
        seen.clear()
        metrics = timed_step(trainer)
        metrics.pop("seconds")
        runs.append((list(seen), metrics))
    whole, wanted = runs[0]
    assert len(whole) == 2 and all(gradient.norm() > 1e-3 for gradient in whole)
    for gradients, metrics in runs[1:]:
        for ours, theirs in zip(gradients, whole):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
        assert metrics == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_an_algorithm_replaces_the_recipes_grpo_and_options_win():
    """Catches: the recipe's KL and dual clip left on under GSPO, clip ranges that cannot be overridden."""
    arguments = ["--preset", "track2", "--algorithm", "gspo", "--clip-high", "0.01"]
    _, config = make_configs(train_llm.parse_arguments(arguments))
    assert (config.ratio, config.clip_low, config.clip_high) == ("sequence", 3e-4, 0.01)
    assert (config.kl_weight, config.dual_clip, config.contrastive_weight) == (0.0, 0.0, 0.2)
    _, recipe = make_configs(train_llm.parse_arguments(["--preset", "track2"]))
    assert (recipe.ratio, recipe.kl_weight, recipe.dual_clip) == ("token", 0.001, 3.0)


@pytest.mark.parametrize("option", ["--prompt-contrast-others", "--overlong-buffer"])
def test_options_without_their_switch_are_refused(option):
    """Catches: an option that nothing reads."""
    arguments = ["--model", "m", "--data", "sums", option, "1"]
    with pytest.raises(ValueError, match="does nothing without"):
        make_configs(train_llm.parse_arguments(arguments))
