"""Sources and their files: which files a source stands for, and what their content is.

A source is a file, a folder, ``package:NAME/path`` (files that an installed Python package carries) or ``hub:OWNER/NAME``.
A folder stands for every file below it whose ending we know, links followed, each file once; names that begin with a dot are hidden
copies and settings of other programs and are left out. What is read and what is not is said in one line. How a file is read is
``records.py``'s.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from eunoe import stop
from eunoe.errors import EunoeError
from eunoe.foreign import first_line, reading, visible
from eunoe.progress import say_once
from eunoe.recipe import expand

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of files with columns."""
_PLAIN = """
.txt .text .md .markdown .mdx .qmd .rst .adoc .asciidoc .org .wiki .tex .latex .bib .html .htm .xhtml .xml .srt .vtt .log
.py .pyi .ipy .c .h .cc .cpp .cxx .hh .hpp .cs .java .kt .scala .go .rs .swift .m .js .jsx .mjs .ts .tsx .vue .php .pl .pm
.rb .lua .r .rmd .jl .hs .ml .clj .ex .exs .erl .el .lisp .f .f90 .f95 .pas .sql .sh .bash .zsh .fish .bat .ps1 .css .scss
.yaml .yml .toml .ini .cfg .conf .proto .tf .cmake .mk .diff .patch .vhdl .v .sv .dart .groovy .gradle
"""
PLAIN = frozenset(_PLAIN.split())
"""Endings of plain text, which is read as .txt is."""
_ALLOWED = f"{', '.join(TABLES)}, .txt and other plain text (.md, .html, .py, ...), plain or .gz"


def resolve(source: str, files: str | None = None, labelled: bool = False) -> list[Path]:
    """The files of a source, sorted, each once; raises ``EunoeError`` if there is none or one of them cannot be read.

    ``files``: of a folder those whose path below it fits this pattern (``*.md``, ``**/*.md``: of every folder below), whatever
    their ending. ``labelled``: of a folder the files with columns alone. What a folder's files are is said once a process.
    """
    path = _path_of(source)
    if os.path.isdir(path):  # False, not an error, for what no path can be
        paths, left_out = _below(path, files, labelled)
        if not paths:
            raise _nothing(path, files, labelled, left_out)
        others = f"; not read: {_counted(left_out)}" if left_out else ""
        say_once(f"{visible(source)}: reads {_counted(_endings(paths))} files{others}")
        return paths
    if not os.path.lexists(path):
        entries = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
        near = get_close_matches(path.name, sorted(entries)[:10_000], n=5)
        hint = f" Near it: {', '.join(map(visible, near))}." if near else ""
        raise EunoeError(
            f"{visible(path)} does not exist.{hint} Give a file, a folder, package:NAME/path or hub:OWNER/NAME."
        )
    _refuse_unreadable(path)
    if ending(path) not in TABLES and ending(path) not in PLAIN:
        raise EunoeError(f"{visible(path)} ends in {visible(repr(ending(path)))}; allowed endings: {_ALLOWED}. "
                         f"{what_to_do(path)}")  # fmt: skip
    return [path]


def what_to_do(path: Path) -> str:
    """What helps with a file whose ending is not that of a text: another name, or plain text made from it."""
    with reading(path), open(path, "rb") as file:
        start = file.read(4096)
    if b"\0" in start or start.startswith((b"PK", b"%PDF", b"{\\rtf")):
        return "It is no plain text inside: open it in its own program and save it as .txt, a table as .csv."
    return "Rename it to .txt if it is plain text."


def not_read(source: str) -> str:
    """The files of a folder that a corpus does not read, counted by their endings: ``1 .pdf, 1 hidden``; empty if there are none."""
    return _counted(_below(_path_of(source), None, False)[1])


def refuse_missing(sources: Iterable[tuple[str, str | None, bool]]) -> None:
    """Raise one ``EunoeError`` that lists every source that is not there or cannot be read; hub datasets are not asked for.

    ``sources``: what ``resolve`` takes, each a source, the pattern of its files, and whether its rows are labelled.
    """
    reasons: list[str] = []
    for source, files, labelled in dict.fromkeys(sources):
        if not source.startswith("hub:"):
            try:
                resolve(source, files, labelled)
            except EunoeError as error:
                reasons.append(str(error))
    reasons = list(dict.fromkeys(reasons))
    if len(reasons) == 1:
        raise EunoeError(reasons[0])
    if reasons:
        raise EunoeError(f"{len(reasons)} sources are not there, or are no text:\n- " + "\n- ".join(reasons))


def content_hash(source: str, files: str | None = None) -> str:
    """SHA-256 over the names and bytes of the source's files: the key under which tokenised text is cached."""
    total = hashlib.sha256()
    for path in resolve(source, files):
        with reading(path), open(path, "rb") as file:
            own = stop.digest(file, f"reading {visible(path)}")
        total.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + bytes.fromhex(own))
    return total.hexdigest()


def is_folder(source: str) -> bool:
    """Is a source that is no hub dataset a folder?"""
    return os.path.isdir(_path_of(source))


def kind(path: Path) -> str:
    """How a file is read: ``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, or ``.txt`` for all other text."""
    return ending(path) if ending(path) in TABLES else ".txt"


def ending(path: PurePath) -> str:
    """The ending of a file's name in small letters, without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return PurePath(name).suffix


def _path_of(source: str) -> Path:
    if not source.strip():
        raise EunoeError("a source is empty. Give a file, a folder, package:NAME/path or hub:OWNER/NAME.")
    if "\0" in source:
        raise EunoeError(f"the source {visible(repr(source))} holds a NUL character, which no path can. Take it out.")
    if not source.startswith("package:"):
        return Path(expand(source))
    name, _, rest = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise EunoeError(f"{source!r}: the Python package {name!r} is not installed. Try: pip install 'eunoe[demo]'")
    root = Path(spec.origin).parent
    path = (root / rest).resolve()
    if not path.is_relative_to(root.resolve()):
        raise EunoeError(f"{source!r} points outside the package {name!r}; name a folder inside it.")
    return path


# -- folders ------------------------------------------------------------------------------------------------------------
def _below(folder: Path, files: str | None, labelled: bool) -> tuple[list[Path], Counter[str]]:
    """The files below a folder that are read, and the others counted by what they are."""
    wanted = tuple(TABLES) if labelled else (*TABLES, *PLAIN)
    paths, left_out, seen = [], Counter[str](), set()
    for path, why in sorted(_walk(folder)):
        if not why and files is None and path.is_symlink():
            _refuse_unreadable(path)  # a link to nothing may have been a whole folder of text
        if not why:
            fits = (
                ending(path) in wanted
                if files is None
                else _matches(path.relative_to(folder).parts, tuple(files.split("/")))
            )
            why = "" if fits else ending(path) or "without an ending"
        if not why:
            status = _refuse_unreadable(path)
            key = (status.st_dev, status.st_ino)
            why = "reached twice" if key in seen else ""
            seen.add(key)
        if why:
            left_out[why] += 1
        else:
            paths.append(path)
    plain = set(paths)
    packed = {path for path in paths if path.name.endswith(".gz") and path.with_suffix("") in plain}
    if packed:
        left_out["packed copies"] += len(packed)
    return [path for path in paths if path not in packed], left_out


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder and, where it is not even looked at, why; a folder reached twice (a loop of links) is walked once."""

    def unreadable(error: OSError) -> None:
        raise EunoeError(f"the folder {visible(error.filename)} cannot be read: {first_line(error)} Its text would be left out without a "
                         "word. Allow reading it, or move it out.")  # fmt: skip

    walked = {_identity(folder)}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        stop.check(f"listing {visible(folder)}")
        kept = []
        for name in sorted(folders):
            path = Path(here, name)
            if name.startswith("."):
                yield path, "hidden"
            elif (key := _identity(path)) in walked:
                yield path, "reached twice"
            else:
                walked.add(key)
                kept.append(name)
        folders[:] = kept
        for name in names:
            yield Path(here, name), "hidden" if name.startswith(".") else ""


def _identity(path: Path) -> tuple[int, int]:
    with reading(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Does a path fit a pattern, part by part? ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:] or ("*",)) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _refuse_unreadable(path: Path) -> os.stat_result:
    """The status of a file that can be read; raises ``EunoeError`` for a link to nothing, a pipe, and what may not be read."""
    if path.is_symlink() and not path.exists():
        raise EunoeError(f"{visible(path)} is a link to {visible(os.readlink(path))}, which does not exist. Fetch the file, or "
                         "take the link out.")  # fmt: skip
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise EunoeError(
            f"{visible(path)} is a pipe or a device, not a file: text is read more than once. Write it to a file first."
        )
    if not os.access(path, os.R_OK):
        raise EunoeError(f"{visible(path)} cannot be read: Permission denied. Allow reading it, or move it out.")
    return status


def _nothing(path: Path, files: str | None, labelled: bool, left_out: Counter[str]) -> EunoeError:
    holds = f"it holds {_counted(left_out)}" if left_out else "it is empty"
    if files is not None:
        return EunoeError(f"{visible(path)}: no file fits files: {visible(repr(files))}; {holds}. Patterns look like '*.md' (in the "
                          "folder itself) or '**/*.md' (below it too).")  # fmt: skip
    if labelled:
        return EunoeError(
            f"{visible(path)} holds no labelled rows: {holds}. Allowed endings: {', '.join(TABLES)}, plain or .gz."
        )
    return EunoeError(f"{visible(path)} holds no text files: {holds}. Allowed endings: {_ALLOWED}; "
                      "files: '**/*.EXT' reads others.")  # fmt: skip


def _endings(paths: Iterable[Path]) -> Counter[str]:
    return Counter(ending(path) or "without an ending" for path in paths)


def _counted(what: Counter[str], most: int = 8) -> str:
    """``12 .md, 3 .txt``: the commonest first, the rest as one number."""
    common = sorted(what.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {visible(name, 20)}" for name, count in common[:most]]
    rest = sum(count for _, count in common[most:])
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


__all__ = [
    "PLAIN",
    "TABLES",
    "content_hash",
    "ending",
    "is_folder",
    "kind",
    "not_read",
    "refuse_missing",
    "resolve",
    "what_to_do",
]
