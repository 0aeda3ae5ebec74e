"""The metrics of a run as a table for a spreadsheet.

python -m minclipo.runs.to_csv runs/llm                              # runs/llm/metrics.jsonl, on the screen
python -m minclipo.runs.to_csv runs/llm --to metrics.csv             # into a file
python -m minclipo.runs.to_csv runs/llm/evaluation.jsonl
"""

import argparse
import csv
import io
import os
import sys
from pathlib import Path

from minclipo.checkpoint.files import read_lines, write_text


def flat(record: dict, prefix: str = "") -> dict:
    """{"greedy": {"accuracy": 1}} as {"greedy.accuracy": 1}."""
    found = {}
    for name, value in record.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def table(records: list[dict]) -> str:
    """CSV with a column for each name that any record has; a value that is missing or None is an empty cell."""
    rows = [flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run, or a file of JSON lines")
    parser.add_argument("--to", type=Path, help="the file to write (default: the screen)")
    arguments = parser.parse_args(argv)
    path = arguments.run / "metrics.jsonl" if arguments.run.is_dir() else arguments.run
    try:
        records = read_lines(path)
        if not records:
            raise ValueError(
                f"{path} does not exist or is empty. Name a run's folder, as runs/llm or runs/toy/seed0/clipo"
            )
        if arguments.to:
            write_text(arguments.to, table(records))
        else:
            print(table(records), end="", flush=True)
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
