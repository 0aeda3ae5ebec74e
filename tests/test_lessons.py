"""The lessons run, say what their pages say, and their exercises tell right from wrong."""

import base64
import contextlib
import io
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import types
from itertools import combinations
from pathlib import Path
from statistics import mean, median

import pytest
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
LESSONS = ROOT / "lessons"
sys.path[:0] = [str(LESSONS), str(LESSONS / "exercises")]
import common  # noqa: E402
from checking import Wrong, expect, expect_true, grade, verdict  # noqa: E402
from render import NOTEBOOKS, PAGES, REPOSITORY, fingerprint, linked, machine, setup_of  # noqa: E402
from render import main as render  # noqa: E402
from step_picture import LIT, PARTS, draw  # noqa: E402

NUMBERED = sorted(LESSONS.glob("[0-9]*.py"))
EXERCISES = sorted((LESSONS / "exercises").glob("[0-9]*.py"))
each_lesson = pytest.mark.parametrize("lesson", NUMBERED, ids=lambda path: path.stem)
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda path: path.stem)
problems_of, savefig = common.problems_of, Figure.savefig
SOLVED = "an exercise has been solved? To test the repository put it aside: git stash push lessons/exercises"
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


def markdown_and_code(lesson: Path) -> tuple[str, str]:
    """The lesson's prose, without its comment signs, and its code."""
    cells = re.split(r"^# %%(.*)\n", lesson.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    cells = list(zip(cells[::2], cells[1::2]))
    prose = [re.sub(r"^# ?", "", text, flags=re.MULTILINE) for kind, text in cells if "[markdown]" in kind]
    code = [text for kind, text in cells if "[markdown]" not in kind]
    return "\n".join(prose), "\n".join(code)


def prose_of(lesson: Path) -> str:
    """The lesson's prose without fenced code."""
    return re.sub(r"^```.*?^```", "", markdown_and_code(lesson)[0], flags=re.MULTILINE | re.DOTALL)


def outside_code(page: Path) -> str:
    """The page without its fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def printed_on(page: Path) -> list[str]:
    """The lines that the lesson's code printed when the page was made: they stand indented, outside fences."""
    return comparable([line.removeprefix("    ") for line in outside_code(page).split("\n") if line.startswith("    ")])


def comparable(lines: list[str]) -> list[str]:
    """What should be equal every time: no empty lines, no times, no pictures."""
    return [line.rstrip() for line in lines if line.strip() and "seconds" not in line and "picture:" not in line]


def agree(found: str, expected: str) -> bool:
    """The same words and whole numbers; other numbers but for rounding: two units of the last digit shown."""
    if NUMBER.sub("#", " ".join(found.split())) != NUMBER.sub("#", " ".join(expected.split())):
        return False
    for mine, theirs in zip(NUMBER.findall(found), NUMBER.findall(expected)):
        digits = len(theirs.partition(".")[2])
        if "e" in theirs:  # a rounding error: its size is all that repeats
            close = float(theirs) / 4 < float(mine) < float(theirs) * 4
        else:
            close = abs(float(mine) - float(theirs)) < 2.01 * 10.0**-digits if digits else mine == theirs
        if not close:
            return False
    return True


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # matplotlib reading torch's tensors
@each_lesson
def test_a_lesson_runs_and_prints_what_its_page_says(lesson, tmp_path, monkeypatch):
    """Catches: a lesson that a change of the package has broken, and a page whose numbers are not those of the code.

    Lessons that train only have to run: two steps say nothing about the numbers after a hundred. So do all of them on
    another kind of machine or torch, where sums round differently and a word that is drawn may be another one.
    """
    monkeypatch.setenv("LESSON_STEPS", "2")
    monkeypatch.setenv("LESSON_PICTURES", str(tmp_path / "pictures"))
    monkeypatch.setattr(common, "RUNS", tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: savefig(figure, path, dpi=20))
    trains = re.search(r"\b(train|training_steps)\(", markdown_and_code(lesson)[1])
    if trains:  # its numbers are not compared: a few problems do, in the place of hundreds
        monkeypatch.setattr(common, "problems_of", lambda stream, count: problems_of(stream, min(count, 64)))
        monkeypatch.setattr(common, "TOY", common.TOY | {"prompts_per_step": 8})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(lesson), run_name="__main__")
    assert list((tmp_path / "pictures").glob(f"{lesson.stem[:2]}_*.png"))
    if trains:
        assert lesson.stem[:2] != "15" or "without training, find 9 of 9" in printed.getvalue(), SOLVED
        return
    page = PAGES / f"{lesson.stem}.md"
    if machine() not in page.read_text(encoding="utf-8"):
        return
    found, expected = comparable(printed.getvalue().split("\n")), printed_on(page)
    for mine, theirs in zip(found, expected):
        assert agree(mine, theirs), f"the page says:\n{theirs}\nthe lesson prints:\n{mine}"
    assert len(found) == len(expected)


@each_lesson
def test_a_page_is_made_from_its_lesson(lesson):
    """Catches: a lesson edited after its page was rendered; a picture that was not committed."""
    page = PAGES / f"{lesson.stem}.md"
    stale = f"{page.name} is stale: python lessons/render.py {lesson.stem}, or git checkout lessons/{lesson.name}"
    assert page.is_file() and page.read_text(encoding="utf-8").startswith(fingerprint(lesson)), stale
    squeezed = " ".join(outside_code(page).split())  # nobody has edited the page itself
    missing = [text for text in linked(prose_of(lesson)).split("\n\n") if " ".join(text.split()) not in squeezed]
    assert not missing, f"{page.name} does not say: {missing[0]}"
    links = re.findall(r"\[[^]]+\]\(([^):#]+)[^):]*\)", outside_code(page))  # neighbours; no addresses
    pictures = re.findall(r'<img src="([^"]+)"', outside_code(page))
    assert len(pictures) > 1
    for target in links + pictures:
        assert (PAGES / target).is_file(), f"{page.name} shows {target}, which is missing: render {lesson.stem} again"


@each_lesson
def test_captions_are_seen(lesson):
    """Catches: a caption that only a screen reader knows, as an image's alternative text."""
    text = (PAGES / f"{lesson.stem}.md").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="pictures/[^"]+" width="\d+" alt="([^"]+)">\n\n+\*(.+)\*\n', text)
    assert len(shown) == text.count("<img ") - 1  # all but the picture of the training step
    assert all(alt.replace("&quot;", '"') == caption for alt, caption in shown)


@each_lesson
def test_a_notebook_is_its_page(lesson):
    """Catches: a notebook of another version than the page; an error, a warning or an unfolded drawing in it."""
    notebook = json.loads((NOTEBOOKS / f"{lesson.stem}.ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"]["made_from"] == fingerprint(lesson), f"python lessons/render.py {lesson.stem}"
    page, badge = (PAGES / f"{lesson.stem}.md"), "".join(notebook["cells"][0]["source"])
    assert f"github/{REPOSITORY}/blob/main/lessons/notebooks/{lesson.stem}.ipynb)" in badge
    assert badge in page.read_text(encoding="utf-8")
    assert "".join(notebook["cells"][1]["source"]) == setup_of(lesson)  # what the tests below run
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert comparable(text.split("\n")) == printed_on(page)
    drawings = [cell for cell in code if "drawing" in cell["metadata"].get("tags", [])]
    assert drawings and all(cell["metadata"]["jupyter"] == {"source_hidden": True} for cell in drawings)


def run_setup(folder: Path, monkeypatch, run) -> list:
    """Runs the first cell of a notebook in `folder`, with `run` in place of subprocess.run; what it put on sys.path."""
    shown = []
    fake = types.SimpleNamespace(Image=lambda path, width: path, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.chdir(folder)
    exec(setup_of(LESSONS / "05_grpo.py"), {})
    assert shown[0].is_file()  # the picture of the training step
    return sys.path


@pytest.mark.parametrize("folder", [ROOT, LESSONS, NOTEBOOKS])
def test_a_notebook_finds_the_clone_around_it(folder, monkeypatch):
    """Catches: `No module named 'common'` when the notebook is opened from another folder."""
    refuse = lambda *_, **__: pytest.fail("it must not fetch what is there")
    assert run_setup(folder, monkeypatch, refuse) == [str(ROOT), str(LESSONS)]


def test_a_notebook_fetches_what_is_missing(tmp_path, monkeypatch):
    """Catches: a badge that opens a notebook which cannot run; a second clone when its first cell is run again."""
    commands = []

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            shutil.copytree(LESSONS, Path(command[-1]) / "lessons", ignore=shutil.ignore_patterns("results", "models"))

    for _ in range(2):
        found = run_setup(tmp_path, monkeypatch, run)
        assert found == [str(tmp_path / "minclipo"), str(tmp_path / "minclipo" / "lessons")]
    assert [command[0] for command in commands] == ["git", sys.executable]
    assert f"https://github.com/{REPOSITORY}" in commands[0] and commands[1][-2:] == ["-e", str(tmp_path / "minclipo")]


def test_a_picture_is_shown_by_the_ipython_that_colab_has(monkeypatch):
    """Catches: TypeError instead of a picture. Colab has IPython 7.34, whose Image knows no alt; both show raw data."""
    shown = []
    fake = types.SimpleNamespace(Markdown=str, display=lambda what, **options: shown.append((what, options)))
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    path = PAGES / "pictures" / "05_step.png"
    common.show_file(path, 800, "what is seen")
    (data, options), caption = shown
    assert base64.b64decode(data["image/png"]) == path.read_bytes()
    about = {"width": 800, "alt": "what is seen", "name": path.name}
    assert options == {"raw": True, "metadata": {"image/png": about}} and caption == ("*what is seen*", {})


def test_the_first_curve_comes_soon():
    """From the badge of lesson 0 to its first picture in under three minutes, two of them for fetching and installing.
    Catches: a first lesson that begins with a training run. The seconds are those of the committed notebook."""
    notebook = json.loads((NOTEBOOKS / "00_guess.ipynb").read_text(encoding="utf-8"))
    seconds = 0.0
    for cell in notebook["cells"][2:]:
        seconds += cell["metadata"].get("seconds", 0)
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            break
    assert 0 < seconds < 60


def test_every_lesson_has_its_place_in_the_training_step(tmp_path):
    """Catches: a lesson whose page lights nothing, or a part that no lesson teaches."""
    assert set(LIT) == {lesson.stem for lesson in NUMBERED}
    assert {part for parts in LIT.values() for part in parts} == set(PARTS)
    lit = []
    for name in ("05_grpo", "07_vectors"):
        draw(LIT[name], tmp_path / "step.png")
        lit.append((tmp_path / "step.png").read_bytes())
    assert lit[0] != lit[1]


def test_no_picture_is_left_over():
    """Catches: a picture that no page shows any more."""
    shown = {name for page in PAGES.glob("*.md") for name in re.findall(r'src="pictures/([^"]+)"', page.read_text())}
    assert {path.name for path in (PAGES / "pictures").iterdir()} == shown


def test_the_course_is_short():
    """Catches: lessons that grow word by word. Folded answers count."""
    assert sum(len(prose_of(lesson).split()) for lesson in NUMBERED) <= 11_500


def test_lines_fit_beside_a_list_of_files():
    """Catches: code that a reader of the page must scroll sideways to read."""
    files = [
        *LESSONS.glob("*.py"),
        *EXERCISES,
        *(LESSONS / "solutions").glob("*.py"),
        LESSONS / "exercises" / "checking.py",
    ]
    for path in files:
        long = [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 90]
        assert not long, f"{path.name}: {long[0]}"


@pytest.mark.parametrize(
    "name, missing, said", [("99_none", "", "no lesson 99_none.py"), ("05_grpo", "jupytext", "[lessons]")]
)
def test_what_cannot_be_rendered_is_said(name, missing, said, monkeypatch, capsys):
    """Catches: a traceback for a misspelt name, or for a reader without the optional packages."""
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    before = {path: path.stat().st_mtime_ns for path in PAGES.iterdir()}
    with pytest.raises(SystemExit, match="1"):
        render([name])
    assert said in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in PAGES.iterdir()} == before


@each_lesson
def test_numbers_in_prose_are_those_of_the_code(lesson):
    """Catches: a number that somebody remembered. Those with two decimals or more are printed, or in the code; which of
    the printed ones is meant, no test can tell."""
    prose, code = markdown_and_code(lesson)
    prose = prose.partition("**What to try next.**")[0]  # there stand values to be tried
    prose = re.sub(r"\d{4}\.\d{5}|https?://\S+", "", prose)  # arXiv numbers, addresses
    shown = code + "\n".join(printed_on(PAGES / f"{lesson.stem}.md"))
    values = {float(number) for number in re.findall(r"\d+\.\d+", shown)}
    assert [number for number in re.findall(r"\d+\.\d\d+", prose) if float(number) not in values] == []


@each_lesson
def test_formulas_render_where_they_are_read(lesson):
    """Catches: TeX that GitHub refuses (operatorname) or takes for an escape of Markdown (backslash, comma)."""
    prose, _ = markdown_and_code(lesson)
    for formula in re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", prose, flags=re.DOTALL):
        assert not re.search(r"\\operatorname|\\[^a-zA-Z]", formula), formula
    for question in re.findall(r"<summary>(.*?)</summary>", prose, flags=re.DOTALL):  # HTML: no Markdown is read in it
        assert not re.search(r"[$`*]", question), question


@each_lesson
def test_every_lesson_has_question_surprise_exercise_and_a_place_in_the_list(lesson):
    """Catches: a lesson that nobody can find, or without one of its parts."""
    prose, code = markdown_and_code(lesson)
    assert f"pages/{lesson.stem}.md" in (LESSONS / "README.md").read_text(encoding="utf-8")
    for part in ("**Question.**", "<b>Guess first.</b>", "**Now you know.**", "**What to try next.**"):
        assert part in prose, part
    assert prose.count("<details>") == prose.count("</details>")
    assert prose.split("**Now you know.**")[1].split("\n\n")[1].count("\n* ") + 1 == 3, "three things to know"
    if lesson.stem == "00_guess":
        return  # it teaches no code
    for part in ("You should know", "**Exercise.**", "same in minclipo"):
        assert part in prose, part
    assert "assert" in code
    names = {path.name for path in EXERCISES}
    assert any(name.startswith(lesson.stem[:3]) and name.removesuffix(".py") in prose for name in names)


@each_exercise
def test_an_exercise_as_handed_out_is_not_solved(exercise):
    """Catches: checks that nothing can fail; a suspect of lesson 15 without its bug."""
    handed_out = runpy.run_path(str(exercise))
    results = grade(handed_out, handed_out)
    found = [verdict for _, verdict, _ in results]
    if exercise.stem.startswith("15"):
        assert "wrong" in found and "not yet" not in found, SOLVED
    else:
        assert set(found) == {"not yet"}, SOLVED


@each_exercise
def test_the_solution_is_right(exercise):
    """Catches: a check that refuses the right answer, or a solution that is none."""
    solution = runpy.run_path(str(LESSONS / "solutions" / exercise.name))
    assert [result for result in grade(runpy.run_path(str(exercise)), solution) if result[1] != "right"] == []


def test_no_solution_is_without_exercise():
    assert {path.name for path in EXERCISES} == {path.name for path in (LESSONS / "solutions").glob("[0-9]*.py")}


@pytest.mark.parametrize("solution, rc, said", [(False, 1, "not yet  advantages"), (True, 0, "3 of 3 right")])
def test_an_exercise_is_run_from_anywhere(tmp_path, solution, rc, said):
    """Catches: a path that only works in the repository's root; an exit status that hides a wrong answer."""
    command = [sys.executable, LESSONS / "exercises" / "05_grpo.py", *["--solution"] * solution]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == rc and said in found.stdout, SOLVED


def test_wrong_answers_are_told_from_missing_ones():
    """Catches: a crash of the reader's code that ends the report, and a None that passes."""
    exercise = runpy.run_path(str(LESSONS / "exercises" / "05_grpo.py"))
    answers = exercise | {"advantages": lambda rewards, group_size: None, "k3": lambda policy, reference: 1 / 0}
    found = {name: (verdict, why) for name, verdict, why in grade(exercise, answers)}
    assert found["advantages"] == ("wrong", "one right, one wrong: the function returned None; is a return missing?")
    assert found["k3"][0] == "wrong" and "ZeroDivisionError" in found["k3"][1] and "test_lessons.py" in found["k3"][1]
    assert found["clipped_loss"][0] == "not yet", SOLVED


@pytest.mark.parametrize("found", [None, torch.nan, 1.001, [1.0], torch.ones(1), 2, "a", [None]])
def test_an_answer_that_is_not_the_expected_one_is_wrong(found):
    """Catches: a comparison that broadcasts, takes NaN for a number, or crashes on what readers return."""
    with pytest.raises(Wrong, match="^one: "):
        expect(found, 1.0, "one")


def test_what_an_answer_may_be():
    """A float, a list, another dtype, with gradient: right. Whole numbers are compared exactly."""
    expect([0.5, 1.0], torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True), "a list")
    expect_true(True, "never said")
    with pytest.raises(Wrong, match="never said"):
        expect_true(False, "never said")
    with pytest.raises(Wrong, match="expected 100000001, found 100000000"):
        expect(100_000_000, 100_000_001, "an id")


def test_torchs_own_not_implemented_is_no_stub():
    """Catches: "not yet" for a softmax of whole numbers; an exit() that ends the report."""
    state, why = verdict(lambda answer: answer(torch.tensor([1, 2])), lambda x: x.log_softmax(0))
    assert state == "wrong" and "not implemented for 'Long'" in why and "test_lessons.py" in why
    assert verdict(lambda answer: answer(), lambda: sys.exit(0))[0] == "wrong"
    assert verdict(lambda answer: answer(), None) == ("not yet", "there is no function of this name")


@pytest.mark.parametrize(
    "mine, theirs, same",
    [
        ("a  0.50", "a 0.51", True),
        ("a 0.50", "a 0.54", False),
        ("7 of 9", "8 of 9", False),
        ("error 2.0e-06", "error 2.4e-06", True),
        ("error 1.9e-01", "error 2.4e-06", False),
        ("a 1.0", "b 1.0", False),
    ],
)
def test_which_printed_lines_agree(mine, theirs, same):
    assert agree(mine, theirs) == same


def test_copied_code_is_seen(tmp_path):
    """Catches: a test of copies that looks at nothing."""
    path = tmp_path / "a.py"
    path.write_text("import torch\n" + "\n".join(f"number_{i} = function({i})" for i in range(6)))
    assert len(blocks(path)) == 2


def blocks(path: Path, lines: int = 5) -> set[tuple[str, ...]]:
    """Every run of that many lines of code; what says nothing (imports, brackets, short lines) does not count."""
    code = markdown_and_code(path)[1] if path.parent == LESSONS else path.read_text(encoding="utf-8")
    code = [line.strip() for line in code.split("\n")]
    code = [line for line in code if len(line) > 12 and not line.startswith(("import ", "from ", "#"))]
    return {tuple(code[i : i + lines]) for i in range(len(code) - lines + 1)}


def test_no_code_is_copied_between_lessons_or_from_the_package():
    """Catches: a lesson that carries a second copy of what another one, or the package, has."""
    sources = {path: blocks(path) for path in [*NUMBERED, *(ROOT / "minclipo").rglob("*.py")]}
    for one, other in combinations(sources, 2):
        if LESSONS in (one.parent, other.parent):
            assert not sources[one] & sources[other], f"{one.name} and {other.name}"


@pytest.mark.parametrize("page", ["README.md", "lessons/pages/06_blind.md", "lessons/pages/10_clipo.md"])
def test_a_page_quotes_the_five_seeds_as_they_are(page):
    """Catches: a table that the runs behind it have outlived."""
    summary = json.loads((ROOT / "lessons" / "results" / "toy" / "summary.json").read_text())
    methods = ("pretrained", "baseline", "oracle") if "06" in page else ("baseline", "clipo", "oracle", "clipo_paper")
    text = (ROOT / page).read_text(encoding="utf-8").replace("**", "")
    for method in methods:
        mean, low, high = (summary[method]["hallucination_rate"][key] for key in ("mean", "low", "high"))
        assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in text, method


def test_the_readme_says_when_it_helps_as_it_was_measured():
    """Catches: a summary that the runs behind it have outlived."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## When does it help?")[1].split("\n## ")[0]
    load = lambda name: json.loads((ROOT / "lessons" / "results" / name / "results.json").read_text())
    rates = {(row["textbook"], row["name"]): row["values"]["hallucination_rate"] for row in load("blindness")}
    for method, digits in (("GRPO", "222"), ("CLIPO", "332")):
        for book, places in zip(("toy", "believed20", "believed50"), digits):
            assert f"{mean(rates[book, method]):.{places}f}" in section, (method, book)
    fresh = {row["name"]: row["values"] for row in load("fresh_seeds")}
    assert f"CLIPO's median is {median(fresh['CLIPO']['hallucination_rate']):.3f}" in section
    assert f"GRPO's {median(fresh['GRPO']['hallucination_rate']):.2f}" in section
    pairs = zip(fresh["after pretraining"]["accuracy"], fresh["CLIPO"]["hallucination_rate"])
    worst = [rate for _, rate in sorted(pairs)[:5]]
    assert f"between {min(worst):.3f} and {max(worst):.3f}" in section
    patience = {row["name"]: row["values"]["hallucination_rate"] for row in load("patience")}["CLIPO"]
    assert sum(rate < 0.02 for rate in patience) == 4 and len(patience) == 5
    assert "Three times the training brings four of these five below 0.02" in " ".join(section.split())
    rates = {(row["textbook"], row["name"]): row["values"]["hallucination_rate"] for row in load("shared_step")}
    of = lambda share, method, places: f"{mean(rates[f'shared{share}', method]):.{places}f}"
    assert f"share goes ({of(30, 'CLIPO', 3)}; GRPO {of(30, 'GRPO', 2)})" in " ".join(section.split())
    assert f"share spreads ({of(70, 'CLIPO', 2)}; GRPO {of(70, 'GRPO', 2)})" in " ".join(section.split())
    rates = {row["name"]: mean(row["values"]["hallucination_rate"]) for row in load("log_prob")}
    assert f"ends at {rates['log-prob']:.3f} on average, CLIPO at {rates['CLIPO']:.3f}" in " ".join(section.split())


def test_lesson_6_counts_the_seeds_that_made_up_steps_greedily():
    """Catches: a share that fewer of the twenty seeds reach than the lesson says."""
    rows = json.loads((LESSONS / "results" / "fresh_seeds" / "results.json").read_text())
    rates = [seed["greedy_hallucination_rate"] for row in rows if row["name"] == "GRPO" for seed in row["look"]]
    said = re.search(r"nine of twenty fresh seeds, (\d+)% or more", " ".join(prose_of(LESSONS / "06_blind.py").split()))
    assert len(rates) == 20 and sum(100 * rate >= int(said[1]) for rate in rates) == 9


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions of x86 are pinned, no others")
def test_the_lessons_add_up_alike_with_and_without_avx512():
    """Catches: a training whose numbers are others on a processor with AVX-512, which rounds in another order."""
    code = "import torch, common; print(torch.backends.cpu.get_cpu_capability())"
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(LESSONS)])}
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"} | paths
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() in ("AVX2", "DEFAULT")
