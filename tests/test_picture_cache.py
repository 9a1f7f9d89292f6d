"""Shapes: h×w pixels."""

import hashlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.cache import DecodedArrays, cache_folder, decode_in_memory, decode_on_disk

SHAPE = (5, 4, 3)


def key_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def array_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)


class Decoder:
    """A decoder of `array_of` that records the numbers it decodes."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def want(self, *numbers: int) -> dict[str, Callable[[], np.ndarray]]:
        def decode(number: int) -> np.ndarray:
            self.asked.append(number)
            return array_of(number)

        return {key_of(number): lambda number=number: decode(number) for number in numbers}


def assert_right(found: DecodedArrays, *numbers: int) -> None:
    for number in numbers:
        assert np.array_equal(found[key_of(number)], array_of(number)), number


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


def test_in_memory_every_array_is_decoded_once(decoder: Decoder) -> None:
    assert_right(decode_in_memory(decoder.want(*range(200)), SHAPE), *range(200), 3, 3)
    assert sorted(decoder.asked) == list(range(200))


def test_only_arrays_that_are_not_on_disk_are_decoded(decoder: Decoder, tmp_path: Path) -> None:
    assert_right(decode_on_disk(decoder.want(*range(150)), SHAPE, tmp_path), *range(150))
    assert sorted(decoder.asked) == list(range(150))
    assert_right(decode_on_disk(decoder.want(*range(150)), SHAPE, tmp_path), *range(150))
    assert_right(decode_on_disk(decoder.want(7, 200, 149), SHAPE, tmp_path), 7, 200, 149)
    assert sorted(decoder.asked) == [*range(150), 200]


def test_arrays_come_from_disk_and_are_not_held_in_memory(decoder: Decoder, tmp_path: Path) -> None:
    found = decode_on_disk(decoder.want(*range(2000)), SHAPE, tmp_path)
    sent = pickle.dumps(found)  # to a worker process
    assert len(sent) < 2000 * 80 + 2000 < 2000 * (80 + np.prod(SHAPE))
    assert_right(pickle.loads(sent), 0, 1999, 5)
    found[key_of(0)][:] = 0  # a copy
    assert_right(found, 0)


@pytest.mark.parametrize("file", ["pixels.npy", "index.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x93NUMPY\x01\x00v\x00{oops" + data[10:],
        None,
    ],
    ids=["one bit", "cut short", "empty", "another header", "gone"],
)
def test_a_damaged_pack_is_detected_and_made_again(
    decoder: Decoder, tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None
) -> None:
    decode_on_disk(decoder.want(1, 2, 3), SHAPE, tmp_path)
    (path,) = tmp_path.glob(f"*/{file}")
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert_right(decode_on_disk(decoder.want(1, 2, 3), SHAPE, tmp_path), 1, 2, 3)
    assert sorted(decoder.asked) == [1, 1, 2, 2, 3, 3]


def test_a_pack_of_another_shape_is_not_used(decoder: Decoder, tmp_path: Path) -> None:
    decode_in_memory(decoder.want(1), SHAPE)
    decode_on_disk({key_of(1): lambda: np.zeros((2, 2, 3), np.uint8)}, (2, 2, 3), tmp_path)
    assert_right(decode_on_disk(decoder.want(1), SHAPE, tmp_path), 1)


class InterruptedWorkError(Exception):
    """Something stops the work."""


def test_an_interrupted_pack_leaves_nothing(decoder: Decoder, tmp_path: Path) -> None:
    def stop() -> np.ndarray:
        raise InterruptedWorkError

    with pytest.raises(InterruptedWorkError):
        decode_on_disk(decoder.want(1, 2, 3) | {key_of(4): stop}, SHAPE, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert_right(decode_on_disk(decoder.want(1, 2, 3), SHAPE, tmp_path), 1, 2, 3)


def test_files_of_a_killed_process_are_removed_after_a_day(decoder: Decoder, tmp_path: Path) -> None:
    old, new = tmp_path / ".making-old", tmp_path / ".making-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "pixels.npy").write_bytes(b"half of it")
    os.utime(old, (time.time() - 90_000,) * 2)
    decode_on_disk(decoder.want(1), SHAPE, tmp_path)
    assert not old.exists() and new.exists()


def slow_array(number: int) -> np.ndarray:
    time.sleep(0.002)
    return array_of(number)


def make_and_check(folder: Path, numbers: range) -> None:
    wanted = {key_of(number): lambda number=number: slow_array(number) for number in numbers}
    assert_right(decode_on_disk(wanted, SHAPE, folder), *numbers)


def test_processes_that_make_the_same_pack_at_once_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    processes = [context.Process(target=make_and_check, args=(tmp_path, range(100))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv("UNET_XATTN_CACHE", raising=False)
    assert cache_folder() == tmp_path / "caches" / "unet-xattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "unet-xattn"
    monkeypatch.setenv("UNET_XATTN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
