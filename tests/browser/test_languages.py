"""The page in a real browser, in Chinese where the browser's language is Chinese."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import pytest
from of_page import FIRST, Open
from PIL import Image

import ui.train_tab
from pipelines import TextToImagePipeline

if TYPE_CHECKING:
    from playwright.sync_api import Page

ENGLISH = re.compile(r"[A-Za-z]{3,} [A-Za-z]{2,}")
"""Two English words in a row: a text that was not translated."""


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))  # where there are no runs
        yield serve(TextToImagePipeline.from_pretrained("shapes"))


def texts(page: "Page", parts: str) -> list[str]:
    return [text.strip() for text in page.locator(parts).all_inner_texts() if text.strip()]


def test_the_first_tab_speaks_the_language_of_the_browser(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    assert page.get_by_role("tab").all_inner_texts() == ["生成", "你的图片", "训练", "翻译", "剖析"]
    page.locator("summary").first.click()
    page.locator(".main .chip", has_text="circle").hover()
    parts = ".head h1, .sentence, .try > button, .note, .caption, .verdict li, .saving button, .controls label > span"
    found = texts(page, parts)
    assert len(found) > 25 and [text for text in found if ENGLISH.search(text.replace("this pipeline", ""))] == []
    assert "“circle”在一处最多占图片注意力的" in page.locator(".caption").first.inner_text()
    assert "红色的圆形在蓝色的正方形的左边" in " ".join(found)
    for name in (".frame", ".prompt", ".multiples", ".verdict"):
        assert not ENGLISH.search(page.locator(name).first.get_attribute("aria-label"))


def test_changing_words_too(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    found = texts(page, ".changes p, .changes button")
    page.locator(".main .chip", has_text="circle").click()
    page.locator(".replacement").fill("stra")
    page.locator(".replacement-note button").wait_for()
    found += texts(page, ".word-panel p, .word-panel button, .word-panel strong, .word-panel label > span")
    page.get_by_role("button", name="画出位置").click()
    found += texts(page, ".word-box p, .word-box button")
    page.get_by_role("button", name="取消").click()
    page.get_by_role("button", name="移除", exact=True).click()
    page.wait_for_selector(".edit-checks li")
    found += texts(page, ".edits li, .edit-checks li, .edit-tools button, .left-name, .right-name")
    page.get_by_role("button", name="放置词语").click()
    found += texts(page, ".place-panel p, .place-panel button, .place-panel strong")
    assert "✓ 符合要求" in found and "移除 circle✕" in found
    assert len(found) > 25 and [text for text in found if ENGLISH.search(text)] == []


def test_the_train_tab_too(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    page.get_by_role("tab", name="训练").click()
    page.get_by_role("heading", name="示例").wait_for()
    parts = ".message:visible, .album .title, [role=tabpanel]:visible label > span, [role=tabpanel]:visible button"
    found = texts(page, parts)
    assert "还没有运行：请选择数据并开始训练。" in found and "在 CPU 的两个核上约 3 分 3 秒。" in found
    assert len(found) > 12 and [text for text in found if ENGLISH.search(text)] == []


def test_what_is_wrong_with_an_upload_too(open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = io.BytesIO()
    Image.new("RGB", (40, 32)).save(picture, "PNG")
    for name, captions in {"bad": ["", "a red circle"], "good": ["a blue square", "a red circle"]}.items():
        rows = [{"file_name": f"{i} (1).png", "text": text} for i, text in enumerate(captions)]
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
            for row in rows:
                archive.writestr(row["file_name"], picture.getvalue())
    page = open_page(locale="zh-CN")
    page.get_by_role("tab", name="训练").click()
    findings = page.locator(".findings .message")
    findings.get_by_text("无穷的场景").wait_for()
    upload = page.locator("input[type=file][accept*=zip]")
    upload.set_input_files(tmp_path / "bad.zip")
    problem = page.locator(".message.problem:visible")
    problem.get_by_text("上传的文件有 1 处错误").wait_for()
    assert problem.inner_text().endswith("错误：0 (1).png (metadata.jsonl:1)：没有说明：说明为空")
    upload.set_input_files(tmp_path / "good.zip")
    findings.get_by_text("2 张图片").wait_for()
    lines = findings.inner_text().strip().split("\n")
    assert lines[-1] == "警告：1 (1).png (metadata.jsonl:2)：重复：与 0 (1).png 是同一个文件，但说明不同"
    assert len(lines) > 6 and [line for line in lines if ENGLISH.search(line)] == []


def test_toasts_too(open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(locale="zh-CN")
    page.get_by_role("tab", name="训练").click()
    page.get_by_text("无穷的场景").wait_for()
    toast = page.get_by_test_id("toast-body")
    said = {
        "emoji": (RuntimeError("CUDA out of memory"), "程序库报错：CUDA out of memory"),
        "shapes": (gr.Error("choose a run first", print_exception=False), "请先选择一个运行"),
    }
    for data, (error, text) in said.items():

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ui.train_tab, "preview", fail)
        page.get_by_label("训练数据").click()
        page.get_by_role("option", name=data).click()
        toast.get_by_text(text, exact=True).wait_for()
    (tmp_path / "a.txt").write_text("no zip")
    page.locator("input[type=file][accept*=zip]").set_input_files(tmp_path / "a.txt")
    toast.get_by_text("文件类型不对：a.txt。只接受 .zip。", exact=True).wait_for()
    assert toast.locator(".toast-title").inner_text().startswith("错误")
    assert page.get_by_test_id("toast-close").get_attribute("aria-label") == "关闭"


def test_another_language_is_chosen_on_the_page_and_kept_by_the_browser(open_page: Open) -> None:
    page = open_page(locale="en-GB")
    page.get_by_role("button", name="中文").click()
    page.get_by_role("tab", name="生成").wait_for()
    page.wait_for_selector(".attention-viewer .chip")
    page.reload()
    page.get_by_role("tab", name="生成").wait_for()
    page.wait_for_selector(".attention-viewer .chip")
    assert page.locator(".sentence").inner_text().startswith("输入想看的内容")
    assert page.locator("html").get_attribute("lang").startswith("zh")
    page.get_by_role("button", name="English").click()
    page.get_by_role("tab", name="Generate").wait_for()
    page.wait_for_selector(".attention-viewer .chip")
    assert page.locator(".sentence").inner_text().startswith("Type what to see")


def test_translate_and_inspect_too(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    page.get_by_role("tab", name="翻译").click()
    page.wait_for_selector(".alignment .target button")
    found = texts(page, ".alignment h2, .alignment .caption, .alignment label > span")
    page.get_by_role("tab", name="剖析").click()
    page.wait_for_selector(".query-diagram .tokens .row")
    found += texts(
        page, ".query-diagram .where, .query-diagram .lead, .query-diagram .legend, .query-diagram .worked-head"
    )
    assert len(found) > 8 and [text for text in found if ENGLISH.search(text)] == []


def test_a_saved_page_speaks_it_as_well(open_page: Open, browser: object, tmp_path: Path) -> None:
    page = open_page(locale="zh-CN")
    with page.expect_download() as saved:
        page.get_by_role("button", name="网页", exact=True).click()
    saved.value.save_as(tmp_path / "page.html")
    alone = page.context.new_page()
    alone.goto((tmp_path / "page.html").as_uri())
    assert alone.locator(".heading h1").inner_text() == FIRST
    assert "由模型" in alone.locator(".about").inner_text()
    assert not ENGLISH.search(alone.locator(".how").inner_text())


def test_a_saved_page_has_a_heading_and_is_legible_in_the_dark(
    open_page: Open, contrasts: Callable[["Page"], list[tuple[str, float]]], tmp_path: Path
) -> None:
    page = open_page(color_scheme="dark")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Page", exact=True).click()
    saved.value.save_as(tmp_path / "page.html")
    alone = page.context.new_page()
    alone.goto((tmp_path / "page.html").as_uri())
    about = alone.locator(".about").inner_text()
    assert about.startswith("Made by the model this pipeline with seed 0, 20 steps, guidance scale 1; saved on 20")
    assert alone.locator(".heading h1").inner_text() == FIRST and alone.locator(".how").is_visible()
    found = contrasts(alone)
    assert len(found) > 15 and [(text, contrast) for text, contrast in found if contrast < 4.5] == []
