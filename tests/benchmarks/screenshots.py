"""Screenshots of the tabs of the page with the default model, for ui/README.md.

python tests/benchmarks/screenshots.py --out .github
"""

import argparse
import io
import shutil
import socket
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipelines.scenes.everyday import render, scene
from ui.app import launch


def generate(page: Page) -> None:
    for word in ("heart", "cat"):
        page.locator(".chip", has_text=word).first.click()
    page.locator(".word-panel .close").click()


def edit(page: Page) -> None:
    page.locator(".chip", has_text="cat").first.click()
    page.get_by_label("Replace with").fill("dog")
    page.keyboard.press("Enter")
    page.wait_for_selector(".edit-checks li")
    page.locator(".chip", has_text="heart").first.click()
    page.get_by_role("checkbox", name="Outline").check()
    page.wait_for_function("document.querySelector('.caption').textContent.includes('mask')")


def picture(page: Page) -> None:
    shown = scene(5, 0, "three")
    file = io.BytesIO()
    Image.fromarray(render(shown)[0]).save(file, "PNG")
    page.locator("input[type=file]").first.set_input_files(
        {"name": "scene.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    page.get_by_label("Caption").fill(shown.caption)
    page.get_by_role("button", name="Where is each word?").click()
    page.locator(".attention-viewer:visible .chip", has_text=shown.objects[0].shape).first.click()


def train(page: Page) -> None:
    page.get_by_role("heading", name="Examples").wait_for()


def translate(page: Page) -> None:
    page.get_by_role("group", name="Tokens the model wrote").get_by_role("button").nth(2).click()


def inspect(page: Page) -> None:
    page.wait_for_selector(".query-diagram .tokens .row")


SHOTS = {
    "generate": ("Generate", generate),
    "edit": ("Generate", edit),
    "your-picture": ("Your picture", picture),
    "train": ("Train", train),
    "translate": ("Translate", translate),
    "inspect": ("Inspect", inspect),
}
"""Name of the picture -> the tab, and what is done there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    served = launch(port=port, block=False)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (tab, prepare) in SHOTS.items():
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector(".attention-viewer .chip")
            page.get_by_role("tab", name=tab).click()
            prepare(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # for animations
            page.screenshot(path=arguments.out / f"page-{name}.png")
            page.close()
        browser.close()
    served.close()


if __name__ == "__main__":
    main()
