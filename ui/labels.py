"""The texts of the page for Gradio's own parts. The commands, which start without Gradio, do not import this."""

import gradio as gr

from ui.texts import LANGUAGES, TEXTS

I18N = gr.I18n(**{language: {key: texts[language] for key, texts in TEXTS.items()} for language in LANGUAGES})
"""`I18N(key)` is a label in the language of the browser."""
