"""The waiting times of a person on the page, and its answers to many clients at once.

    python tests/benchmarks/page.py --out page.json

Starts the page with the bundled model as a separate process, drives it in Chromium, then asks it from 64 clients.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gradio_client import Client
from playwright.sync_api import Page, sync_playwright

from pipelines.runs.machine import machine

CLIENTS = 64
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PROMPT = "a red circle left of a blue square"

# Milliseconds from the click on the button to the first preview of the new picture.
FIRST_PICTURE = """() => new Promise((done) => {
  const picture = document.querySelector(".picture"), before = picture.src, start = performance.now();
  new MutationObserver(() => picture.src !== before && done(performance.now() - start))
    .observe(picture, { attributes: true, attributeFilter: ["src"] });
  document.querySelector("button.primary").click();
})"""

# Pictures per second while a person types for some seconds, a key every 50 ms.
LIVE = """(seconds) => new Promise((done) => {
  const picture = document.querySelector(".picture"), box = document.querySelector("textarea");
  const words = "a green star above a small purple heart on a black background".split(" ");
  let count = 0, keys = 0;
  new MutationObserver(() => count++).observe(picture, { attributes: true, attributeFilter: ["src"] });
  const typing = setInterval(() => {
    box.value = words.slice(0, 3 + (keys++ % (words.length - 3))).join(" ");
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }, 50);
  setTimeout(() => (clearInterval(typing), done(count / seconds)), 1000 * seconds);
})"""

# The times of many redraws of a map, in milliseconds, as the pointer moves from word to word.
REDRAW = """() => {
  const chips = [...document.querySelectorAll(".chip")];
  const times = chips.flatMap((chip) => [1, 2, 3].map(() => {
    const start = performance.now();
    chip.dispatchEvent(new PointerEvent("pointerenter"));
    return performance.now() - start;
  }));
  return times.sort((a, b) => a - b);
}"""


def ready(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("text => document.querySelector('.prompt')?.textContent.startsWith(text)", arg=PROMPT)
    page.wait_for_selector(".chip")
    page.wait_for_load_state("networkidle")


def in_a_browser(address: str) -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        ready(page, address)
        redraws = page.evaluate(REDRAW)
        first = []
        for _ in range(10):
            first.append(page.evaluate(FIRST_PICTURE))
            page.wait_for_timeout(1500)
        page.get_by_label("Live").check()
        live = [page.evaluate(LIVE, 5) for _ in range(3)]
        browser.close()
    return {
        "milliseconds to the first preview": sorted(round(t) for t in first),
        "live pictures a second": [round(rate, 1) for rate in live],
        "milliseconds to redraw a map": {"median": statistics.median(redraws), "largest": redraws[-1]},
    }


def many(address: str) -> dict[str, Any]:
    """All clients send a request at once, each with its own prompt and seed, which must come back with the picture."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = list(pool.map(lambda _: Client(address, verbose=False), range(CLIENTS)))

        def ask(i: int) -> tuple[float, str]:
            start, prompt = time.perf_counter(), f"{PROMPT}, {i}"
            try:
                (picture,) = clients[i].predict(prompt, seed=str(i), api_name="/generate")["pictures"]
                own = (picture["prompt"], picture["settings"]["seed"]) == (prompt, str(i))
                return time.perf_counter() - start, "its own" if own else "ANOTHER'S"
            except Exception as error:  # every kind of error is counted
                return time.perf_counter() - start, " ".join(str(error).split())[:120]

        answers = list(pool.map(ask, range(CLIENTS)))
    waits = sorted(wait for wait, answer in answers if answer == "its own")
    counts: dict[str, int] = {}
    for _, answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    quantile = {f"p{q} in seconds": round(waits[min(len(waits) - 1, len(waits) * q // 100)], 2) for q in (50, 95)}
    return {"clients": CLIENTS, "answers": counts} | quantile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "ui.cli", "ui", "--port", str(port)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        line = page.stdout.readline().strip()
        address = f"http://127.0.0.1:{port}"
        report = {"machine": machine(), "start": line} | in_a_browser(address) | many(address)
    finally:
        page.terminate()
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
