"""Copy the results of the experiments to lessons/results, and their tables into lessons/results.md.

    python lessons/experiments/page.py --out runs/experiments

Whatever the page has between <!-- table: NAME --> and <!-- end --> is replaced by lessons/results/NAME/table.md, so the
page and the results cannot differ. Without --out nothing is copied, and the page is filled with what is there.
"""

import argparse
import re
import shutil
from pathlib import Path

from minclipo.checkpoint.files import write_text

LESSONS = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def copy(out: Path, results: Path) -> None:
    """table.md, results.json and pictures of every experiment in `out`; FileNotFoundError if there is none."""
    tables = sorted(out.glob("*/table.md"))
    if not tables:
        raise FileNotFoundError(f"{out} holds no EXPERIMENT/table.md: is it what run.py was given as --out?")
    for table in tables:
        folder = results / table.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in [table, table.with_name("results.json"), *table.parent.glob("*.png")]:
            shutil.copyfile(path, folder / path.name)


def filled(page: str, results: Path) -> str:
    """The page with every table as it is in `results`. Raises FileNotFoundError naming a table that is missing."""

    def block(found: re.Match) -> str:
        path = results / found[1] / "table.md"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run the experiment, then this with --out")
        return f"<!-- table: {found[1]} -->\n{path.read_text()}<!-- end -->"

    return BLOCK.sub(block, page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where lessons/experiments/run.py has written")
    arguments = parser.parse_args(argv)
    page, results = LESSONS / "results.md", LESSONS / "results"
    try:
        if arguments.out is not None:
            copy(arguments.out, results)
        write_text(page, filled(page.read_text(), results))
    except OSError as error:
        parser.exit(1, f"page.py: {error}\n")


if __name__ == "__main__":
    main()
