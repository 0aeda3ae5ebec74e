"""Which pictures each experiment has."""

from pathlib import Path

from blind_pictures import against_belief, distribution, sharpening
from pictures import dose_response, dots, frontier, lines, tests
from tables import Found
from textbooks import TEXTBOOKS


def draw(name: str, found: Found, folder: Path) -> None:
    """Write the pictures of the experiment `name` to folder."""
    picture = folder / f"{name}.png"
    if name in ("algorithms", "ingredients"):
        dots(found, picture)
    if name == "ingredients":
        dose_response(found, folder / "dose_response.png")
    if name in ("frontier", "prompt_contrast"):
        frontier(found, picture)
    if name == "shared_step":
        share = lambda book: TEXTBOOKS[book].config.shared_step
        lines(found, picture, "share of solutions with the same false quote", share)
    if name == "made_up":
        probability = lambda book: TEXTBOOKS[book].config.hallucinate
        lines(found, picture, "probability of a made-up operand, per step", probability)
    if name == "generalisation":
        tests(found, picture)
    if name == "blindness":
        against_belief(found, picture)
    if name in ("blindness", "longer"):
        sharpening(found, folder / "sharpening.png")
    if name in ("fresh_seeds", "remedies"):
        distribution(found, picture)
