"""A share of nothing has no value: where no answer is right there is no hallucination rate, and 0 would be the best."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import small_gpt

from minclipo.config import TrainConfig
from minclipo.runs.evaluator import evaluation_line
from minclipo.runs.intervals import mean_interval, seeds_interval, share_interval
from minclipo.runs.loop import Run
from minclipo.runs.measure import evaluate, faithfulness, log_line
from minclipo.runs.plots import counts_of, plot_training
from minclipo.runs.report import summarize, table
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

HOPELESS = Task(TASK.draw, lambda problem, text, finished: False, TASK.check_steps)
TINY = dict(steps=1, prompts_per_step=4, group_size=4, max_new_tokens=5, head_size=4)
NOTHING = dict(
    problems=2000, correct=0, faithful=0, accuracy=0.0, hallucination_rate=None, faithful_accuracy=0.0, seconds=1.0,
    peak_memory_mib=1.0,
)  # fmt: skip
GOOD = NOTHING | dict(correct=1900, faithful=1000, accuracy=0.95, hallucination_rate=0.474, faithful_accuracy=0.5)


def test_a_step_without_a_right_answer_has_no_rates(tmp_path, capsys):
    """In the history, in metrics.jsonl and on the screen. Catches: 0 for a mean over nothing: the rate, the steps
    checked, the contrastive loss and penalty, the gain of prompt contrast."""
    config = TrainConfig(**TINY, contrastive_weight=0.1, prompt_contrast_weight=0.1)
    trainer = Trainer(small_gpt(vocab_size=122), toy_tokenizer(), HOPELESS, config)
    (metrics,) = Run(trainer, tmp_path).train()
    nothing = {name for name, value in metrics.items() if value is None}
    assert nothing == {
        "hallucination_rate", "steps_checked", "contrastive_loss", "contrastive_penalty", "prompt_contrast"
    }  # fmt: skip
    assert metrics["accuracy"] == metrics["faithful_accuracy"] == metrics["contrastive_signal"] == 0
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == metrics  # no NaN
    line = log_line("training", metrics, config)
    assert "acc 0.000 reward 0.000 halluc     - " in line
    assert line in capsys.readouterr().out


def test_an_evaluation_without_a_right_answer_has_no_rate():
    """Catches: "hallucination rate 0.000" of a collapsed model, in evaluation.jsonl and on the screen."""
    model = small_gpt(vocab_size=122)
    found = evaluate(model, toy_tokenizer(), HOPELESS, problems=4, max_new_tokens=4, seed=0, temperature=0)
    assert found["hallucination_rate"] is found["steps_checked"] is None and found["accuracy"] == 0
    assert "hallucination rate - (- steps checked per right answer)" in evaluation_line({"greedy": found})
    assert faithfulness([None, [], [False]])["hallucination_rate"] == 0.5


def test_intervals_of_nothing():
    """Catches: [0, 0] for two seeds without a value, an interval over a single seed."""
    assert vars(share_interval(0, 0)) == vars(seeds_interval([None, None])) == dict(mean=None, low=None, high=None)
    assert vars(seeds_interval([0.4, None])) == dict(mean=0.4, low=None, high=None)
    assert seeds_interval([0.4, None, 0.6]) == mean_interval([0.4, 0.6])


@pytest.mark.parametrize(
    "runs, cell, seeds",
    [
        ([NOTHING], "- (0 of 1 seeds)", 0),
        ([NOTHING, NOTHING], "- (0 of 2 seeds)", 0),
        ([GOOD, NOTHING], "0.474 (1 of 2 seeds)", 1),
        ([GOOD, GOOD], "0.474 [0.474, 0.474]", 2),
        ([GOOD, GOOD, NOTHING], "0.474 [0.474, 0.474] (2 of 3 seeds)", 2),
    ],
)
def test_the_table_and_the_summary_say_which_seeds_have_a_rate(runs, cell, seeds):
    """Catches: a collapsed method with the best rate of the table; seeds without a rate averaged in as 0."""
    summary = summarize({"baseline": dict(enumerate(runs))})
    rate = summary["baseline"]["hallucination_rate"]
    assert rate["seeds"] == seeds and (rate["mean"] is None) == (seeds == 0)
    assert summary["baseline"]["accuracy"]["seeds"] == len(runs)
    (row,) = table(summary).split("\n")[1:]
    assert f" {cell} " in row and "None" not in row and "nan" not in row
    json.dumps(summary, allow_nan=False)


def test_the_curve_has_a_gap(tmp_path, monkeypatch):
    """Catches: a curve that falls to 0 where a policy has collapsed; seeds without a rate drawn as 0."""
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, xs, ys, **_: drawn.append(np.array(ys)) or [])
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda self, **_: None)
    run = lambda *rates: [dict(step=i, accuracy=0.5, hallucination_rate=rate) for i, rate in enumerate(rates)]
    plot_training({"clipo": [run(0.4, 0.4, None), run(0.6, None, None)]}, tmp_path / "x.png")
    np.testing.assert_allclose(drawn[1], [0.5, 0.4, np.nan])
    monkeypatch.undo()
    plot_training({"clipo": [run(0.4, None, 0.5)], "baseline": [run(None, None)]}, tmp_path / "y.png")
    assert (tmp_path / "y.png").stat().st_size > 5000


def test_the_experiments_tables_leave_them_out(monkeypatch):
    """Catches: a mean over seeds with 0 for nothing, a paired difference of a seed that has but one value."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "lessons" / "experiments")
    import pictures
    import tables
    from variants import Variant

    result = lambda rate: dict(accuracy=0.9, hallucination_rate=rate, faithful_accuracy=0.5, seconds={})
    found = [
        (Variant("GRPO"), {0: result(0.5), 1: result(0.7), 2: result(None)}),
        (Variant("CLIPO"), {0: result(0.1), 1: result(0.1), 2: result(0.2)}),
    ]
    grpo, clipo = tables.summary(found)
    assert tables.line(grpo)[2] == "0.600 [0.000, 1.000] (2 of 3 seeds)"
    assert clipo["difference"]["hallucination_rate"]["mean"] == pytest.approx(-0.5)
    assert tables.share([None, None]) == "- (0 of 2 seeds)"
    assert tables.points(vars(tables.paired_interval([0.5, None], [0.1, 0.2]))) == ""
    assert pictures.over_seeds([result(0.5), result(None)], "hallucination_rate").low == 0.5
    assert np.isnan(pictures.over_seeds([result(None)], "hallucination_rate").mean)


def test_a_rate_of_no_steps_has_no_value():
    """Right answers in which no step was found. Catches: 0.000, the best there is, for a model that shows no work."""
    found = faithfulness([[], None, []])
    assert found["hallucination_rate"] is None and found["steps_checked"] == 0 and found["faithful"] == 2
    assert faithfulness([[True], None, []])["hallucination_rate"] == 0
    assert counts_of(found | {"correct": 2, "problems": 3}, "hallucination_rate") == (0, 0)  # nor has it an interval
