"""The page in a real browser: no console errors, no request, no sideways scroll, charts that are really drawn.

Without a Chromium the tests skip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.report import write_report
from tests.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


# How many differently coloured pixels each chart has: an empty canvas has one.
COLORS = """
[...document.querySelectorAll(".plot canvas")].map((canvas) => {
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels).size;
})
"""

# The share of each heat map's pixels that are painted.
PAINTED = """
[...document.querySelectorAll(".heat canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, index) => index % 4 === 3 && value === 255).length / (data.length / 4);
})
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_whole_at_desktop_and_phone_width(
    browser: Browser, make_run: Callable[..., Path], width: int, scheme: str
) -> None:
    browser.open(write_report(make_run()), width, scheme)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colors = browser.evaluate(COLORS)
    assert len(colors) == 9  # six curves, three heat maps
    assert min(colors) > 5
    assert min(browser.evaluate(PAINTED)) > 0.3
    dark = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 64)")
    assert dark is (scheme == "dark")


def test_charts_follow_a_change_of_scheme_and_width(browser: Browser, make_run: Callable[..., Path]) -> None:
    browser.open(write_report(make_run()), 1280)
    wide = browser.evaluate("document.querySelector('.plot canvas').clientWidth")
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.send("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=True)
    browser.wait_for(f"document.querySelector('.plot canvas').clientWidth < {wide}")
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert len(browser.evaluate(COLORS)) == 9


def test_hostile_names_are_shown_and_run_nothing(browser: Browser, make_run: Callable[..., Path]) -> None:
    classes = ["</script><script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "x" * 300, "日本語 ñ"]
    browser.open(write_report(make_run(classes=classes)), 390)
    assert browser.complaints() == []
    assert browser.evaluate("window.pwned") is None
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert classes[1] in browser.evaluate("document.body.innerText")


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1, "steps_per_epoch": 1, "power": False},
        {"result": False, "profile": False, "mistakes": False, "steps": 100},
        {"metrics": False, "result": False, "profile": False, "mistakes": False},
        {"blocks": 1, "epochs": 2},
    ],
    ids=["one step", "cut off", "only a plan", "one block"],
)
def test_scant_runs_still_make_a_page(browser: Browser, make_run: Callable[..., Path], options: dict[str, Any]) -> None:
    browser.open(write_report(make_run(**options)), 390)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    described = browser.evaluate("JSON.parse(document.getElementById('charts').textContent).length")
    assert browser.evaluate("document.documentElement.dataset.charts") == str(described)


def test_pointing_at_a_heat_map_tells_the_value(browser: Browser, make_run: Callable[..., Path]) -> None:
    browser.open(write_report(make_run()), 1280)
    browser.evaluate("document.querySelector('[data-chart=tokens]').scrollIntoView({block: 'center'})")
    box = browser.evaluate(
        "JSON.parse(JSON.stringify(document.querySelector('[data-chart=tokens] .u-over').getBoundingClientRect()))"
    )
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] - 2
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    readout = "document.querySelector('[data-chart=tokens]').parentElement.querySelector('.readout').textContent"
    browser.wait_for(f"{readout} != ''")
    assert re.fullmatch(r"steps \d+ to \d+, block 0: [\d.]+ tokens", browser.evaluate(readout))
