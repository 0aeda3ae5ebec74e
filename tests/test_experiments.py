"""The experiments behind lessons/results.md: runs resume, tables pair the right runs, variants are what they say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons" / "experiments"))
import run as runner  # noqa: E402
import tables  # noqa: E402
import textbooks  # noqa: E402
from direct_gradient import DirectContrast  # noqa: E402
from page import copy as copy_results  # noqa: E402
from page import filled  # noqa: E402
from push import GROUP, push, report  # noqa: E402
from variants import CLIPO, EXPERIMENTS, Variant  # noqa: E402

from minclipo.config import TrainConfig  # noqa: E402
from minclipo.contrastive import contrastive_loss  # noqa: E402
from minclipo.grpo import group_advantages  # noqa: E402
from minclipo.logprobs import MicroBatch, completion_hidden  # noqa: E402
from minclipo.tasks.chain import OPERANDS, ChainProblem  # noqa: E402
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer  # noqa: E402
from minclipo.trainer import Trainer  # noqa: E402

TINY = ToyConfig(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16, pretrain_steps=2, eval_problems=20)
SIZE = dict(prompts_per_step=2, group_size=4)


@pytest.fixture
def tiny(monkeypatch):
    """An experiment of two variants on a tiny textbook with a second test."""
    book = textbooks.Textbook(TINY, tests={"other operands": textbooks.LENGTHS.tests["other operands"]})
    monkeypatch.setitem(textbooks.TEXTBOOKS, "tiny", book)
    variants = [Variant("GRPO", SIZE, "tiny", steps=2), Variant("CLIPO", SIZE | CLIPO, "tiny", steps=2)]
    monkeypatch.setitem(EXPERIMENTS, "algorithms", lambda: variants)
    return variants


def test_a_finished_run_is_not_done_again(tiny, tmp_path, capsys):
    """Catches: an interrupted grid that starts over; a table that forgets what an earlier call has finished."""
    command = ["algorithms", "--out", str(tmp_path), "--threads", "1", "--seeds"]
    assert runner.main([*command, "0"]) == 0
    result = tmp_path / "tiny-2" / "CLIPO" / "seed0" / "result.json"
    before = result.stat().st_mtime_ns
    capsys.readouterr()
    assert runner.main([*command, "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert result.stat().st_mtime_ns == before and "seed 0" not in printed and "seed 1, tiny: CLIPO" in printed
    rows = json.loads((tmp_path / "algorithms" / "results.json").read_text())
    names = ["after pretraining", "GRPO", "CLIPO"]
    assert [(row["name"], row["seeds"]) for row in rows] == [(name, [0, 1]) for name in names]
    assert "other operands" in (tmp_path / "algorithms" / "table.md").read_text()
    assert (tmp_path / "algorithms" / "algorithms.png").stat().st_size > 5000


def test_a_run_with_other_settings_is_not_passed_off(tiny, tmp_path, capsys):
    """Catches: a table that mixes runs made before and after a change of the settings."""
    command = ["algorithms", "--out", str(tmp_path), "--threads", "1", "--seeds", "0"]
    assert runner.main(command) == 0
    tiny[1].training["contrastive_weight"] = 0.7
    try:
        assert runner.main(command) == 1
    finally:
        tiny[1].training["contrastive_weight"] = CLIPO["contrastive_weight"]
    assert "CLIPO/seed0/result.json was made with other settings" in capsys.readouterr().err


def test_a_start_with_other_settings_is_not_passed_off(tiny, tmp_path, monkeypatch):
    """Catches: models of an earlier textbook beside results that name the present one."""
    textbooks.start("tiny", 0, tmp_path)
    monkeypatch.setitem(textbooks.TEXTBOOKS, "tiny", textbooks.Textbook(TINY, operations=(3, 4)))
    with pytest.raises(ValueError, match="tiny/seed0/result.json was made with other settings"):
        textbooks.start("tiny", 0, tmp_path)


def test_differences_pair_equal_seeds_of_one_textbook():
    """Catches: runs paired by position, or with the partner of another textbook."""
    result = lambda rate: dict(accuracy=0.9, hallucination_rate=rate, faithful_accuracy=0.5, seconds={})
    found = [
        (Variant("GRPO"), {0: result(0.5), 1: result(0.7), 2: result(0.0)}),
        (Variant("GRPO", textbook="weak"), {0: result(0.0), 1: result(0.0)}),
        (Variant("CLIPO"), {1: result(0.1), 0: result(0.0)}),
    ]
    difference = tables.summary(found)[-1]["difference"]["hallucination_rate"]
    assert difference["mean"] == pytest.approx(-0.55)
    assert difference["low"] == pytest.approx(-0.55 - 12.706 * 0.05)


def test_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, half width 4.303 / sqrt(3). Catches: unpaired variances; a cut to [0, 1]."""
    interval = tables.paired_interval([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (interval.mean, interval.high) == (2.0, pytest.approx(2 + 4.303 / 3**0.5))
    with pytest.raises(ValueError, match="pair up"):
        tables.paired_interval([1.0, 2.0], [1.0])


def test_every_variant_makes_a_config():
    """Equal folders must mean equal settings. Catches: a misspelt option, found after an hour of training."""
    seen = {}
    for make in EXPERIMENTS.values():
        names = [(variant.textbook, variant.name) for variant in make()]
        assert len(set(names)) == len(names)
        for variant in make():
            config = runner.train_config(variant, seed=0)
            assert seen.setdefault(variant.folder, (config, variant.trainer)) == (config, variant.trainer)
            assert (variant.textbook, variant.against) in names or variant.name == "oracle"


def test_held_out_operands_are_never_trained_on():
    """Catches: a test of generalisation on problems that training has seen."""
    book = textbooks.LENGTHS
    trained = [book.training.draw("training 0", i) for i in range(300)]
    assert {n for problem in trained for n in problem.operands} == set(OPERANDS) - set(textbooks.HELD_OUT)
    assert {len(problem.operands) for problem in trained} == {3, 4, 5}
    other = [book.tests["7 operations, other operands"].draw("evaluation 0", i) for i in range(100)]
    assert {n for problem in other for n in problem.operands} <= set(textbooks.HELD_OUT)
    assert {len(problem.operands) for problem in other} == {7}


EASY = textbooks.Task(TASK.draw, lambda problem, text, finished: len(text) % 2 == 0)  # half of all texts are right


def tiny_trainer(kind: type[Trainer], **options) -> Trainer:
    config = TrainConfig(**SIZE, steps=1, **options)
    return kind(toy_model(TINY, seed=0), toy_tokenizer(), EASY, config)


def test_the_direct_gradient_goes_into_the_policy_and_not_into_the_rewards():
    """Catches: a contrastive loss that is detached on the way, or paid twice."""
    weights = {}
    for weight in (1e-9, 1.0):
        trainer = tiny_trainer(DirectContrast, contrastive_weight=weight, contrastive_level="batch")
        step = trainer.step()
        assert set(step.rewards.tolist()) == {0.0, 1.0}
        weights[weight] = trainer.model.state_dict()
    assert any(not torch.equal(value, weights[1e-9][name]) for name, value in weights[1.0].items())


def test_the_direct_loss_with_weight_zero_would_be_grpo(monkeypatch):
    """Catches: rewards, random numbers or gradients of the variant that differ from GRPO's beyond its one term."""
    plain, direct = tiny_trainer(Trainer), tiny_trainer(DirectContrast, contrastive_weight=0.1)
    monkeypatch.setattr(direct.config, "contrastive_weight", 0.0)
    plain.step(), direct.step()
    for ours, theirs in zip(direct.model.parameters(), plain.model.parameters()):
        assert torch.equal(ours, theirs)


def test_the_direct_loss_reads_every_row_after_its_own_prompt():
    """Against one prompt per row, rows in any order. Catches: rows and prompts mixed up where prompts are shared."""
    trainer = tiny_trainer(DirectContrast, contrastive_weight=0.1, contrastive_level="batch", contrastive_center=False)
    step, rows = trainer.step(), torch.tensor([6, 1, 4, 0, 7, 3])
    rollouts, mask = step.rollouts, step.rollouts.mask[rows]
    prompts = [rollouts.prompts[row // rollouts.group_size] for row in rows.tolist()]
    hidden = completion_hidden(trainer.model, MicroBatch.of(prompts, rollouts.completions[rows], mask))  # [rows, T, D]
    pooled = torch.stack([states[own].mean(0) for states, own in zip(hidden, mask)])  # [rows, D]
    options = dict(loss="soft_nn", level="batch", temperature=0.5)
    slow = contrastive_loss(trainer.head(pooled), step.correct[rows], rollouts.group[rows], **options).mean
    assert slow > 0 and torch.allclose(trainer.contrast_of(MicroBatch.some(rollouts, rows)), slow)


def test_the_direct_gradient_refuses_micro_batches():
    """Catches: the contrastive term counted once per micro-batch, over pairs that never meet."""
    with pytest.raises(ValueError, match="micro_batch_tokens must be 0"):
        tiny_trainer(DirectContrast, contrastive_weight=0.1, micro_batch_tokens=50).step()


@pytest.mark.skipif(not (ROOT / "lessons" / "results.md").is_file(), reason="page in the making")
def test_the_page_has_the_tables_of_the_results():
    """Catches: a table on the page that the committed results do not have."""
    page = ROOT / "lessons" / "results.md"
    assert filled(page.read_text(), ROOT / "lessons" / "results") == page.read_text()


def test_a_damaged_result_or_nothing_to_report_is_said(tiny, tmp_path, capsys):
    """Catches: a traceback, or silence, where a user has named the wrong folder or a disk has eaten a file."""
    command = ["algorithms", "--out", str(tmp_path), "--threads", "1", "--seeds", "0", "--report"]
    assert runner.main(command) == 0
    assert "nothing has been finished yet" in capsys.readouterr().out
    result = tmp_path / "tiny-2" / "CLIPO" / "seed0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("")
    assert runner.main(command) == 1
    said = capsys.readouterr().err
    assert "could not be written" in said and "result.json" in said
    with pytest.raises(FileNotFoundError, match="holds no EXPERIMENT/table.md"):
        copy_results(tmp_path, tmp_path / "results")


def test_the_push_on_a_shared_step_by_hand():
    """Two prompts, half of the rollouts with the false +1; in the first prompt those are right less often.
    Catches: the other sign, and a prompt whose true operand is +1 counted as false."""
    problems = [ChainProblem(start=10, operands=(2, 3, 4, 5)), ChainProblem(start=10, operands=(2, 1, 4, 5))]
    true, false = "+2 12 {} 15 +4 19 +5 24 # 24", "+2 12 +1 15 +4 19 +5 24 # {}"
    first = [true.format("+3")] * 8 + [false.format(24)] * 4 + [false.format(25)] * 4
    second = ["+2 12 +1 13 +4 17 +5 22 # 22"] * 15 + ["+2 12 +1 13 +4 17 +5 22 # 21"]
    rollouts = SimpleNamespace(finished=torch.ones(2 * GROUP, dtype=torch.bool))
    found = push(problems, rollouts, first + second)
    advantages = group_advantages(torch.tensor([1.0] * 12 + [0.0] * 4), GROUP)
    # the second prompt's advantages sum to 0, and its sixteen rollouts are all true quotes
    assert found["advantage"] == pytest.approx((advantages[:8].sum() / 24 - advantages[8:].mean()).item(), abs=1e-5)
    assert found["right"] == pytest.approx(23 / 24 - 4 / 8, abs=1e-6)
    assert "| right, in points | +45.8 [+45.8, +45.8] |" in report({"50%": [found, found]})
