"""The page of `python -m minclipo.runs.view` in a real browser: filters, search, steps, runs, and hostile text."""

import pytest
from test_view import FAITHFUL, HOSTILE, MADE_UP, PROMPT, SLIP, rollout, write

from minclipo.runs.view import main

pytest_plugins = ("chromium",)
SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\ud83d", "\\ud83d")


@pytest.fixture
def view(browser, tmp_path, capsys):
    """The page of two runs of three recorded steps, each with two prompts."""
    for name, rate in (("baseline", 0.5), ("clipo", 0.1)):
        write(tmp_path / "toy" / "seed0" / name, list(lines(name)), list(metrics(rate)))
    main([str(tmp_path / "toy")])
    browser.get((tmp_path / "toy" / "rollouts.html").as_uri())
    return browser


def lines(name):
    for step in (1, 20, 40):
        yield rollout(step, 0, FAITHFUL, step_verdicts=[True] * 4, advantage=0.1)
        yield rollout(step, 0, MADE_UP, step_verdicts=[False, True, True, True], advantage=1.5)
        yield rollout(step, 0, SLIP, False, step_verdicts=None, advantage=-1.6, contrastive=-0.25 * (name == "clipo"))
        yield rollout(step, 1, f"of {name} at {step}", False, prompt="What is <b>7</b> times 6?", step_verdicts=None)
        yield rollout(step, 1, HOSTILE, False, prompt=HOSTILE, truth=HOSTILE, step_verdicts=None)


def metrics(rate):
    return ({"step": step, "accuracy": step / 40, "hallucination_rate": rate} for step in range(1, 41))


def texts(view) -> list[str]:
    """The completions that are shown."""
    return view.execute_script("return [...document.querySelectorAll('td .text')].map((cell) => cell.textContent)")


def chosen_step(view) -> str:
    return view.execute_script("return document.querySelector('#step').selectedOptions[0].textContent")


def test_the_last_step_of_the_first_run_is_shown_first(view):
    """Catches: a page that begins empty, wrong steps that are not marked, parts that are missing."""
    assert texts(view) == [FAITHFUL, MADE_UP, SLIP, "of baseline at 40", SHOWN]
    assert chosen_step(view) == "step 40"
    bad = [mark.text for mark in view.find_elements("css selector", ".bad")]
    assert bad == ["+5 62", "-1 61", "+2 63", "# 63"]
    row = view.find_element("css selector", "tbody tr:nth-child(2)").text.split()
    assert row[0] == "hallucinated" and row[-4:] == ["1", "1.000", "1.50", "11"]
    assert "accuracy 1.000, hallucination rate 0.500" in view.find_element("id", "at-step").text


def test_filters_and_search(view):
    """Catches: a filter that hides too much, a search that reads completions only or minds capitals."""
    for kind, found in (
        ("faithful", [FAITHFUL]),
        ("hallucinated", [MADE_UP]),
        ("wrong", texts(view)[2:]),
        ("all", texts(view)),
    ):
        button = view.find_element("id", f"kind-{kind}")
        assert button.text == f"{kind} {len(found)}"
        button.click()
        assert texts(view) == found
        assert view.find_element("id", "count").text.startswith(f"{len(found)} of 5 rollouts")
    search = view.find_element("id", "search")
    search.send_keys("OF BASE")
    assert texts(view) == ["of baseline at 40"]
    search.clear()
    search.send_keys(PROMPT[:9])
    assert texts(view) == [FAITHFUL, MADE_UP, SLIP]
    search.clear()
    search.send_keys("nowhere")
    assert texts(view) == [] and view.find_element("id", "count").text.startswith("0 of 5 rollouts")


def test_rollouts_can_be_ordered_by_advantage(view):
    """Catches: an order over all prompts, the lowest first."""
    view.find_element("css selector", "#order option[value=advantage]").click()
    assert texts(view)[:3] == [MADE_UP, FAITHFUL, SLIP]


def test_steps_and_runs_are_chosen_by_key_button_list_and_curve(view):
    """Catches: a key that does nothing or goes past the end, a click that picks another step than the one under it."""
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    body = view.find_element("tag name", "body")
    body.send_keys(keys.ARROW_LEFT)
    assert chosen_step(view) == "step 20" and "of baseline at 20" in texts(view)
    body.send_keys(keys.ARROW_LEFT + keys.ARROW_LEFT)
    assert chosen_step(view) == "step 1" and not view.find_element("id", "previous").is_enabled()
    view.find_element("id", "next").click()
    assert chosen_step(view) == "step 20"
    view.find_element("css selector", "#step option:last-child").click()
    assert "of baseline at 40" in texts(view)
    pytest.importorskip("selenium.webdriver").ActionChains(view).move_to_element(
        view.find_element("id", "curve")
    ).click().perform()
    assert chosen_step(view) == "step 20"
    body.send_keys("r")
    assert chosen_step(view) == "step 20" and "of clipo at 20" in texts(view)
    assert "hallucination rate 0.100" in view.find_element("id", "at-step").text
    assert "contrast" in view.find_element("css selector", "thead").text  # this run has some
    view.find_element("id", "run-0").click()
    assert "of baseline at 20" in texts(view)


def test_arrows_in_the_search_move_its_cursor_only(view):
    """Catches: a step that changes under somebody who corrects a word."""
    view.find_element("id", "search").send_keys("of" + "\ue012\ue012" + "r")
    assert chosen_step(view) == "step 40" and view.find_element("id", "search").get_attribute("value") == "rof"


def test_hostile_text_is_text(view):
    """As prompt, expected answer and completion. Catches: an element, an attribute or a script made of it."""
    assert texts(view)[-1] == SHOWN
    assert (
        view.find_elements("css selector", ".question")[1].get_attribute("textContent") == "What is <b>7</b> times 6?"
    )
    assert view.find_elements("css selector", "img, b, iframe") == []
    assert len(view.find_elements("tag name", "script")) == 2 and view.title.startswith("Rollouts of ")


def test_the_policy_stops_what_would_get_through_all_the_same(browser, tmp_path, capsys):
    """An element with a handler, put in by hand. Catches: a policy that the browser does not accept."""
    write(tmp_path, [rollout()])
    main([str(tmp_path)])
    browser.get((tmp_path / "rollouts.html").as_uri())
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')")
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 2'; document.body.append(s)"
    )
    assert browser.execute_script("return window.hit ?? 0") == 0
    refused = [entry["message"] for entry in browser.get_log("browser")]
    browser.get_log("performance")  # the picture was asked for, and refused
    assert len(refused) >= 2 and all("Content Security Policy" in message for message in refused)


def test_a_long_step_is_drawn_in_parts(browser, tmp_path, capsys):
    """Catches: thousands of rows at once; a button that stays when all is there; rows that it never shows."""
    write(tmp_path, [rollout(1, i // 16, f"number {i}", prompt="Which?") for i in range(480)])
    main([str(tmp_path)])
    browser.get((tmp_path / "rollouts.html").as_uri())
    assert len(texts(browser)) == 200
    browser.find_element("id", "more").click()
    browser.find_element("id", "more").click()
    assert (
        texts(browser) == [f"number {i}" for i in range(480)] and not browser.find_element("id", "more").is_displayed()
    )


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(view, width):
    """Catches: a page that one must move sideways on a phone."""
    view.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    )
    assert view.execute_script("return document.documentElement.scrollWidth") <= width
    view.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
