"""How blind the outcome is, how sure a model is, and the stories on a language model: the experiments' instruments."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons" / "experiments"))
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
    [("+5 12 -3 9 # 9", False), ("+5 13 -3 10 # 10", False), ("+4 12 -3 9 # 9", True), ("12 +5 9 -2 # 9", True)],
)
def test_only_a_wrong_operand_is_made_up(completion, made_up):
    """Catches: a slip in the total that counts as made up; one way of writing that is not read."""
    assert sharpness.makes_up(PROBLEM, completion) is made_up


def test_blindness_is_a_pair_of_conditional_shares():
    """Catches: a share of all instead of those with (without) a made-up operand; a rate of nothing."""
    texts = [("+5 12 -3 9 # 9", True), ("+5 1 -3 8 # 8", False), ("+4 12 -3 9 # 9", True)]
    examples = [(PROBLEM, text, right) for text, right in texts]
    found = sharpness.blindness(examples, sharpness.makes_up)
    assert found == {"right_if_made_up": 1.0, "right_if_faithful": 0.5, "made_up": pytest.approx(1 / 3)}
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


def test_a_look_draws_nothing_from_the_run(tmp_path):
    """Catches: a measurement that changes the training, or that differs from one time to the next."""
    model = load_model(ROOT / "lessons" / "models" / "careless")
    state = torch.get_rng_state()
    first, second = (sharpness.look(model, TASK, 16, problems=50) for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())
    assert first["greedy_hallucination_rate"] == 0 < first["hallucination_rate"] < 1  # as published: lessons/results.md
    assert 0 < first["operand_entropy"] < math.log(122)


def test_a_model_that_writes_no_operands_has_no_entropy_of_them():
    """Catches: NaN, or 0, for the mean of nothing."""
    model = toy_model(ToyConfig(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16), seed=0)
    found = sharpness.entropies(model, [(PROBLEM.prompt, "# 9")])
    assert found == {"operand_entropy": None, "total_entropy": None}


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_done_and_their_errors_raised(tmp_path, processes):
    """Catches: a job that is lost, a run that fails in another process and leaves a table without it."""
    threads = torch.get_num_threads()
    in_processes(Path.touch, [(tmp_path / "a",), (tmp_path / "b",)], processes, threads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        in_processes(Path.unlink, [(tmp_path / "missing",)], processes, threads)


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


def test_reading_teaches_the_way_of_writing_that_is_read():
    """Ten steps on one story. Catches: a loss on the prompt, weights that do not move, the other way of writing."""
    parsed = vars(stories.parse_arguments(["--model", str(MODEL), "--dtype", "float32", "--device", "cpu"]))
    sized = dict(operations=1, read_steps=10, read_batch=2, read_learning_rate=1e-2, hallucinate=0.0, slip=0.0)
    story = stories.Story(**{name: parsed[name] for name in stories.Story.__dataclass_fields__} | sized)
    tokenizer, losses = stories.load_tokenizer(MODEL), {}
    model = story.load(MODEL)
    stories.read(story, "result_first", tokenizer, model)
    problem = story.task(tokenizer).draw("textbook", 0)
    for way, result_first in (("reason_first", False), ("result_first", True)):
        total = problem.chain.totals[0]
        text = stories.in_words(problem, f"{problem.chain.operands[0]:+d} {total} # {total}", result_first)
        with torch.no_grad():
            ids = tokenizer.encode_batch([problem.prompt]), tokenizer.encode_batch([text])
            losses[way] = stories.solution_loss(model, *ids).item()
    assert losses["result_first"] < losses["reason_first"]


def test_cured_means_cured_for_good():
    """Catches: the first low step of a rate that rises again; a step at which nothing was right."""
    history = lambda *rates: [dict(step=i, hallucination_rate=rate) for i, rate in enumerate(rates, 1)]
    assert stories_report.cured(history(0.5, 0.01, 0.3, 0.01, 0.0)) == 4
    assert stories_report.cured(history(0.5, 0.01, None)) is None
