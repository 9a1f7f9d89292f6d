"""A pass of a denoiser while it is recorded: the rows of its batch, its layers, and whose keys are whose.

Shapes: B rows of the batch, S keys, G columns of a text.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.tracing.families import Given, Place
from pipelines.tracing.provenance import Source
from unet_xattn.bias import Bias
from unet_xattn.excite import Excited, Peaks
from unet_xattn.words import Text


class Row(NamedTuple):
    """A row of the denoiser's batch: its branch, its text, the columns that are the text's tokens, and what each
    encoder read for it.
    """

    branch: str
    text: Text
    columns: list[int]
    sources: set[Source]


@dataclass
class Layer:
    """An attention module that is running: whether it was handed the text, and what its kernels did so far."""

    name: str
    handed: bool
    calls: int = 0
    slices: list[Tensor] = field(default_factory=list)


@dataclass
class Pass:
    """A pass of the denoiser.

    branches: name -> the rows of its images, none where an earlier pass of this step has recorded it.
    seen: layers that read the text. unknown: what other layers did.
    biases, excited: on the tokens of each row's text. peaks: what keeps the shares of a pass with gradients.
    concepts: how many of the text's last tokens are those of concepts.
    """

    given: Given
    rows: list[Row]
    step: int
    branches: dict[str, list[int]]
    seen: set[str] = field(default_factory=set)
    biases: list[list[Bias]] = field(default_factory=list)
    excited: list[list[Excited]] = field(default_factory=list)
    peaks: Peaks | None = None
    unknown: list[str] = field(default_factory=list)
    concepts: int = 0
    _groups: dict[tuple, Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The number of columns of all texts: of the most tokens, the padding and the picture."""
        return max(len(row.columns) for row in self.rows) + 2

    def groups(self, place: Place, keys: int, device: torch.device) -> Tensor:
        """Which column of its text each key belongs to, (B, 1, S, G): a token, the padding, the picture, or a token of
        a concept.
        """
        key = (keys, place.keys, device)
        if key not in self._groups:
            groups = torch.zeros(len(self.rows), 1, keys, self.width + self.concepts)
            for row, first, length, group in zip(self.rows, place.keys, self.given.lengths, groups[:, 0], strict=True):
                count, columns = len(row.columns), torch.tensor(row.columns, dtype=torch.long)
                group[:, count + 1] = 1
                group[first : first + length, count + 1], group[first : first + length, count] = 0, 1
                group[first + columns, count], group[first + columns, range(count)] = 0, 1
                beside = slice(first + length - self.concepts, first + length)
                group[beside] = F.pad(torch.eye(self.concepts), (self.width, 0))
            self._groups[key] = groups.to(device)
        return self._groups[key]
