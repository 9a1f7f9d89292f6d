"""Every tab of the page, light and dark, by the rules of axe-core if it is installed (npm install --no-save axe-core).

Without it, the rules are those below: the contrast of texts, the order of headings, and names for all controls.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from of_page import Open, chip, look_closer

from pipelines import TextToImagePipeline

if TYPE_CHECKING:
    from playwright.sync_api import Page

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
TABS = {
    "Generate": ".attention-viewer .chip",
    "Your picture": "[role=tabpanel]:visible .attention-viewer .chip",
    "Train": ".album img",
    "Translate": ".alignment .target button",
    "Inspect": ".query-diagram .tokens .row",
}
"""Tab -> what it shows when it is ready."""

VIOLATIONS = """async () => (await axe.run({ resultTypes: ["violations"] })).violations
  .map((one) => one.id + ": " + one.nodes.map((node) => node.html.slice(0, 200)).join(" | "))"""

OURS = """() => {
  const seen = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
  const levels = seen("h1, h2, h3, h4, h5, h6").map((one) => Number(one.tagName[1]));
  const jumps = levels.filter((level, i) => level > (levels[i - 1] ?? 0) + 1);
  const named = (one) => one.labels?.length || one.ariaLabel || one.textContent.trim() || one.title
    || one.getAttribute("aria-labelledby") || one.placeholder;
  const controls = seen("button, input, select, textarea, [role=application], [role=slider]");
  const images = seen("img:not([alt])");
  const wrong = [...controls.filter((one) => !named(one)), ...images].map((one) => one.outerHTML.slice(0, 200));
  return [...jumps.map((level) => "h" + level), ...wrong];
}"""


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str]) -> str:
    return serve(TextToImagePipeline.from_pretrained("shapes"))


def violations(page: "Page", contrasts: Callable[["Page"], list[tuple[str, float]]]) -> list[str]:
    if AXE.is_file():
        page.evaluate(AXE.read_text("utf-8"))
        return page.evaluate(VIOLATIONS)
    pale = [f"{text}: {contrast}" for text, contrast in contrasts(page) if contrast < 4.5]
    return pale + page.evaluate(OURS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_violates_a_rule(
    open_page: Open, contrasts: Callable[["Page"], list[tuple[str, float]]], scheme: str
) -> None:
    page = open_page(color_scheme=scheme)
    for tab, ready in TABS.items():
        page.get_by_role("tab", name=tab).click()
        if tab == "Your picture":
            page.get_by_role("button", name="Take a sample picture").click()
        page.locator(ready).first.wait_for()
        if tab == "Generate":
            page.get_by_role("button", name="What can I type?").click()
            look_closer(page)
            page.locator(".heads summary").first.click()
            page.locator(".heads-table .tile").first.wait_for()
        assert violations(page, contrasts) == [], tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_panel_that_changes_words_violates_a_rule(
    open_page: Open, contrasts: Callable[["Page"], list[tuple[str, float]]], scheme: str
) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    chip(page, "circle").click()
    page.get_by_label("Replace with").fill("stra")
    page.get_by_role("button", name="Take “star”").wait_for()
    assert violations(page, contrasts) == []
    page.get_by_role("button", name="Paint its place").click()
    assert violations(page, contrasts) == []
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.wait_for_selector(".edit-checks li")
    page.get_by_role("button", name="What changed").click()
    assert violations(page, contrasts) == []
    page.get_by_role("button", name="Place words").click()
    page.get_by_role("button", name="Add a box").click()
    assert violations(page, contrasts) == []
