"""A picture for each experiment."""

from pathlib import Path


def draw(name: str, found, folder: Path) -> None:
    """Write folder/NAME.png."""
