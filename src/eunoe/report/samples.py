"""``samples.jsonl``: what a causal LM answered to the recipe's prompts, before the first domain and after the last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from eunoe.atomic import write_text


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
    """The samples of a file; none where there is no file."""
    if not file.is_file():
        return []
    held = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line)
    return [Sample(**{**one, "learnt": tuple(one["learnt"])}) for one in held]


def samples_text(samples: list[Sample]) -> str:
    """The answers for a terminal, prompt by prompt, each on one line."""
    lines = []
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        mine = [(_label(sample), sample.answer) for sample in samples if sample.prompt == prompt]
        width = max(len(label) for label, _ in mine)
        lines.append(f"prompt: {_plain(prompt)}")
        lines += [f"  {label:<{width}}  {_plain(answer)}" for label, answer in mine]
    return "\n".join(lines)


def _label(sample: Sample) -> str:
    if not sample.learnt:
        return sample.method
    read = f", read as {sample.reads_as}" if sample.reads_as else ""
    return f"{sample.method}, {sample.order}, seed {sample.seed}, after {sample.learnt[-1]}{read}"


def _plain(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


__all__ = ["Sample", "read_samples", "samples_text", "write_samples"]
