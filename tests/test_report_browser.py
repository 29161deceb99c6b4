"""The page in a real Chromium: no complaints, no requests, clicks and keys do what they say, nothing sticks out of a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Page, browser
from mdcs.reporting import report
from run_cases import make_run
from test_report_page import NASTY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

SHOWN = "[...document.querySelectorAll('#class-rows tbody tr')].map(row => row.cells[0].textContent)"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.window(1280)
        yield page


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(run=str(make_run(tmp_path_factory.mktemp("runs") / "small", names=NASTY)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"species {c:03}" for c in range(300)]
    return report(run=str(make_run(tmp_path_factory.mktemp("runs") / "large", names=names, per_class=4)))


def test_it_opens_without_complaints_or_requests(tab: Page, small: Path) -> None:
    tab.open(small)
    assert tab.complaints() == []
    assert tab.requests() == [small.resolve().as_uri()]
    assert tab("document.querySelectorAll('#class-rows tbody tr').length") == 10
    assert set(tab(SHOWN)) == set(NASTY)  # among them one that says <script>
    tab("fetch('https://example.org').catch(() => document.title = 'refused')")
    assert tab("document.title") == "refused" and any("Content Security Policy" in text for text in tab.complaints())


def test_a_click_on_a_dot_shows_its_class_in_the_table(tab: Page, large: Path) -> None:
    tab.open(large)
    assert tab(COUNT) == "300 of 300 classes, 1 to 50 shown"
    tab.click(".dots circle", 299)  # from rare to frequent
    assert tab(SHOWN) == ["species 000"] and tab(COUNT) == "1 of 300 classes"
    assert tab("document.getElementById('search').value") == "species 000"
    tab.click("#clear")
    assert tab(COUNT).startswith("300 of 300") and tab("document.activeElement.id") == "search"


def test_pointing_at_a_dot_names_it(tab: Page, small: Path) -> None:
    tab.open(small)
    tab("document.querySelector('.dots').scrollIntoView({block: 'center'})")
    box = tab("(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelectorAll('.dots circle')[9].getBoundingClientRect())")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    lines = tab("[...document.getElementById('tip').children].map(line => line.textContent)")
    assert not tab("document.getElementById('tip').hidden") and lines[0] == NASTY[0] and lines[1] == "500 training pictures (many)"
    assert len(lines) == 7 and lines[2].startswith("ensemble: ") and lines[6] == "n = 12"
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert tab("document.getElementById('tip').hidden")


def test_keys_walk_through_the_dots(tab: Page, large: Path) -> None:
    tab.open(large)
    tab("document.querySelector('.skip').focus()")
    for _ in range(60):
        tab.press("Tab")
        if tab("document.activeElement.classList.contains('dots')"):
            break
    assert tab("document.activeElement.classList.contains('dots')") and tab("document.activeElement.matches(':focus-visible')")
    assert tab("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("ArrowRight")
    second = tab("JSON.parse(document.getElementById('data').textContent).runs[0].dots[1]")
    assert 280 < second < 299 and f"species {second}, 5 training pictures (few)" in tab("document.getElementById('said').textContent")
    tab.press("End")
    assert "species 000" in tab("document.getElementById('said').textContent")
    tab.press("Enter", "\r")
    assert tab(SHOWN) == ["species 000"]


def test_search_filter_sort_and_pages(tab: Page, large: Path) -> None:
    tab.open(large)
    tab.click("#next")
    assert tab(COUNT) == "300 of 300 classes, 51 to 100 shown" and tab(SHOWN)[0] == "species 050"
    tab("document.getElementById('search').focus()")
    for letter in "12":
        tab.press(letter, letter)
    found = [f"species {c:03}" for c in range(300) if "12" in f"{c:03}"]
    assert tab(SHOWN) == found and tab(COUNT) == f"{len(found)} of 300 classes"
    tab.click("#class-rows th button", 2)  # training pictures: the most first, then the fewest
    assert tab("document.querySelectorAll('#class-rows th')[2].getAttribute('aria-sort')") == "descending"
    tab.click("#class-rows th button", 2)
    assert tab("document.querySelectorAll('#class-rows th')[2].getAttribute('aria-sort')") == "ascending"
    counts = tab("[...document.querySelectorAll('#class-rows tbody tr')].map(row => +row.cells[2].textContent)")
    assert counts == sorted(counts) and counts[0] < counts[-1]
    tab("(s => { s.value = 'few'; s.dispatchEvent(new Event('change')) })(document.getElementById('group'))")
    groups = tab("[...document.querySelectorAll('#class-rows tbody tr')].map(row => row.cells[1].textContent)")
    assert set(groups) == {"few"} and 0 < len(groups) < len(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "mobile"), [(375, True), (1280, False)])
def test_light_and_dark_on_a_phone_and_a_desk(tab: Page, small: Path, width: int, mobile: bool, scheme: str) -> None:
    tab.window(width, scheme=scheme, mobile=mobile)
    tab.open(small)
    assert tab("document.documentElement.scrollWidth") == width
    sum_of_rgb = "(e => getComputedStyle(e)[what].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
    paper, ink = (tab(sum_of_rgb.replace("what", f"'{what}'") + "(document.body)") for what in ("backgroundColor", "color"))
    assert (paper > 700 and ink < 150) if scheme == "light" else (paper < 150 and ink > 600)
    text = tab(sum_of_rgb.replace("what", "'fill'") + "(document.querySelector('svg .value'))")
    assert (text < 150) == (scheme == "light")
    tab.window(1280)


def test_without_script_the_first_rows_can_be_read(tab: Page, large: Path) -> None:
    tab.events.clear()
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.send("Page.navigate", url=large.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in tab.events):
            tab.events.append(tab.message())
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(tab(SHOWN)) == 50 and tab("document.getElementById('next').parentElement.hidden")


def test_two_runs_side_by_side(tab: Page, tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two"))]
    tab.open(report(runs=runs, output=str(tmp_path / "both.html")))
    assert tab.complaints() == []
    tab.click(".dots circle", 12)  # the second run's third
    assert tab(SHOWN) == ["h"]
