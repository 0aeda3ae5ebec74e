"""Run lessons as notebooks; write each, with its outputs, as a page and as a notebook.

    pip install -e ".[lessons]"              # jupytext and nbconvert
    python lessons/render.py                 # all, one after the other: a few minutes
    python lessons/render.py 05_grpo         # one

A page's first line holds a fingerprint of the lesson it was made from, the second the
machine; tests/test_lessons.py tells when page or notebook no longer belong to their
lesson, and compares what the lesson prints with what its page says.
"""

import argparse
import base64
import hashlib
import platform
import re
import sys
import time
from pathlib import Path

from minclipo.checkpoint.files import write_text

LESSONS = Path(__file__).parent
PAGES, NOTEBOOKS = LESSONS / "pages", LESSONS / "notebooks"
# On GitHub. A fork puts its own name here and renders again.
REPOSITORY = "minclipo/minclipo"
COLAB = "https://colab.research.google.com"
FOLDER = f"{COLAB}/github/{REPOSITORY}/blob/main/lessons/notebooks"
BADGE = "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
FOLDED = "The code that draws the picture"

SETUP = """\
# @title Run this cell first
import subprocess
import sys
from pathlib import Path

from IPython.display import Image, display

here = Path.cwd()
places = [here / "minclipo", here, *here.parents]
clones = [place for place in places if (place / "lessons" / "common.py").exists()]
root = clones[0] if clones else places[0]
if not clones:  # no clone around this notebook, as on Colab
    source, pip = "https://github.com/REPOSITORY", [sys.executable, "-m", "pip"]
    subprocess.run(["git", "clone", "--depth", "1", source, str(root)], check=True)
    subprocess.run([*pip, "install", "-q", "-e", str(root)], check=True)
sys.path[:0] = [str(root), str(root / "lessons")]
display(Image(root / "lessons" / "pages" / "pictures" / "STEP", width=800))
"""


def fingerprint(lesson: Path) -> str:
    """What a page made from this lesson begins with."""
    text = lesson.read_text(encoding="utf-8")  # as text: line ends differ
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"<!-- made by lessons/render.py from {lesson.name}, {digest} -->"


def machine() -> str:
    """What a page's last digits depend on: its second line."""
    import torch

    version = torch.__version__.partition("+")[0]
    return f"<!-- numbers of torch {version} on {platform.machine()} -->"


def linked(text: str) -> str:
    """The text with a link to each paper that it names by its arXiv number."""
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    return re.sub(r"\barXiv\s(\d{4}\.\d{5})", link, text)


def footer(lesson: Path) -> str:
    """Links from a lesson's page to its neighbours, the lesson itself and the list."""
    lessons = sorted(LESSONS.glob("[0-9]*.py"))
    place = lessons.index(lesson)
    before, after = lessons[:place][-1:], lessons[place + 1 :][:1]
    links = [f"[lesson {int(other.name[:2])}]({other.stem}.md)" for other in before]
    links += [f"[this one as Python](../{lesson.name})", "[all lessons](../README.md)"]
    links += ["[glossary](../glossary.md)", "[cheat sheet](../cheatsheet.md)"]
    links += [f"[lesson {int(other.name[:2])}]({other.stem}.md)" for other in after]
    return f"---\n\n{' · '.join(links)}\n"


def executed(lesson: Path):
    """The lesson as a notebook with outputs; each cell's seconds are in its metadata."""
    import jupytext
    from nbconvert.preprocessors import ExecutePreprocessor
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    notebook, seconds = jupytext.read(lesson), []
    kernel = dict(kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    clock = dict(
        on_cell_execute=lambda **_: seconds.append(-time.perf_counter()),
        on_cell_executed=lambda **_: seconds.append(seconds.pop() + time.perf_counter()),
    )
    runner = ExecutePreprocessor(timeout=None, record_timing=False, **clock, **kernel)
    runner.preprocess(notebook, {"metadata": {"path": str(LESSONS)}})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, taken in zip(code, seconds, strict=True):
        cell.metadata["seconds"] = round(taken, 1)
        # Warnings of a machine and progress bars are no part of a lesson.
        cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
    # What stderr had parted is one output again.
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # a random one would change with every rendering
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source)
    return notebook


def is_drawing(cell) -> bool:
    return "drawing" in cell.metadata.get("tags", [])


def page(lesson: Path, notebook) -> str:
    """The executed lesson as Markdown. Its pictures go to lessons/pages/pictures."""
    from nbconvert import MarkdownExporter
    from nbformat.v4 import new_markdown_cell, new_notebook

    cells = []
    for cell in notebook.cells:
        cells.append(cell.copy())
        if cell.cell_type == "code" and is_drawing(cell):
            code = f"```python\n{cell.source}\n```"
            folded = f"<details><summary>{FOLDED}</summary>\n\n{code}\n\n</details>"
            cells[-1].source = ""
            cells.insert(-1, new_markdown_cell(folded))
        if cell.cell_type == "code":
            cells[-1].outputs = [shown(output) for output in cell.outputs]
    exporter = MarkdownExporter(exclude_input_prompt=True)
    whole = new_notebook(cells=cells, metadata=notebook.metadata)
    text, _ = exporter.from_notebook_node(whole)
    # The input of a folded cell is empty by now.
    text = re.sub(r"```python\n\s*```\n", "", text)
    title, _, rest = text.strip().partition("\n")
    badge = f"{BADGE}({FOLDER}/{lesson.stem}.ipynb)"
    step = f"pictures/{lesson.stem[:2]}_step.png"
    step = f'<img src="{step}" width="800" alt="the training step">'
    made = f"{fingerprint(lesson)}\n{machine()}"
    return "\n\n".join([made, title, badge, step, rest.strip(), footer(lesson)])


def shown(output):
    """A picture in an output becomes a file of lessons/pages/pictures, and a link."""
    from nbformat.v4 import new_output

    kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
    if not kinds:
        return output
    found, picture = output.metadata[kinds[0]], base64.b64decode(output.data[kinds[0]])
    (PAGES / "pictures" / found["name"]).write_bytes(picture)
    width, alt = found["width"], found["alt"].replace('"', "&quot;")
    link = f'<img src="pictures/{found["name"]}" width="{width}" alt="{alt}">'
    return new_output("display_data", data={"text/markdown": link})


def setup_of(lesson: Path) -> str:
    """The first cell of a notebook. It fetches what is missing."""
    named = SETUP.replace("REPOSITORY", REPOSITORY)
    return named.replace("STEP", f"{lesson.stem[:2]}_step.png")


def standalone(lesson: Path, notebook) -> str:
    """The executed lesson as a notebook that runs anywhere."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

    step = PAGES / "pictures" / f"{lesson.stem[:2]}_step.png"
    picture = {"image/png": base64.b64encode(step.read_bytes()).decode()}
    sized = {"image/png": {"width": 800}}
    setup = new_code_cell(setup_of(lesson), id="setup")
    setup.outputs = [new_output("display_data", data=picture, metadata=sized)]
    badge = new_markdown_cell(f"{BADGE}({FOLDER}/{lesson.stem}.ipynb)", id="badge")
    for cell in notebook.cells:
        if cell.cell_type == "code" and is_drawing(cell):
            cell.source = f"# @title {FOLDED}\n{cell.source}"
            cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    for cell in [setup, *notebook.cells]:
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
    notebook.cells[:0] = [badge, setup]
    names = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": names, "made_from": fingerprint(lesson)}
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def render(lesson: Path) -> None:
    """Run the lesson; write its pictures, its page and its notebook."""
    from step_picture import LIT, draw

    (PAGES / "pictures").mkdir(parents=True, exist_ok=True)
    draw(LIT[lesson.stem], PAGES / "pictures" / f"{lesson.stem[:2]}_step.png")
    notebook = executed(lesson)
    write_text(PAGES / f"{lesson.stem}.md", page(lesson, notebook))
    write_text(NOTEBOOKS / f"{lesson.stem}.ipynb", standalone(lesson, notebook))


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
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
        hint = 'It comes with: pip install -e ".[lessons]"'
        parser.exit(1, f"render.py: {error}. {hint}\n")
    NOTEBOOKS.mkdir(exist_ok=True)
    for lesson in lessons:
        started = time.perf_counter()
        render(lesson)
        print(f"{lesson.stem}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
