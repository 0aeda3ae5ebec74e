"""One folder, one run; a resume that knows what it resumes; and what damaged or missing files do. Real processes."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES
from test_resume import make, without_times

import minclipo.runs.folder as folder_module
import minclipo.runs.lock as lock_module
from minclipo.checkpoint.files import read_json, read_lines, write_json, write_lines
from minclipo.config import TrainConfig
from minclipo.model import GPTConfig
from minclipo.runs import available
from minclipo.runs.folder import check_out, earlier_settings, out_path, prepare_out
from minclipo.runs.inputs import refuse_inside, same_revision, what_was_read
from minclipo.runs.lock import Lock, Taken, refuse_taken
from minclipo.runs.machine import check_memory, estimate_memory
from minclipo.runs.report import report

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402
import train_toy  # noqa: E402

CHAT_MODEL = FIXTURES / "parity" / "smollm2_like_bf16"
SETTINGS = {"script": "train_llm.py", "started": 1.0, "llm": {}, "training": {"steps": 5}}
SHORT = "--steps 1 --prompts-per-step 2 --group-size 3 --max-new-tokens 6 --eval-every 0 --device cpu".split()
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@contextlib.contextmanager
def second_process(function, *arguments):
    """A real one, that has called the function and keeps what it returned, until it is killed. Yields its number."""
    fork = multiprocessing.get_context("fork")
    done, release = fork.Event(), fork.Event()

    def body():
        kept = function(*arguments)
        done.set()
        release.wait(60)
        del kept

    process = fork.Process(target=body, daemon=True)
    process.start()
    assert done.wait(60)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(out: Path) -> None:
    """A run that has ended."""
    prepare_out(out, SETTINGS, resume=False).release()
    (out / "mine").write_text("the first run")


# ---- the lock ----


@needs_fork
@pytest.mark.parametrize("resume", [False, True])
def test_a_living_run_is_neither_renamed_nor_resumed(tmp_path, resume):
    """Catches: a second start that renames the folder under the first run's feet; two processes in one metrics.jsonl."""
    out = tmp_path / "run"
    begin(out)
    with second_process(prepare_out, out, SETTINGS, True) as process:
        before = contents(tmp_path)
        for refuse in (check_out, prepare_out):
            with pytest.raises(
                Taken, match=f"--out {out}: process {process.pid} on .* training there since 20..-.*Wait"
            ):
                refuse(out, SETTINGS, resume)
        assert contents(tmp_path) == before and os.listdir(tmp_path) == ["run"]
    prepare_out(out, SETTINGS, resume=True).release()  # it was killed, so the folder is free


@needs_fork
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("resumes", [(False,) * 6, (True, False) * 3, (True,) * 6])
def test_of_many_at_the_same_instant_one_trains(tmp_path, earlier, resumes):
    """Starts and resumes, with and without an earlier run. Catches: two in one folder, an earlier run that is lost or
    renamed twice."""
    out, fork = tmp_path / "run", multiprocessing.get_context("fork")
    if earlier:
        begin(out)
    at_once, all_tried, outcomes = fork.Barrier(len(resumes)), fork.Barrier(len(resumes)), fork.SimpleQueue()

    def start(resume: bool) -> None:
        at_once.wait(60)
        try:
            run = prepare_out(out, SETTINGS, resume)
            with open(run.folder / "theirs", "a") as file:
                file.write("one\n")
            outcomes.put((resume, "trains"))
        except ValueError as error:
            outcomes.put((resume, str(error)))
        all_tried.wait(60)

    processes = [fork.Process(target=start, args=(resume,)) for resume in resumes]
    for process in processes:
        process.start()
    found = [outcomes.get() for _ in processes]
    for process in processes:
        process.join(60)
    trains = [resume for resume, outcome in found if outcome == "trains"]
    assert len(trains) == 1, found
    assert all(
        "training there" in outcome or "look beside it" in outcome for _, outcome in found if outcome != "trains"
    )
    assert (out / "theirs").read_text() == "one\n" and earlier_settings(out, "train_llm.py") == SETTINGS
    assert len(list(tmp_path.rglob("mine"))) == earlier and len(os.listdir(tmp_path)) <= 2


def test_a_lock_that_moved_with_its_folder_is_not_taken_for_the_new_ones(tmp_path, monkeypatch):
    """Between opening and locking, another start renames the earlier run. Catches: two processes, each with a lock."""
    folder, original = tmp_path / "run", lock_module._locked
    folder.mkdir()

    def renamed_first(file):
        if not (tmp_path / "run-1").exists():
            folder.rename(tmp_path / "run-1")
        return original(file)

    monkeypatch.setattr(lock_module, "_locked", renamed_first)
    lock = Lock(folder)
    assert lock.in_place() and os.path.samefile(lock.path, folder / "lock")
    with pytest.raises(Taken):
        refuse_taken(folder)
    refuse_taken(tmp_path / "run-1")


def test_a_resume_does_not_begin_anew_where_a_run_has_just_been_renamed(tmp_path, monkeypatch):
    """Catches: --resume that trains from step 0, in the moment between renaming and making the new folder."""
    out = tmp_path / "run"
    begin(out)
    monkeypatch.setattr(folder_module, "Lock", lambda folder: folder.rename(tmp_path / "run-1") and Lock(folder))
    with pytest.raises(ValueError, match="another start has just renamed the earlier run"):
        prepare_out(out, SETTINGS, resume=True)
    assert (tmp_path / "run-1" / "mine").is_file()


@needs_fork
def test_a_child_does_not_keep_the_lock(tmp_path):
    """A forked one, and a program that inherits all open files. Catches: a folder locked by a helper process, long
    after the run has ended."""
    lock = Lock(tmp_path)
    with second_process(int), subprocess.Popen(["sleep", "60"], close_fds=False) as program:
        try:
            lock.release()
            Lock(tmp_path).release()
        finally:
            program.kill()


@needs_fork
def test_a_child_does_not_release_the_lock(tmp_path):
    """Catches: unlocking in the child what the parent still holds."""
    lock = Lock(tmp_path)
    with second_process(int):
        with pytest.raises(Taken):
            refuse_taken(tmp_path)
    assert lock.in_place()


@pytest.mark.skipif(lock_module.fcntl is None, reason="flock")
def test_without_locks_it_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys):
    """Catches: no training at all on a network disk."""
    import errno

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", no_locks)
    for resume in (False, True):
        prepare_out(tmp_path / "run", SETTINGS, resume).release()
    assert capsys.readouterr().out.count("this file system has no locks") == 1


@needs_fork
def test_a_run_inside_an_earlier_one_is_not_moved_either(tmp_path):
    """--out vol/run2 is what a mount point calls for. Catches: the living run in it renamed with the folder around."""
    begin(tmp_path / "vol")
    with second_process(prepare_out, tmp_path / "vol" / "run2", SETTINGS, False):
        with pytest.raises(Taken, match="run2: process"):
            prepare_out(tmp_path / "vol", SETTINGS, resume=False)
    assert (tmp_path / "vol" / "mine").is_file()


@needs_fork
def test_both_scripts_refuse_a_taken_folder(tmp_path, capsys):
    """Catches: a script that prepares its folder in some other way; minutes of loading before the refusal."""
    with second_process(Lock, tmp_path):
        for more in ([], ["--resume"]):
            arguments = ["--model", "nowhere", "--data", "sums", "--out", str(tmp_path)]
            assert train_llm.main([*arguments, *more]) == 1
            assert "has been training there since" in capsys.readouterr().err
            with pytest.raises(SystemExit):
                train_toy.main(["--out", str(tmp_path), *more])
            assert "has been training there since" in capsys.readouterr().err


def test_a_finished_run_lets_go(tmp_path):
    """Catches: a notebook that cannot train twice in the same folder."""
    arguments = [*SHORT, "--model", str(CHAT_MODEL), "--data", "sums", "--out", str(tmp_path / "run")]
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_llm, "prepare_out", lambda *a: kept.append(prepare_out(*a)) or kept[-1])
        assert train_llm.main(arguments) == 0
    refuse_taken(tmp_path / "run")


# ---- where the folder is ----


def test_the_folder_behind_a_link_is_renamed_and_the_link_stays(tmp_path):
    """runs/llm -> /big/llm. Catches: the second run written to the small disk."""
    (tmp_path / "big" / "llm").mkdir(parents=True)
    link = tmp_path / "llm"
    link.symlink_to(tmp_path / "big" / "llm")
    begin(link)
    prepare_out(link, SETTINGS, resume=False).release()
    assert link.is_symlink() and (tmp_path / "big" / "llm-1" / "mine").is_file()
    assert (tmp_path / "big" / "llm" / "settings.json").is_file() and sorted(os.listdir(tmp_path)) == ["big", "llm"]


def test_a_link_to_nothing_is_named(tmp_path):
    """The big disk is not there. Catches: FileExistsError for a folder that does not exist."""
    (tmp_path / "llm").symlink_to(tmp_path / "big")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("llm", "loop"):
        with pytest.raises(ValueError, match=f"{name} is a link to nothing: make the folder"):
            prepare_out(tmp_path / name, SETTINGS, resume=False)


IN_A_VOLUME = """
import sys
from pathlib import Path
from minclipo.runs.folder import prepare_out
for resume in (False, True, False):
    try:
        prepare_out(Path(sys.argv[1]), {"script": "s", "a": {}}, resume).release()
    except ValueError as error:
        print(error)
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a real mount point")
def test_a_mount_point_is_named_before_anything_happens(tmp_path):
    """A container's volume. Catches: "Device or resource busy: 'vol' -> 'vol-1'"."""
    mount = f"mount -t tmpfs none {tmp_path} && exec {sys.executable} -c '{IN_A_VOLUME}' {tmp_path}"
    found = subprocess.run(["unshare", "-rm", "sh", "-c", mount], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in found.stderr or "mount:" in found.stderr:
        pytest.skip(f"no mount points here: {found.stderr}")
    assert f"--out {tmp_path} is a mount point" in found.stdout, found.stderr
    assert f"Choose another --out, such as {tmp_path / 'run2'}, or go on with --resume" in found.stdout
    assert "['lock', 'settings.json']" in found.stdout


@pytest.mark.skipif(os.name == "nt" or hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_renamed_is_left_as_it_is(tmp_path):
    """No permission beside it. Catches: an error without a way out, an earlier run without its lock."""
    begin(tmp_path / "vol" / "run")
    (tmp_path / "vol").chmod(0o500)
    try:
        with pytest.raises(OSError, match="cannot be renamed to .*run-1: Permission denied. Choose another --out"):
            prepare_out(tmp_path / "vol" / "run", SETTINGS, resume=False)
    finally:
        (tmp_path / "vol").chmod(0o700)


def test_a_renaming_that_fails_changes_nothing(tmp_path, monkeypatch):
    """A bind mount on the same disk does not look like a mount point. Catches: the run in it lost, the lock kept."""
    begin(tmp_path / "vol")
    before = contents(tmp_path / "vol")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: os.rmdir(ROOT))  # fails, whatever it is
        message = "cannot be renamed to .*vol-1: .*Choose another --out, such as .*run2"
        with pytest.raises(OSError, match=message) as found:  # keeps all that the failed call had
            prepare_out(tmp_path / "vol", SETTINGS, resume=False)
    after = contents(tmp_path / "vol")
    assert after.pop("lock") and before.pop("lock") and after == before
    refuse_taken(tmp_path / "vol")
    assert found.tb is not None


def test_home_is_expanded_and_nothing_is_refused(monkeypatch, tmp_path, capsys):
    """Catches: a folder called ~; the current folder for an empty $OUT."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert out_path("~/x") == tmp_path / "x"
    for parse in (train_llm.parse_arguments, lambda argv: train_toy.parse_arguments(argv)[0]):
        assert parse(["--out=~/x"]).out == tmp_path / "x"
        with pytest.raises(SystemExit):
            parse(["--out", ""])
        assert "--out: it is empty: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_folder_that_one_is_in_keeps_its_name(tmp_path, monkeypatch, name):
    """Catches: "PosixPath('.') has an empty name"; a folder renamed under the user's feet."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    begin(Path(name))
    with pytest.raises(ValueError, match="this process runs in it.*Choose another --out, such as .*run2"):
        prepare_out(Path(name), SETTINGS, resume=False)
    assert (tmp_path / "here" / "mine").is_file()
    prepare_out(Path(name), SETTINGS, resume=True).release()


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_data_inside_out_is_refused(tmp_path, capsys, option):
    """Catches: the data renamed away with the earlier run, so that the same command fails the next time."""
    out = tmp_path / "run"
    begin(out)
    write_lines(out / "train-1.jsonl", [{"question": "1 + 1", "answer": "2"}])
    sources = {"--data": "sums", "--eval-data": "sums"} | {option: str(out / "train-*")}
    arguments = [*SHORT, *(text for pair in sources.items() for text in pair)]
    assert train_llm.main(["--model", str(CHAT_MODEL), *arguments, "--out", str(out)]) == 1
    assert f"{option} {out / 'train-*'} is inside --out {out}" in capsys.readouterr().err
    refuse_inside(out, {"--data": "", "--eval-data": "openai/gsm8k:main/*", "--model": "~nobody/x"})


# ---- settings.json ----


DAMAGED = {
    "": "is not valid JSON",
    '{"script": "train_llm.py", "llm": {"mod': "is not valid JSON",
    '{"script": "train_llm.py", "llm": [1]}': "is damaged: llm must be an object",
    '{"script": "train_llm.py", "training": null}': "is damaged: training must be an object",
    '{"script": "train_llm.py", "files": {"data": 3}}': "is damaged: data of files must be an object",
    '{"script": "train_llm.py", "started": "yesterday"}': "is damaged: started must be a time in seconds, found 'yester",
    '{"script": "train_llm.py", "started": 1e300}': "is damaged: started must be a time in seconds, found 1e",
    '[{"script": "train_llm.py"}]': "is no earlier run of this script",
    None: "is no earlier run of this script: no settings.json",
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("text, message", DAMAGED.items())
def test_a_damaged_settings_file_ends_with_one_line(tmp_path, capsys, text, message, resume):
    """Catches: a traceback, an error without a way out, a run renamed that nobody can read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    if text is not None:
        (tmp_path / "settings.json").write_text(text)
    arguments = ["--model", "nowhere", "--data", "sums", "--out", str(tmp_path)] + ["--resume"] * resume
    assert train_llm.main(arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed and "choose another --out (--model " in printed and printed.count("\n") == 1
    assert not (tmp_path / "lock").exists()


def test_a_resume_without_an_earlier_run_says_so(tmp_path, capsys):
    """Catches: a name typed wrongly, and hours of training that begin at step 0."""
    prepare_out(tmp_path / "tpyo", SETTINGS, resume=True).release()
    assert "there is no earlier run in" in capsys.readouterr().out


def test_a_start_that_was_killed_at_once_is_begun_again(tmp_path):
    """Catches: a lock, or half of settings.json, taken for somebody's own files."""
    (tmp_path / "lock").write_text("")
    (tmp_path / "settings.json.partial").write_text("{")
    prepare_out(tmp_path, SETTINGS, resume=False).release()
    assert sorted(os.listdir(tmp_path)) == ["lock", "settings.json"]


@pytest.mark.parametrize("lost", ["", "settings.json", "lock", "seed0/metrics.jsonl", "seed0/states"])
def test_what_was_deleted_during_a_run_comes_back(tmp_path, lost):
    """Everything, or a part, of a run in a folder within, as the toy's are. Catches: a run that ends, and one that
    cannot be resumed afterwards."""
    out = tmp_path / "run"

    def delete(step: int) -> None:
        if step == 5 and (out / lost).is_dir():
            shutil.rmtree(out / lost)
        elif step == 5:
            (out / lost).unlink()

    with prepare_out(out, SETTINGS, resume=False) as folder:
        run = make(out / "seed0")
        run.before_writing = folder.keep
        history = run.train(after_step=delete)
        with pytest.raises(Taken):
            refuse_taken(out)
    assert [line["step"] for line in history] == [1, 2, 3, 4, 5, 6]
    assert without_times(read_lines(out / "seed0" / "metrics.jsonl")) == without_times(history)
    assert earlier_settings(out, "train_llm.py") == SETTINGS
    with prepare_out(out, SETTINGS, resume=True):
        assert make(out / "seed0", steps=7).train(resume=True)[-1]["step"] == 7


def test_a_run_stops_where_its_folder_has_become_anothers(tmp_path):
    """Renamed by hand, and another run started there. Catches: both writing to the new one."""
    out = tmp_path / "run"
    run = prepare_out(out, SETTINGS, resume=False)
    out.rename(tmp_path / "mine")
    other = prepare_out(out, SETTINGS | {"started": 2.0}, resume=False)
    with pytest.raises(Taken, match="has been moved away. --out .*: process"):
        run.keep()
    other.release()
    with pytest.raises(ValueError, match="has been moved away, and another run has been there since"):
        run.keep()
    assert read_json(out / "settings.json")["started"] == 2.0


# ---- what is resumed ----


@pytest.fixture
def inputs(tmp_path):
    """(a copy of a model, data, evaluation data)"""
    shutil.copytree(CHAT_MODEL, tmp_path / "start")
    for name in ("data", "eval"):
        write_lines(tmp_path / f"{name}.jsonl", [{"question": f"{n} + {n}", "answer": f"{2 * n}"} for n in range(9)])
    return tmp_path / "start", tmp_path / "data.jsonl", tmp_path / "eval.jsonl"


def asked_again(inputs, earlier: dict, reference: bool = False) -> dict:
    model, data, eval_data = inputs
    return what_was_read(Path("OUT"), model, str(data), str(eval_data), earlier, reference)


def test_the_same_files_are_known_again(inputs, capsys):
    """Catches: what changes with the place or the time of a file, but is not in it."""
    earlier = asked_again(inputs, None)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= earlier["files"]["model"].keys()
    weights = earlier["files"]["model"]["model.safetensors"]
    assert weights["bytes"] == (inputs[0] / "model.safetensors").stat().st_size and len(weights["sha256"]) == 64
    for path in (*inputs[1:], *inputs[0].iterdir()):
        os.utime(path, (1, 1))
    assert asked_again(inputs, earlier) == earlier and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "data.jsonl"])
def test_a_run_does_not_go_on_with_another_file(inputs, name):
    """One byte more. Catches: training that goes on with something else and says nothing."""
    earlier, path = asked_again(inputs, None), inputs[1] if name == "data.jsonl" else inputs[0] / name
    path.write_bytes(path.read_bytes() + b"\n" if path.exists() else b"{{ messages }}")
    with pytest.raises(ValueError, match=f"since OUT was begun, --.*: {name} (has changed|is new). Put the earlier"):
        asked_again(inputs, earlier)
    path.unlink()
    if name in earlier["files"]["model"]:
        with pytest.raises(ValueError, match=f"--model: {name} is gone"):
            asked_again(inputs, earlier)


def test_other_weights_matter_to_a_kl_penalty_only(inputs, capsys):
    """Catches: another reference model; a run that cannot go on though everything it needs is in its state."""
    earlier, path = asked_again(inputs, None), inputs[0] / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="--model: model.safetensors has changed"):
        asked_again(inputs, earlier, reference=True)
    assert asked_again(inputs, earlier) == earlier  # what it began with stays remembered
    assert "--model: model.safetensors has changed. The run goes on from its own weights" in capsys.readouterr().out


def test_another_evaluation_set_is_a_warning(inputs, capsys):
    """Catches: a curve of two different evaluations, a run that is refused though it trains on the same."""
    earlier = asked_again(inputs, None)
    inputs[2].write_text(inputs[2].read_text() * 2)
    now = asked_again(inputs, earlier)
    assert "--eval-data: eval.jsonl has changed. Evaluations before and after" in capsys.readouterr().out
    assert (
        now["files"]["eval_data"] != earlier["files"]["eval_data"] and now["files"]["data"] == earlier["files"]["data"]
    )


def test_files_of_shards_and_patterns_are_told_apart(inputs):
    """Catches: files of the same name in two folders taken for one; shards left out."""
    model, data, eval_data = inputs
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": "part-1.safetensors"}})
    for name in "ab":
        (data.parent / name).mkdir()
        (data.parent / name / "x.jsonl").write_text(name)
    files = asked_again((model, data.parent / "*" / "x.jsonl", "sums"), None)["files"]
    assert {"part-1.safetensors", "model.safetensors.index.json"} <= files["model"].keys()
    assert list(files["data"]) == ["a/x.jsonl", "b/x.jsonl"] and files["eval_data"] == {}


@needs_fork
def test_a_pipe_is_not_read_twice(tmp_path):
    """--data <(...). Catches: waiting for ever for what has been read already."""
    os.mkfifo(tmp_path / "pipe")
    files = what_was_read(tmp_path, CHAT_MODEL, str(tmp_path / "pipe"), "", None, False)["files"]
    assert files["data"] == {"pipe": {}}


def test_a_resumed_run_asks_the_hub_for_its_own_revision(tmp_path):
    """Catches: a newer model of the same name under a run that began with the older one."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    shutil.copytree(CHAT_MODEL, snapshot)
    earlier = what_was_read(tmp_path, snapshot, "sums", "sums", None, False)
    assert same_revision("a/b", earlier) == "a/b@0123abc"
    assert same_revision("a/b@main", earlier) == "a/b@main" and same_revision("a/b", None) == "a/b"
    assert same_revision(str(tmp_path), earlier) == str(tmp_path)


def test_a_resumed_run_of_the_script_checks_its_files(inputs, tmp_path, capsys):
    """As a user does it. Catches: checksums that nobody writes or compares; an older run that cannot be resumed."""
    model, data, eval_data = inputs
    out = tmp_path / "run"
    arguments = [*SHORT, "--model", str(model), "--data", str(data), "--eval-data", str(eval_data), "--out", str(out)]
    assert train_llm.main(arguments) == 0
    settings = read_json(out / "settings.json")
    assert settings["files"]["data"]["data.jsonl"]["bytes"] == data.stat().st_size
    data.write_text(data.read_text().replace("1 + 1", "1 + 2"))
    before = contents(out)
    assert train_llm.main([*arguments, "--resume", "--steps", "2"]) == 1
    assert "--data: data.jsonl has changed" in capsys.readouterr().err and contents(out) == before
    write_json(out / "settings.json", {name: value for name, value in settings.items() if name != "files"})
    assert train_llm.main([*arguments, "--resume", "--steps", "2"]) == 0
    assert "begun by a version that did not remember its files" in capsys.readouterr().out
    assert len(read_lines(out / "metrics.jsonl")) == 2 and "files" in read_json(out / "settings.json")


LINES = ["[1]", "3", "{}", '{"step": 1, "rew', "[" * 100_000]


def test_a_damaged_line_is_named_on_resuming(tmp_path, capsys):
    """Catches: a traceback, also from a line that is JSON but no object."""
    arguments = ["--model", str(CHAT_MODEL), "--data", "sums", "--out", str(tmp_path / "run"), "--eval-problems", "2"]
    arguments = [*SHORT, *arguments, "--eval-every", "1"]
    assert train_llm.main(arguments) == 0
    for path in (tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "evaluation.jsonl"):
        whole = path.read_text()
        for line in LINES:
            path.write_text(f"{whole}{line}\n")
            assert train_llm.main([*arguments, "--resume", "--steps", "2"]) == 1
            printed = capsys.readouterr().err
            assert f"{path}, line {whole.count(chr(10)) + 1} is no" in printed and "Correct or remove it" in printed
        path.write_text(whole)


# ---- memory ----


def test_a_cpu_with_little_memory_is_warned(monkeypatch, capsys):
    """Catches: hours of swapping, or a killed process, without a word before; a word where there is enough."""
    shape = GPTConfig(vocab_size=1000, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, intermediate_size=128)
    estimate = estimate_memory(
        shape, TrainConfig(), prompt_tokens=99, dtype=torch.float32, gradient_checkpointing=False, device_type="cpu"
    )
    for room, words in (
        (estimate.peak, []),
        (estimate.peak - 1, ["WARNING", "--micro-batch-tokens", "--sampling-rows", "--gradient-checkpointing"]),
        (estimate.fixed - 1, ["WARNING", "alone take", "choose a smaller --model"]),
    ):
        monkeypatch.setattr(available, "machine_room", lambda: room)
        check_memory(estimate, torch.device("cpu"))
        printed = capsys.readouterr().out
        assert all(word in printed for word in words) and ("WARNING" in printed) == bool(words)


def test_limits_of_containers_are_read(tmp_path):
    """Both versions of control groups, limits of an outer group included. Catches: 64 GiB taken for granted in a
    container of 2, the cache of files taken for used memory."""
    for folder, limit in (("a/b", "max"), ("a", "3000"), ("", "9000"), ("memory/c", "5000")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / ("memory.limit_in_bytes" if "c" in folder else "memory.max")).write_text(limit + "\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 1000\nfile 1500\n")
    (tmp_path / "memory" / "c" / "memory.stat").write_text("cache 1\ntotal_rss 500\n")
    membership = tmp_path / "membership"
    for line, room in (("0::/a/b", 2000), ("4:cpu,memory:/c", 4500), ("4:cpu:/c", None), ("0::/", 9000)):
        membership.write_text(line + "\n")
        assert available.container_room(membership, tmp_path) == room
    assert available.container_room(tmp_path / "nowhere", tmp_path) is None


def train_with_little_memory(arguments: list[str], printed: Path) -> None:
    import resource

    with open(printed, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        limit = available.number_after(Path("/proc/self/status"), "VmSize:") * 2**10 + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print("room", available.available_memory() / 2**29)
        print("status", train_llm.main(arguments))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a real limit on memory")
def test_a_real_limit_on_memory_is_warned_of_and_ends_with_advice(tmp_path):
    """512 MiB more than there is, in a process of its own. Catches: "DefaultCPUAllocator: can't allocate memory" in a
    traceback, and no word of it before."""
    arguments = [*SHORT, "--model", str(CHAT_MODEL), "--data", "sums", "--out", str(tmp_path / "run")]
    arguments += "--prompts-per-step 16 --group-size 10000 --max-new-tokens 60 --threads 1".split()
    with second_process(train_with_little_memory, arguments, tmp_path / "printed"):
        printed = (tmp_path / "printed").read_text()
    assert "room 1.0" in printed and "WARNING: that is more than the 0." in printed
    assert "can't allocate memory" in printed and "--sampling-rows" in printed.split("can't allocate")[1]
    assert "status 1" in printed and "Traceback" not in printed


def test_other_errors_are_not_called_a_lack_of_memory():
    """Catches: a fault of ours hidden behind advice."""
    assert available.advice_on(RuntimeError("shapes do not match")) is None
    assert "--micro-batch-tokens" in available.advice_on(torch.OutOfMemoryError("80 GiB"))


# ---- the toy's report ----


def toy_run(out: Path) -> None:
    """Two seeds of two methods that have been finished."""
    example = [{"start": 7, "operands": [5, -3]}, "+5 12 -3 9 # 9"]
    result = dict(problems=9, correct=6, faithful=3, accuracy=0.7, hallucination_rate=0.5, faithful_accuracy=0.3)
    lines = [{"step": n, "accuracy": 0.5, "hallucination_rate": None} for n in (1, 2, 3)]
    for path in (out / f"seed{seed}" / method for seed in (0, 1) for method in ("pretrained", "clipo")):
        path.mkdir(parents=True)
        write_json(path / "result.json", result | dict(seconds=1.0, peak_memory_mib=1.0, examples=[example]))
        write_lines(path / "metrics.jsonl", lines)


RESULTS = ["", '{"problems": 9, "corr', "{}", "[1]", '{"problems": "9"}', "null"]


@pytest.mark.parametrize("text", RESULTS)
@pytest.mark.parametrize("method", ["pretrained", "clipo"])
def test_a_damaged_result_is_named_and_left_out(tmp_path, capsys, method, text):
    """Catches: a traceback in the report, after all the work."""
    toy_run(tmp_path)
    damaged = tmp_path / "seed0" / method / "result.json"
    damaged.write_text(text)
    (tmp_path / "seedling").mkdir()
    report(tmp_path, "grpo")
    assert f"{damaged} is damaged and left out" in capsys.readouterr().out
    summary = read_json(tmp_path / "summary.json")
    assert summary[method]["seeds"] == [1] and len(summary) == 2
    shutil.rmtree(tmp_path / "seed0" / "pretrained")
    shutil.rmtree(tmp_path / "seed1" / "pretrained")
    report(tmp_path, "grpo")
    assert list(read_json(tmp_path / "summary.json")) == ["clipo"]


@pytest.mark.parametrize(
    "line", ['{"step": 2, "rew', "[1]", "2", "{}", '{"step": 2, "accuracy": "high", "hallucination_rate": 0}']
)
def test_a_damaged_line_ends_its_curve(tmp_path, capsys, line):
    """In the middle of a run that was not resumed. Catches: no curves of anything; steps that do not match."""
    toy_run(tmp_path)
    path = tmp_path / "seed0" / "clipo" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    report(tmp_path, "grpo")
    assert f"{path}, line 2" in capsys.readouterr().out and (tmp_path / "curves.png").stat().st_size > 5000
