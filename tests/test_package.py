"""What `pip install` leaves: commands, version, every file that is needed. .ci/run builds a wheel and tries it."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

from test_layout import imports_of

import minclipo
from minclipo.__main__ import COMMANDS
from minclipo.__main__ import main as entrance

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]


def installed(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Python code in another folder, without a terminal, as an installed script runs it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = dict(cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return subprocess.run([sys.executable, "-c", code, *arguments], **options)


def test_every_package_and_script_is_listed():
    """Catches: a new folder, or a script, that only a clone has and no wheel."""
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "minclipo").rglob("*.py")}
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert {".".join(folder.parts) for folder in folders} == set(setuptools["packages"])
    assert {path.stem for path in ROOT.glob("*.py")} == set(setuptools["py-modules"])


def test_pages_and_the_mark_of_typed_code_are_package_data():
    """Catches: a plate at a door that is lost in the wheel; types that no checker believes."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    other = {path.name for path in (ROOT / "minclipo").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert (
        other == set(patterns) == {"README.md", "py.typed", "view.html"} and (ROOT / "minclipo" / "py.typed").is_file()
    )


def test_the_version_stands_in_one_place():
    """Catches: a wheel of another version than the package says."""
    project = PYPROJECT["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "minclipo.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", minclipo.__version__)


def test_everything_that_is_imported_is_a_dependency():
    """Catches: a library that happens to come with another one, until it no longer does."""
    files = [*ROOT.glob("*.py"), *(ROOT / "minclipo").rglob("*.py")]
    imported = {name.partition(".")[0] for path in files for name in imports_of(path)}
    ours = {"minclipo", *PYPROJECT["tool"]["setuptools"]["py-modules"]}
    project = PYPROJECT["project"]
    optional = [line for extra in project["optional-dependencies"].values() for line in extra]
    known = {re.match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *optional]}
    assert imported - ours - sys.stdlib_module_names <= known


def test_the_scripts_and_the_module_run_the_same():
    """Catches: a command that leads nowhere, or elsewhere than `python -m minclipo` says."""
    assert {name.removeprefix("minclipo-"): target for name, target in SCRIPTS.items()} == {
        name: f"{module}:main" for name, module in COMMANDS.items()
    }
    assert all(callable(importlib.import_module(module).main) for module in COMMANDS.values())


def test_help_needs_no_terminal_and_no_sources(tmp_path):
    """As pip's scripts do it, from another folder. Catches: a `main` that needs arguments, a file of the clone, a
    screen; help that calls itself otherwise than the command."""
    code = """
import importlib, sys
for script in sys.argv[1:]:
    name, _, target = script.partition("=")
    sys.argv = [name, "--help"]
    try:
        importlib.import_module(target.partition(":")[0]).main()
    except SystemExit as end:
        assert end.code == 0
"""
    done = installed(code, *(f"{name}={target}" for name, target in SCRIPTS.items()), cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.findall(r"^usage: (\S+) ", done.stdout, re.MULTILINE) == list(SCRIPTS)
    assert list(tmp_path.iterdir()) == []


def test_python_m_minclipo_says_what_there_is(monkeypatch, capsys):
    """Catches: a command that is not listed, a typo that ends in silence."""
    for arguments, status in (([], 0), (["--help"], 0), (["--version"], 0), (["trian"], 2)):
        monkeypatch.setattr(sys, "argv", ["minclipo", *arguments])
        assert entrance() == status
    printed = capsys.readouterr()
    assert printed.out.count("python -m minclipo toy") == 2 and minclipo.__version__ in printed.out.splitlines()
    assert all(f"python -m minclipo {name} " in printed.out and f"minclipo-{name}" in printed.out for name in COMMANDS)
    assert printed.err == "minclipo: there is no 'trian', but: toy, train, chat\n"


def test_python_m_minclipo_hands_its_arguments_on(tmp_path):
    """Catches: options that the command does not get; an exit status that is lost; help for __main__.py."""
    code = """
import runpy, sys
for arguments in (["chat", "--help"], ["chat", "no/such/model", *sys.argv[1:]]):
    sys.argv = ["__main__.py", *arguments]
    try:
        runpy.run_module("minclipo", run_name="__main__")
    except SystemExit as end:
        print(arguments, end.code)
"""
    done = installed(code, "--prompt", "x", cwd=tmp_path)
    assert done.stdout.startswith("usage: minclipo chat ") and "['chat', '--help'] 0\n" in done.stdout, done.stderr
    assert done.stdout.endswith("['chat', 'no/such/model', '--prompt', 'x'] 1\n")
    assert done.stderr.startswith("chat: no/such/model does not exist")
