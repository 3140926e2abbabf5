from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eunoe.data import cache
from eunoe.data.corpus import Blocks, load_blocks
from eunoe.errors import EunoeError
from eunoe.recipe import CorpusSettings
from tests.tiny import sentences, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> CorpusSettings:
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)), encoding="utf-8")
    return CorpusSettings(source=str(tmp_path / "a.txt"), documents="lines")


def folder() -> Path:
    return Path(os.environ["EUNOE_CACHE"]) / "blocks"


def load(text: CorpusSettings) -> Blocks:
    return load_blocks(text, TOKENIZER, 32, "all")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "deleted": Path.unlink,
    "one bit flipped": flip,
    "a folder": a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["ids.bin", "meta.json"])
def test_a_damaged_entry_is_made_again_and_that_is_said(
    text: CorpusSettings, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(text)
    ids, digest = np.array(before.ids), before.digest
    assert capsys.readouterr().err == ""
    DAMAGES[damage](folder() / digest / name)
    after = load(text)
    printed = " ".join(capsys.readouterr().err.split())
    if (name, damage) != ("meta.json", "one bit flipped"):  # the bit may be one that nothing reads
        assert "the cached tokens of" in printed
        assert "tokenising it again" in printed
    assert np.array_equal(after.ids, ids)
    assert after.digest == digest
    assert np.array_equal(load(text).ids, ids)
    assert capsys.readouterr().err == ""


def test_no_bit_of_the_description_gives_other_tokens(text: CorpusSettings) -> None:
    before = load(text)
    ids, file = np.array(before.ids), folder() / before.digest / "meta.json"
    for bit in range(0, 8 * file.stat().st_size, 23):
        data = bytearray(file.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert np.array_equal(load(text).ids, ids)


def test_a_disk_that_returns_something_else_is_named(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise cache.DamagedError("as if")

    monkeypatch.setattr(cache, "_verify", broken)
    with pytest.raises(EunoeError, match="does not read back as it was written"):
        load(text)


def test_the_hash_is_checked_once_a_process(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(text)
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, *more: read.append(file.name) or real(file, *more))
    for _ in range(3):
        assert np.array_equal(load(text).ids, loaded.ids)
    assert [name for name in read if name.endswith("ids.bin")] == []


WRITER = """
import sys, time
from eunoe.data.cache import cached_blocks
def make():
    yield [1, 2, 3, 4]
    print("writing", flush=True)
    sys.stdin.readline()
    yield [5]
ids, tokens = cached_blocks(sys.argv[1], 2, 9, "x", make)
print(ids.tolist(), tokens, flush=True)
"""


def writer(name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(text: CorpusSettings) -> None:
    killed, living = writer("killed"), writer("living")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(folder().glob("partial-*"))) == 2
    load(text)
    assert len(list(folder().glob("partial-*"))) == 1
    message, _ = living.communicate("go\n", timeout=60)
    assert message == "[[1, 2], [3, 4]] 5\n"
    assert list(folder().glob("partial-*")) == []


def test_no_home_says_what_to_set(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUNOE_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda *_: (_ for _ in ()).throw(KeyError("no such user")))
    with pytest.raises(EunoeError, match=r"no home folder.*Set EUNOE_CACHE"):
        load(text)


def test_a_folder_that_cannot_be_read_says_what_to_set(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUNOE_CACHE", "/proc/eunoe")
    with pytest.raises(EunoeError, match=r"/proc/eunoe/blocks cannot be written.*set EUNOE_CACHE"):
        load(text)
