"""The scenes without end that models are trained and tested on, by the names `--data` knows them by.

Each is a module with `scene(seed, index, kind, held_out, language)`, `render(scene, size)`, `described(text)` and
`WORDY`, after how many scenes every word has been said.
"""

from types import ModuleType

from pipelines import emoji_scenes, scenes

WORLDS: dict[str, ModuleType] = {"shapes": scenes, "emoji": emoji_scenes}
