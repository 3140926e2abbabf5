"""What recipes/ says of itself, and the messages of its script. The model that the script makes: models/test_stories.py."""

from __future__ import annotations

import runpy
import struct
import sys
from pathlib import Path

import pytest

from eunoe.data.corpus import VALID_SHARE
from eunoe.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"

SIZES = (4, 6, 1, 2, 1, 3, 5)
"""Width, inner width, layers, heads, key heads, pieces and context of a llama2.c file."""
NUMBERS = 3 * 4 + 4 + 2 * 4 * 4 + 2 * 2 * 4 + 4 + 3 * 4 * 6 + 4 + 2 * 5
MODEL = struct.pack("<7i", *SIZES) + bytes(4 * NUMBERS)


def packed(*pieces: bytes) -> bytes:
    return bytes(4) + b"".join(struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces)


PIECES = packed(b"<unk>", b"<s>", b"</s>")


def convert(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What the command ends with: its message, or None."""
    file = RECIPES / "convert_stories260k.py"
    monkeypatch.setattr(sys, "argv", [str(file), str(source), str(target)])
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.parametrize(
    ("model", "pieces", "message"),
    [
        (None, PIECES, "No such file or directory: '{source}/stories260K.bin'"),
        (MODEL, None, "No such file or directory: '{source}/tok512.bin'"),
        (b"", PIECES, "stories260K.bin has 0 bytes"),
        (MODEL[:-1], PIECES, "stories260K.bin has 643 bytes, seven int32 and then float32 numbers"),
        (MODEL[:-4], PIECES, "stories260K.bin is cut short"),
        (MODEL + bytes(4), PIECES, "its header asks for"),
        (bytes(64), PIECES, "stories260K.bin begins with (0, 0, 0, 0, 0, 0, 0)"),
        (b"not a model." * 9, PIECES, "stories260K.bin begins with (544501614, "),
        (struct.pack("<7i", *[2**30] * 7), PIECES, "stories260K.bin begins with"),
        (struct.pack("<7i", *[2**30] * 3, 2, 2, 2**30, 2**30), PIECES, "stories260K.bin is cut short"),
        (MODEL, b"", "tok512.bin has 0 pieces, the model needs 3"),
        (MODEL, PIECES + PIECES[4:], "tok512.bin has 6 pieces"),
        (MODEL, PIECES[:-1], "tok512.bin is damaged or no tok512.bin: a score, a length and a piece are expected at byte 28"),
        (MODEL, PIECES[:-5], "tok512.bin is damaged"),
        (MODEL, bytes(4) + struct.pack("<fi", 0.0, -8), "tok512.bin is damaged"),
        (MODEL, packed(b"\xff"), "tok512.bin is damaged"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_model_end_in_a_message_and_nothing_is_written(
    model: bytes | None, pieces: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in (("stories260K.bin", model), ("tok512.bin", pieces)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
    lines = convert(tmp_path, tmp_path / "out", monkeypatch)
    assert isinstance(lines, str)
    assert lines.startswith("cannot convert: ")
    assert message.format(source=tmp_path) in lines
    assert "Give the folder that holds stories260K.bin and tok512.bin" in lines
    assert not (tmp_path / "out").exists()


def test_the_script_converts_what_is_whole_and_refuses_a_file_as_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stories260K.bin").write_bytes(MODEL)
    (tmp_path / "tok512.bin").write_bytes(PIECES)
    (tmp_path / "file").touch()
    assert "File exists" in str(convert(tmp_path, tmp_path / "file", monkeypatch))
    assert convert(tmp_path, tmp_path / "new" / "out", monkeypatch) is None
    assert {"config.json", "model.safetensors"} <= {file.name for file in (tmp_path / "new" / "out").iterdir()}


def test_the_table_of_cpt_says_that_part_of_each_corpus_is_held_out() -> None:
    recipe = load_recipe("cpt_table1")
    assert isinstance(recipe, Recipe)
    assert all(d.corpus.valid is None and d.corpus.valid_share is None for d in recipe.domains)
    head = (RECIPES / "cpt_table1.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    assert f"{VALID_SHARE * 100:.0f} % of each corpus" in head
    assert "held out" in head
