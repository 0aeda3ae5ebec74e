"""The page of a run's rollouts: what it holds, what it leaves out, and that a model's text stays text.

What it does in a browser is in tests/browser.
"""

import base64
import hashlib
import json
import os
import re
from argparse import ArgumentTypeError

import pytest
from conftest import small_gpt

from minclipo.config import TrainConfig
from minclipo.runs.loop import Run
from minclipo.runs.report import marked
from minclipo.runs.view import chain_pieces, chain_problem, left_out, main, page, read_runs, span_of
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

PROMPT = "66 , -4 , +1 , -1 , +2 ="
FAITHFUL, MADE_UP, SLIP = (
    "-4 62 +1 63 -1 62 +2 64 # 64",
    "+5 62 +1 63 -1 62 +2 64 # 64",
    "-4 62 +1 63 -1 61 +2 63 # 63",
)
HOSTILE = '</script><img src=x onerror="alert(1)"><!-- \u202e & %%DATA%% \ud83d'


def rollout(step=1, group=0, completion=FAITHFUL, correct=True, **changes) -> dict:
    """A line of rollouts.jsonl."""
    numbers = dict(reward=1.0, outcome=1.0, contrastive=0.0, extra=0.0, advantage=0.5, tokens=11)
    record = dict(step=step, group=group, prompt=PROMPT, completion=completion, truth="64", correct=correct)
    return record | {"finished": True} | numbers | changes


def write(folder, lines, metrics=()):
    """A run's folder with these rollouts and metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("rollouts.jsonl", lines), ("metrics.jsonl", metrics)):
        if records:
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def data_of(text: str) -> dict:
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def rows_of(run: dict, step: int = 0) -> list[dict]:
    return [row for prompt in run["steps"][step]["prompts"] for row in prompt["rollouts"]]


def text_of(row: dict) -> str:
    return "".join(text for text, _ in row["pieces"])


def test_the_page_of_a_real_run_holds_every_rollout(tmp_path, capsys):
    """Catches: a field that has another name in rollouts.jsonl, a prompt with another's rollouts, a lost step."""
    options = dict(steps=3, prompts_per_step=2, group_size=3, max_new_tokens=5, head_size=4, keep_rollouts=1)
    trainer = Trainer(small_gpt(vocab_size=122), toy_tokenizer(), TASK, TrainConfig(**options))
    Run(trainer, tmp_path / "run").train()
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "rollouts.html"
    assert capsys.readouterr().out == f"{path}\n"
    (run,) = data_of(path.read_text(encoding="utf-8"))["runs"]
    assert [step["step"] for step in run["steps"]] == [1, 2, 3] == [point[0] for point in run["curve"]]
    recorded = (tmp_path / "run" / "rollouts.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in recorded.split("\n")[:-1]]
    rows = [
        (prompt["prompt"], row) for step in run["steps"] for prompt in step["prompts"] for row in prompt["rollouts"]
    ]
    assert len(rows) == len(lines) == 18
    for line, (prompt, row) in zip(lines, rows):
        assert (prompt, text_of(row)) == (line["prompt"], line["completion"])
        assert all(row[name] == line[name] for name in ("reward", "outcome", "contrastive", "advantage", "tokens"))
        assert all(type(row[name]) in (int, float) for name in ("reward", "extra", "advantage", "tokens"))


@pytest.mark.parametrize(
    "verdicts, correct, kind",
    [
        ([True, True], True, "faithful"),
        ([True, False], True, "hallucinated"),
        (None, False, "wrong"),
        ([], True, "faithful"),
    ],
)
def test_the_kind_is_what_both_checks_say(tmp_path, verdicts, correct, kind):
    """Catches: a wrong answer called hallucinated; a right one without steps called something else than in metrics."""
    write(tmp_path, [rollout(correct=correct, step_verdicts=verdicts)])
    assert rows_of(read_runs(tmp_path, None, None)[0])[0]["kind"] == kind


def test_a_task_without_a_step_check_has_right_and_wrong(tmp_path):
    """Catches: "faithful" said of what nobody has checked."""
    lines = [rollout(prompt="What is 6 times 7?", correct=right) for right in (True, False)]
    run = read_runs(write(tmp_path, lines), None, None)[0]
    assert [row["kind"] for row in rows_of(run)] == ["right", "wrong"]
    assert all(row["pieces"] == [[FAITHFUL, True]] and "steps" not in row for row in rows_of(run))


@pytest.mark.parametrize(
    "text", [FAITHFUL, MADE_UP, SLIP, "-4 62", "+1", "", "# 64", FAITHFUL + " # 64", "62 -4 63 +1 # 63"]
)
def test_steps_are_marked_as_on_the_screen(text):
    """Against the toy's own table, with brackets. Catches: marks one step off, text that is lost between the steps."""
    problem = chain_problem(PROMPT)
    assert problem == ChainProblem(66, (-4, 1, -1, 2))
    pieces = chain_pieces(problem, text, correct=True)
    assert "".join(piece for piece, _ in pieces) == text
    brackets = "".join(piece if right else f"[{piece}]" for piece, right in pieces)
    assert " ".join(brackets.split()) == " ".join(marked(problem, text, colour=False).split())


@pytest.mark.parametrize("prompt", ["What is 2 + 2?", "66 =", "66 , 4 =", "66 , -4", "", "1" * 5000 + " , +1 ="])
def test_other_prompts_are_no_chains(prompt):
    """Catches: steps marked by the rules of another task; a number that Python refuses to read."""
    assert chain_problem(prompt) is None


def test_text_of_a_model_cannot_leave_its_place(tmp_path):
    """In the data, in the title, and against a second pass over the template's marks. Catches: a completion that ends
    the script, hidden characters that turn the text around, half a character that ends the program."""
    run = write(tmp_path / "<b>", [rollout(prompt=HOSTILE, completion=HOSTILE, truth=HOSTILE, correct=False)])
    text = page(str(run), read_runs(run, None, None))
    found = data_of(text)["runs"][0]["steps"][0]["prompts"][0]
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\ud83d", "\\ud83d")
    assert (found["prompt"], found["truth"], text_of(found["rollouts"][0])) == (shown, shown, shown)
    assert text.count("<img") == 0 and text.count("</script>") == 2 and "<b>" not in text
    assert "alert(1)" in text and "onerror=" in text and 'onerror="' not in text


def test_the_page_lets_nothing_in_and_nothing_out(tmp_path):
    """Catches: a link to a font or library; a policy that an inserted script passes, or that its own does not."""
    text = page("a run", read_runs(write(tmp_path, [rollout()]), None, None))
    assert not re.search(
        r"<link|<img|\ssrc=|href=|@import|url\(|fetch\(|innerHTML|insertAdjacent|document\.write", text
    )
    assert set(re.findall(r"https?://[^\"')\s]+", text)) == {"http://www.w3.org/2000/svg"}
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'" in text


def test_several_runs_share_a_page(tmp_path):
    """Catches: seeds and methods that cannot be told apart, a run's curve drawn under another's name."""
    for name, rate in (("seed0/clipo", 0.1), ("seed0/baseline", 0.5)):
        write(tmp_path / name, [rollout()], [{"step": 1, "accuracy": 0.7, "hallucination_rate": rate}])
    runs = read_runs(tmp_path, None, None)
    assert [(run["name"], run["curve"]) for run in runs] == [
        ("seed0/baseline", [[1, 0.7, 0.5]]),
        ("seed0/clipo", [[1, 0.7, 0.1]]),
    ]
    (alone,) = read_runs(tmp_path / "seed0" / "clipo" / "rollouts.jsonl", None, None)
    assert alone == runs[1] | {"name": "clipo"}


def test_a_large_run_is_cut_to_whole_prompts_and_says_so(tmp_path):
    """Catches: a page of gigabytes; a prompt with a part of its group, whose advantages then mean nothing."""
    lines = [rollout(step, group, f"{group}") for step in (1, 20) for group in range(30) for _ in range(4)]
    write(tmp_path, lines)
    whole = read_runs(tmp_path, None, None)
    assert left_out(whole) == "" and all(len(rows_of(whole[0], step)) == 120 for step in (0, 1))
    cut = read_runs(tmp_path, None, None, room=10_000)
    for step in cut[0]["steps"]:
        assert 1 < len(step["prompts"]) < 30 and step["count"] == 120
        assert [prompt["group"] for prompt in step["prompts"]] == list(range(len(step["prompts"])))
        assert all(len(prompt["rollouts"]) == 4 for prompt in step["prompts"])
    there = sum(len(rows_of(cut[0], step)) for step in (0, 1))
    assert f"{there} of 240 rollouts" in left_out(cut) and "--last N" in left_out(cut)
    assert len(page("", cut)) < len(page("", whole)) - 20_000
    assert [len(step["prompts"]) for step in read_runs(tmp_path, None, None, room=1)[0]["steps"]] == [1, 1]


@pytest.mark.parametrize(
    "span, last, found",
    [("20:40", None, [20, 40]), (":20", None, [1, 20]), ("40:", None, [40, 60]), (None, 1, [60]), ("20", None, [20])],
)
def test_steps_can_be_chosen(tmp_path, span, last, found):
    """Catches: an end that is left out, the first instead of the last."""
    write(tmp_path, [rollout(step) for step in (1, 20, 40, 60)])
    run = read_runs(tmp_path, span and span_of(span), last)[0]
    assert [step["step"] for step in run["steps"]] == found


@pytest.mark.parametrize("text", ["", ":", "a:b", "1:2:3", "-1"])
def test_what_is_no_span_is_refused(text):
    """Catches: a typing error that silently chooses everything."""
    with pytest.raises(ArgumentTypeError, match="FIRST:LAST"):
        span_of(text)


def refused(capsys, *arguments) -> str:
    """The message of a call that is refused."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_shown_is_said(tmp_path, capsys):
    """Catches: an empty page, a traceback, a message that does not name the option that would have helped."""
    assert "does not exist" in refused(capsys, tmp_path / "none")
    write(tmp_path / "off", [], [{"step": 1}])
    assert "there are metrics, but no rollouts.jsonl. --keep-rollouts N" in refused(capsys, tmp_path / "off")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "rollouts.jsonl").touch()
    assert "no step is recorded yet. --keep-rollouts" in refused(capsys, tmp_path / "empty")
    run = write(tmp_path / "run", [rollout(1), rollout(20)])
    assert "recorded are 1, 20" in refused(capsys, run, "--steps", "2:19")
    assert "no number of steps" in refused(capsys, run, "--last", "0")
    assert not list(tmp_path.rglob("*.html"))
    assert "could not be written" in refused(capsys, run, "--to", tmp_path / "no" / "folder.html")


def test_a_run_of_many_steps_is_thinned_and_says_so(tmp_path):
    """Catches: a page of a hundred megabytes, because each step brings its first prompt; the last step left out."""
    write(tmp_path, [rollout(step) for step in range(1, 1201)])
    (run,) = runs = read_runs(tmp_path, None, None)
    assert [step["step"] for step in run["steps"]] == list(range(3, 1201, 3))
    assert "400 of 1,200 rollouts" in left_out(runs) and "some of the steps" in left_out(runs)
    assert left_out(read_runs(tmp_path, None, 400)) == ""


@pytest.mark.parametrize(
    "changes",
    [{"step": "1"}, {"step": True}, {"step": 10**400}, {"completion": None}, {"group": 0.5}, {"correct": "no"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_damaged_line_is_named(tmp_path, capsys, changes):
    """Catches: a traceback, or a page in whose script the damage first shows."""
    message = refused(capsys, write(tmp_path, [rollout(), rollout(**changes)]))
    assert "line 2" in message and next(iter(changes)) in message


def test_what_is_no_number_is_shown_as_none(tmp_path):
    """Catches: NaN in the page's JSON, which no browser reads; a list or text where the script expects a number."""
    lines = [rollout(reward=float("nan"), advantage="<b>", extra=None, tokens=10**400, step_verdicts="no")]
    metrics = [{"step": 1, "accuracy": float("inf"), "hallucination_rate": None}, {"step": None}]
    run = read_runs(write(tmp_path, lines, metrics), None, None)[0]
    assert [rows_of(run)[0][name] for name in ("reward", "advantage", "extra", "tokens")] == [None] * 4
    assert run["curve"] == [[1, None, None]]
    data_of(page("", [run]))


def test_a_device_or_a_folder_is_not_replaced_by_a_page(tmp_path, capsys):
    """Catches: --to /dev/stdout, which the renaming of a finished file would replace; a folder given as the file."""
    run = write(tmp_path / "run", [rollout()])
    os.mkfifo(tmp_path / "pipe")
    for to in (tmp_path, tmp_path / "pipe"):
        assert "name a file" in refused(capsys, run, "--to", to)
    assert (tmp_path / "pipe").is_fifo()
