"""What a person touches: the command and the page."""

DEFAULT_MODEL = "everyday"
"""The bundled model that the page opens with, and that commands use."""
