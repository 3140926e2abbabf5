"""Signals in a library's use; those of the command are in tests/faults/test_signals.py, as they end the process."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from eunoe import stop
from eunoe.errors import EunoeError, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def own_handlers() -> Iterator[list[int]]:
    """The user's handlers, which note what reaches them."""
    got: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        got.append(number)

    before = [signal.signal(s, note) for s in SIGNALS]
    try:
        yield got
        assert [signal.getsignal(s) for s in SIGNALS] == [note, note]  # put back, whatever happened
    finally:
        for s, handler in zip(SIGNALS, before, strict=True):
            signal.signal(s, handler)


def signalled(s: signal.Signals, doing: str, place: str = "") -> None:
    """Work during which a signal comes, and which looks before and after."""
    with stop.watching():
        stop.check(doing)
        signal.raise_signal(s)
        stop.check(doing, place)


@pytest.mark.parametrize("s", SIGNALS)
def test_a_signal_is_seen_at_the_next_look(s: signal.Signals) -> None:
    with own_handlers() as got:
        with pytest.raises(Interrupted) as caught:
            signalled(s, "reading a", "kept")
        assert str(caught.value) == f"stopped by {s.name} while reading a; kept. Run the same command to resume."
        assert got == []
        assert stop.asked() is None
        stop.check("reading b")  # the next block starts without it


@pytest.mark.parametrize("s", SIGNALS)
def test_a_signal_that_nobody_looked_at_reaches_the_handler_that_stood_before(s: signal.Signals) -> None:
    with own_handlers() as got:
        with stop.watching():
            signal.raise_signal(s)
        assert got == [s]


def test_it_reaches_it_too_where_the_block_ends_in_an_error() -> None:
    def work() -> None:
        with stop.watching():
            signal.raise_signal(signal.SIGTERM)
            raise EunoeError("no such file")

    with own_handlers() as got:
        with pytest.raises(EunoeError, match="no such file"):
            work()
        assert got == [signal.SIGTERM]


def test_a_second_signal_reaches_the_handler_that_stood_before_at_once() -> None:
    with own_handlers() as got:

        def work() -> None:
            with stop.watching():
                signal.raise_signal(signal.SIGINT)
                assert got == []
                signal.raise_signal(signal.SIGINT)
                assert got == [signal.SIGINT]
                stop.check("scoring")

        with pytest.raises(Interrupted):
            work()
        assert got == [signal.SIGINT]


def test_blocks_inside_share_the_flag_of_the_outermost() -> None:
    def work() -> None:
        with stop.watching():
            with stop.watching():
                signal.raise_signal(signal.SIGTERM)
            assert stop.asked() == "SIGTERM"
            stop.check("training")

    with own_handlers() as got:
        with pytest.raises(Interrupted, match="while training"):
            work()
        assert got == []


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGINT is in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.watching():
            signal.raise_signal(signal.SIGINT)
            stop.check("reading")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_digest_is_that_of_the_whole_file_and_is_left_on_a_signal() -> None:
    data = b"abc" * (1 << 23)  # more than one part
    assert stop.digest(io.BytesIO(data), "reading") == hashlib.sha256(data).hexdigest()
    assert stop.digest(io.BytesIO(b""), "reading") == hashlib.sha256(b"").hexdigest()

    def work() -> None:
        with stop.watching():
            signal.raise_signal(signal.SIGINT)
            stop.digest(io.BytesIO(data), "reading the model")

    with own_handlers(), pytest.raises(Interrupted, match="while reading the model"):
        work()
