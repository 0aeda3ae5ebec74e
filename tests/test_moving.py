"""The moving picture: it can be drawn from its numbers, is the one that was recorded, and fits on a page."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "lessons"), str(ROOT / "lessons" / "experiments")]
import moving  # noqa: E402

GIF = ROOT / "lessons" / "results" / "toy" / "rollouts.gif"
RECORDED = json.loads(GIF.with_suffix(".json").read_text(encoding="utf-8"))
METHODS = ("baseline", "clipo")


def durations(path: Path) -> list[int]:
    """How long each picture of a GIF stays, in milliseconds."""
    with Image.open(path) as gif:
        found = []
        for number in range(gif.n_frames):
            gif.seek(number)
            found.append(gif.info["duration"])
    return found


def test_it_is_drawn_from_the_recorded_numbers(tmp_path):
    """Catches: a drawing that needs the training; frames that are lost or merged; a last one that is gone at once."""
    frames = RECORDED["frames"]
    moving.draw([frames[0], frames[-1]], tmp_path / "rollouts.gif")
    first, last = durations(tmp_path / "rollouts.gif")
    assert last > 5 * first


def test_the_committed_picture_is_the_recorded_one():
    """Catches: numbers recorded anew without a new picture; a picture too heavy or too wide for a page."""
    assert len(durations(GIF)) == len(RECORDED["frames"])
    assert GIF.stat().st_size <= 2_000_000
    with Image.open(GIF) as gif:
        assert gif.width <= 900 and gif.info["loop"] == 0


def test_it_lasts_about_ten_seconds():
    """Catches: a picture that nobody can follow, or wants to wait for."""
    assert 8_000 < sum(durations(GIF)) < 15_000


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_shares(method):
    """Catches: counts in the place of shares; a frame that lacks rollouts or stands at another step."""
    frames = RECORDED["frames"]
    assert [frame["step"] for frame in frames] == list(range(0, moving.STEPS + 1, moving.EVERY))
    for frame in frames:
        shares = frame[method]["shares"]
        assert list(shares) == ["faithful", "hallucinated", "wrong"] and len(frame[method]["texts"]) == moving.GROUP
        assert all(0 <= share <= 1 for share in shares.values()) and sum(shares.values()) == pytest.approx(1)


def test_both_begin_with_the_rollouts_that_the_course_follows():
    """Catches: two starts; a model, a problem or random numbers other than the lessons'."""
    texts = moving.toy_tokenizer().decode_batch(moving.story()[1].completion_ids())
    assert [RECORDED["frames"][0][method]["texts"] for method in METHODS] == [texts, texts]


def test_made_up_steps_count_among_right_answers_only():
    """Catches: a rate of all completions, wrong ones included; 0 / 0 where nothing is right."""
    assert moving.hallucination_rate({"faithful": 0.3, "hallucinated": 0.1, "wrong": 0.6}) == pytest.approx(0.25)
    assert moving.hallucination_rate({"faithful": 0.0, "hallucinated": 0.0, "wrong": 1.0}) == 0


def test_a_training_is_recorded():
    """Catches: a method that does not train, or trains as the other one does."""
    start, end = moving.record(steps=2, every=2, measured=200)
    assert start["baseline"] == start["clipo"] != end["baseline"]
    assert end["baseline"] != end["clipo"]
