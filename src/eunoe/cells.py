"""Work cut into cells, the smallest pieces that are done or not done, and the board that says which are.

A cell's key is its folder below the run. It may need other cells; it is done when its mark is there, its files are as they
were written, and what it was computed from is still what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eunoe.folder import read_mark, write_mark
from eunoe.report.schema import Row, read_rows


@dataclass(frozen=True)
class Cell:
    """One piece of work."""

    key: str
    needs: tuple[str, ...]
    work: Any
    """What is to be done, as its plan says it."""
    group: str
    """Cells of one group share a model: a process that is at one of them takes the next one of the same group."""


class Board:
    """Which cells of a run folder are done. ``run``: the run's fingerprint; None: any."""

    def __init__(self, out: Path, run: str | None) -> None:
        self.out, self.run = out, run
        self._marks: dict[str, str] = {}

    def mark(self, key: str) -> str | None:
        """The digest of a done cell's mark, else None. What was done once in this process's sight stays so."""
        if key not in self._marks:
            mark = read_mark(self.out, self.run, key)
            if mark is None or any(self.mark(need) != digest for need, digest in mark[1].items()):
                return None
            self._marks[key] = mark[0]
        return self._marks[key]

    def done(self, cell: Cell) -> bool:
        return self.mark(cell.key) is not None

    def ready(self, cell: Cell) -> bool:
        """Is all there that the cell needs?"""
        return all(self.mark(need) is not None for need in cell.needs)

    def finish(self, cell: Cell, files: Sequence[str]) -> None:
        """Write the mark of a cell whose ``files`` (paths from the run's folder) are written."""
        write_mark(self.out, self.run or "", cell.key, {need: self.mark(need) or "" for need in cell.needs}, files)

    def all_rows(self, cells: Sequence[Cell]) -> str:
        """The text of rows.jsonl: the rows of ``cells`` in order; the same whoever did them."""
        files = [self.out / cell.key / "rows.jsonl" for cell in cells]
        return "".join(file.read_text(encoding="utf-8") for file in dict.fromkeys(files) if file.is_file())

    def rows(self, key: str) -> list[Row]:
        """The rows of a done cell; [] where it has none."""
        return read_rows(self.out / key / "rows.jsonl")


class Plan(Protocol):
    """A recipe made ready: what the engine knows of a run over domains, and of a fine-tuning study."""

    recipe: Any
    """Resolved: every option written out."""

    def cells(self, board: Board) -> Sequence[Cell]:
        """All cells known to be owed, done ones among them, in the order of their rows."""
        ...

    def sources(self) -> list[str]:
        """Every file or folder that will be read, as recipes name them."""
        ...

    def refuse_ranks(self) -> None:
        """Raise ``EunoeError`` for what several processes of a launcher cannot do; nothing is read for it."""
        ...

    def prepare(self, out: Path) -> dict[str, str]:
        """Read and check everything, before anything is written; name -> SHA-256 of what is read. Raises ``EunoeError``."""
        ...

    def weights(self) -> int:
        """How many weights the model has (after ``prepare``)."""
        ...

    def drop_damaged(self, board: Board) -> None:
        """Delete final states of stages that cannot be used, with their marks: they are learnt again, to the same bits."""
        ...

    def begin(self, board: Board) -> None:
        """Once the folder is claimed, before the first cell."""
        ...

    def carry_out(self, cell: Cell, board: Board) -> list[str]:
        """Do a cell's work, resuming inside; returns the files it left, as paths from the run's folder."""
        ...

    def finish(self, board: Board, fill: bool) -> list[str]:
        """Once all cells are done and rows.jsonl is gathered: what is made from the rows; returns the files' names."""
        ...


__all__ = ["Board", "Cell", "Plan"]
