"""A real browser for the pages: Chromium without a screen, driven by selenium.

It needs `pip install -e ".[browser]"`, chromium and chromedriver (Debian: apt-get install chromium chromium-driver).
Where one of them is missing the tests are skipped. Nothing is downloaded, and what a page asks of the network fails.
Not named conftest.py: the tests import tests/conftest.py by that name.
"""

import json
import os
import shutil

import pytest

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage "
    "--proxy-server=127.0.0.1:9"  # nobody listens there
).split()


def program(names: tuple[str, ...]) -> str:
    """Where the first of these programs is; skips if there is none."""
    found = [path for path in map(shutil.which, names) if path]
    return found[0] if found else pytest.skip(f"no {names[0]} on this machine: see tests/browser/chromium.py")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for all tests, with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason='no selenium: pip install -e ".[browser]"')
    browser, driver = program(BROWSERS), program(DRIVERS)
    os.environ.setdefault("SE_AVOID_STATS", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)  # given a path, selenium looks for none
    session = webdriver.Chrome(options=options, service=service)
    session.set_window_size(1200, 900)
    yield session
    session.quit()


@pytest.fixture
def browser(chromium):
    """The browser; afterwards the test fails if a page has reported an error or asked for anything but itself."""
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)  # of the test before
    yield chromium
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    assert requests_of(chromium) == set()


def requests_of(chromium) -> set[str]:
    """What has been asked for since this was last called, but for pages of this machine."""
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not (url.startswith("file:") and url.partition("#")[0].endswith(".html"))}
