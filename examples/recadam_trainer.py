"""The Trainer of Hugging Face with AdamW and with RecAdam, on rows made here: python examples/recadam_trainer.py

Prints the accuracy of both on rows they have not seen, and how far each moved from the pretrained weights. Offline and in
under a minute with the encoder of eunoe[demo]; --model takes any Hugging Face name or folder.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from eunoe.integrations.trainer import recadam
from eunoe.models.load import MODELS

GOOD = ("wonderful", "moving", "clever", "a joy", "great")
BAD = ("dreadful", "boring", "clumsy", "a mess", "bad")
FORMS = (
    "the film was {}",
    "my friends found the play {}",
    "critics called it {}",
    "{}, from the first song to the last",
)
TRAIN, TEST = slice(None, 3), slice(3, None)  # words that are trained on, and words that are asked


class Rows(Dataset[Any]):
    """Sentences with a label: 1 for praise."""

    def __init__(self, tokenizer: Any, words: slice) -> None:
        pairs = [(word, 1) for word in GOOD[words]] + [(word, 0) for word in BAD[words]]
        self.rows = [{**tokenizer(form.format(word)), "labels": label} for form, (word, label) in product(FORMS, pairs)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def train(name: str, optimizer: str, steps: int) -> tuple[float, float]:
    """Fine-tune; the accuracy on the test rows and the Euclidean distance of the encoder from where it started."""
    torch.manual_seed(0)  # the same fresh head for both
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(name)
    before = {key: p.detach().clone() for key, p in model.base_model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, learning_rate=1e-4, warmup_steps=0.1, per_device_train_batch_size=8,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
            dataloader_pin_memory=False,
        )  # fmt: skip
        # gamma: lr * gamma = 0.2 of the distance is taken away in a step, at first; from the middle of the run on nothing
        chosen = recadam(model, args, gamma=2000, t0=0.5, rise=0.2) if optimizer == "recadam" else None
        trainer = Trainer(
            model,
            args,
            train_dataset=Rows(tokenizer, TRAIN),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda got: {"accuracy": float((got.predictions.argmax(-1) == got.label_ids).mean())},
            optimizer_cls_and_kwargs=chosen,
        )
        trainer.train()
        accuracy = trainer.evaluate(Rows(tokenizer, TEST))["eval_accuracy"]
    moved = torch.stack([(p.detach().cpu() - before[key]).norm() for key, p in model.base_model.named_parameters()])
    return accuracy, float(moved.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hugging Face name or folder (default: the encoder of eunoe[demo])")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    name = args.model or str(MODELS["minilm"].find("minilm").parent)
    for optimizer in ("adamw", "recadam"):
        accuracy, moved = train(name, optimizer, args.steps)
        print(f"{optimizer:<8} accuracy {accuracy:.3f}  distance from the pretrained weights {moved:.3g}")


if __name__ == "__main__":
    main()
