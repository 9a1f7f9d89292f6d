"""A cache of decoded arrays, in memory or memory-mapped from disk, so that no picture file is decoded twice.

On disk a *pack* is a folder with `index.npy`, the key and the CRC-32 of each array, and `pixels.npy`, the arrays. A
pack is written under another name and then renamed, so it is complete or absent, even if several processes make the
same one. Sets of pictures share the packs. The folder may be deleted at any time.

Shapes: ... is the shape of one array, (h, w, 3) for pictures.
"""

import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

VERSION = "pictures-2"
"""To be raised when the same file would be decoded to other pixels."""

Decode = Callable[[], np.ndarray]
"""A function that returns one array, (...) uint8."""

_INDEX = np.dtype([("key", "S64"), ("crc", "<u4")])
_SCRATCH = ".making-"
_CHUNK = 64  # arrays decoded before they are written; bounds the memory that making a pack takes


def cache_folder() -> Path:
    """`UNET_XATTN_CACHE`, or `unet-xattn` in the user's cache folder (found as huggingface_hub finds it)."""
    chosen = os.environ.get("UNET_XATTN_CACHE")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "unet-xattn").expanduser()


class DecodedArrays:
    """Arrays of one shape by their keys. When pickled, arrays on disk are replaced by their paths."""

    def __init__(self, packs: list[np.ndarray], places: dict[str, tuple[int, int]]):
        self._packs, self._places = packs, places  # key -> (pack, place in it)

    def __getitem__(self, key: str) -> np.ndarray:
        pack, place = self._places[key]
        return np.array(self._packs[pack][place])

    def __getstate__(self) -> dict[str, Any]:
        packs = [pack.filename if isinstance(pack, np.memmap) else pack for pack in self._packs]
        return {"packs": packs, "places": self._places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packs = state["packs"]
        self._packs = [pack if isinstance(pack, np.ndarray) else np.load(pack, mmap_mode="r") for pack in packs]
        self._places = state["places"]


def decode_in_memory(wanted: Mapping[str, Decode], shape: tuple[int, ...]) -> DecodedArrays:
    """Decode the arrays of `wanted`, key -> decoder, into memory."""
    pixels = np.empty((len(wanted), *shape), np.uint8)
    for place, array in enumerate(_decoded(wanted, shape)):
        pixels[place] = array
    return DecodedArrays([pixels], {key: (0, place) for place, key in enumerate(wanted)})


def decode_on_disk(wanted: Mapping[str, Decode], shape: tuple[int, ...], folder: Path) -> DecodedArrays:
    """Decode the arrays of `wanted`, key -> decoder, except those found in the packs of `folder`.

    Args:
        wanted: keys of 64 characters, which identify everything that the pixels depend on and `folder` does not.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    packs: list[np.ndarray] = []
    places: dict[str, tuple[int, int]] = {}

    def open_pack(path: Path) -> None:
        missing = wanted.keys() - places.keys()
        found = _read_pack(path, missing, shape)
        if found is None:
            shutil.rmtree(path, ignore_errors=True)  # damaged: its arrays are decoded again
        elif found[1]:
            places.update({key: (len(packs), place) for key, place in found[1].items()})
            packs.append(found[0])

    for path in sorted(folder.glob("[!.]*")):
        open_pack(path)
    if missing := {key: decode for key, decode in wanted.items() if key not in places}:
        open_pack(_make_pack(missing, shape, folder))
    assert wanted.keys() == places.keys()
    return DecodedArrays(packs, places)


def _read_pack(path: Path, wanted: Collection[str], shape: tuple[int, ...]) -> tuple[np.memmap, dict[str, int]] | None:
    """The arrays of a pack, memory-mapped, and the places of those wanted; None if the pack is damaged."""
    try:
        index = np.load(path / "index.npy")
        pixels = np.load(path / "pixels.npy", mmap_mode="r")
    except Exception:  # numpy raises many types for a damaged header
        return None
    if index.dtype != _INDEX or pixels.dtype != np.uint8 or pixels.shape != (*index.shape, *shape):
        return None
    keys = [key.decode(errors="replace") for key in index["key"].tolist()]
    found = {key: place for place, key in enumerate(keys) if key in wanted}
    if any(zlib.crc32(pixels[place]) != index["crc"][place] for place in found.values()):
        return None
    return pixels, found


def _make_pack(wanted: Mapping[str, Decode], shape: tuple[int, ...], folder: Path) -> Path:
    """Decode into a new pack, whose name depends on its keys: processes that make the same pack share it."""
    target = folder / hashlib.sha256("".join(sorted(wanted)).encode()).hexdigest()[:32]
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True) as scratch:
        new, crcs = Path(scratch) / "pack", []
        new.mkdir()
        # Written, not memory-mapped: on a full disk writing raises, a memory map would kill the process.
        with open(new / "pixels.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(wanted), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for array in _decoded(wanted, shape):
                file.write(array.tobytes())
                crcs.append(zlib.crc32(array.data))
        np.save(new / "index.npy", np.array(list(zip(wanted, crcs, strict=True)), _INDEX))
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _decoded(wanted: Mapping[str, Decode], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The arrays in order, decoded by threads on all cores: Pillow releases the GIL to decode and resize."""
    decoders = list(wanted.values())
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(decoders), desc="decoding", unit="picture", disable=None, leave=False) as progress,
    ):
        for start in range(0, len(decoders), _CHUNK):
            for array in pool.map(lambda decode: decode(), decoders[start : start + _CHUNK]):
                assert array.shape == shape and array.dtype == np.uint8
                progress.update()
                yield np.ascontiguousarray(array)


def _sweep(folder: Path) -> None:
    """Remove unfinished packs of killed processes: those not modified for a day."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        if scratch.is_dir() and time.time() - scratch.stat().st_mtime > 86_400:
            shutil.rmtree(scratch, ignore_errors=True)
