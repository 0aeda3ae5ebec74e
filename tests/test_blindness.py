"""How blind the outcome is, how sure a model is, and the stories on a language model: the experiments' instruments."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons" / "experiments"))
import run as run_module  # noqa: E402
import sharpness  # noqa: E402
import stories  # noqa: E402
import stories_report  # noqa: E402
from processes import in_processes  # noqa: E402

from minclipo.checkpoint import load_model  # noqa: E402
from minclipo.tasks.chain import ChainProblem  # noqa: E402
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer  # noqa: E402

PROBLEM = ChainProblem(7, (5, -3))
MODEL = ROOT / "tests" / "fixtures" / "parity" / "smollm2_like_bf16"


@pytest.mark.parametrize(
    "completion, made_up",
    [
        ("+5 12 -3 9 # 9", False),
        ("+5 13 -3 10 # 10", False),
        ("+4 12 -3 9 # 9", True),
        ("12 +5 9 -2 # 9", True),
        ("+5 12 # 9", None),
    ],
)
def test_only_a_wrong_operand_is_made_up(completion, made_up):
    """Catches: a slip in the total, or a step that is left out, taken for made up; a way of writing not read."""
    assert sharpness.makes_up(PROBLEM, completion) is made_up


def test_blindness_is_a_pair_of_conditional_shares():
    """Catches: a share of all instead of those with (without) a made-up operand; a rate of nothing."""
    texts = [("+5 12 -3 9 # 9", True), ("+5 1 -3 8 # 8", False), ("+4 12 -3 9 # 9", True)]
    examples = [(PROBLEM, text, right) for text, right in texts]
    found = sharpness.blindness(examples, sharpness.makes_up)
    assert found == {"right_if_made_up": 1.0, "right_if_not_made_up": 0.5, "made_up": pytest.approx(1 / 3)}
    assert sharpness.blindness(examples[:2], sharpness.makes_up)["right_if_made_up"] is None


def test_entropies_are_those_of_a_slow_loop():
    """One whole pass per token. Catches: a prediction that is off by one place, operands taken for totals, the answer
    after # counted as a total."""
    model, tokenizer = load_model(ROOT / "lessons" / "models" / "careless"), toy_tokenizer()
    texts = [(PROBLEM.prompt, "+5 12 -3 9 # 9"), (PROBLEM.prompt, "12 +5 # 12")]
    wanted = {"operand": [], "total": []}
    for prompt, completion in texts:
        words = completion.split()
        for place, word in enumerate(words[: words.index("#")]):
            ids = tokenizer.encode(" ".join([prompt, *words[:place]]))
            with torch.no_grad():
                p = model.logits(model(torch.tensor([ids]))[0, -1]).softmax(-1)
            wanted["operand" if word[0] in "+-" else "total"].append(-(p * p.log()).sum().item())
    found = sharpness.entropies(model, texts)
    for kind, values in wanted.items():
        assert found[f"{kind}_entropy"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_a_look_is_repeatable():
    """And what it sees in the published model is what results.md says: greedily nothing is made up, sampled a lot.
    Catches: a look that depends on when it is taken."""
    model = load_model(ROOT / "lessons" / "models" / "careless")
    first, second = (sharpness.look(model, TASK, 16, problems=50) for _ in range(2))
    assert first == second
    assert first["greedy_hallucination_rate"] == 0 and 0.3 < first["hallucination_rate"] < 0.7
    assert 0 < first["operand_entropy"] < math.log(122)


def test_looking_does_not_change_the_training(tmp_path, monkeypatch):
    """Catches: a look that draws from the generators that the run draws from."""
    weights = []
    for every in (1, 100):
        monkeypatch.setattr(run_module, "EVERY", every)
        model, book = load_model(ROOT / "lessons" / "models" / "careless"), run_module.TEXTBOOKS["toy"]
        variant = run_module.Variant("GRPO", dict(prompts_per_step=2, group_size=4), steps=2)
        config = run_module.train_config(variant, 0)
        signals, _ = run_module.train(model, variant, config, book, tmp_path / str(every))
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
        assert len(signals["looks"]) == (3 if every == 1 else 1)
    assert torch.equal(*weights)


def test_a_model_that_writes_no_operands_has_no_entropy_of_them():
    """Catches: NaN, or 0, for the mean of nothing."""
    model = toy_model(ToyConfig(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16), seed=0)
    found = sharpness.entropies(model, [(PROBLEM.prompt, "# 9")])
    assert found == {"operand_entropy": None, "total_entropy": None}


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_done(tmp_path, processes):
    """Catches: a job that is lost."""
    threads = torch.get_num_threads()
    in_processes(Path.touch, [(tmp_path / "a",), (tmp_path / "b",)], processes, threads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_after_an_error_no_other_job_begins(tmp_path):
    """The other jobs wait for the failure, so one of them is at work when it comes, and one more may have begun. Catches:
    a pool that goes on with what it was given ahead."""
    failure = tmp_path / "failure"
    wait = f"until [ -e {failure} ]; do sleep 0.1; done; touch {tmp_path}/done"
    jobs = [(["sh", "-c", f"touch {failure}; exit 1"],), *((["sh", "-c", wait + str(job)],) for job in range(12))]
    with pytest.raises(subprocess.CalledProcessError):
        in_processes(subprocess.check_call, jobs, 2, torch.get_num_threads())
    assert len(list(tmp_path.glob("done*"))) <= 2


# ---- stories.py ----

TINY = "--steps 1 --prompts 2 --group-size 2 --operations 1 --read-steps 2 --read-batch 2 --eval-problems 4 --seeds 0"


def tell(out: Path, *more: str) -> int:
    threads = str(torch.get_num_threads())
    return stories.main(["--model", str(MODEL), "--out", str(out), "--threads", threads, *TINY.split(), *more])


def test_stories_run_are_kept_and_are_not_passed_off(tmp_path, capsys):
    """Both ways of writing, two methods. Catches: a second call that trains again, or that mixes settings."""
    assert tell(tmp_path, "--methods", "baseline", "clipo") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {way: list(found) for way, found in results.items()} == dict.fromkeys(
        stories.WAYS, ["start", "baseline", "clipo"]
    )
    assert (tmp_path / "stories.png").stat().st_size > 5000
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert tell(tmp_path, "--methods", "baseline", "clipo") == 0
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert tell(tmp_path, "--methods", "baseline", "--learning-rate", "1e-3") == 1
    assert "other settings" in capsys.readouterr().err


def test_a_rival_has_its_own_trainer(tmp_path, monkeypatch):
    """Catches: GRPO under the name of log-prob as a reward."""
    made, trainer = [], stories.RIVALS["log_prob"]
    monkeypatch.setitem(stories.RIVALS, "log_prob", lambda *inputs: made.append(trainer(*inputs)) or made[0])
    assert tell(tmp_path, "--methods", "log_prob", "--ways", "result_first") == 0
    assert made[0].last.number == 1 and "log-prob as a reward" in (tmp_path / "table.md").read_text()


def test_reading_teaches_the_way_of_writing_that_is_read():
    """Twenty stories in each way. Catches: weights that do not move, the other way of writing."""
    sized = dict(operations=1, read_steps=10, read_batch=2, read_learning_rate=1e-2, hallucinate=0.0, slip=0.0)
    story = stories.Story(model=str(MODEL), dtype="float32", device="cpu", **sized)
    tokenizer = stories.load_tokenizer(MODEL)
    problem = story.task(tokenizer).draw("textbook", 0)
    solution = f"{problem.chain.operands[0]:+d} {problem.chain.totals[0]} # {problem.chain.totals[0]}"
    texts = [stories.in_words(problem, solution, result_first=way == "result_first") for way in stories.WAYS]
    for place, way in enumerate(stories.WAYS):
        model = story.load(MODEL)
        stories.read(story, way, tokenizer, model)
        with torch.no_grad():
            prompt = tokenizer.encode_batch([problem.prompt])
            losses = [stories.solution_loss(model, prompt, tokenizer.encode_batch([text])).item() for text in texts]
        assert losses[place] < losses[1 - place]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--operations", "0"], "operations must be at least 1"),
        (["--slip", "2"], "slip must be at most 1"),
        (["--eval-problems", "0"], "eval_problems must be at least 1"),
        (["--shared-step", "0.5"], "--operations must be at least 2"),
        (["--methods", "prompt_contrast", "--prompts", "2"], "prompt"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_reading(tmp_path, capsys, options, message):
    """Catches: hours of reading before the first error."""
    assert tell(tmp_path / "out", *options) == 1
    printed = capsys.readouterr()
    assert message in printed.err and "reading" not in printed.out and not (tmp_path / "out").exists()


def test_runs_with_other_settings_are_not_reported_as_one(tmp_path, capsys):
    """Catches: a table whose rows start from different textbooks."""
    assert tell(tmp_path, "--methods", "baseline", "--ways", "result_first") == 0
    path = tmp_path / "result_first" / "start" / "result.json"
    result = json.loads(path.read_text())
    result["settings"]["slip"] = 0.5
    path.write_text(json.dumps(result))
    assert tell(tmp_path, "--methods", "baseline", "--ways", "result_first", "--report") == 1
    assert "different settings" in capsys.readouterr().err


def test_cured_means_cured_for_good():
    """Catches: the first low step of a rate that rises again; a step at which nothing was right."""
    history = lambda *rates: [dict(step=i, hallucination_rate=rate) for i, rate in enumerate(rates, 1)]
    assert stories_report.cured(history(0.5, 0.01, 0.3, 0.01, 0.0)) == 4
    assert stories_report.cured(history(0.5, 0.01, None)) is None
