"""What people see of something long, by what is written: a log by a made-up clock, a made-up terminal, several jobs."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from eunoe import progress
from eunoe.progress import Bar, Lines


class Clock:
    """Seconds that only pass when told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
    monkeypatch.setattr(progress, "_spoke", made.now)
    monkeypatch.delenv("EUNOE_PROGRESS", raising=False)
    monkeypatch.setattr(progress.console, "quiet", False)
    monkeypatch.setattr(progress, "_said", set())
    return made


@pytest.fixture
def terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Console:
    made = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False, _environ={})
    monkeypatch.setattr(progress, "console", made)
    return made


def shown(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def test_a_log_gets_one_line_every_half_minute_over_all_trainings(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(20):  # twenty trainings of ten steps of a second: 200 s
        with Bar(f"domain {k}", 10) as bar:
            for _ in range(10):
                clock.now += 1
                bar.advance(tokens=500, loss=1.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 200 // 30
    assert lines[0] == "domain 2: step 10/10 loss 1.500 500 tokens/s, 0 s left"
    assert lines[1] == "domain 5: step 10/10 loss 1.500 500 tokens/s, 0 s left"


def test_short_trainings_leave_no_stray_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(5):
        with Bar(f"domain {k}", 4) as bar:
            for _ in range(4):
                clock.now += 1
                bar.advance(tokens=500)
    assert capsys.readouterr().err == ""


def test_one_slow_step_is_one_line_and_names_cannot_steer_the_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar("bad\x1b[31m\nname", 3) as bar:
        clock.now += 300
        bar.advance(tokens=3000)
    assert capsys.readouterr().err.splitlines() == ["bad\\x1b[31m\\nname: step 1/3  10 tokens/s, 600 s left"]


def event(name: str, done: int) -> dict[str, object]:
    return {"name": name, "done": done, "total": 40, "rate": "7 tokens/s", "left": 5.0, "loss": "loss 0.250"}


def test_of_several_jobs_a_log_gets_a_line_each_every_half_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines(print, 2) as lines:
        for second in range(1, 92):
            clock.now += 0.5
            lines.take(0, event("sport", second // 4))
            clock.now += 0.5
            if second < 70:  # then job 2 has nothing to do
                lines.take(1, event("money", second // 3))
    assert [line.partition(" loss")[0] for line in capsys.readouterr().err.splitlines()] == [
        "job 1: sport: step 7/40", "job 2: money: step 10/40",
        "job 1: sport: step 15/40", "job 2: money: step 20/40",
        "job 1: sport: step 22/40", "job 2: money: step 23/40",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_a_job(terminal: Console) -> None:
    with Lines(print, 3) as lines:
        lines.take(0, event("sport", 10))
        lines.take(2, event("money \x1b[2J", 20))
        lines.progress.refresh()
    last = shown(terminal).rsplit("10/40", 1)
    assert len(last) == 2
    assert "1: sport" in shown(terminal)
    assert "job 2" in shown(terminal)
    assert "3: money \\x1b[2J" in shown(terminal)
    assert "20/40" in last[1]


def test_what_all_jobs_say_is_said_once_and_an_error_is_kept_for_the_starter(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=seen, width=40))
    progress.say("warning: t0 is late, and this line is longer than the console is wide")
    with Lines(print, 2) as lines:
        for k in range(2):
            lines.take(k, {"say": "warning: t0 is late, and this line is longer than the console is wide"})
            lines.take(k, {"say": f"skipped a damaged checkpoint: [red]{k}"})
        lines.take(1, {"error": "the loss is nan"})
    assert seen.getvalue().splitlines() == [
        "warning: t0 is late, and this line is longer than the console is wide",
        "skipped a damaged checkpoint: [red]0",
        "skipped a damaged checkpoint: [red]1",
    ]
    assert lines.errors == {1: "the loss is nan"}


def test_a_job_sends_lines_of_json(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EUNOE_PROGRESS", "json")
    progress.say("order b is a once more")
    with Bar("sport", 100, done=40) as bar:
        for _ in range(60):
            clock.now += 0.1
            bar.advance(tokens=50, loss=2.0)
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert events[0] == {"say": "order b is a once more"}
    assert 8 <= len(events) - 1 <= 13  # two a second, and the last
    assert events[-1] == {
        "name": "sport",
        "done": 100,
        "total": 100,
        "rate": "500 tokens/s",
        "left": 0.0,
        "loss": "loss 2.000",
    }
