"""lessons/play.html in a real browser: each slider moves its numbers, and the numbers are those of the package."""

import json
import re
from itertools import product
from math import isfinite
from pathlib import Path

import pytest
import torch

from minclipo.contrastive import contrastive_loss, contrastive_reward
from minclipo.grpo import group_advantages, policy_loss
from minclipo.sampler import sampling_logprobs

pytest_plugins = ("chromium",)
PAGE = Path(__file__).parent.parent.parent / "lessons" / "play.html"
PANELS = ("temperature", "advantages", "clip", "circle", "agreement", "price")
CIRCLE = [0.0, 20.0, 50.0, 150.0, 110.0, 200.0, 280.0]  # lesson 8's
RIGHT = torch.tensor([True] * 4 + [False] * 3)


@pytest.fixture
def play(browser):
    browser.get(PAGE.as_uri())
    return browser


def values(play, panel: str) -> dict:
    """The numbers that a panel has drawn."""
    return json.loads(play.execute_script("return document.getElementById(arguments[0]).dataset.values", panel))


def set_to(play, panel: str, **inputs) -> dict:
    """The panel's numbers with its sliders and boxes at these values."""
    script = """
        const form = document.querySelector(`#${arguments[0]} form`);
        for (const [name, value] of Object.entries(arguments[1])) {
          const input = form.elements[name];
          if (typeof value === "boolean") input.checked = value; else input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    play.execute_script(script, panel, inputs)
    return values(play, panel)


def numbers_in(value) -> list:
    """All leaves of nested lists and dicts. NaN and infinity have become None: JSON has neither."""
    if isinstance(value, dict | list):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in numbers_in(part)]
    return [value]


def near(found, expected, tolerance: float = 2e-5) -> bool:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(torch.tensor(found, dtype=torch.float64), expected, atol=tolerance, rtol=tolerance)


def on_circle(degrees: list[float]) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)


def sharing(faithful: int, others: int, alone: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(unit vectors, verdicts, prompts) of sixteen right rollouts of one prompt and 496 of others at a cosine of 0."""
    kinds = torch.tensor([0] * faithful + [1 + i * alone for i in range(others)])
    states = torch.eye(17, dtype=torch.float64)[kinds]  # [16, 17]
    z = torch.nn.functional.normalize(states - states.mean(0), dim=-1)
    strangers = torch.zeros(496, 18, dtype=torch.float64)
    strangers[:, 17] = 1.0
    return torch.cat([torch.nn.functional.pad(z, (0, 1)), strangers]), torch.arange(512) < 16, torch.arange(512) // 16


# ---- the controls ----


@pytest.mark.parametrize("panel", PANELS)
def test_every_slider_moves_its_numbers(play, panel):
    """With real keys. Catches: a slider that nothing reads, a division by zero at one of its ends."""
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    sliders = play.find_elements("css selector", f"#{panel} input[type=range]")
    assert sliders
    for slider in sliders:
        seen, shown = [], []
        for key in (keys.HOME, keys.END, keys.ARROW_LEFT):
            slider.send_keys(key)
            numbers = numbers_in(values(play, panel))
            assert numbers and all(type(one) in (int, float) and isfinite(one) for one in numbers)
            seen.append(numbers)
            shown.append(slider.find_element("xpath", "following-sibling::output").text)
        name = slider.get_attribute("name")
        assert seen[0] != seen[1] and len(set(shown)) > 2, name
        assert not re.search(r"NaN|undefined|Infinity", play.find_element("id", panel).text), name
        play.execute_script("document.querySelector(`#${arguments[0]} form`).reset()", panel)


@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel != "advantages"])
def test_reset_brings_the_first_numbers_back(play, panel):
    """Catches: sliders that go back without their picture, a point that stays where it was dragged."""
    first = values(play, panel)
    for slider in play.find_elements("css selector", f"#{panel} input[type=range]"):
        slider.send_keys("\ue010")  # End
    assert values(play, panel) != first
    play.find_element("css selector", f"#{panel} button[type=reset]").click()
    assert values(play, panel) == first


def test_a_point_can_be_dragged_and_turned_by_keys(play):
    """Catches: a drag that moves another point, the circle turned upside down."""
    actions = pytest.importorskip("selenium.webdriver").ActionChains(play)
    point = lambda i: play.find_element("css selector", f"[data-point='{i}'] circle")
    angles = lambda: play.execute_script("return circle.angles")
    size = play.execute_script("return document.querySelector('.circle').getScreenCTM().a") * 100
    play.execute_script("arguments[0].scrollIntoView({block: 'center'})", point(3))
    before = angles()
    x, y = (float(point(0).get_attribute(name)) / 100 * size for name in ("cx", "cy"))
    from_x, from_y = (float(point(3).get_attribute(name)) / 100 * size for name in ("cx", "cy"))
    over = (x - size - from_x, y - from_y)  # from where point 3 is to the middle of the circle
    actions.click_and_hold(point(3)).move_by_offset(int(over[0]), int(over[1] - 0.9 * size)).release().perform()
    assert abs(angles()[3] - 90) < 3 and angles()[:3] + angles()[4:] == before[:3] + before[4:]
    play.find_element("css selector", "[data-point='4']").send_keys("\ue012")  # left arrow
    assert angles()[4] == before[4] + 5
    assert play.find_element("css selector", "#circle input[name=angle]").get_attribute("value") == str(before[4] + 5)


def test_links_lead_to_pages(play):
    """Catches: a lesson that has been renamed."""
    links = re.findall(r'href="([^"#]+)"', PAGE.read_text(encoding="utf-8"))
    assert len(links) == 7 and [link for link in links if not (PAGE.parent / link).is_file()] == []


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(play, width):
    """Catches: a page that one must move sideways on a phone."""
    play.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    )
    assert play.execute_script("return document.documentElement.scrollWidth") <= width
    play.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# ---- the numbers ----


def test_temperature_and_top_p(play):
    """Against the sampler. Catches: the word that crosses p left out, top-p before the temperature."""
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]], dtype=torch.float64).log()
    for temperature, top_p in ((1.0, 0.9), (0.5, 1.0), (0.1, 0.9), (3.0, 0.9), (2.0, 0.05)):
        found = set_to(play, "temperature", temperature=temperature, top_p=top_p)
        expected = sampling_logprobs(logits, temperature, top_p=top_p)[0].exp()
        assert near(found["probabilities"], expected) and found["kept"] == int((expected > 0).sum())
        assert near(found["entropy"], torch.special.entr(expected).sum())


def test_advantages(play):
    """Catches: a standard deviation over n, a signal made of rounding."""
    some = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    for rewards in ([1, 0, 0, 0, 0, 0, 0, 0], [0.9] * 8, [0] * 8, [1] * 7 + [0.9], some):
        found = set_to(play, "advantages", **{f"reward{i}": reward for i, reward in enumerate(rewards, 1)})
        for name, scale in (("grpo", "std"), ("dr_grpo", "none")):
            assert near(found[name], group_advantages(torch.tensor(rewards, dtype=torch.float32), 8, scale=scale))
        silent = "no signal" in play.find_element("css selector", "#advantages .result").text
        assert silent == (len(set(rewards)) == 1)


def test_the_buttons_set_all_rewards(play):
    """Catches: a button that leaves the picture as it was."""
    highest = {}
    for button in play.find_elements("css selector", "[data-rewards]"):
        button.click()
        highest[button.text] = max(values(play, "advantages")["grpo"])
    assert near([highest["one right"], highest["four right"], highest["all equal"]], [2.474867, 0.935413, 0.0])


def test_the_clip(play):
    """Loss and gradient by autograd. Catches: a clip on the wrong side, low and high exchanged."""
    old, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    for ratio, advantage in product((0.1, 0.7, 0.9, 1.0, 1.25, 1.9), (-1.5, 0.0, 1.0)):
        found = set_to(play, "clip", ratio=ratio, advantage=advantage, low=0.2, high=0.3)
        logprob = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        advantages = torch.tensor([advantage], dtype=torch.float64)
        loss = policy_loss(logprob, old, advantages, mask, clip_low=0.2, clip_high=0.3).loss
        loss.backward()
        assert near([found["loss"], found["gradient"]], [loss.item(), logprob.grad.item()])


@pytest.mark.parametrize("turned, tau", [(0, 0.5), (170, 0.05), (170, 2.0)])
def test_the_losses_on_the_circle(play, turned, tau):
    """Each loss of each right rollout. Catches: the rollout itself among its candidates, a floor that is missing."""
    found = set_to(play, "circle", tau=tau, angle=turned)["losses"]
    z, group = on_circle([float(turned), *CIRCLE[1:]]), torch.zeros(7, dtype=torch.long)
    options = dict(level="group", temperature=tau)
    for name in ("supcon_out", "supcon_in", "soft_nn"):
        expected = contrastive_loss(z, RIGHT, group, loss=name, **options).loss[:4]
        assert near([one[name] for one in found], expected)
    for draw in range(3):
        positive = torch.tensor([[j for j in range(4) if j != i][draw] for i in range(4)] + [0] * 3)
        expected = contrastive_loss(z, RIGHT, group, loss="infonce", positive=positive, **options).loss[:4]
        assert near([one["infonce"][draw] for one in found], expected)


def test_the_lowest_points_are_those_that_the_page_speaks_of(play):
    """Catches: a sentence beside a picture that shows something else."""
    lowest = values(play, "circle")["lowest"]
    assert abs(lowest["soft_nn"] - 20) < 5 and abs(lowest["supcon_out"] - 70) < 5


def test_eleven_against_five(play):
    """Against the loss of all 512 rollouts. Catches: centring forgotten, strangers counted as positives."""
    for others, alone in product((1, 8, 11, 14, 15), (False, True)):
        found = set_to(play, "agreement", others=others, tau=0.5, weight=0.1, alone=alone)
        z, correct, group = sharing(16 - others, others, alone)
        loss = contrastive_loss(z, correct, group, loss="soft_nn", level="cross", temperature=0.5).loss
        c = contrastive_reward(loss, correct, weight=0.1)
        assert near([found["faithful"], found["hallucinated"]], [c[0], c[15]])
        assert (found["faithful"] > found["hallucinated"] + 1e-6) == (others < 8 or (alone and others < 15))


def test_the_price(play):
    """Catches: wrong rollouts that pay, a floor that is forgotten."""
    loss = torch.tensor(play.execute_script("return LOSSES"), dtype=torch.float32)
    settings = [(-1, 0), (-4, 0), (-4, 1), (-0.6, 2), (-0.3, 0), (0, 4)]
    for (log_weight, wrong), divide in product(settings, (True, False)):
        found = set_to(play, "price", log_weight=log_weight, wrong=wrong, divide=divide)
        correct = torch.arange(8) >= wrong
        prices = contrastive_reward(loss, correct, weight=10**log_weight)
        advantages = group_advantages(correct + prices, 8, scale="std" if divide else "none")
        assert near(found["prices"], prices) and near(found["advantages"], advantages, 2e-3)
        assert near(found["gap"], advantages[correct].max() - advantages[correct].min(), 2e-3)
        assert found["floored"] == int((prices <= -0.5).sum())


def test_a_tiny_weight_is_as_loud_as_the_page_says(play):
    """Catches: a sentence beside a picture that shows something else."""
    gap = lambda **inputs: set_to(play, "price", **inputs)["gap"]
    loud, usual, beside_wrong = gap(log_weight=-4, wrong=0), gap(log_weight=-1, wrong=0), gap(log_weight=-4, wrong=1)
    assert loud > 0.9 * usual and beside_wrong < 0.01 * usual
    assert gap(log_weight=-0.6, wrong=0) == 0.0  # 0.251
