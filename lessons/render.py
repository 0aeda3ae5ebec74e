"""Run lessons as notebooks and write each with its outputs and pictures to lessons/pages/NAME.md.

    pip install -e ".[lessons]"              # jupytext and nbconvert
    python lessons/render.py                 # all of them, one after the other: a few minutes
    python lessons/render.py 05_grpo         # one

A page's first line holds a fingerprint of the lesson it was made from, the second the machine; tests/test_lessons.py
tells when a page no longer belongs to its lesson, and compares what both print.
"""

import argparse
import hashlib
import os
import platform
import sys
import time
from pathlib import Path

from minclipo.checkpoint.files import write_text

LESSONS = Path(__file__).parent
PAGES = LESSONS / "pages"


def fingerprint(lesson: Path) -> str:
    """What a page made from this lesson begins with."""
    digest = hashlib.sha256(lesson.read_text(encoding="utf-8").encode()).hexdigest()[
        :16
    ]  # as text: line ends differ
    return f"<!-- made by lessons/render.py from {lesson.name}, {digest} -->"


def machine() -> str:
    """What the last digits of a page depend on: the second line of a page, and of no page made elsewhere."""
    import torch

    return f"<!-- numbers of torch {torch.__version__.partition('+')[0]} on {platform.machine()} -->"


def footer(lesson: Path) -> str:
    """Links from a lesson's page to its neighbours, the lesson itself and the list."""
    lessons = sorted(LESSONS.glob("[0-9]*.py"))
    place = lessons.index(lesson)
    links = [f"[lesson {place}]({lessons[place - 1].stem}.md)"] if place else []
    links += [f"[this one as Python](../{lesson.name})", "[all lessons](../README.md)"]
    links += (
        [f"[lesson {place + 2}]({lessons[place + 1].stem}.md)"]
        if place + 1 < len(lessons)
        else []
    )
    return f"---\n\n{' · '.join(links)}\n"


def render(lesson: Path) -> str:
    """The lesson as Markdown, run from top to bottom. Its pictures go to lessons/pages/pictures."""
    import jupytext
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    notebook = jupytext.read(lesson)
    kernel = dict(kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    ExecutePreprocessor(timeout=None, **kernel).preprocess(
        notebook, {"metadata": {"path": str(LESSONS)}}
    )
    for (
        cell
    ) in notebook.cells:  # warnings of a machine, progress bars: not part of a lesson
        cell["outputs"] = [
            output for output in cell.get("outputs", []) if output.get("name") != "stderr"
        ]
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(
        notebook, {}
    )  # what came in two parts is one again
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return f"{fingerprint(lesson)}\n{machine()}\n\n{text.strip()}\n\n{footer(lesson)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lessons", nargs="*", help="names such as 05_grpo; default: all")
    names = parser.parse_args(argv).lessons
    everything = sorted(LESSONS.glob("[0-9]*.py"))
    lessons = [LESSONS / f"{name}.py" for name in names] or everything
    if missing := [lesson for lesson in lessons if lesson not in everything]:
        parser.exit(1, f"render.py: there is no lesson {missing[0].name}\n")
    try:
        import jupytext  # noqa: F401
        import nbconvert  # noqa: F401
    except ImportError as error:
        parser.exit(
            1, f'render.py: {error}. It comes with: pip install -e ".[lessons]"\n'
        )
    os.environ["LESSON_PICTURES"] = str(PAGES / "pictures")
    for lesson in lessons:
        started = time.perf_counter()
        write_text(
            PAGES / f"{lesson.stem}.md", render(lesson)
        )  # whole, or the earlier page stays
        print(f"{lesson.stem}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
