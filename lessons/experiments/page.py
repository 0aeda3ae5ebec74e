"""Put the tables of lessons/results/*/table.md into lessons/results.md, so that page and results cannot differ.

    python lessons/experiments/page.py

What stands in the page between <!-- table: NAME --> and <!-- end --> is replaced by lessons/results/NAME/table.md.
"""

import re
from pathlib import Path

from minclipo.files import write_text

LESSONS = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(page: str, results: Path) -> str:
    """The page with every table as it is in `results` now."""

    def block(found: re.Match) -> str:
        name = found[1]
        return f"<!-- table: {name} -->\n{(results / name / 'table.md').read_text()}<!-- end -->"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    path = LESSONS / "results.md"
    write_text(path, filled(path.read_text(), LESSONS / "results"))
