"""The house: which room may import what, and how large it may grow. Read minclipo/__init__.py for the map."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minclipo"
STEP = ("model", "sampler", "logprobs", "grpo", "contrastive", "trainer")  # the files of a training step
ALGORITHM = (*STEP, "verifier")
CORE = (*ALGORITHM, "config", "toy", "extensions", "tasks", "checkpoint")

# room: what it may import of minclipo. A room is a file in the hall or a folder behind it.
MAY_IMPORT = {
    "model": (),
    "grpo": (),
    "contrastive": (),
    "verifier": (),
    "sampler": ("model",),
    "logprobs": ("model", "sampler"),
    "config": ("contrastive", "grpo"),  # the choices that they offer
    "tasks": ("tasks", "verifier"),
    "extensions": ("extensions", "grpo", "logprobs", "model", "sampler", "tasks"),
    "checkpoint": ("checkpoint", "model"),
    "trainer": ("config", "contrastive", "extensions", "grpo", "logprobs", "model", "sampler", "tasks"),
    "toy": ("checkpoint", "config", "extensions", "model", "sampler", "tasks"),
    "runs": ("runs", *CORE),
    "chat": ("checkpoint", "config", "runs"),
}
DISK = {"json", "os", "pathlib", "pickle", "safetensors", "shutil", "tempfile"}
SCREEN = {"argparse", "matplotlib", "tqdm"}
NEVER = {
    **dict.fromkeys(("model", "grpo", "contrastive", "verifier", "sampler", "logprobs", "config"), DISK | SCREEN),
    **dict.fromkeys(("trainer", "extensions"), DISK | SCREEN),
    "tasks": {"torch", *SCREEN},
    "checkpoint": SCREEN,
}
NEVER["verifier"] = NEVER["verifier"] | {"torch"}


def imports_of(path: Path) -> set[str]:
    """Everything that a file imports, wherever it does, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(room: str) -> list[Path]:
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else sorted((PACKAGE / room).glob("*.py"))


def lines_of(*rooms: str) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for room in rooms for path in files_of(room))


def test_every_room_is_on_the_map():
    """At most ten files in the hall, and a plate at every door. Catches: a file that nobody has given a place."""
    hall = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    doors = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert hall | doors == set(MAY_IMPORT) and len(hall) <= 10
    guide = (PACKAGE / "__init__.py").read_text()
    assert all(f"{name}.py" in guide for name in hall) and all(f"{name}/" in guide for name in doors)
    assert all((PACKAGE / name / "README.md").is_file() for name in doors)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    """Catches: the disk or the screen in the algorithm, a task that needs torch, a loss that cannot be lifted out."""
    for path in files_of(room):
        for name in imports_of(path):
            first, _, rest = name.partition(".")
            if first == "minclipo":
                assert rest.partition(".")[0] in MAY_IMPORT[room], f"{path.name} imports {name}"
            assert first not in NEVER.get(room, ()), f"{path.name} imports {name}"


@pytest.mark.parametrize("name", ["__init__", "__main__"])
def test_the_entrance_imports_no_room(name):
    """Catches: `import minclipo` or `python -m minclipo` that first takes seconds for torch."""
    assert imports_of(PACKAGE / f"{name}.py") <= {"importlib", "minclipo", "sys"}


@pytest.mark.parametrize("room", [room for room in NEVER if {"pathlib", "argparse"} <= NEVER[room]])
def test_what_knows_no_disk_and_no_screen_writes_to_neither(room):
    """Catches: what needs no import: open, print, input, torch.save and torch.load."""
    for path in files_of(room):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not {"open", "print", "input"} & {call.id for call in calls if isinstance(call, ast.Name)}
        assert not {"torch.save", "torch.load"} & {
            ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)
        }


@pytest.mark.parametrize("room", ["grpo", "contrastive", "verifier"])
def test_what_can_be_lifted_out_needs_nothing_else(room):
    """torch and the standard library, for the verifier the library alone. Catches: a file that cannot be copied."""
    firsts = {name.partition(".")[0] for name in imports_of(PACKAGE / f"{room}.py")}
    assert firsts <= sys.stdlib_module_names | ({"torch"} if room != "verifier" else set())


def test_the_algorithm_stays_short():
    """It had 1,224 and 1,600 lines before decoding in rounds and what else a GPU needs; several processes took 12 more.

    Catches: features that grow into the files that are the paper; they belong behind the doors."""
    assert lines_of(*STEP) <= 1300 and lines_of(*ALGORITHM) <= 1690


def test_the_front_page_stays_a_front_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def test_files_that_are_mentioned_exist():
    """In code, pages and messages. Catches: a pointer to where something stood before it moved."""
    pages = [*ROOT.glob("*.py"), ROOT / "README.md"]
    pages += [path for room in ("minclipo", "lessons", "tests") for path in (ROOT / room).rglob("*.py")]
    pages += [path for room in ("minclipo", "lessons", "tests") for path in (ROOT / room).rglob("*.md")]
    mention = re.compile(r"\b(?:minclipo|lessons|tests)/[\w/]+\.(?:py|md|json|png)\b")
    missing = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        for name in mention.findall(page.read_text(encoding="utf-8"))
        if "NAME" not in name and not (ROOT / name).is_file()
    }
    assert missing == set()


def test_no_function_is_longer_than_a_screen():
    """60 lines, docstring included. Catches: a function with two ideas."""
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("train_*.py"), *(ROOT / "lessons").glob("*.py")]
    files += (ROOT / "lessons" / "experiments").rglob("*.py")
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_no_experiment_is_longer_than_250_lines():
    """Catches: four programs in one file."""
    files = (ROOT / "lessons" / "experiments").rglob("*.py")
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 250] == []
