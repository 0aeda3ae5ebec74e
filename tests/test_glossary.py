"""The glossary: complete, in order, and no link into nothing."""

import re
from pathlib import Path

import pytest

LESSONS = Path(__file__).parent.parent / "lessons"
GLOSSARY = (LESSONS / "glossary.md").read_text(encoding="utf-8")
CHEATSHEET = LESSONS / "cheatsheet.md"
ENTRIES = re.findall(r"^\* \*\*(.+?)\*\*: (.+?)(?=^\* |\Z)", GLOSSARY, flags=re.MULTILINE | re.DOTALL)


def test_entries_are_in_order():
    """Catches: a term that a reader looks for in another place; a term twice; a sentence that no longer counts right."""
    terms = [term.casefold() for term, _ in ENTRIES]
    assert terms == sorted(set(terms))
    assert 40 <= len(terms) <= 60 and GLOSSARY.startswith(f"# Glossary\n\n{len(terms)} terms")
    assert GLOSSARY.count("\n* ") == len(terms)  # no entry in another form


@pytest.mark.parametrize(
    "term", ["embedding", "critic", "value function", "PPO", "GAE", "KL divergence", "nats", "AUC", "bfloat16"]
)
def test_what_beginners_missed_is_there(term):
    """Catches: a term lost that readers of the lessons looked for in vain."""
    assert term in dict(ENTRIES)


@pytest.mark.parametrize("term, text", ENTRIES, ids=[term for term, _ in ENTRIES])
def test_an_entry_says_where_to_read_on(term, text):
    """Catches: an entry without a link, or with one to a lesson that has another number or name, or to another paper."""
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", text)
    assert links
    for name, target in links:
        if name.startswith("arXiv"):
            assert target == f"https://arxiv.org/abs/{name.removeprefix('arXiv ')}"
        elif name.startswith("lesson"):  # pages are made from lessons
            lesson = LESSONS / f"{Path(target).stem}.py"
            assert target == f"pages/{lesson.stem}.md" and lesson.is_file()
            assert lesson.stem.startswith(f"{int(name.removeprefix('lesson ')):02}_")
        else:
            assert (LESSONS / target).is_file()


def test_the_cheat_sheet_fits_on_one_page():
    """Catches: a sheet that has grown, and a formula that GitHub refuses or whose bar ends a column of its table."""
    text = CHEATSHEET.read_text(encoding="utf-8")
    assert text.count("\n") <= 70
    for formula in re.findall(r"\$([^$\n]+)\$", text):
        assert not re.search(r"\\operatorname|\\[^a-zA-Z]|\|", formula), formula
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (LESSONS / target).is_file(), target
