"""Lines from the bytes of a text file: one encoding for the whole file, lines of every system, memory that is bounded.

The encoding is, in this order: what a byte-order mark says (as in browsers, https://encoding.spec.whatwg.org/#decode),
what the setting ``encoding`` says, UTF-8, and for a file that is not UTF-8 ``fallback_encoding``. A file is never read in
two encodings: half of the lines of a GB18030 file are valid in some other one, and what comes of that is nonsense that nobody sees.
Nothing is guessed silently; a guess stands in the error message alone, and only where no other encoding fits as well.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eunoe.errors import EunoeError
from eunoe.foreign import first_line, reading, visible

LINE_LIMIT = 16 * 2**20
"""Default of ``line_limit``, bytes: far above what people write, far below what a computer holds once it is tokenised."""

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LFS = "version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one in Git's large file storage."""
_CHUNK = 2**16
_OF_NAMES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined")
"""Codecs that Python counts among those of text, but that write host names and source code."""
_EXAMPLES = "cp1252 (Western Europe), cp1251 (Cyrillic), gb18030 (Chinese), cp932 (Japanese) or cp949 (Korean)"


def checked_encoding(name: str, key: str) -> str:
    """The name of an encoding of text, as Python knows it; raises ``EunoeError`` naming the setting ``key``."""
    try:
        info = codecs.lookup(name)
        fits = (
            info._is_text_encoding and info.name not in _OF_NAMES and "a,\r\n1".encode(name).decode(name) == "a,\r\n1"
        )
    except (LookupError, ValueError):  # ValueError: a NUL in the name, and codecs that are no encodings of text
        fits = False
    if not fits:
        raise EunoeError(
            f"{key}: {visible(repr(name), 80)} is not an encoding of text. Examples: utf-8, utf-16, {_EXAMPLES}."
        )
    return info.name


def lines_of(
    path: Path,
    encoding: str | None = None,
    fallback: str | None = None,
    limit: int = LINE_LIMIT,
    advice: str | None = None,
) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, which are LF, CRLF or CR; of a ``.gz`` file those of what is packed.

    ``limit``: bytes that a line may have in UTF-8; no more than that is ever held. ``advice``: what to do about bytes that the
    encoding does not allow, instead of setting ``encoding``. Raises ``EunoeError`` naming file and line for such bytes, a NUL,
    a line above the limit, broken gzip and a file that may not be read.
    """
    number = 0
    with reading(path, "Is it the file that you mean?"):
        try:
            with _opened(path) as file:
                codec = _codec_of(path, file, encoding, fallback)
                text = io.TextIOWrapper(file, encoding=codec, errors="strict", newline=None)
                while line := text.readline(limit + 1):
                    number += 1
                    if "\0" in line:
                        raise _binary(path, number)
                    if number == 1:
                        line = line.removeprefix("\ufeff")
                        if line.startswith(LFS):
                            raise EunoeError(
                                f"{path} is a Git LFS pointer, not the text itself. Fetch it: git lfs pull"
                            )
                    line = line.removesuffix("\n")
                    if 4 * len(line) > limit and len(line.encode("utf-8", "surrogatepass")) > limit:
                        raise too_long(f"{visible(path)}, line {number}", limit)
                    yield number, line
        except UnicodeDecodeError:
            raise _undecodable(path, codec, advice) from None
        except UnicodeError as error:
            raise EunoeError(f"{visible(path)} cannot be read as {codec.upper()}: {first_line(error)} If it is that without a "
                             f"byte-order mark, name the order: encoding: {codec}-le or {codec}-be.") from None  # fmt: skip
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise EunoeError(
                f"{visible(path)}, after line {number}: broken gzip ({error}). Compress it again."
            ) from None


def too_long(where: str, limit: int, what: str = "the line", advice: str = "Break it up") -> EunoeError:
    """The error for a line, row or document above ``line_limit``."""
    return EunoeError(f"{where}: {what} has more than {limit:,} bytes, the most that is held in memory at once. {advice}, or raise "
                      "line_limit.")  # fmt: skip


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _codec_of(path: Path, file: IO[bytes], encoding: str | None, fallback: str | None) -> str:
    """The encoding of a file that stands at its first byte; it is left behind the byte-order mark."""
    start = file.read(4)
    for mark, codec in _MARKS:
        if start.startswith(mark):
            file.seek(len(mark))
            return codec
    file.seek(0)
    if encoding is not None:
        return checked_encoding(encoding, "encoding")
    if fallback is None:
        return "utf-8"
    other = checked_encoding(fallback, "fallback_encoding")
    whole = _is_utf8(file)
    file.seek(0)
    return "utf-8" if whole else other


def _is_utf8(file: IO[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


# -- what is wrong with a file, said once it is known to be broken -------------------------------------------------------
def _binary(path: Path, number: int) -> EunoeError:
    with _opened(path) as file:
        start = file.read(4096)
    fits = []
    for name in ("utf-16-le", "utf-16-be"):
        text = start[: len(start) // 2 * 2].decode(name, "replace")
        likely = not start.isascii() or start.count(0) > len(start) // 4  # ASCII with a NUL can also be read as Chinese
        if likely and len(text) > 2 and all(c.isprintable() or c in "\r\n\t" for c in text[:-1]):
            fits.append(name)
    where = f"{visible(path)}, line {number}: a NUL byte; "
    if len(fits) == 1:
        return EunoeError(f"{where}it looks like {fits[0].upper()} without a byte-order mark. Set encoding: {fits[0]}, or convert it: "
                          f"iconv -f {fits[0]} -t utf-8.")  # fmt: skip
    return EunoeError(f"{where}this is a binary file, not text. Leave it out or convert it to text; if it is text, take the bytes out: "
                      "tr -d '\\000'.")  # fmt: skip


def _undecodable(path: Path, codec: str, advice: str | None) -> EunoeError:
    number, place, bad, sample = _first_fault(path, codec)
    nul = sample[:4096].find(b"\0")
    if nul >= 0 and not codec.startswith(("utf-16", "utf-32")):
        return _binary(path, number + sample[:nul].count(b"\n"))
    guess = _guess(sample)
    where = f"{visible(path)}, line {number}: not {codec.upper()} (byte {place} of the line is 0x{bad:02x}). "
    if guess is not None:
        where += f"It looks like {guess.upper()}. "
    iconv = f"iconv -f {guess or 'ITS-ENCODING'} -t utf-8"
    if advice is not None:
        return EunoeError(f"{where}{advice}")
    if guess is not None:
        return EunoeError(f"{where}Set encoding: {guess} if it is, or convert the file: {iconv}.")
    return EunoeError(f"{where}Say in which encoding the whole file is written, as in encoding: {_EXAMPLES} (fallback_encoding, where "
                      f"other files of the folder are UTF-8), or convert the file: {iconv}.")  # fmt: skip


def _first_fault(path: Path, codec: str) -> tuple[int, int, int, bytes]:
    """Line, byte of the line (from 1) and value of the first byte that does not fit, and the bytes from that line on."""
    decoder = codecs.getincrementaldecoder(codec)()
    number, tail = 1, ""
    with _opened(path) as file:
        _codec_of(path, file, codec, None)
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = tail + decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                before = tail + error.object[: error.start].decode(codec, "replace")
                line = before[_after_last_end(before) :].encode(codec, "replace")
                number += _ends(before)
                bad = error.object[error.start]
                return number, len(line) + 1, bad, line + error.object[error.start :] + file.read(_CHUNK)
            if not chunk:
                raise EunoeError(f"{visible(path)} changed while it was read. Run the same command again.")
            cut = _after_last_end(text[:-1])  # a CR at the very end may be half of a CRLF
            number += _ends(text[:cut])
            tail = text[cut:]


def _after_last_end(text: str) -> int:
    return max(text.rfind("\n"), text.rfind("\r")) + 1


def _ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


_EAST_ASIAN = (
    "gb18030",
    "gbk",
    "gb2312",
    "big5",
    "big5hkscs",
    "cp932",
    "shift_jis",
    "euc_jp",
    "euc_jis_2004",
    "cp949",
    "euc_kr",
)
_ONE_BYTE = ("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "koi8_u")


def _guess(sample: bytes) -> str | None:
    """The encoding that fits a sample, where nothing else fits as well; None where it would be a gamble."""
    from charset_normalizer import from_bytes  # read for this message alone

    sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = [m for m in from_bytes(sample) if m.encoding in _EAST_ASIAN + _ONE_BYTE]
    if not matches or sum(ord(c) > 127 for c in str(matches[0])) < 8:
        return None
    best, rest = matches[0], [m for m in matches[1:] if str(m) != str(matches[0])]
    if best.encoding in _EAST_ASIAN:
        if best.chaos > 0 or any(m.chaos <= best.chaos for m in rest):
            return None
    elif best.coherence < 0.4 or any(m.chaos <= best.chaos and m.coherence >= best.coherence for m in rest):
        return None
    same = (name for name in ("cp1252", "euc_jp") if sample.decode(name, "replace") == str(best))
    return next(same, best.encoding).replace("_", "-")


__all__ = ["LINE_LIMIT", "checked_encoding", "lines_of", "too_long"]
