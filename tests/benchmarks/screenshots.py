"""A screenshot of each tab of the page with the bundled model, for ui/README.md.

python tests/benchmarks/screenshots.py --out .github
"""

import argparse
import io
import shutil
import socket
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipelines.scenes.shapes import render, scene
from ui.app import launch


def generate(page: Page) -> None:
    for word in ("circle", "square"):
        page.locator(".chip", has_text=word).first.click()


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


TABS = {"Generate": generate, "Your picture": picture, "Train": train, "Translate": translate, "Inspect": inspect}


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
        for name, prepare in TABS.items():
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector(".attention-viewer .chip")
            page.get_by_role("tab", name=name).click()
            prepare(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # for animations
            page.screenshot(path=arguments.out / f"page-{name.lower().replace(' ', '-')}.png")
            page.close()
        browser.close()
    served.close()


if __name__ == "__main__":
    main()
