"""The page in a browser: it opens in silence, filters act, values show, keys suffice, nothing of a record runs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.inference import EXHIBITS
from retbench.environment import ROOT
from retbench.report.draw import draw
from retbench.report.page import page
from tests.report.factory import cell, failed, record, sweep
from tests.report.test_page import HOSTILE, LONG

pytestmark = pytest.mark.slow

SHOWN = [exhibit for exhibit in EXHIBITS if exhibit.name in ("figure6", "figure1", "frontier")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where there is none the tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'retbench[dev]'")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two sizes, a hostile record and a failed one."""
    hostile = [replace(one, cell=replace(one.cell, system=HOSTILE, size="tiny"),
                       environment={**record().environment, "cpu": LONG}) for one in sweep(("rwkv",))]  # fmt: skip
    dead = failed(cell("transformer-flash"), "oom", LONG)
    records = [*(one for one in sweep(lengths=(2048, 8192)) if one.cell != dead.cell), dead, *hostile]
    found = tmp_path_factory.mktemp("page") / "index.html"
    found.write_text(page(draw(SHOWN, records), [LONG]), encoding="utf-8")
    return found


@contextmanager
def silent(browser: Any, path: Path, width: int = 1440) -> Iterator[Any]:
    """A page, opened from its file: it must not say or load anything."""
    window = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    window.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    window.goto(path.as_uri())
    yield window
    window.close()

    assert said == []


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Any]:
    with silent(browser, path) as window:
        yield window


def box(window: Any, name: str) -> Any:
    return window.locator(f"#filters input[value='{name}']")


@pytest.mark.parametrize("width", [390, 1440])
def test_the_repositorys_own_page_opens_fits_and_filters(browser: Any, width: int) -> None:
    with silent(browser, ROOT / "reports" / "index.html", width) as window:

        def shown(exhibit: str) -> int:
            """Rows of RetNet; computed, since tables that are far off are not laid out."""
            rows = window.locator(f"#{exhibit} tr[data-system='retnet']")
            count = "some => some.filter(one => getComputedStyle(one).display !== 'none').length"
            return int(rows.evaluate_all(count))

        exhibits = ("table1", "table4", "figure6", "speed")
        claims = window.locator("#claims .claims > li").count()
        wide = window.evaluate("document.documentElement.scrollWidth")
        before = [shown(name) for name in exhibits]
        window.locator("#filters").evaluate("fold => { fold.open = true; }")
        box(window, "retnet").uncheck()
        hidden = [shown(name) for name in exhibits]
        window.locator("#filters button[type=reset]").click()

        assert claims > 5
        assert wide <= width
        assert min(before) > 0
        assert hidden == [0] * len(exhibits)
        assert [shown(name) for name in exhibits] == before


def test_filters_act_on_rows_and_on_lines_and_can_be_undone(opened: Any) -> None:
    rows = opened.locator("#figure6 .table tr[data-system='transformer']:visible")
    lines = opened.locator("#figure6 .series[data-system='transformer']")
    before = rows.count()
    box(opened, "transformer").uncheck()
    hidden = (
        rows.count(),
        lines.evaluate_all("some => some.filter(one => getComputedStyle(one).display !== 'none').length"),
    )
    opened.locator("#filters button[type=reset]").click()

    assert before > 0
    assert hidden == (0, 0)
    assert rows.count() == before


def test_filters_of_size_and_machine_act_together(opened: Any) -> None:
    rows = opened.locator("#figure6 .table tbody tr:visible")
    box(opened, "small").uncheck()
    tiny = rows.count()
    box(opened, "lab-2c").uncheck()

    assert tiny == 2
    assert rows.count() == 0
    assert opened.locator("#figure6 .nothing").first.is_visible()


def test_hostile_words_are_shown_and_do_nothing(opened: Any) -> None:
    assert opened.locator("#filters label", has_text="<script>alert(1)</script>").count() == 1
    assert opened.evaluate("document.querySelectorAll('script').length") == 2
    assert opened.locator("img").count() == 0


def test_the_pointer_shows_the_value_under_it(opened: Any) -> None:
    point = opened.locator("#figure6 .series[data-system='retnet'] > [data-y]").last
    point.scroll_into_view_if_needed()
    point.hover()

    tip = opened.locator("#tip")
    assert tip.is_visible()
    assert "retnet" in tip.inner_text()
    assert point.get_attribute("data-y") in tip.inner_text()


def test_the_keyboard_reaches_filters_values_and_conditions(opened: Any) -> None:
    opened.keyboard.press("Tab")
    first = opened.evaluate("document.activeElement.className")
    reached = []
    for _ in range(30):
        opened.keyboard.press("Tab")
        reached.append(opened.evaluate("document.activeElement.name || ''"))
        if reached[-1] == "system":
            break
    opened.keyboard.press("Space")
    unchecked = opened.evaluate("document.activeElement.checked")
    opened.locator("#figure6 svg.plot").first.focus()
    opened.keyboard.press("ArrowRight")
    value = opened.locator("#tip").inner_text()
    opened.locator("#figure6 button[data-source]").first.focus()
    opened.keyboard.press("Enter")
    conditions = opened.locator("dialog").inner_text()
    opened.keyboard.press("Escape")

    assert first == "skip"
    assert reached[-1] == "system"
    assert unchecked is False
    assert "tokens" in value
    assert "retbench inference --systems" in conditions
    assert "Intel(R) Xeon(R)" in conditions
    assert not opened.locator("dialog").is_visible()


def test_a_row_tells_its_own_command_and_environment(opened: Any) -> None:
    opened.locator("#figure6 tr[data-system='retnet'] button").first.click()

    words = opened.locator("dialog").inner_text()
    assert "--systems retnet " in words
    assert "2.13.0+cpu" in words


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_follow_the_reader_and_the_switch(opened: Any, scheme: str) -> None:
    def dark() -> bool:
        colour = opened.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return colour != "rgb(255, 255, 255)"

    opened.emulate_media(color_scheme=scheme)
    followed = dark()
    opened.locator(f".theme input[value={'light' if scheme == 'dark' else 'dark'}]").check(force=True)

    assert followed == (scheme == "dark")
    assert dark() != followed


@pytest.mark.parametrize("width", [390, 1440])
def test_only_tables_scroll_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})

    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_everything_is_open_and_controls_are_gone(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")

    assert opened.locator("main details:not([open])").count() == 0
    assert not opened.locator("aside").is_visible()
    assert opened.locator("#figure6 table").first.is_visible()
