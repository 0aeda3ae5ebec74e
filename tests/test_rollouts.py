"""What a model wrote: rollouts and answers in files, whole after every interruption, and safe on the screen."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from conftest import FIXTURES, small_gpt

from minclipo.checkpoint import load_tokenizer
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.config import TrainConfig
from minclipo.runs.loop import Run
from minclipo.runs.measure import answer, score
from minclipo.runs.rollouts import RolloutLog, answer_records, json_line, readable, show_examples, write_records
from minclipo.tasks import Task
from minclipo.tasks.stories import stories_task
from minclipo.tasks.sums import sums_task
from minclipo.tasks.word_problems import WordProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
SHORT = "--steps 2 --prompts-per-step 2 --group-size 3 --max-new-tokens 6 --eval-every 1 --eval-problems 3 --device cpu"
EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0, TASK.check_steps)
TINY = dict(steps=6, prompts_per_step=3, group_size=4, max_new_tokens=5, head_size=4, save_every=2, keep_rollouts=1)


def make(out, task=EASY, **changes) -> Run:
    return Run(Trainer(small_gpt(vocab_size=122), toy_tokenizer(), task, TrainConfig(**TINY | changes)), out)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def steps_in(path: Path) -> list[int]:
    return sorted({line["step"] for line in lines_of(path)})


# ---- rollouts.jsonl ----


def test_each_rollout_is_a_line_with_all_that_was_said_of_it(tmp_path):
    """Against the step itself, with every kind of reward. Catches: columns of other rows, a group's neighbour as the
    prompt, parts that do not add up to the reward."""
    changes = dict(steps=1, contrastive_weight=0.2, process_penalty=0.5, overlong_penalty=0.3, overlong_buffer=1.0)
    run = make(tmp_path, **changes)
    run.train()
    step, lines = run.trainer.last, lines_of(tmp_path / "rollouts.jsonl")
    assert len(lines) == 12 and [line["group"] for line in lines] == [0] * 4 + [1] * 4 + [2] * 4
    for row, line in enumerate(lines):
        problem = step.problems[row // 4]
        assert (line["prompt"], line["truth"]) == (problem.prompt, str(problem.totals[-1]))
        assert (line["completion"], line["correct"]) == (step.texts[row], bool(step.correct[row]))
        assert line["step_verdicts"] == (TASK.check_steps(problem, step.texts[row]) if line["correct"] else None)
        assert line["tokens"] == int(step.rollouts.mask[row].sum())
        assert line["finished"] == bool(step.rollouts.finished[row]) and line["outcome"] == line["correct"]
        assert line["reward"] == pytest.approx(step.rewards[row].item(), abs=1e-6)
        assert line["advantage"] == pytest.approx(step.advantages[row].item(), abs=1e-6)
        assert line["contrastive"] == pytest.approx(step.contrastive_rewards[row].item(), abs=1e-6)
        assert line["outcome"] + line["contrastive"] + line["extra"] == pytest.approx(line["reward"], abs=3e-6)
    assert any(line["extra"] < -0.4 for line in lines) and any(line["contrastive"] < 0 for line in lines)


def test_a_task_without_steps_and_without_truth(tmp_path):
    """One's own task may have neither. Catches: a run that ends because nobody knows the expected answer."""
    problem = type("Problem", (), {"prompt": "1 , +1 ="})()
    make(tmp_path, Task(lambda stream, index: problem, lambda *_: True), steps=1).train()
    line = lines_of(tmp_path / "rollouts.jsonl")[0]
    assert line["truth"] is None and "step_verdicts" not in line
    problem.truth = 2
    make(tmp_path, Task(lambda stream, index: problem, lambda *_: True), steps=1).train()
    assert lines_of(tmp_path / "rollouts.jsonl")[0]["truth"] == "2"


@pytest.mark.parametrize("every, kept", [(0, None), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (50, [1])])
def test_the_first_and_every_nth_step_are_kept(tmp_path, every, kept):
    """Catches: nothing to look at in a short run; a file where none is wanted."""
    make(tmp_path, keep_rollouts=every).train()
    path = tmp_path / "rollouts.jsonl"
    assert (steps_in(path) if path.exists() else None) == kept


def test_a_resumed_run_has_the_rollouts_of_an_uninterrupted_one(tmp_path):
    """Killed in step 6, while half of its rollouts were written; the last state is of step 4. Catches: a step twice, a
    step lost, half a line in the middle of the file."""
    make(tmp_path / "whole").train()
    parts = make(tmp_path / "parts", save_every=4)

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.train(after_step=stop)
    with open(parts.out / "rollouts.jsonl", "ab") as file:
        file.write(b'{"step": 6, "group": 0, "prompt": "1 , +1 =", "compl')
    make(parts.out).train(resume=True)
    assert (parts.out / "rollouts.jsonl").read_bytes() == (tmp_path / "whole" / "rollouts.jsonl").read_bytes()
    RolloutLog(parts.out / "rollouts.jsonl", every=50).start(2)  # what is not kept from now on goes, too
    assert steps_in(parts.out / "rollouts.jsonl") == [1, 2]


def test_a_new_run_forgets_the_rollouts_of_an_old_one(tmp_path):
    """Catches: rollouts of another model in a file that has a step twice."""
    make(tmp_path).train()
    make(tmp_path, steps=2, seed=1).train()
    assert steps_in(tmp_path / "rollouts.jsonl") == [1, 2] and len(lines_of(tmp_path / "rollouts.jsonl")) == 24
    make(tmp_path, steps=2, keep_rollouts=0).train()
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_file_of_something_else_is_named(tmp_path):
    """Catches: a file of the user's that is cut off at its first line."""
    (tmp_path / "rollouts.jsonl").write_text("my notes\n")
    with pytest.raises(ValueError, match="rollouts.jsonl: b'my notes.*move the file away"):
        RolloutLog(tmp_path / "rollouts.jsonl", 1).start(3)
    assert (tmp_path / "rollouts.jsonl").read_text() == "my notes\n"


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_rollouts import make
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = make(Path(sys.argv[1]))
def limit(step):
    file = Path(sys.argv[1], "rollouts.jsonl")
    most = file.stat().st_size + 700 if step in (2, 3) else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
run.save = lambda: None  # a state does not fit, either; this is about the rollouts
run.train(after_step=limit)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
def test_a_full_disk_costs_the_steps_that_did_not_fit(tmp_path):
    """A real limit on the size of files while steps 3 and 4 are written. Catches: the run ended by its rollouts, half a
    line left in the file."""
    found = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "step 3: callback RolloutLog" in found.stdout and "training goes on" in found.stdout
    assert steps_in(tmp_path / "rollouts.jsonl") == [1, 2, 5, 6]
    assert len(lines_of(tmp_path / "rollouts.jsonl")) == 4 * 12


@pytest.mark.parametrize("text", ["Zürich 数学 \U0001f600", "half an emoji: \ud83d", 'a\nb\r\t\u2028"\\\x00'])
def test_any_text_is_one_line_of_utf8_and_comes_back(text):
    """Catches: UnicodeEncodeError on half a character, which a byte-level tokenizer can decode to; text nobody can read
    without a decoder; a line that is two."""
    line = json_line({"completion": text})
    assert line.count(b"\n") == 1 and json.loads(line.decode("utf-8")) == {"completion": text}
    assert "数学".encode() in json_line({"completion": "数学"})


def test_only_one_step_is_in_memory(tmp_path):
    """Catches: a list of all rollouts that grows with the run."""
    run = make(tmp_path)
    run.train()
    assert all(isinstance(value, int | Path) for value in vars(run.rollouts).values())
    assert run.rollouts.size == (tmp_path / "rollouts.jsonl").stat().st_size


# ---- the answers of an evaluation ----


def test_the_answers_say_what_the_numbers_count(tmp_path):
    """Catches: verdicts beside other answers, samples that count as problems of their own."""
    options = dict(problems=5, samples=3, max_new_tokens=6, seed=0)
    answers = answer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, **options)
    write_records(tmp_path / "new" / "answers.jsonl", answer_records(answers, "sampled"))
    lines, found = lines_of(tmp_path / "new" / "answers.jsonl"), score(answers)
    assert [line["problem"] for line in lines] == [n for n in range(5) for _ in range(3)]
    assert sum(line["correct"] for line in lines) == found["correct"] > 0
    assert sum(line["tokens"] for line in lines) / 15 == found["completion_length"]
    assert sum(all(line["step_verdicts"]) for line in lines if line["correct"]) == found["faithful"]
    for line in lines:
        problem = TASK.draw("evaluation 0", line["problem"])
        assert (line["prompt"], line["truth"]) == (problem.prompt, problem.truth)
        assert line["correct"] == EASY.check_outcome(problem, line["completion"], line["finished"])


def test_a_run_leaves_the_answers_of_each_evaluation(tmp_path):
    """Catches: answers of the sampled completions only, or of the last evaluation only."""
    out = tmp_path / "run"
    assert train_llm.main([*SHORT.split(), "--model", CHAT_MODEL, "--data", "sums", "--eval-samples", "2", "--out", str(out)]) == 0  # fmt: skip
    names = sorted(path.name for path in (out / "evaluations").iterdir())
    assert names == ["step_000000.jsonl", "step_000001.jsonl", "step_000002.jsonl"]
    lines = lines_of(out / "evaluations" / names[0])
    assert [line["decoding"] for line in lines] == ["greedy"] * 3 + ["sampled"] * 6
    assert lines[0]["truth"].isdigit() and steps_in(out / "rollouts.jsonl") == [1]


def test_an_evaluation_alone_leaves_numbers_and_answers(tmp_path, capsys):
    """Catches: results on the screen only; an earlier evaluation overwritten; a training run's folder written to."""
    out, training = tmp_path / "eval", tmp_path / "training"
    arguments = [*SHORT.split(), "--model", CHAT_MODEL, "--data", "sums"]
    assert train_llm.main([*arguments, "--eval-only", "--out", str(out)]) == 0
    assert f"in {out}: evaluation.json" in capsys.readouterr().out
    (out / "answers.jsonl").write_text("")
    assert train_llm.main([*arguments, "--eval-only", "--out", str(out)]) == 0
    assert (tmp_path / "eval-1" / "answers.jsonl").read_text() == "" and len(lines_of(out / "answers.jsonl")) == 3
    assert json.loads((out / "evaluation.json").read_text())["greedy"]["problems"] == 3
    assert train_llm.main([*arguments, "--out", str(training)]) == 0
    before = {path: path.read_bytes() for path in training.rglob("*") if path.is_file()}
    assert train_llm.main([*arguments, "--eval-only", "--out", str(training)]) == 1
    assert "is a training run; an evaluation needs a folder of its own" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in training.rglob("*") if path.is_file()}
    assert train_llm.main([*arguments, "--out", str(out)]) == 1  # nor the other way round


def test_an_evaluation_has_a_folder_of_its_own_by_default():
    assert train_llm.parse_arguments([]).out == Path("runs/llm")
    assert train_llm.parse_arguments(["--eval-only"]).out == Path("runs/eval")


# ---- on the screen ----


@pytest.mark.parametrize("task", [sums_task, stories_task])
def test_people_see_the_question_without_the_template(task, capsys):
    """Catches: 500 characters of <|im_start|> before each answer, no expected answer."""
    problem = task(prompt_writer(load_tokenizer(CHAT_MODEL))).draw("training 0", 0)
    show_examples([(problem, "It is\n12.", False)])
    shown = capsys.readouterr().out
    assert "<|im_start|>" in problem.prompt and "<|" not in shown
    assert shown.startswith(f"  question   {problem.question}\n  completion It is\n             12.\n")
    assert f"  expected   {problem.truth}\n  verdict    wrong\n" in shown
    assert problem.question in problem.prompt


def test_no_completion_can_send_escape_sequences(capsys):
    """From the model, the question or the data's answer. Catches: a cleared screen, a changed title, text that runs
    backwards, a line overwritten by \\r."""
    evil = "\x1b[2J\x9b31m\r\x07\b\u202e\u2066\x7f ok\tend"
    show_examples([(WordProblem("p", evil, evil), evil, True)])
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown) and shown.count("\\x1b[2J\\x9b31m\\r") == 3


def test_long_texts_lose_their_middle():
    """Catches: a screen full of one completion; the answer at its end cut off."""
    text = readable("begin " + "x" * 5000 + "\n" + "y" * 5000 + " so it is 42")
    assert text.startswith("begin xxx") and text.endswith("so it is 42") and len(text) < 700
    assert "[... 9419 characters ...]" in text
    lines = readable("\n".join(map(str, range(100)))).split("\n")
    assert len(lines) == 17 and lines[0] == "0" and lines[-1] == "99" and lines[8] == "[... 84 lines ...]"
    assert readable("short\ntext ") == "short\ntext"
