"""Checkpoints on other problem sets, and the equation check beside people: the numbers, the pairs, the doors."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons" / "experiments"))
import human_labels  # noqa: E402
import transfer  # noqa: E402
from transfer_intervals import difference, share  # noqa: E402
from transfer_measure import templates_of  # noqa: E402

from minclipo.runs.intervals import share_interval  # noqa: E402

CARELESS, SHARED = (str(ROOT / "lessons" / "models" / name) for name in ("careless", "shared_step"))
PARITY = ROOT / "tests" / "fixtures" / "parity"
TOY = ["--data", "chain", "--problems", "12", "--max-new-tokens", "24", "--dtype", "float32", "--device", "cpu"]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# ---- intervals ----


def test_the_interval_of_a_paired_difference_is_the_published_one():
    """diffpropci.mp(b = 40, c = 20, n = 160) of R's package PropCIs. Catches: a variance that ignores the pairs."""
    pairs = [(0, 1)] * 40 + [(1, 0)] * 20 + [(1, 1)] * 60 + [(0, 0)] * 40
    found = difference([a for a, _ in pairs], [b for _, b in pairs], list(range(160)))
    assert found.mean == pytest.approx(-20 / 160)
    assert (found.low, found.high) == pytest.approx((-0.21601726, -0.03089632), abs=2e-6)  # our z has four digits


def test_two_models_that_never_differ_have_an_interval():
    """Catches: a difference of 0 ± 0, which says that other problems cannot differ either."""
    found = difference([True, False, True], [True, False, True], [1, 2, 3])
    assert found.mean == 0 and found.low < -0.1 and found.high > 0.1


def test_copies_of_a_problem_are_no_evidence():
    """50 problems of each template that all go alike. Catches: intervals that are seven times too narrow."""
    values, others = [True, True, False, True, False], [False, True, False, True, True]
    one_each, templates = list(range(5)), [template for template in range(5) for _ in range(50)]
    fifty = [[value for value in side for _ in range(50)] for side in (values, others)]
    for found, expected in [
        (share(fifty[0], templates), share_interval(3, 5)),
        (difference(*fifty, templates), difference(values, others, one_each)),
    ]:
        assert vars(found) == pytest.approx(vars(expected))


@pytest.mark.parametrize("right", [0, 1, 30, 40])
def test_independent_problems_have_wilsons_interval(right):
    """Catches: a correction for templates where there are none."""
    found = share([index < right for index in range(40)], list(range(40)))
    assert vars(found) == pytest.approx(vars(share_interval(right, 40)))


def test_templates_that_do_not_go_together_cost_little():
    """Right and wrong as chance has it. Catches: one draw per template, whatever happens in it."""
    rng = random.Random(0)
    values = [rng.random() < 0.4 for _ in range(700)]
    found, alone = share(values, [index % 100 for index in range(700)]), share_interval(sum(values), 700)
    assert found.high - found.low < 1.3 * (alone.high - alone.low)


def test_one_right_answer_does_not_pull_the_upper_bound_down():
    """100 templates of 50 problems, the right ones spread over them. Catches: a bound that falls from 0.037 to 0.001
    because one template is not all wrong, and so seems to show that templates hardly differ."""
    templates = [index % 100 for index in range(5000)]
    bounds = [share([index < right for index in range(5000)], templates).high for right in (0, 1, 2, 5, 10)]
    assert all(later > 0.9 * earlier for earlier, later in zip(bounds, bounds[1:]))


# ---- transfer.py ----


def test_a_model_is_compared_with_the_first_one_problem_by_problem(tmp_path):
    """Greedily both toy models are right everywhere; one of them has a false step in nearly all solutions.

    Catches: a difference with the wrong sign or of the wrong columns; a rate of something else than the right answers.
    """
    assert transfer.main(["--models", CARELESS, SHARED, *TOY, "--out", str(tmp_path)]) == 0
    first, second = json.loads((tmp_path / "results.json").read_text())
    assert (first["right"], second["right"], second["both_right"]) == (12, 12, 12)
    assert first["steps_checked"] == 48 and "accuracy_difference" not in first
    change = second["hallucination_rate"]["mean"] - first["hallucination_rate"]["mean"]
    assert second["hallucination_rate_difference"]["mean"] == pytest.approx(change) and change > 0.5
    assert f"+{100 * change:.1f} [" in (tmp_path / "table.md").read_text()


def test_only_problems_that_both_solve_say_whose_steps_are_better():
    """Catches: hallucination rates compared on different problems: a model that solves more of the hard ones loses."""
    row = lambda right, false_step: {"right": right, "false_step": false_step, "template": object()}
    before = [row(True, True), row(True, False), row(False, False), row(False, True)]
    after = [row(True, False), row(True, False), row(True, True), row(False, False)]
    found = transfer.differences({"problems": after}, {"problems": before})
    assert found["both_right"] == 2 and found["hallucination_rate_difference"]["mean"] == -0.5
    assert found["accuracy_difference"]["mean"] == 0.25


def test_what_is_finished_is_not_measured_again_unless_the_weights_are_others(tmp_path, capsys):
    """Catches: hours spent twice; a model that was trained again under its old name and gets the old one's numbers."""
    model = shutil.copytree(CARELESS, tmp_path / "model")
    command = ["--models", str(model), SHARED, *TOY, "--out", str(tmp_path / "out")]
    assert transfer.main(command) == 0
    (path,) = (tmp_path / "out" / "measured").glob("*lessons-models-shared_step/chain.json")
    before = path.stat().st_mtime_ns
    assert transfer.main(command) == 0 and path.stat().st_mtime_ns == before
    shutil.copy(Path(SHARED) / "model.safetensors", model)
    capsys.readouterr()
    assert transfer.main(command) == 1 and "made with other settings" in capsys.readouterr().err


def test_templates_are_read_where_the_file_names_them(tmp_path):
    """A file like GSM-Symbolic's, template 0 included. Catches: its problems taken for independent ones."""
    problems = [{"question": f"{i} + 1?", "answer": f"so #### {i + 1}", "original_id": i // 2} for i in range(6)]
    assert list(templates_of(str(write(tmp_path / "a.jsonl", problems)), "question").values()) == list("001122")
    bare = [{"question": "1 + 1?", "answer": "2"}]
    assert templates_of(str(write(tmp_path / "b.jsonl", bare)), "question") == templates_of("chain", "question") == {}
    models = [str(PARITY / name) for name in ("smollm2_like_bf16", "qwen2_tied_qkv_bias")]
    common = ["--problems", "0", "--max-new-tokens", "2", "--prompt-suffix", "", "--device", "cpu"]
    data = ["--data", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert transfer.main(["--models", *models, *data, *common, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["problems"], row["templates"]) for row in rows] == [(6, 3), (6, 3), (1, 1), (1, 1)]


def test_models_that_would_be_asked_different_problems_are_refused_at_the_door(tmp_path, monkeypatch, capsys):
    """Catches: pairs of answers to different questions, or a refusal only after both have been measured."""
    draw = transfer.Subject.questions
    other = lambda self, source: draw(self, source)[self.name == SHARED :]
    monkeypatch.setattr(transfer.Subject, "questions", other)
    assert transfer.main(["--models", CARELESS, SHARED, *TOY, "--out", str(tmp_path)]) == 1
    assert "different problems" in capsys.readouterr().err and not (tmp_path / "measured").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--models", CARELESS, CARELESS, "--data", "chain"], "two or more --models"),
        (["--models", CARELESS, SHARED, "--data", "chain", "--problems", "0"], "chain makes problems without end"),
        (["--models", CARELESS, SHARED, "--data", "chain", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_door(options, message, tmp_path, capsys):
    """Catches: a typing error that comes out after an hour."""
    assert transfer.main([*options, "--max-new-tokens", "8", "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "measured").exists()


# ---- human_labels.py ----

GOOD, BAD = "1 + 1 = 2", "1 + 1 = 3"


def solution(steps: list[str], label: int | None, answer: str) -> dict:
    return {"input": "1 + 1 =", "steps": steps, "answer": answer, "target": "2", "mistake_index": label}


def test_people_and_check_are_counted_apart(tmp_path):
    """Eight solutions, one for each way to agree or not. Catches: the wrong denominator, earlier taken for later."""
    solutions = [
        solution([GOOD, "no sum"], None, "2"),
        solution([GOOD, BAD, BAD], 1, "3"),
        solution([BAD, BAD], 1, "3"),
        solution([GOOD, BAD], 0, "3"),
        solution([GOOD, GOOD], 0, "3"),
        solution([GOOD, GOOD], 1, "2"),
        solution([GOOD, BAD], None, "3"),
        solution([BAD], None, "2"),
    ]
    assert human_labels.main([str(write(tmp_path / "a.jsonl", solutions)), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    counts = [(row["count"], row["of"]) for row in results["shares"].values()]
    assert counts == [(4, 8), (3, 5), (1, 5), (2, 3), (1, 3), (1, 3), (1, 3)]
    found = {kind: lines[0] for kind, lines in results["disagreements"].items()}
    assert [found[kind] for kind in human_labels.READ] == [7, 8, 5, 6, 3, 4]
    text = (tmp_path / "table.md").read_text()
    assert "an unknown version" in text and not any(note in text for _, note in human_labels.READ.values())


def test_the_published_disagreements_are_those_that_were_read():
    """Catches: notes about other solutions than the table counts, once the check has changed."""
    results = json.loads((ROOT / "lessons" / "results" / "human_labels" / "results.json").read_text())
    assert results["disagreements"] == {kind: list(lines) for kind, (lines, _) in human_labels.READ.items()}
    assert results["version"] in human_labels.VERSIONS.values()
    text = (ROOT / "lessons" / "results" / "human_labels" / "table.md").read_text()
    assert human_labels.SUMMARY in text
    page = (ROOT / "minclipo" / "tasks" / "README.md").read_text(encoding="utf-8")
    for name in ("all: the same verdict", "marked by people: flagged first in that step"):
        assert f"{results['shares'][name]['count']} of {results['shares'][name]['of']}" in page


@pytest.mark.parametrize("change", [{"mistake_index": 2}, {"mistake_index": "1"}, {"steps": GOOD}, {"answer": None}])
def test_other_records_are_refused_by_line(change, tmp_path, capsys):
    """Catches: labels counted from 1, or a file of other data that gives numbers all the same."""
    path = write(tmp_path / "a.jsonl", [solution([GOOD, BAD], 1, "3"), solution([GOOD, BAD], 1, "3") | change])
    assert human_labels.main([str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "line 2" in error and next(iter(change)) in error


def test_an_empty_file_of_labels_is_refused(tmp_path, capsys):
    """Catches: a table of nothing."""
    assert human_labels.main([str(write(tmp_path / "a.jsonl", [])), "--out", str(tmp_path / "out")]) == 1
    assert "a.jsonl" in capsys.readouterr().err and not (tmp_path / "out").exists()
