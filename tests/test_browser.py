"""The pages of `losscomp docs` in a browser: formulas are drawn, the search finds, phones need no sideways scrolling, dark is dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, Browser
from smallsite import make_site

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="NOT CHECKED: pages in a browser: there is no chromium with chromedriver")
PAGES = ("index.html", "losses/bent.html", "losses/share.html", "losses/walk.html", "code/walk-c.html")
# Every formula that is visible: its size, and whether it stands above what it stands below.
FORMULAS = """
document.querySelectorAll("details").forEach((d) => { d.open = true; });
const box = (e) => e.getBoundingClientRect();
return [...document.querySelectorAll("math")].map((m) => ({
  width: box(m).width, height: box(m).height, text: m.textContent,
  fractions: [...m.querySelectorAll("mfrac")].map((f) => box(f.children[0]).bottom <= box(f.children[1]).top + 1),
  raised: [...m.querySelectorAll("msup")].map((f) => box(f.children[1]).top < box(f.children[0]).top + 1),
}));
"""
CONTRAST = """
const light = (color) => {
  const [r, g, b] = color.match(/[0-9.]+/g).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const style = getComputedStyle(document.body);
const words = [...document.querySelectorAll("p, td, dd, summary, figcaption, svg.plot text")].map((e) => [e, getComputedStyle(e)]);
const ink = words.map(([e, s]) => light(e.tagName === "text" ? s.fill : s.color));
const ground = light(style.backgroundColor);
return {ground, least: Math.min(...ink.map((i) => (Math.max(i, ground) + 0.05) / (Math.min(i, ground) + 0.05)))};
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("browser") / "defs")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_drawn(page: str, site: Path, browser: Browser) -> None:
    """No complaint, formulas that take room with fractions above each other, and nothing wider than a phone."""
    browser.look(360)
    browser.open(site / page)
    assert browser.complaints() == []
    formulas = browser.run(FORMULAS)
    assert formulas or not page.startswith("losses")
    for f in formulas:
        assert f["width"] > 4 and f["height"] > 6, f
        assert all(f["fractions"]) and all(f["raised"]), f
    for width in (360, 768, 1280):
        browser.look(width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_a_broken_page_is_seen(site: Path, browser: Browser) -> None:
    """What the other tests would say of a page with a script that fails, a flat formula and a wide line."""
    page = site / "broken.html"
    page.write_text('<!DOCTYPE html><script>missing()</script><p style="width:500px">x</p><math><mrow><mi></mi></mrow></math>')
    browser.look(360)
    browser.open(page)
    page.unlink()
    assert "missing is not defined" in "".join(browser.complaints())
    assert browser.run("return document.documentElement.scrollWidth") > 360
    assert browser.run(FORMULAS)[0]["width"] < 4


def visible(browser: Browser) -> list[str]:
    cards = 'return [...document.querySelectorAll(".card")].filter((c) => c.offsetParent)'
    return browser.run(cards + '.map((c) => c.querySelector(".name").textContent)')


def test_the_search_finds(site: Path, browser: Browser) -> None:
    browser.look(1280)
    browser.open(site / "index.html")
    kind = "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input')); "
    assert sorted(visible(browser)) == ["bent", "share", "smooth_bent", "walk"]
    for words, found in (("bent", ["bent", "smooth_bent"]), ("SHARE", ["share"]), ("knee line", ["bent"]), ("recurrence", ["walk"]),
                         ("peer.bent", ["bent"]), ("nothing such", [])):
        browser.run(kind, words)
        assert sorted(visible(browser)) == found, words
    assert browser.run("return document.getElementById('nothing').offsetParent !== null")
    browser.run("document.getElementById('clear').click()")
    assert len(visible(browser)) == 4
    pick = "const p = document.querySelector(`[data-filter=${arguments[0]}]`); p.value = arguments[1]; p.dispatchEvent(new Event('change'))"
    browser.run(pick, "framework", "peer")
    assert visible(browser) == ["bent"]
    assert browser.run("return document.getElementById('count').textContent") == "1 of 4 losses"
    browser.run(pick, "framework", "none")
    assert len(visible(browser)) == 3
    browser.run(pick, "target", "cuda")
    browser.run(pick, "family", "defs")
    assert len(visible(browser)) == 3


def test_a_target_is_chosen_and_its_example_copied(site: Path, browser: Browser) -> None:
    browser.look(1280)
    browser.open(site / "losses/bent.html")
    shown = "return [...document.querySelectorAll('.tab')].filter((t) => t.offsetParent).map((t) => t.textContent)"
    assert "losslib.numpy" in browser.run(shown)[0]
    browser.run("document.getElementById('tab-torch').click()")
    (text,) = browser.run(shown)
    assert "losslib.torch" in text and "backward()" in text
    browser.develop("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.run("document.querySelector('.tabs input:checked + label + .tab .copier').click()")
    copied = browser.run("return new Promise((done) => setTimeout(() => done(document.querySelector('.tabs input:checked + label + .tab "
                         ".copier').textContent), 200))")
    assert copied == "Copied"


@pytest.mark.parametrize("page", PAGES)
def test_text_stands_out_by_day_and_night(page: str, site: Path, browser: Browser) -> None:
    for dark in (False, True):
        browser.look(768, dark=dark)
        browser.open(site / page)
        found = browser.run(CONTRAST)
        assert (found["ground"] < 0.05) == dark and found["ground"] > (0 if dark else 0.9)
        assert found["least"] > 4.5, found
