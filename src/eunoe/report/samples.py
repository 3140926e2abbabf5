"""``samples.jsonl``: what the model answered to the recipe's prompts, before the first domain and after the last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eunoe.atomic import write_text
from eunoe.errors import EunoeError
from eunoe.report.files import clean, parse_json, read_lines

ADVICE = "Delete it and run the same command again, which makes it again."


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer, and of which state of which model."""

    method: str
    """Method that learnt the domains; ``base`` is the pretrained model."""
    order: str
    seed: int
    learnt: tuple[str, ...]
    reads_as: str | None
    """The domain whose plug-in answered; None: no plug-in, or a method that has none."""
    prompt: str
    answer: str


def write_samples(file: Path, samples: Iterable[Sample]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    write_text(file, "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples))


def read_samples(file: Path) -> list[Sample]:
    """The samples of a file; none where there is no file. Raises ``EunoeError`` naming the line that is no sample."""
    if not os.path.lexists(file):
        return []
    return [_sample(line, f"{clean(str(file))}:{i}") for i, line in read_lines(file, ADVICE)]


def _sample(line: str, where: str) -> Sample:
    try:
        data = parse_json(line)
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(Sample)}:
            raise ValueError("its keys are not those of a sample")
        _check(data)
    except ValueError as error:
        raise EunoeError(f"{where} is not a sample ({error}). {ADVICE}") from None
    return Sample(**{**data, "learnt": tuple(data["learnt"])})


def _check(data: dict[str, Any]) -> None:
    texts = [data[key] for key in ("method", "order", "prompt", "answer")]
    texts += [] if data["reads_as"] is None else [data["reads_as"]]
    if not isinstance(data["learnt"], list) or not all(isinstance(text, str) for text in [*texts, *data["learnt"]]):
        raise ValueError("a name or an answer is not text")
    if not isinstance(data["seed"], int):
        raise ValueError("seed is not a whole number")


def samples_text(samples: list[Sample]) -> str:
    """The answers for a terminal, prompt by prompt, each on one line."""
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append((_label(sample), sample.answer))
    lines = []
    for prompt, answers in by_prompt.items():
        width = max(len(label) for label, _ in answers)
        lines.append(f"prompt: {plain(prompt)}")
        lines += [f"  {label:<{width}}  {plain(answer)}" for label, answer in answers]
    return "\n".join(lines)


def _label(sample: Sample) -> str:
    if not sample.learnt:
        return clean(sample.method)
    read = f", read as {sample.reads_as}" if sample.reads_as else ""
    return clean(f"{sample.method}, {sample.order}, seed {sample.seed}, after {sample.learnt[-1]}{read}")


def plain(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


__all__ = ["Sample", "plain", "read_samples", "samples_text", "write_samples"]
