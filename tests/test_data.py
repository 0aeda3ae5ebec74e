"""What data files hold, and what becomes of it: prompts and answers, or one sentence that names file, line and cure."""

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from conftest import FIXTURES

from minclipo.checkpoint import load_tokenizer
from minclipo.checkpoint.chat_template import ChatTemplate
from minclipo.checkpoint.hub import dataset_files
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.problems import make_task
from minclipo.tasks.data_files import records
from minclipo.tasks.word_problems import (
    WordProblem,
    is_prose,
    read_problems,
    shared_prompts,
    word_problem_task,
)
from minclipo.toy import toy_tokenizer
from minclipo.verifier import is_verifiable

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
ONE = '{"question": "2+2?", "answer": "4"}'
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def read(path: Path, question: str = "question", answer: str = "answer") -> list[tuple]:
    return [(problem.question, problem.truth) for problem in read_problems([path], question, answer)]


def written(folder: Path, *contents: dict) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return path


# ---- files ----


@pytest.mark.parametrize(
    "name, data",
    [
        ("lines.jsonl", ONE.encode()),
        ("lines.json", f"\n{ONE}\r\n\r\n".encode()),
        ("array.json", f"\n[\n {ONE}\n]".encode()),
        ("array.JSONL", f"[{ONE}]".encode()),
        ("editor.jsonl", b"\xef\xbb\xbf" + ONE.encode()),
        ("powershell.jsonl", ONE.encode("utf-16")),
        ("no ending", ONE.encode()),
    ],
)
def test_json_is_read_however_it_is_written(tmp_path, name, data):
    """Catches: what a name says trusted more than the bytes; the marks that editors on Windows put at the start."""
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == [("2+2?", "4")]


def test_places_are_lines_items_and_rows(tmp_path):
    """Catches: a message that sends the reader to the wrong place."""
    (tmp_path / "lines").write_text(f"{ONE}\n\n{ONE}\n")
    (tmp_path / "list").write_text(f"[{ONE}, {ONE}]")
    assert [place for place, _ in records(tmp_path / "lines")] == [f"{tmp_path}/lines, line {n}" for n in (1, 3)]
    assert [place for place, _ in records(tmp_path / "list")] == [f"{tmp_path}/list, item {n}" for n in (1, 2)]


@pytest.mark.parametrize("name", ["a.parquet", "UPPER.PARQUET", "a.arrow", "stream.arrow", "no ending"])
def test_tables_are_read_whatever_they_are_called(tmp_path, name):
    """parquet, and both formats of Arrow. Catches: an ending in capitals taken for text; chats lost in a table."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    row = {"prompt": CHAT, "reward_model": {"ground_truth": "4", "style": "rule"}, "answer": ["4"]}
    table, path = pyarrow.Table.from_pylist([row] * 1001), str(tmp_path / name)
    if name.endswith(".arrow"):
        new = ipc.new_stream if name == "stream.arrow" else ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    else:
        parquet.write_table(table, path)
    assert read(tmp_path / name, "prompt", "reward_model.ground_truth") == [(CHAT, "4")] * 1001
    problems = read_problems([tmp_path / name], "prompt", "answer")
    assert problems[1000].truth == "4" and problems[1000].place == f"{path}, row 1001"


@pytest.mark.parametrize("data", [b"PAR1", b"PAR1" + b"x" * 50 + b"PAR1", b"ARROW1", b"\xff\xff\xff\xff\x10"])
def test_a_damaged_table_is_named(tmp_path, data):
    """Catches: "Invalid base64 input" without the name of a file."""
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read: .*download it anew"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "text, names",
    [
        (
            '{"question": "2+2?",\n "answer": "4"}',
            r"data, line 1 is not JSON: .* Give one object per line, or one list",
        ),
        (f"[{ONE}, ", r"data is not JSON: "),
        (f"{ONE}\n" + "[" * 100_000, r"data, line 2 is not JSON: maximum recursion"),
        ('{"answer": "4", "question": "2+2?", "answer": "5"}', r"data, line 1 is not JSON: key 'answer' occurs twice"),
        ('{"\\u001b[31m": "4"}', r"data, line 1: no field 'question' with something in it; found: \?\[31m$"),
    ],
)
def test_what_is_no_json_is_named_by_line(tmp_path, text, names):
    """Catches: a traceback; the last of two values taken in silence; a field name that writes to the terminal."""
    (tmp_path / "data").write_text(text)
    with pytest.raises(ValueError, match=names):
        read(tmp_path / "data")


@pytest.mark.parametrize("name", ["data.jsonl.gz", "no ending"])
def test_what_gzip_has_packed_is_read(tmp_path, name):
    """Catches: "unpack it", where the standard library can."""
    (tmp_path / name).write_bytes(gzip.compress(ONE.encode()))
    assert read(tmp_path / name) == [("2+2?", "4")]


@pytest.mark.parametrize(
    "data, says",
    [
        (gzip.compress(b"1")[:-4], "is packed by gzip, but cannot be unpacked: .* Download it anew"),
        (lzma.compress(b"1"), r"is no text in UTF-8 \(a compressed file\? unpack it\)"),
    ],
)
def test_a_compressed_file_that_cannot_be_read_is_called_so(tmp_path, data, says):
    """Catches: a traceback of a codec."""
    (tmp_path / "data.jsonl.gz").write_bytes(data)
    with pytest.raises(ValueError, match=f"data.jsonl.gz {says}"):
        read(tmp_path / "data.jsonl.gz")


# ---- fields ----


def test_a_chat_and_a_nested_answer_are_understood(tmp_path):
    """DAPO-Math-17k's shape. Catches: a model that is asked "[{'role': 'user', ...}]"."""
    chat = [{"role": "user", "content": "2+2?"}]
    path = written(tmp_path, {"prompt": chat, "reward_model": {"ground_truth": "4"}})
    assert read(path, "prompt", "reward_model.ground_truth") == [(chat, "4")]


def test_a_list_of_one_answer_is_that_answer(tmp_path):
    """OlympiadBench's shape. Catches: the truth "['4']", with which no completion can agree."""
    path = written(tmp_path, {"question": "2+2?", "final_answer": ["4"]}, {"question": "2+3?", "final_answer": [5]})
    assert read(path, "question", "final_answer") == [("2+2?", "4"), ("2+3?", "5")]


def test_a_field_with_a_dot_in_its_name_is_found(tmp_path):
    """Catches: dots that always lead into an object; a value deeper down that hides the field itself."""
    path = written(tmp_path, {"a": {"b": {"c.d": "4"}, "q": "2+2?"}, "a.q": "outer"})
    assert read(path, "a.q", "a.b.c.d") == [("outer", "4")]


@pytest.mark.parametrize("number, text", [(0, "0"), (0.5, "0.5"), (10**400, "1" + "0" * 400)])
def test_a_number_may_be_an_answer(tmp_path, number, text):
    """Catches: 0 taken for nothing; an integer that no float can hold."""
    assert read(written(tmp_path, {"question": "?", "answer": number})) == [("?", text)]


@pytest.mark.parametrize(
    "answer, says",
    [
        ({"ground_truth": "4", "style": "rule"}, "is an object: name one .*, as answer.ground_truth, answer.style"),
        (["4", "5"], "must be one text or number, found a list of 2. Write one value per problem"),
        ([["4"]], "must be one text or number, found a list of 1"),
        ([{"text": "4"}], "must be one text or number, found a list of 1"),
        (True, "must be one text or number, found bool True"),
        (False, "must be one text or number, found bool False"),
        (float("nan"), "must be one text or number, found float nan"),
        (float("inf"), "must be one text or number, found float inf"),
        ("  \n", r"must be one text or number, found str '  \\n'"),
        ("4 \ud83d", r"holds half a character, '\\ud83d': take it out of the file"),
        *[(nothing, "with something in it; found: question, answer") for nothing in (None, "", [], {})],
    ],
)
def test_an_answer_that_is_none_is_refused_by_line(tmp_path, answer, says):
    """Catches: the Python text of a value taken for the truth, so that every completion is wrong in silence."""
    path = written(tmp_path, {"question": "2+2?", "answer": "4"}, {"question": "2+2?", "answer": answer})
    with pytest.raises(ValueError, match=f"data.jsonl, line 2: .*field 'answer' {says}"):
        read(path)


def test_bytes_and_dates_in_a_table_are_refused(tmp_path):
    """Catches: the model asked b'2+2'."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"question": [b"2+2?"], "answer": ["4"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 1: field 'question' must be one text .* found bytes b'2\+2"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "question, says",
    [
        (
            [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}],
            "lacks a role, or a content that is a text",
        ),
        ([{"content": "2+2?"}], "lacks a role"),
        ([*CHAT, {"role": "assistant", "content": "4"}], "must end with the user's message: take out"),
        ([{"role": "user", "content": "2+2? \ud83d"}], "holds half a character"),
        ([*CHAT, "2+2?"], "found a list of 3"),
        (CHAT[1], "is an object: name one of the fields in it, as question.role, question.content"),
        ("2+2? \ud83d", r"holds half a character, '\\ud83d'"),
    ],
)
def test_a_question_that_is_none_is_refused_by_line(tmp_path, question, says):
    """Catches: an answer shown to the model before it is asked; half an emoji that ends in a traceback later."""
    with pytest.raises(ValueError, match=f"data.jsonl, line 1: .*'question'.* {says}"):
        read(written(tmp_path, {"question": question, "answer": "4"}))


def test_an_object_of_columns_is_refused(tmp_path):
    """Catches: a whole file that becomes one problem."""
    path = written(tmp_path, {"question": ["2+2?", "3+3?"], "answer": ["4", "6"]})
    with pytest.raises(ValueError, match="line 1: field 'answer' must be one text or number, found a list of 2"):
        read(path)


# ---- sources ----


def test_local_files_may_be_given_by_a_pattern(tmp_path, monkeypatch):
    """As `datasets` leaves them. Catches: its notes beside the data read as problems; a ~ that is not the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("train-2.ARROW", "train-1.arrow", "train-info.json", "test.arrow", "[1].json", "readme.md"):
        (tmp_path / name).write_text(ONE)
    assert dataset_files(f"{tmp_path}/train-*") == [tmp_path / "train-1.arrow", tmp_path / "train-2.ARROW"]
    assert dataset_files("~/[1].json") == [tmp_path / "[1].json"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        dataset_files(f"{tmp_path}/readme*")


@pytest.mark.parametrize("files, taken", [(("a.JSON",), ["a.JSON"]), (("a.json", "b.jsonl", "c.md"), ["b.jsonl"])])
def test_a_hub_dataset_in_json_is_found(tmp_path, monkeypatch, files, taken):
    """Catches: "has no file like this", where there is one; the hub's dataset_infos.json taken for problems."""
    import huggingface_hub

    (tmp_path / "main").mkdir()
    for name in files:
        (tmp_path / "main" / name).write_text(ONE)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert dataset_files("some/data:main/*") == [tmp_path / "main" / name for name in taken]


def test_a_folder_and_a_broken_link_are_called_what_they_are(tmp_path):
    """Catches: "does not exist" for what the user sees with his own eyes."""
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder: .* by a pattern, such as '{tmp_path}/train-"):
        dataset_files(str(tmp_path))
    for name, target in (("dangling", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FileNotFoundError, match=f"{name} is a link to a file that does not exist"):
            dataset_files(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_a_pipe_is_read(tmp_path):
    """--data <(zcat data.jsonl.gz). Catches: a pipe called missing, or opened twice and waited for."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(ONE,), daemon=True)
    writer.start()
    assert read(*dataset_files(str(tmp_path / "pipe"))) == [("2+2?", "4")]


# ---- what can be judged ----


@pytest.mark.parametrize(
    "truth, possible",
    [
        ("4", True),
        (r"\frac{3}{4}", True),
        (r"\left[0, 1\right)", True),
        ("48/2 = 24\n#### 24", True),
        (r"It is \boxed{x + 1}.", True),
        ("x" * 10_000, False),
        ("}", False),
        (r"The answer is \boxed{}.", False),
        ("The answer is ####", False),
    ],
)
def test_a_truth_that_no_completion_can_meet_is_known(truth, possible):
    """Catches: problems whose reward is 0 for ever."""
    assert is_verifiable(truth) == possible


@pytest.mark.parametrize(
    "truth, prose",
    [
        ("She sold 48/2 = 24 clips in May, so in all she sold 72 clips.", True),
        ("She sold 48/2 = 24 clips in May, so in all she sold 72.\n#### 72", False),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} \cdot \frac{\sqrt{\pi}}{\alpha + \beta + \gamma + \delta}",
            False,
        ),
        ("3 hours, 4 minutes and 5 seconds", False),
    ],
)
def test_a_solution_without_a_mark_is_known(truth, prose):
    """Catches: a reward that is nearly always 0, because a whole solution is compared."""
    assert is_prose(truth) == prose


def task_of(path: Path, limit: int = 512, **options):
    config = LLMConfig(model="m", data=str(path), **options)
    return make_task(str(path), config, load_tokenizer(CHAT_MODEL), limit)


def test_problems_that_cannot_be_judged_are_left_out_and_counted(tmp_path, capsys):
    """Left out, like prompts that are too long: the fault is in the verifier's limits, and one such line in 7,500 must
    not stop a run. In training their reward is always 0; in an evaluation they would be wrong whatever the model says.
    Catches: silence; a line number that is not the line's."""
    long, prose = {"question": "Why?", "answer": "x" * 10_000}, {"question": "How?", "answer": "so it is " * 5}
    path = written(tmp_path, {"question": "2+2?", "answer": "4"}, long, long, prose)
    assert task_of(path).size == 2
    printed = capsys.readouterr().out.splitlines()
    assert re.search(
        r"2 of 4 problems are left out, .* no completion can agree .*\(the first: .*data.jsonl, line 2\)", printed[0]
    )
    assert re.search(r"1 of 2 problems have a whole sentence .* #### ANSWER .*\(the first: .*, line 4\)", printed[1])
    assert printed[2] == f"{path}: 2 problems" and len(printed) == 3


def test_a_file_of_which_nothing_can_be_judged_is_refused(tmp_path):
    """Catches: hours of training without a single reward."""
    path = written(tmp_path, {"question": "Why?", "answer": "x" * 10_000})
    with pytest.raises(ValueError, match=r"data.jsonl: no completion can agree .* such as .*line 1\. .*--answer-field"):
        task_of(path)


def test_held_out_problems_that_training_sees_are_counted():
    """Catches: overlap that is reported as held out."""
    training, other = ([WordProblem(text, text, "1") for text in texts] for texts in ("abcd", "cdef"))
    assert shared_prompts(word_problem_task(training), word_problem_task(other)) == 2


def test_the_guides_own_problems_hold_out_what_they_say(tmp_path):
    """The program in the tasks' README.md, run twice. Catches: test questions that training has asked."""
    guide = (ROOT / "minclipo" / "tasks" / "README.md").read_text(encoding="utf-8")
    program = textwrap.dedent(
        guide[guide.index("    # runs/make_problems.py") : guide.index("    .venv/bin/python runs/make_p")]
    )
    parts = []
    for part in ("train", "test"):
        done = subprocess.run([sys.executable, "-c", program, part], capture_output=True, text=True, check=True)
        (tmp_path / part).write_text(done.stdout)
        parts.append(set(read(tmp_path / part)))
    assert [len(part) for part in parts] == [800, 200] and not parts[0] & parts[1]


# ---- prompts ----


def test_a_chat_goes_through_the_template_as_it_is(tmp_path, capsys):
    """Catches: a system message lost or doubled, a second instruction, options that are dropped in silence."""
    path = written(tmp_path, {"question": CHAT, "answer": "4"}, {"question": "2+2?", "answer": "4"})
    task = task_of(path, system_prompt="Be long.", prompt_suffix=" Box it.")
    chat, text = sorted((task.draw("all", index) for index in range(2)), key=lambda problem: "Box" in problem.prompt)
    tokenizer = load_tokenizer(CHAT_MODEL)
    assert chat.prompt == tokenizer.chat(CHAT) and chat.question == "2+2?"
    assert text.prompt == tokenizer.chat(
        [{"role": "system", "content": "Be long."}, {**CHAT[1], "content": "2+2? Box it."}]
    )
    said = "1 of 2 problems are chats, asked as they are, without --system-prompt and --prompt-suffix (the first: "
    assert f"{said}{path}, line 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "template, says",
    [
        (None, "line 2: this tokenizer has no chat_template: give it plain text"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x", "line 2: .*no system"),
        ("x{{ '\ud83d' if messages|length > 1 }}", "line 2: "),
        ("{{ 'x' if messages|length == 1 }}", "line 2: the model's tokenizer sees nothing in ''"),
    ],
)
def test_a_prompt_that_cannot_be_written_is_named_by_line(tmp_path, monkeypatch, template, says):
    """Catches: a traceback, or a message that names the template alone."""
    path, tokenizer = written(tmp_path, {"question": "a", "answer": "1"}, {"question": CHAT, "answer": "4"}), None
    tokenizer = load_tokenizer(CHAT_MODEL)
    tokenizer.chat_template = template and ChatTemplate(template, "a.jinja", {})
    config = LLMConfig(model="m", data="d")
    with pytest.raises(ValueError, match=f"data.jsonl, {says}"):
        make_task(str(path), config, tokenizer, 512)


def test_a_word_that_the_tokenizer_does_not_know_is_named_by_line(tmp_path):
    """The toy's tokenizer knows numbers only. Catches: the file blamed as a whole, or the first line."""
    path = written(tmp_path, {"question": "2", "answer": "2"}, {"question": "two", "answer": "2"})
    config = LLMConfig(model="m", data="d", prompt_suffix="")
    with pytest.raises(ValueError, match="data.jsonl, line 2: the model's tokenizer cannot encode 'two"):
        make_task(str(path), config, toy_tokenizer(), 512)


def test_an_endless_question_is_not_encoded(tmp_path, monkeypatch):
    """Catches: a minute and a half for a question of 10 MB, only to find it too long."""
    path = written(tmp_path, {"question": "a" * 10**6, "answer": "1"}, {"question": "a", "answer": "1"})
    encoded, original = [], train_llm.Tokenizer.encode_batch
    watched = lambda tokenizer, texts: encoded.extend(map(len, texts)) or original(tokenizer, texts)
    monkeypatch.setattr(train_llm.Tokenizer, "encode_batch", watched)
    assert task_of(path, limit=100).size == 1 and max(encoded) < 100_000


@pytest.mark.parametrize("limit, option", [(5, "--max-new-tokens"), (20, "--max-prompt-tokens")])
@pytest.mark.parametrize("source", ["sums", "stories", "data.jsonl"])
def test_the_option_that_leaves_too_little_room_is_named(tmp_path, monkeypatch, source, limit, option):
    """Catches: --max-prompt-tokens blamed for a long completion; sums that fail once the run has begun."""
    written(tmp_path, {"question": "Twice two? " * 9, "answer": "4"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{source}: .* longer than {limit} tokens; see {option}"):
        task_of(source, limit=limit, max_prompt_tokens=20)


def test_half_a_character_ends_with_one_sentence(tmp_path, capsys):
    """train_llm.py as a user runs it. Catches: a traceback."""
    path = written(tmp_path, {"question": "2+2? \ud83d", "answer": "4"})
    assert train_llm.main(["--model", CHAT_MODEL, "--data", str(path), "--eval-only", "--device", "cpu"]) == 1
    assert f"train_llm.py: {path}, line 1: field 'question' holds half a character" in capsys.readouterr().err
