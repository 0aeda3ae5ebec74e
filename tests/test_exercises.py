"""The exercises that train, the program from an empty file, hints, and the view of how far a learner is."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

LESSONS = Path(__file__).parent.parent / "lessons"
sys.path[:0] = [str(LESSONS), str(LESSONS / "exercises")]
import checking  # noqa: E402
import common  # noqa: E402
import progress  # noqa: E402
from checking import grade, hints, report, trained  # noqa: E402

EXERCISES = sorted((LESSONS / "exercises").glob("[0-9]*.py"))
problems_of, savefig = common.problems_of, Figure.savefig
SOLVED = "an exercise has been solved? To test the repository put it aside: git stash push lessons/exercises"

# (exercise, function, what its solution says, what a learner might write there)
MISTAKES = [
    ("06_train", "grpo_step", "found.loss.backward()", "(-found.loss).backward()"),
    ("06_train", "grpo_step", "optimizer.zero_grad()", "pass"),
    ("06_train", "grpo_step", "correct, _ =", "_, correct ="),
    ("06_train", "grpo_step", "(logprobs, rollouts.logprobs,", "(logprobs, logprobs,"),
    ("06_train", "grpo_step", "rollouts.mask)", "rollouts.mask | True)"),
    ("06_train", "grpo_step", "range(updates)", "range(1)"),
    ("06_train", "grpo_step", "correct.float(), G)", "correct.float(), len(correct))"),
    ("06_train", "grpo_step", "parameters(), 1.0)", "parameters(), 100.0)"),
    ("06_train", "grpo_step", "return correct", "return correct.float().mean()"),
    ("10_clipo", "contrastive_rewards", "pooled.detach()", "pooled"),
    ("10_clipo", "contrastive_rewards", "(agreement - 1)", "(-agreement - 1)"),
    ("10_clipo", "contrastive_rewards", "correct[:, None] & correct &", ""),
    ("10_clipo", "contrastive_rewards", "/ 4", "* 2"),
    ("10_clipo", "contrastive_rewards", ").clamp(-0.5, 0)", ").clamp(-1.0, 0) * 1.5"),
    ("10_clipo", "contrastive_rewards", "zeros_like(price)", "full_like(price, torch.nan)"),
    ("16_from_an_empty_file", "GPT", "triu(1)", "triu(2)"),
    ("16_from_an_empty_file", "GPT", "query.shape[-1] ** 0.5", "query.shape[-1]"),
    ("16_from_an_empty_file", "GPT", "b * cos + a * sin", "b * cos - a * sin"),
    ("16_from_an_empty_file", "GPT", "-torch.arange(half) / half", "-torch.arange(half) / half / 2"),
    ("16_from_an_empty_file", "GPT", "x = x + self.self_attn", "x = self.self_attn"),
    ("16_from_an_empty_file", "GPT", "return self.norm(x)", "return x"),
    ("16_from_an_empty_file", "GPT", "F.silu(", "F.gelu("),
    ("16_from_an_empty_file", "GPT", "mean(-1, keepdim=True) + 1e-5", "mean((1, 2), keepdim=True) + 1e-5"),
    ("16_from_an_empty_file", "GPT", "self.up_proj = nn.Linear(width, mlp_width, bias=False)",
     "self.up_proj = nn.Linear(width, mlp_width)"),
    ("16_from_an_empty_file", "sample", "ends.cumsum(1) - ends == 0", "ends.cumsum(1) == 0"),
    ("16_from_an_empty_file", "sample", "(logits / temperature)", "(logits * temperature)"),
    ("16_from_an_empty_file", "sample", "drawn.append(distribution.gather(1, token))",
     "drawn.append(logits.log_softmax(-1).gather(1, token))"),
    ("16_from_an_empty_file", "sample", "hidden = model(tokens)[:, prompts.shape[1] :]",
     "hidden = model(tokens)[:, prompts.shape[1] - 1 : -1]"),
    ("16_from_an_empty_file", "sample", "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)", "hidden.mean(1)"),
    ("16_from_an_empty_file", "sample", ".repeat_interleave(group_size, 0), []", ".repeat(group_size, 1), []"),
    ("16_from_an_empty_file", "sample", "generator=generator", "generator=None"),
    ("16_from_an_empty_file", "sample", "distribution.exp(), 1", "distribution.exp().sqrt(), 1"),
    ("16_from_an_empty_file", "verify", "return finished and", "return"),
    ("16_from_an_empty_file", "verify", 'completion.split()[-2:] == ["#", str(answer)]', "completion.endswith(str(answer))"),
    ("16_from_an_empty_file", "verify", "completion.split()[-2:]", "completion.split()[:2]"),
    ("16_from_an_empty_file", "verify", "str(answer)]", "completion.split()[-1]]"),
    ("16_from_an_empty_file", "advantages", ".masked_fill(equal, 0.0)", ""),
    ("16_from_an_empty_file", "advantages", "groups.mean(1, keepdim=True)", "groups.mean()"),
    ("16_from_an_empty_file", "advantages", "groups.mean(1, keepdim=True)", "groups.mean(0, keepdim=True)"),
    ("16_from_an_empty_file", "advantages", "groups.std(1, keepdim=True)", "groups.std(1, keepdim=True, correction=0)"),
    ("16_from_an_empty_file", "score", "prompts.shape[1] - 1 : -1]", "prompts.shape[1] :]"),
    ("16_from_an_empty_file", "score", "hidden = model(tokens)", "hidden = model(tokens).detach()"),
    ("16_from_an_empty_file", "policy_loss", "torch.minimum", "torch.maximum"),
    ("16_from_an_empty_file", "policy_loss", "return -(", "return ("),
    ("16_from_an_empty_file", "policy_loss", "(objective * mask).sum() / mask.sum()", "(objective * mask).mean()"),
    ("16_from_an_empty_file", "policy_loss", "(objective * mask).sum() / mask.sum()",
     "((objective * mask).sum(1) / mask.sum(1)).mean()"),
    ("16_from_an_empty_file", "policy_loss", ".masked_fill(~mask, 0.0).exp()", ".exp()"),
    ("16_from_an_empty_file", "contrastive_rewards", "groups - groups.mean(1, keepdim=True)", "groups"),
    ("16_from_an_empty_file", "contrastive_rewards", "others & correct[:, None] & correct &", "others &"),
    ("16_from_an_empty_file", "contrastive_rewards", "log_sum(others)", "log_sum(prompt[:, None] == prompt)"),
    ("16_from_an_empty_file", "contrastive_rewards", "/ 0.5)", "/ 0.05)"),
    ("16_from_an_empty_file", "contrastive_rewards", ".clamp(min=-0.5)", ""),
    ("16_from_an_empty_file", "contrastive_rewards", "(-weight * loss)", "(weight * loss)"),
    ("16_from_an_empty_file", "train", "loss.backward()", "(-loss).backward()"),
    ("16_from_an_empty_file", "train", "optimizer.step()", "pass"),
    ("16_from_an_empty_file", "train", "range(steps)", "range(1)"),
]  # fmt: skip


def run_source(source: str, path: Path) -> dict:
    """The globals of a solution after running this source in its place."""
    namespace = {"__name__": "solution", "__file__": str(path)}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name, function, old, new", MISTAKES, ids=lambda text: text[:30])
def test_a_plausible_mistake_is_told(name, function, old, new):
    """Catches: a check that a wrong sign, a missing mask or a mean over the wrong axis passes."""
    path = LESSONS / "solutions" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    assert old in source
    answer = run_source(source.replace(old, new), path)[function]
    exercise = runpy.run_path(str(LESSONS / "exercises" / f"{name}.py"))
    state, why = checking.verdict(exercise[f"check_{function}"], answer)
    assert state == "wrong" and why


@pytest.mark.parametrize(
    "name, easy, impossible",
    [
        ("06_train", {"GOAL": 0.5}, {"GOAL": 0.999}),
        ("10_clipo", {"GOAL": 1.1}, {"GOAL": 0.0}),
        ("16_from_an_empty_file", {"ACCURACY": 0.2, "RATE": 1.1}, {"ACCURACY": 0.2, "RATE": 0.0}),
    ],
)
def test_a_training_is_judged_by_what_it_reaches(name, easy, impossible, tmp_path, monkeypatch, capsys):
    """Catches: a goal that is never compared, a training that crashes, a picture that is not drawn. (Two steps reach no
    goal of the exercises: those were measured by hand.)"""
    monkeypatch.setenv("LESSON_STEPS", "2")
    monkeypatch.setenv("LESSON_PICTURES", str(tmp_path))
    monkeypatch.setattr(common, "problems_of", lambda stream, count: problems_of(stream, min(count, 25)))
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: savefig(figure, path, dpi=20))
    exercise = runpy.run_path(str(LESSONS / "exercises" / f"{name}.py"))
    answers = runpy.run_path(str(LESSONS / "solutions" / f"{name}.py"))
    (train,) = checking.functions(exercise, "train_").values()
    for goal, state in ((easy, "right"), (impossible, "wrong")):
        train.__globals__.update(goal)
        ((_, found, why),) = trained(exercise, answers)
        assert found == state, why
    assert "accuracy" in capsys.readouterr().out or name == "10_clipo"
    assert name.startswith("16") or len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_says_how_long_it_takes(path):
    """Catches: a missing or misspelt line "Minutes: 20. Difficulty: medium." after the title."""
    title, _, rest = path.read_text(encoding="utf-8").partition("\n\n")
    line = rest.partition("\n")[0]
    assert title.startswith('"""') and progress.facts(line)[0], f"the second paragraph begins with {line!r}"


def test_a_curve_spans_its_blocks():
    assert checking.curve([0.0, 0.5, 1.0]) == "▁▅█"


EXERCISE = '''"""Exercise: {name}.

Minutes: {minutes}. Difficulty: easy.
"""
import sys
sys.path.append({folder!r})
from checking import Wrong, expect, report

def double(x):
    {body}

def check_double(double):
    expect(double(2), 4, "twice 2")
{training}
if __name__ == "__main__":
    report(globals())
'''
TRAINING = """
def train_double(double, book="one"):
    print("a curve")
    if book == "two" or double(1) != 2:
        raise Wrong("missed")
"""


def write_exercise(folder: Path, name: str, body: str, training: str = "", minutes: int = 30) -> Path:
    path = folder / "exercises" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    home = str(LESSONS / "exercises")
    path.write_text(EXERCISE.format(name=name, body=body, training=training, minutes=minutes, folder=home))
    return path


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with exercises of its own, whose solutions are all right."""
    monkeypatch.setattr(progress, "LESSONS", tmp_path)
    monkeypatch.setattr(checking, "LESSONS", tmp_path)
    monkeypatch.setattr(checking, "REACHED", tmp_path / "runs" / "reached.json")
    for module in (checking, progress):
        monkeypatch.setattr(module, "SOLUTIONS", tmp_path / "solutions")
    (tmp_path / "solutions").mkdir()
    for name in ("01_a", "02_b", "03_c"):
        (tmp_path / "solutions" / f"{name}.py").write_text("def double(x):\n    return 2 * x\n")
    return tmp_path


UNWRITTEN = 'raise NotImplementedError("Twice.")'


def test_progress_shows_where_a_learner_is(desk, capsys):
    """Catches: a state without its sign, a wrong sum, a next step that is done already, a crash on half an edit."""
    write_exercise(desk, "01_a", "return x * 2", minutes=10)
    write_exercise(desk, "02_b", "return x + 3")
    write_exercise(desk, "03_c", UNWRITTEN, TRAINING, minutes=60)
    (desk / "exercises" / "04_d.py").write_text("def half(")
    progress.main([])
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split() for line in lines if re.match(r"\d\d_", line)}
    assert shown["01_a"][1:] == ["█", "1", "of", "1", "10", "min", "easy"]
    assert shown["02_b"][1:5] == ["▒", "0", "of", "1"]
    assert shown["03_c"][1:5] == ["░░", "0", "of", "2"]
    assert shown["04_d"][1] == "SyntaxError:"
    assert "1 of 4 right, 1 of 4 exercises done; about 1.5 hours to go" in lines
    assert lines[-1].startswith("Next: python lessons/exercises/") and lines[-1].endswith("/02_b.py")


def test_progress_greets_who_is_done(desk, capsys):
    """Catches: a greeting too early or never; solutions that are not looked at; a training that is not run."""
    for name, training in (("01_a", ""), ("03_c", TRAINING)):
        write_exercise(desk, name, UNWRITTEN, training)
    progress.main(["--solution"])
    assert "2 of 3 right, 1 of 2 exercises done" in (said := capsys.readouterr().out)
    assert "training not run" in said and "All done" not in said and "a curve" not in said
    progress.main(["--solution", "--all"])
    assert "3 of 3 right" in (said := capsys.readouterr().out) and "a curve" in said and "All done" in said


def run_report(path: Path, *arguments: str, monkeypatch, **options) -> int:
    """Run an exercise as a script; its exit status."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        report(runpy.run_path(str(path)), **options)
    return int(end.value.code or 0)


def test_a_training_that_reached_its_goal_is_remembered_until_the_file_changes(desk, monkeypatch, capsys):
    """Catches: minutes of training at every look; a goal that counts although the function has changed since."""
    path = write_exercise(desk, "03_c", "return 2 * x", TRAINING)
    assert progress.progress_of(path).states == ["right", "not run"]
    books = dict(book=("one", "two"))
    assert run_report(path, "--solution", monkeypatch=monkeypatch, **books) == 0
    assert run_report(path, "--book", "two", monkeypatch=monkeypatch, **books) == 1
    assert progress.progress_of(path).states == ["right", "not run"]
    assert run_report(path, monkeypatch=monkeypatch, **books) == 0
    assert progress.progress_of(path).states == ["right", "right"]
    assert list(json.loads(checking.REACHED.read_text())) == ["03_c.py"]
    path.write_text(path.read_text() + "# changed\n")
    assert progress.progress_of(path).states == ["right", "not run"]


def test_training_waits_for_the_checks(desk, monkeypatch, capsys):
    """Catches: half a minute of training with a function that is known to be wrong."""
    path = write_exercise(desk, "03_c", "return x + 3", TRAINING)
    assert run_report(path, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().out
    assert "a curve" not in said and "0 of 2 right" in said and "once all checks are right" in said


def test_a_hint_comes_from_the_exercise_or_its_lesson(desk, monkeypatch, capsys):
    """Catches: a hint that is folded away in the lesson and cannot be had in the terminal; silence where there is none."""
    path = write_exercise(desk, "01_a", UNWRITTEN)
    (desk / "01_a.py").write_text(
        "# %% [markdown]\n# <details><summary>A hint for <code>double</code></summary>\n#\n"
        "# Add it\n# to itself.\n#\n# </details>\n"
    )
    assert run_report(path, "--hint", "double", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "double: Add it\nto itself.\n"
    run_report(path, "--hint", "half", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "no hint for half; there are hints for double\n"
    run_report(write_exercise(desk, "02_b", UNWRITTEN), "--hint", "double", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "no hint for double\n"
    assert hints({"HINTS": {"double": "Twice."}, "__file__": str(path)}) == {"double": "Twice."}


@pytest.mark.parametrize("name", ["06_train", "10_clipo", "16_from_an_empty_file"])
def test_hints_are_for_functions_that_there_are(name):
    """Catches: a hint whose function was renamed."""
    exercise = runpy.run_path(str(LESSONS / "exercises" / f"{name}.py"))
    assert exercise["HINTS"].keys() == checking.functions(exercise, "check_").keys()


def test_a_class_that_fails_is_told_with_its_line():
    """Catches: a line of PyTorch named instead of the learner's, since a class has no code of its own."""

    class Broken:
        def __init__(self):
            json.loads("{")

    state, why = checking.verdict(lambda answer: answer(), Broken)
    assert state == "wrong" and "test_exercises.py" in why


def test_the_loop_says_which_part_is_missing():
    """Catches: "wrong" for a loop whose other parts are still to be written."""
    exercise = runpy.run_path(str(LESSONS / "exercises" / "16_from_an_empty_file.py"))
    solution = runpy.run_path(str(LESSONS / "solutions" / "16_from_an_empty_file.py"))
    solution["train"].__globals__["score"] = exercise["score"]
    found = {name: (state, why) for name, state, why in grade(exercise, {"train": solution["train"]})}
    assert found["train"] == ("not yet", "still to be written. Part 5, the log-probs again"), SOLVED


def test_an_exercise_that_never_ends_is_named(desk, monkeypatch, capsys):
    """Catches: a progress that hangs and does not say where."""
    write_exercise(desk, "01_a", "raise KeyboardInterrupt")
    with pytest.raises(SystemExit, match=r"stopped in 01_a.py, line \d+"):
        progress.main([])
    assert "01_a" in capsys.readouterr().out


def test_a_file_without_checks_is_told(desk):
    """Catches: a solution copied over its exercise, shown as an empty line."""
    path = desk / "exercises" / "01_a.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text('"""Nothing to check."""\n')
    assert "its checks are gone" in str(progress.progress_of(path))


def test_a_suspect_has_the_hint_of_its_lesson():
    """Catches: hints of lesson 15 that can be read on its page only."""
    exercise = runpy.run_path(str(LESSONS / "exercises" / "15_runs_away.py"))
    assert hints(exercise).keys() == {"loss"}
