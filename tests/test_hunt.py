"""Lesson 15's hunt: every program trains, its bugs ring, and accusations are judged right."""

import json
import sys
from pathlib import Path

import pytest
import torch

LESSONS = Path(__file__).parent.parent / "lessons"
sys.path.insert(0, str(LESSONS))
import common  # noqa: E402
import hunt  # noqa: E402
from hunting.instruments import EXACT, INSTRUMENTS, RIGHT, SILENT, readings  # noqa: E402
from hunting.program import PARTS, SUSPECTS, load, mended, part_of, program, suspect  # noqa: E402
from hunting.slips import PROGRAMS, SLIPS, program_with  # noqa: E402

SOLVED = "an exercise has been solved? To test the repository put it aside: git stash push lessons/exercises"
EXPECTED = {  # which instruments ring, of those that do not train
    "advantages_do_not_cancel": {"equal", "balance"},
    "agreement_costs": {"agreement"},
    "never_stops": {"ending", "enumeration"},
    "one_word_stands_still": {"coverage", "enumeration"},
    "penalty_is_not_the_kl": {"kl"},
    "ratio_is_not_one": {"ratio", "enumeration"},
    "runs_away": {"clip"},
    "short_prompts_suffer": {"ratio", "company"},
    "step_depends_on_the_cut": {"cut"},
    "of_the_page": {"clip"},
    "recorded_without_temperature": {"ratio"},
    "one_group_for_all": {"equal", "balance"},
    "rows_in_place_of_tokens": {"enumeration"},
    "strangers_are_candidates": {"agreement"},
}
SINGLE = [number for number, names in PROGRAMS.items() if len(names) == 1]
DOUBLE = [number for number, names in PROGRAMS.items() if len(names) == 2]
EMPTY = [number for number, names in PROGRAMS.items() if not names]


def rings(found: dict) -> set[str]:
    return {name for name, number in readings(found, EXACT).items() if number > SILENT}


@pytest.fixture(autouse=True)
def two_steps_in_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSON_STEPS", "2")
    monkeypatch.setattr(common, "RUNS", tmp_path)


@pytest.mark.parametrize("number", PROGRAMS)
def test_every_program_trains(number):
    """Catches: a slip that makes a program crash, or its reward no number."""
    found = load(program_with(PROGRAMS[number]))
    found["G"] = 8  # rollouts per prompt, in the place of 32
    _, rewards = found["train"](steps=2)
    assert len(rewards) == 2 and all(0 <= reward <= 1 for reward in rewards)


def test_the_right_program_is_silent():
    """Catches: an instrument that rings for nothing."""
    assert rings(RIGHT) == set()


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_rings_where_it_should(name):
    """Catches: a bug that no instrument hears, or another one than it is about."""
    assert rings(load(program_with((name,)))) == EXPECTED[name]


@pytest.mark.parametrize("number", DOUBLE)
def test_two_bugs_do_not_hide_each_other(number):
    """Catches: a pair of which one silences, or replaces, what the other rings."""
    wanted = set.union(*(EXPECTED[name] for name in PROGRAMS[number]))
    assert rings(load(program_with(PROGRAMS[number]))) == wanted


def test_no_two_suspects_have_the_same_row():
    """Catches: two suspects of the lesson's table that no instrument tells apart."""
    rows = [frozenset(EXPECTED[name]) for name in SUSPECTS]
    assert len(set(rows)) == len(SUSPECTS) == 9


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_suspect_as_handed_out_has_the_row_of_its_slip(name):
    """Catches: a hunt whose bugs are not those of the exercises."""
    assert rings(suspect(name)) == EXPECTED[name], SOLVED


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_mended_suspect_is_silent(name):
    """Catches: a solution that breaks a law; the other finish, which no program holds."""
    assert rings(suspect(name, "solutions")) == set()


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_changes_its_part_once(name):
    """Catches: a slip whose lines a new solution no longer has."""
    slip = SLIPS[name]
    assert mended(slip.part).count(slip.right) == 1 and slip.text() != mended(slip.part)


def test_the_hunt_has_single_bugs_pairs_and_programs_without():
    """Catches: a number that holds two bugs in one part, so that one accusation finds both."""
    assert sorted(PROGRAMS) == list(range(1, 16))
    assert {name for names in PROGRAMS.values() for name in names} == set(SLIPS) - {"of_the_page"}
    assert len({PROGRAMS[number][0] for number in SINGLE} - set(SUSPECTS)) == 4  # new ones: the table is not enough
    assert DOUBLE and EMPTY and min(DOUBLE) > 10
    assert SINGLE + EMPTY != sorted(SINGLE + EMPTY)  # shuffled
    for number in DOUBLE:
        assert len({SLIPS[name].part for name in PROGRAMS[number]}) == 2


@pytest.mark.parametrize("number", PROGRAMS)
def test_a_program_does_not_give_itself_away(number):
    """Catches: a suspect's name, a remark or a wide line in what the learner reads."""
    text = program_with(PROGRAMS[number])
    assert not [name for name in SLIPS if name in text]
    assert [line for line in text.split("\n") if len(line) > 90] == []
    remarks = [line.split("  # ")[1] for line in text.split("\n") if "  # " in line]
    assert remarks and all(remark.startswith("[") and remark.endswith("]") for remark in remarks)


def test_help_does_not_give_the_bugs_away(capsys):
    """Catches: an example in the help that names the part of its own program."""
    with pytest.raises(SystemExit, match="0"):
        hunt.main(["--help"])
    said = capsys.readouterr().out
    assert not [name for name in SLIPS if name in said]
    assert "backward" not in {SLIPS[name].part for name in PROGRAMS[3]}


def test_the_first_call_writes_the_program_and_leaves_the_readers_edits(tmp_path, capsys):
    """Catches: a second call that throws the reader's mending away."""
    assert hunt.main(["3"]) == 0
    path = tmp_path / "hunt_3.py"
    assert str(path) in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == program_with(PROGRAMS[3])
    path.write_text("EDITED = 1", encoding="utf-8")
    assert hunt.main(["3"]) == 0 and path.read_text(encoding="utf-8") == "EDITED = 1"


def test_one_instrument_or_all_are_rung(capsys):
    """Catches: --ring that ignores the name, or does not read the file."""
    number = next(number for number in DOUBLE if "runs_away" in PROGRAMS[number])
    assert hunt.main([str(number), "--ring", "clip"]) == 0
    said = capsys.readouterr().out
    assert "4.00 rings" in said and len(said.splitlines()) == 1
    hunt.path_of(number).write_text(program(), encoding="utf-8")  # the reader mends it
    hunt.main([str(number), "--ring", "all"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(INSTRUMENTS)
    assert [line.split()[0] for line in lines if "rings" in line] == ["bandit"]  # two steps are too few


def test_what_the_reader_has_spoilt_is_said(tmp_path, capsys):
    """Catches: a traceback of the hunt for the reader's own typing error."""
    (tmp_path / "hunt_3.py").write_text("def (", encoding="utf-8")
    with pytest.raises(SystemExit, match="does not run: SyntaxError"):
        hunt.main(["3", "--ring", "cut"])
    (tmp_path / "hunt_3.py").write_text(program().replace("def penalty(", "def other("), encoding="utf-8")
    hunt.main(["3", "--ring", "kl"])
    assert "fails: KeyError: 'penalty'" in capsys.readouterr().out


def test_the_curve_stands_beside_the_right_one(capsys):
    """Catches: the right program's curve under this one's name."""
    number = next(number for number in SINGLE if PROGRAMS[number] == ("short_prompts_suffer",))
    hunt.main([str(number), "--run"])
    lines = capsys.readouterr().out.splitlines()
    assert f"program {number}" in lines[0] and len(lines) == 3
    curves = [found["train"](steps=2)[1] for found in (load(program_with(PROGRAMS[number])), RIGHT)]
    for step, line in enumerate(lines[1:]):
        assert [f"{curve[step]:.2f}" for curve in curves] == [word for word in line.split() if "." in word]


@pytest.mark.parametrize("number", SINGLE)
def test_accusing_wrong_and_right(number, capsys):
    """Catches: an accusation that is judged by its count, or a story of another bug."""
    (name,) = PROGRAMS[number]
    wrong = next(part for part in PARTS if part != SLIPS[name].part)
    assert hunt.main([str(number), "--accuse", wrong]) == 1
    assert "accusation 1" in capsys.readouterr().out and not hunt.solved(number)
    assert hunt.main([str(number), "--accuse", "nobody"]) == 1
    assert hunt.main([str(number), "--accuse", SLIPS[name].part]) == 0
    said = capsys.readouterr().out
    assert "accusation 3" in said and "solved" in said and hunt.story(name) in said
    assert "\n-" in said and "\n+" in said and hunt.solved(number)


@pytest.mark.parametrize("number", DOUBLE)
def test_both_bugs_must_be_found(number, capsys):
    """Catches: a program that is solved with its first bug."""
    first, second = (SLIPS[name].part for name in PROGRAMS[number])
    hunt.main([str(number), "--accuse", first])
    assert "There is one more." in capsys.readouterr().out and not hunt.solved(number)
    hunt.main([str(number), "--accuse", second])
    assert "one more" not in capsys.readouterr().out and hunt.solved(number)


@pytest.mark.parametrize("number", EMPTY)
def test_a_right_program_has_nobody_to_accuse(number):
    """Catches: a program without a bug that counts as solved from the start, or never."""
    assert not hunt.solved(number)
    assert hunt.main([str(number), "--accuse", "loss"]) == 1 and not hunt.solved(number)
    assert hunt.main([str(number), "--accuse", "nobody"]) == 0 and hunt.solved(number)


def test_where_the_hunter_stands(tmp_path, capsys):
    """Catches: no end of the hunt, or one that greets too early."""
    hunt.main([])
    assert "0 of 15 solved" in capsys.readouterr().out
    for number in PROGRAMS:
        accused = list(hunt.guilty_in(number)) or ["nobody"]
        (tmp_path / f"hunt_{number}.json").write_text(json.dumps(accused), encoding="utf-8")
    hunt.main([])
    said = capsys.readouterr().out
    assert "15 of 15 solved" in said and "found them all" in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["99"], "no program 99"),
        (["3", "--ring", "bell"], "no instrument bell"),
        (["3", "--accuse", "step"], "no part step"),
        (["--ring", "cut"], "which program"),
        (["three"], "invalid int"),
    ],
)
def test_what_does_not_exist_is_said(arguments, said, capsys):
    """Catches: a KeyError for a misspelt name."""
    with pytest.raises(SystemExit, match="2"):
        hunt.main(arguments)
    assert said in capsys.readouterr().err


def test_negated_advantages_pass_all_but_the_bandit():
    """What the lesson says of equal and balance. Catches: a law that has become stricter than the page."""
    negated = program(collect=mended("collect").replace("group_advantages(", "-group_advantages("))
    assert rings(load(negated)) == set()


def test_a_part_keeps_decorator_defaults_and_shapes():
    """Catches: an assembly that loses what the code needs, or keeps what gives it away."""
    source = '''
@torch.no_grad()
def part(x: Tensor, *, y: int = 2, z="a") -> Tensor:
    """First line.

    More.
    """
    x = x + 1  # [N, T], a remark
    # a whole line
    return x  # "#" is no comment
'''
    text = '''@torch.no_grad()
def part(x, *, y=2, z='a'):
    """First line."""
    x = x + 1  # [N, T]
    return x'''
    assert part_of(source, "part") == text
    assert torch.is_grad_enabled()


def test_damaged_notes_are_named(tmp_path):
    """Catches: a traceback of the hunt for a file of accusations that a full disk has cut off."""
    (tmp_path / "hunt_5.json").write_text("[", encoding="utf-8")
    with pytest.raises(SystemExit, match="hunt_5.json is damaged"):
        hunt.main(["5", "--accuse", "loss"])
