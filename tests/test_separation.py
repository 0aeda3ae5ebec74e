"""lessons/experiments/separation*.py: the AUC, what constructed states give, the axes of the map, the whole script."""

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from minclipo.checkpoint import save_model
from minclipo.checkpoint.files import write_json
from minclipo.contrastive import ContrastiveHead
from minclipo.runs.loop import Run
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer
from minclipo.trainer import Trainer

EXPERIMENTS = Path(__file__).parent.parent / "lessons" / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import separation  # noqa: E402
import separation_map  # noqa: E402
import separation_states  # noqa: E402
import textbooks  # noqa: E402
from run import train_config  # noqa: E402
from separation_auc import auc, loss_of, mean_auc  # noqa: E402
from separation_map import principal_axes, snapshots  # noqa: E402
from separation_signal import cosines, signal  # noqa: E402
from separation_states import OURS, PAPERS, States  # noqa: E402

TINY = dict(prompts_per_step=2, group_size=4)  # a training step that takes a moment


def slow_auc(values: list[float], positive: list[bool]) -> float:
    """Every pair, one by one."""
    pairs = [(a, b) for a, is_a in zip(values, positive) if is_a for b, is_b in zip(values, positive) if not is_b]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_auc_equals_a_slow_loop():
    """Whole numbers up to 4 make ties everywhere. Catches: ties counted as won or lost, the sign."""
    rng = random.Random(0)
    for size in range(2, 30):
        values = [float(rng.randint(0, 4)) for _ in range(size)]
        positive = [True, False] + [rng.random() < 0.5 for _ in range(size - 2)]
        found = auc(torch.tensor(values), torch.tensor(positive))
        assert found == pytest.approx(slow_auc(values, positive), abs=1e-12)


def constructed(groups: int = 3) -> States:
    """Groups of eight: four equal clean rollouts, two hallucinated ones each off in its own way, two wrong ones.

    In the first group all right ones are clean: it must not count.
    """
    faithful = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]] * groups).bool()
    faithful[0] = True
    correct = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]] * groups).bool()
    one_group = torch.zeros(8, 6)
    one_group[:4, 0] = 1.0  # clean
    one_group[4:6, :3] = torch.tensor([[0.5, 0.8, 0.0], [0.5, 0.0, 0.8]])  # hallucinated
    one_group[6:, 3:5] = torch.eye(2)  # wrong
    return States(
        pooled=one_group.repeat(groups, 1),
        group=torch.arange(groups).repeat_interleave(8),
        correct=correct.flatten(),
        faithful=faithful.flatten(),
        solution=torch.arange(8 * groups),
    )


@pytest.mark.parametrize("level", ["group", "cross"])
def test_separated_states_have_auc_1_and_mirrored_ones_0(level):
    """Catches: clean and hallucinated mixed up, wrong rollouts compared, a group without both kinds counted."""
    states, head = constructed(), ContrastiveHead(6, 6, "none")
    options = dict(center=False, seed=0, loss="soft_nn", temperature=0.5, level=level)
    found = loss_of(states, head, **options)
    assert mean_auc(found.loss, states, found.anchors) == (1.0, 2)
    mirrored = replace(states, faithful=~states.faithful)  # right and wrong stay as they are
    assert mean_auc(found.loss, mirrored, found.anchors) == (0.0, 2)
    assert mean_auc(torch.zeros(24), states, states.correct) == (0.5, 2)
    nobody = replace(states, faithful=torch.ones(24).bool())
    assert mean_auc(found.loss, nobody, found.anchors) == (None, 0)


def test_the_signal_of_constructed_states():
    """A floor of -1e-3 swallows every reward, a very low floor none. Catches: shares of the wrong rows."""
    states, heads = constructed(), [ContrastiveHead(6, 6, "none")]
    ours = replace(OURS, contrastive_center=False)
    free = signal(states, replace(ours, contrastive_floor=-100.0), heads, 0)
    assert (free["differ"], free["compared"], free["at_floor"], free["reward_auc"]) == (1.0, 1.0, 0.0, 1.0)
    floored = signal(states, replace(ours, contrastive_floor=-1e-3), heads, 0)
    assert (floored["differ"], floored["compared"], floored["at_floor"], floored["reward_auc"]) == (0, 1, 1, 0.5)
    assert floored["reward_spread"] == 0 < free["reward_spread"]
    all_right = replace(states, correct=torch.ones(24).bool())  # at group level nobody has a negative
    assert signal(all_right, PAPERS, heads, 0)["compared"] == 0.0
    assert signal(all_right, ours, heads, 0)["compared"] == 1.0


def test_cosines_of_constructed_states():
    """By hand: clean ones are equal; a hallucinated one has cosine 0.5 / sqrt(0.89) with them. Catches: self-pairs."""
    states = constructed()
    found = cosines(states, center=False)
    assert found["clean, clean"] == pytest.approx((12 * 2 + 12 + 16 * 0.53 + 2 * 0.25 / 0.89) / (12 * 2 + 30), abs=1e-4)
    assert found["clean, hallucinated"] == pytest.approx(0.53, abs=1e-4)
    same = replace(states, pooled=torch.ones(24, 6))
    assert cosines(same, center=True)["any two"] is None


def test_principal_axes_find_a_known_plane():
    """Points in a plane, nine times the variance along one of two known directions. Catches: rows for columns."""
    generator = torch.Generator().manual_seed(0)
    known, _ = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))  # [12, 2], orthonormal
    inside, _ = torch.linalg.qr(torch.randn(200, 2, generator=generator, dtype=torch.float64))  # uncorrelated
    points = inside * torch.tensor([3.0, 1.0]) @ known.T  # [200, 12]
    axes, explained = principal_axes(points)
    assert (axes.T @ known).abs().allclose(torch.eye(2, dtype=torch.float64), atol=1e-10)
    assert explained == pytest.approx([0.9, 0.1])


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder with an untrained toy model in place of the pretrained one; training steps are small."""
    folder = tmp_path / "starts" / "toy" / "seed0"
    save_model(toy_model(ToyConfig(), 0), toy_tokenizer(), folder / "model")
    settings = {"toy": asdict(textbooks.TEXTBOOKS["toy"].config), "operations": [4, 4]}
    write_json(folder / "result.json", {"settings": settings})
    mapped = {name: replace(v, training=v.training | TINY) for name, v in separation_map.MAPPED.items()}
    monkeypatch.setattr(separation_map, "MAPPED", mapped)
    return tmp_path


def judge_by_length(monkeypatch) -> None:
    """An untrained model is never right. With this check half of its rollouts are, and half of these are faithful."""
    outcome, steps = (lambda problem, text, finished: len(text) % 2 == 0), lambda problem, text: [len(text) % 4 == 0]
    task = replace(TASK, check_outcome=outcome, check_steps=steps)
    monkeypatch.setattr(separation_states, "TASK", task)
    monkeypatch.setattr(separation_map, "TASK", task)


def test_looking_does_not_disturb_training(out, monkeypatch):
    """Catches: snapshots drawn with the trainer's generator, or out of its problems."""
    judge_by_length(monkeypatch)  # so that there is something to learn
    variant = separation_map.MAPPED["clipo"]
    states = snapshots(variant, 0, out, [0, 1, 2], prompts=2)
    assert list(states) == [0, 1, 2] and len(states[2].correct) == 2 * OURS.group_size
    assert not states[0].pooled.equal(states[2].pooled)
    model, config = toy_model(ToyConfig(), 0), train_config(replace(variant, steps=2), 0)
    Run(Trainer(model, toy_tokenizer(), separation_map.TASK, config), out / "plain").train()
    files = [folder / "model" / "model.safetensors" for folder in (out / "plain", out / "separation/seed0/CLIPO")]
    assert files[0].read_bytes() == files[1].read_bytes()


SIZES = "--seeds 0 --groups 4 --group-size 8 --heads 2 --map-prompts 2 --map-steps 0 1 --threads 1".split()


def test_the_script_from_end_to_end(out, monkeypatch):
    """With a GRPO model in its place, as run.py leaves it."""
    judge_by_length(monkeypatch)
    trained = out / separation.TRAINED.folder / "seed0"
    save_model(toy_model(ToyConfig(), 1), toy_tokenizer(), trained / "model")
    write_json(trained / "result.json", {})
    assert separation.main([*SIZES, "--out", str(out)]) == 0
    found = json.loads((out / "separation" / "results.json").read_text())
    assert len(found["separation"]["0"]) == 2 * 2 * 2 * 4 * 5
    assert all(0 <= row["auc"] <= 1 and row["groups"] > 0 for row in found["separation"]["0"])
    assert [set(by_seed) for by_seed in found["signal"].values()] == [{"0"}, {"0"}]
    assert [(panel["method"], panel["step"]) for panel in found["map"]["panels"]] == [
        ("baseline", 0),
        ("baseline", 1),
        ("clipo", 0),
        ("clipo", 1),
    ]
    assert all(sum(panel["shares"].values()) == pytest.approx(1) for panel in found["map"]["panels"])
    table = (out / "separation" / "table.md").read_text()
    assert table.count("**") == 2 * (4 + 2)  # four headings, and the two settings
    assert (out / "separation" / "map.png").stat().st_size > 5000


def test_the_script_without_a_right_rollout_or_a_trained_model(out):
    """Catches: NaN in results.json, a mean of nothing."""
    assert separation.main([*SIZES, "--out", str(out)]) == 0
    text = (out / "separation" / "results.json").read_text()
    assert "NaN" not in text and json.loads(text)["separation"]["0"][0]["auc"] is None
    assert "| – |" in (out / "separation" / "table.md").read_text()
