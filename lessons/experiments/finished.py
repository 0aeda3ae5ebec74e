"""What an earlier call of an experiment has finished is not done again."""

from pathlib import Path

from minclipo.checkpoint.files import read_json


def finished(path: Path, settings: dict) -> dict | None:
    """What the file `path` says, None if it is not there. ValueError if it was made with other `settings`."""
    if not path.is_file():
        return None
    result = read_json(path)
    if result.get("settings") != settings:
        raise ValueError(f"{path} was made with other settings: move it away, or choose another --out")
    return result
