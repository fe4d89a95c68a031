"""The report in a real browser, opened from disk: it sorts, filters, links, tells of numbers, and runs no text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from report_world import HOSTILE, ablated_store, hostile_runs, read, site_of

selenium = pytest.importorskip("selenium", reason="the browser tests need selenium: tox -e report brings it")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="there is no Chromium with its driver here; Debian has them: apt-get install chromium chromium-driver",
    ),
]
VIEWS = ("leaderboard", "differences", "cost", "users", "examples", "training", "runs")
READY = "const v = document.querySelector('#view'); return v && v.dataset.view || null"


class Page:
    """A report in a browser."""

    def __init__(self, driver: Any, site: Path) -> None:
        self.driver, self.site = driver, site

    def open(self, place: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{(self.site / 'index.html').as_uri()}{place}")
        self.settle()

    def settle(self) -> None:
        """Waits until the part that the address names is shown."""
        script = "return document.querySelector('#view')?.dataset.view && !document.querySelector('#view[aria-busy]')"
        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(script))

    def until(self, what: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 60).until(lambda _: what())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def text(self, selector: str) -> str:
        """The text of the first such element; lone surrogates, which the driver cannot carry, as U+FFFD."""
        found: str = self.run("return document.querySelector(arguments[0]).textContent.toWellFormed()", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def rows(self) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll('table.board tr[data-row]')]"
            ".filter(row => !row.hidden).map(row => row.dataset.row)"
        )
        return found

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--window-size=1400,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The report of made-up runs with an ablation, and that of runs on hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)
    ablated_store(folder / "store")
    made = site_of(folder / "store", folder / "a"), site_of(hostile_runs(folder), folder / "b")
    patch.undo()
    return made


@pytest.fixture
def page(driver: Any, sites: tuple[Path, Path]) -> Iterator[Page]:
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    opened = Page(driver, sites[0])
    opened.complaints()
    yield opened
    assert opened.complaints() == []


@pytest.fixture
def hostile(page: Page, sites: tuple[Path, Path]) -> Page:
    return Page(page.driver, sites[1])


def test_every_part_shows_without_a_complaint_and_without_a_network(page: Page) -> None:
    for view in VIEWS:
        page.open(f"#/world/{view}")
        assert page.run(READY) == view
        assert page.one("#tabs [aria-current=page]").text.lower() == view
        assert page.all("#view .problem") == []
        named = page.run(
            "return [...document.querySelectorAll('[src], [href]')].map(one => one.src || one.href.baseVal || one.href)"
        )
        assert len(named) > len(VIEWS)
        assert all(name.startswith(page.site.as_uri()) for name in named)
        if view in ("differences", "cost", "users", "training"):
            assert page.all("#view figure svg[role=img][aria-label]")
            assert page.all("#view figure details.numbers table")


def test_the_table_sorts_by_any_column_and_says_so(page: Page) -> None:
    page.open()
    usual = page.rows()
    (board,) = read("main", page.site)["boards"]
    values = {row["label"]: row["cells"]["copy_rate"]["value"] for row in board["rows"]}
    head = "button.sort[data-key=copy_rate]"
    seen = []
    for _ in range(3):
        page.one(head).click()
        page.settle()
        seen.append((page.run(f"return document.querySelector('{head}').closest('th').ariaSort"), page.rows()))
        assert page.run("return document.activeElement.dataset.key") == "copy_rate"
    ranked = sorted((label for label in values if label != "oracle"), key=lambda label: values[label])
    assert seen[0] == ("ascending", [*ranked, "oracle"])  # lower is better, so the lowest come first
    assert seen[1] == ("descending", [*ranked[::-1], "oracle"])
    assert seen[2] == ("none", usual)
    page.one("button.sort[data-key=method]").click()
    page.settle()
    assert page.rows() == [*sorted(set(usual) - {"oracle"}), "oracle"]


def test_the_table_filters_by_name_and_kind(page: Page) -> None:
    page.open()
    everything = page.rows()
    page.one("input[data-filter=rows]").send_keys("dep")
    assert page.rows() == [label for label in everything if "dep" in label]
    assert f"of {len(everything)} rows" in page.one(".count").text
    assert page.one("#status").get_attribute("textContent") == page.one(".count").text
    page.open(page.run("return location.hash"))  # the filter is part of the address
    assert page.rows() == [label for label in everything if "dep" in label]
    page.open()
    for select in page.all(".controls select"):
        if "controls" in select.text:
            Select(select).select_by_visible_text("controls")
    page.settle()
    assert len(page.rows()) == 2
    assert all(label.startswith("dep: ") for label in page.rows())


def test_the_four_shapes_of_the_table_show_its_texts(page: Page) -> None:
    (board,) = read("main", page.site)["boards"]
    label = next(row["label"] for row in board["rows"] if row["label"] in board["difference"]["rows"])
    cell = board["difference"]["rows"][label]["rouge1"]
    expected = {
        "differences": cell["text"],
        "wins": cell["wins_text"].replace("/", " / "),
        "detectable": cell["detectable_text"],
    }
    place = [column["key"] for column in board["columns"]].index("rouge1")
    for mode, text in expected.items():
        page.open(f"#/world/leaderboard?show={mode}")
        shown = page.run(
            'return document.querySelector(`tr[data-row="${arguments[0]}"]`).children[arguments[1]].textContent',
            label,
            place,
        )
        assert "".join(shown.split()) == "".join(text.split())


def test_another_baseline_gives_its_own_differences(page: Page) -> None:
    (board,) = read("main", page.site)["boards"]
    told = read(board["baselines"]["rag"], page.site)["rows"]["nonperso"]["rouge1"]
    page.open("#/world/leaderboard?show=differences&baseline=rag")
    assert told["text"].split()[0] in page.one("tr[data-row=nonperso] td").text
    assert page.one("caption").text.startswith("Difference to rag")


def test_the_keyboard_reaches_a_cell_and_what_it_comes_from(page: Page) -> None:
    page.open()
    cells = page.all("table.board button.cell")
    assert [cell.get_attribute("tabindex") for cell in cells].count("0") == 1
    page.run("arguments[0].focus()", cells[0])
    for key in (
        Keys.ARROW_DOWN,
        Keys.ARROW_RIGHT,
        Keys.ARROW_RIGHT,
        Keys.ARROW_LEFT,
        Keys.END,
        Keys.HOME,
        Keys.ARROW_RIGHT,
    ):
        page.driver.switch_to.active_element.send_keys(key)
    where = page.run(
        "const b = document.activeElement, t = b.closest('tr');"
        "return [t.dataset.row, [...t.children].indexOf(b.parentElement)]"
    )
    assert where == [page.rows()[1], 2]
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(lambda: page.all("dialog[open] .run"))
    (board,) = read("main", page.site)["boards"]
    row = next(one for one in board["rows"] if one["label"] == where[0])
    column = board["columns"][2]
    told = page.one("dialog").text
    assert f"{column['title']} of {row['label']}" in told
    assert str(row["cells"][column["key"]]["value"]) in told
    run = read("world-origin", page.site)[board["rows"].index(row)][0]
    assert run["folder"] in told
    assert run["key"] in told
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.all("dialog[open]")
    assert page.run("return document.activeElement.className") == "cell"


def test_the_table_is_a_table_for_a_screen_reader(page: Page) -> None:
    page.open()
    assert page.one("table.board caption").text
    assert {head.get_attribute("scope") for head in page.all("table.board thead th")} == {"col"}
    assert {head.get_attribute("scope") for head in page.all("table.board tbody th")} == {"row"}
    names = page.run(
        "return [...document.querySelectorAll('button, input, select, a')].filter(e => e.offsetParent !== null)"
        ".filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert names == []
    assert page.run("return document.documentElement.lang") == "en"
    page.run("document.querySelector('a.skip').focus()")
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page) -> None:
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    colours = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.open()
        page.run("localStorage.removeItem('dep-bench-theme')")
        page.open()
        colours[scheme] = page.run(ground)
    assert colours["light"] != colours["dark"]
    page.one("#theme").click()  # the system is dark
    assert page.run(ground) == colours["dark"] or page.run(ground) == colours["light"]
    while "light" not in page.one("#theme").text:
        page.one("#theme").click()
    assert page.run(ground) == colours["light"]
    page.open()
    assert page.run(ground) == colours["light"]  # remembered
    page.run("localStorage.removeItem('dep-bench-theme')")


def contrast(a: str, b: str) -> float:
    """WCAG's ratio of two colours as `rgb(r, g, b)`."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((light(a), light(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_ground_in_both_themes(page: Page, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.open()
    ground = page.run("return getComputedStyle(document.documentElement).backgroundColor")
    for selector in ("table.board .value", "table.board .rest", ".legend", "#tabs a", ".notes", ".count", ".sign"):
        for element in page.all(selector)[:1]:
            assert (
                contrast(element.value_of_css_property("color").replace("rgba", "rgb").replace(", 1)", ")"), ground)
                >= 4.5
            )


def test_on_a_phone_only_tables_scroll_sideways(page: Page) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for view in VIEWS:
        page.open(f"#/world/{view}")
        assert page.run("return document.documentElement.scrollWidth") <= 390, view
    page.open("#/world/examples?example=e003-1")
    assert page.run("return document.documentElement.scrollWidth") <= 390
    assert not page.one(".finder").is_displayed()
    page.one(".steps .back").click()
    page.until(lambda: page.one(".finder").is_displayed())


def test_motion_is_left_out_where_it_is_not_wanted(page: Page) -> None:
    for wanted, names in (("no-preference", "in"), ("reduce", "none")):
        media = {"features": [{"name": "prefers-reduced-motion", "value": wanted}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.open()
        page.all("button.cell")[0].click()
        assert page.one("dialog").value_of_css_property("animation-name") == names
        page.one("dialog button").click()


def test_a_link_leads_to_an_example_with_all_its_texts(hostile: Page) -> None:
    index = read("reviews-examples", hostile.site)
    (board,) = read("main", hostile.site)["boards"]
    number = 3
    example = index["ids"][number]
    hostile.open(f"#/reviews/examples?example={quote(example, safe='')}")
    texts = {
        one["id"]: one for i in range(board["examples"]["pieces"]) for one in read(f"reviews-texts-{i}", hostile.site)
    }
    assert hostile.one(".reference .prose").get_attribute("textContent") == texts[example]["reference"]
    for row, written in zip(board["rows"], texts[example]["texts"], strict=True):
        shown = hostile.text(f"section.text[data-row='{row['label']}'] .prose")
        assert shown == written[0]["text"].replace("\ud800", "\ufffd")
    assert hostile.one(".list [aria-current=true]").get_attribute("href").endswith(quote(example, safe=""))
    hostile.one(".steps a[rel=next]").click()
    hostile.until(lambda: index["ids"][number + 1] in hostile.text(".example"))
    hostile.driver.back()
    hostile.until(lambda: example in hostile.text(".example"))


def test_examples_are_searched_by_what_was_asked_and_by_what_was_written(hostile: Page) -> None:
    hostile.open("#/reviews/examples")
    index = read("reviews-examples", hostile.site)
    assert len(hostile.all(".list li")) == len(index["ids"])
    search = hostile.one("input[data-filter=examples]")
    search.send_keys("u3")
    assert len(hostile.all(".list li")) == sum("u3" in user for user in index["users"])
    search.clear()
    search.send_keys("window.hurt=3")
    before = len(hostile.all(".list li"))
    hostile.one(".finder input[type=checkbox]").click()
    hostile.until(lambda: "reading" not in hostile.one(".finder .count").text)
    (board,) = read("main", hostile.site)["boards"]
    pieces = [one for i in range(board["examples"]["pieces"]) for one in read(f"reviews-texts-{i}", hostile.site)]
    holding = [one for one in pieces if "window.hurt=3" in str([one["fields"], one["reference"], one["texts"]])]
    assert len(hostile.all(".list li")) == len(holding) > before


def test_words_are_marked_against_the_text_that_is_chosen(hostile: Page) -> None:
    hostile.open(
        "#/reviews/examples?mark=differs&to=rag&example="
        + quote(read("reviews-examples", hostile.site)["ids"][0], safe="")
    )
    base = set(hostile.one("section.text[data-row=rag] .prose").get_attribute("textContent").lower().split())
    marked = [
        mark.get_attribute("textContent") for mark in hostile.all("section.text[data-row='copy-last'] mark.differs")
    ]
    assert marked
    assert not hostile.all("section.text[data-row=rag] mark")
    assert not base & {word for text in marked for word in text.lower().split() if word.isalpha() and len(word) > 6}


def test_a_prompt_is_loaded_when_it_is_opened(hostile: Page) -> None:
    hostile.open("#/reviews/examples")
    loaded = "return !!document.querySelector('script[src*=prompts]')"
    assert not hostile.run(loaded)
    hostile.one("section.text[data-row=rag] .prompt summary").click()
    hostile.until(lambda: hostile.all("section.text[data-row=rag] .prompt pre"))
    assert hostile.run(loaded)
    shown = "".join(pre.get_attribute("textContent") for pre in hostile.all("section.text[data-row=rag] .prompt pre"))
    assert any(
        content in shown for messages in read("reviews-prompts-0", hostile.site).values() for _, content in messages
    )


def test_texts_with_html_and_scripts_are_shown_and_never_run(hostile: Page) -> None:
    index = read("reviews-examples", hostile.site)
    seen = ""
    for example in index["ids"]:
        hostile.open(f"#/reviews/examples?example={quote(example, safe='')}")
        for summary in hostile.all("details > summary"):
            if summary.is_displayed():
                hostile.run("arguments[0].parentElement.open = true", summary)
        seen += hostile.text("#view")
        assert hostile.run("return window.hurt ?? null") is None
        assert hostile.all("#view img, #view script, #view style, #view svg[onload]") == []
    for text in HOSTILE[:5]:
        assert text in seen
    for view in VIEWS:
        hostile.open(
            f"#/reviews/{view}?q={quote(HOSTILE[0])}&baseline={quote(HOSTILE[1])}&metric=__proto__&sort={quote(HOSTILE[2])}"
        )
        assert hostile.run("return window.hurt ?? null") is None
    hostile.open(f"#/{quote(HOSTILE[1], safe='')}/{quote(HOSTILE[0], safe='')}?example={quote(HOSTILE[1])}")
    assert hostile.run("return window.hurt ?? null") is None


def test_the_policy_stops_a_script_that_would_be_put_in(hostile: Page) -> None:
    hostile.open()
    attempts = (
        "const s = document.createElement('script'); s.append('window.hurt=9'); document.body.append(s)",
        "const i = document.createElement('img'); i.setAttribute('onerror', 'window.hurt=9'); i.src = 'x'",
        "document.body.innerHTML = '<img src=x onerror=window.hurt=9>'",
        "const s = document.createElement('script'); s.src = 'data:,window.hurt=9'; document.body.append(s)",
    )
    for attempt in attempts:
        hostile.run(f"try {{ {attempt} }} catch {{}}")
    hostile.run("return new Promise(done => setTimeout(done, 50))")
    assert hostile.run("return window.hurt ?? null") is None
    assert len(hostile.complaints()) >= len(attempts)


def test_an_example_that_is_not_there_is_told(page: Page) -> None:
    page.open("#/world/examples?example=nobody")
    assert "no example nobody" in page.one("[role=alert]").text
