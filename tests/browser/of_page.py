"""What the browser tests do with the Generate tab."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.module import register_module_forward_hook

from unet_xattn import CrossAttentionUNet

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Open = Callable[..., "Page"]
FIRST = "a red circle left of a blue square"


@contextmanager
def slowly(seconds: float = 0.1, of: type[torch.nn.Module] = CrossAttentionUNet) -> Iterator[list[int]]:
    """Each pass of a UNet, or `of` another module, takes this much longer; yields a list with an entry for each."""
    passes: list[int] = []

    def wait(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, of):
            passes.append(1)
            time.sleep(seconds)

    with register_module_forward_hook(wait):
        yield passes


def wait_for_prompt(page: "Page", prompt: str) -> None:
    """Wait until the viewer shows the finished picture of this prompt."""
    alt = "The picture drawn for: " + prompt
    page.wait_for_function("alt => document.querySelector('.picture')?.alt === alt", arg=alt)


def draw(page: "Page", prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate").click()


def chip(page: "Page", word: str) -> "Locator":
    return page.get_by_role("group", name="Words of the prompt").get_by_role("button", name=word).first


def pixels(page: "Page") -> str:
    """The content of the map's canvas; "" while it is hidden."""
    return page.evaluate("(canvas => canvas.hidden ? '' : canvas.toDataURL())(document.querySelector('.heat'))")


def lit(page: "Page") -> list[str]:
    return [text for text in page.locator(".chip .share").all_text_contents() if text]


def away(page: "Page") -> None:
    page.mouse.move(0, 0)


def look_closer(page: "Page") -> None:
    """Open the controls of steps, layers and heads."""
    page.locator(".attention-viewer:visible .closer > summary").click()


def drop(page: "Page", content: bytes, name: str) -> None:
    """Drop a file on the picture."""
    page.evaluate(
        """([content, name]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(content)], name, { type: "image/png" }));
          document.querySelector(".frame").dispatchEvent(
            new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [list(content), name],
    )
