"""Every option does something: for each field of each settings class two values, and what can be seen to differ.

A field without an entry fails, so no option can be added without showing its effect. What is seen are the files that a run
leaves (but those that repeat the recipe), the checkpoints that it writes on the way, the shapes that pass the model, or what
the part that reads the option returns; a refusal must name the option.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eunoe import checkpoint
from eunoe.data.corpus import load_blocks
from eunoe.data.tasks import load_task
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods import METHODS
from eunoe.models.load import load_lm
from eunoe.optim.table import OPTIMIZERS
from eunoe.recipe import (
    CorpusSettings,
    DomainSettings,
    EvaluationSettings,
    HeadSettings,
    LoopSettings,
    ModelSettings,
    PromptText,
    Recipe,
    SearchSettings,
    Study,
    StudyEvaluation,
    StudyTask,
    TaskSettings,
    TrainingSettings,
    load_recipe,
)
from eunoe.transfer import TRANSFERS
from tests.data.glue_layout import write_glue
from tests.tiny import sentences, tiny_bert, tiny_folder, tiny_tokenizer
from tests.tiny_run import state, write_task, write_text

Seen = Any


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models, text, labelled rows and two recipes, in a folder that is the current one."""
    here = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr("eunoe.progress.console.quiet", True)
        patch.setattr("eunoe.data.records.read_hub", _hub)
        for kind in ("bert", "gpt2"):
            tiny_folder(here, kind)
        tiny_folder(here / "other", "bert", seed=1)
        tiny_bert().bert.save_pretrained(here / "encoder")
        tiny_tokenizer().save_pretrained(here / "encoder")
        for i, name in enumerate(("sport", "money", "general")):
            write_text(here / f"{name}.txt", seed=i, n=40)
        write_text(here / "texts/a.txt", seed=7)
        (here / "texts/b.md").write_text("\n\n".join(sentences(30, 8)), encoding="utf-8")
        (here / "columns.csv").write_text(
            "text,body\n" + "".join(f"{a},{b}\n" for a, b in zip(sentences(40, 1), sentences(40, 2), strict=True)),
            encoding="utf-8",
        )
        (here / "latin.txt").write_bytes("\n\n".join(f"café {s}" for s in sentences(40, 3)).encode("latin-1"))
        (here / "articles.txt").mkdir()
        for i, text in enumerate(sentences(12, 4)):
            (here / f"articles.txt/{i}.txt").write_text(f"headline {i}\n{text}", encoding="utf-8")
        for i, name in enumerate(("train", "dev", "test", "rows2")):
            write_task(here / f"{name}.csv", 20 + i, n=24)
        (here / "forms.jsonl").write_text(
            "".join(
                json.dumps({"text": x, "label": i % 2, "few": [x, "no"], "many": [x, "no", "or"],
                            "sentence1": x, "sentence2": "no", "gold_label": "ab"[i % 2]}) + "\n"
                for i, x in enumerate(sentences(8, 5))
            ),
            encoding="utf-8",
        )  # fmt: skip
        lines = (here / "train.csv").read_text(encoding="utf-8").splitlines()
        (here / "pairs.csv").write_text(
            "\n".join(
                [
                    "text,label,second,class,score",
                    *(f"{x},second {i},{'ab'[i % 2]},{i}" for i, x in enumerate(lines[1:])),
                ]
            ),
            encoding="utf-8",
        )
        (here / "latin.csv").write_bytes(
            "\n".join([lines[0], *(x.replace("good", "bön") for x in lines[1:])]).encode("latin-1")
        )
        for name, good in (("mostly_bad", 4), ("mostly_good", 14)):
            labelled = [f"{x},{'good' if i < good else 'bad'}" for i, x in enumerate(sentences(18, 3))]
            (here / f"{name}.csv").write_text("\n".join(["text,label", *labelled]), encoding="utf-8")
        for i in (0, 1):
            write_glue(here / f"GLUE{i}", rows=6 + i)
        (here / "run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
        (here / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        yield here


RUN: dict[str, Any] = {
    "name": "r",
    "model": {"name": "bert"},
    "domains": [{"name": "sport", "corpus": {"source": "sport.txt", "valid_share": 0.3}}],
    "methods": ["ncl"],
    "training": {"block": 16, "batch": 4, "steps": 3, "lr": 0.01, "warmup": 0.0},
    "transfer": {"name": "finetune", "steps": 1, "batch": 8, "max_length": 16},
    "evaluation": {"blocks": 3, "batch": 8},
}
FINE = {"name": "finetune", "steps": 3, "batch": 8, "max_length": 16, "lr": 0.01}
STUDY: dict[str, Any] = {
    "name": "s",
    "model": {"name": "bert"},
    "tasks": [{"name": "mood", "train": "train.csv", "test": "test.csv"}],
    "systems": {"a": FINE},
    "evaluation": {"batch": 8, "block": 16, "blocks": 3},
}
TASK = {"domains.0.task": {"train": "train.csv", "test": "test.csv"}}
TWO = {
    "domains": [
        {"name": n, "corpus": {"source": f"{n}.txt"}, "task": TASK["domains.0.task"]} for n in ("sport", "money")
    ]
}
GENERAL = {"general": {"source": "general.txt"}}
REPEATS = (
    "recipe.yaml",
    "methods.json",
    "environment.json",
    "times.jsonl",
    "texts.json",
    "finished.json",
    "report.html",
    ".lock",
    ".rows.lock",
)
"""Files that repeat the recipe, or tell of the machine."""


def _hub(name: str, config: str | None, split: str, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """A data set whose every part is other text."""
    seed = sum(f"{name}{config}{split}{revision}".encode())
    return iter([{"text": text, "label": ("good", "bad")[i % 2]} for i, text in enumerate(sentences(40, seed))])


# -- what is seen ---------------------------------------------------------------------------------------------------
def corpus(**options: Any) -> Seen:
    """The blocks to train on, held out, and reserved."""
    settings = CorpusSettings(**{"source": "sport.txt", **options})
    shutil.rmtree(os.environ["EUNOE_CACHE"], ignore_errors=True)  # what is in the cache is not read again
    parts = ("train", "valid", "reserved") if settings.reserve else ("train", "valid")
    return [load_blocks(settings, tiny_tokenizer(), 8, part).ids.tolist() for part in parts]  # type: ignore[arg-type]


def task(**options: Any) -> Seen:
    """The rows to fine-tune on and to score."""
    from_text = CorpusSettings(source="articles.txt", documents="file", reserve=10)
    return dataclasses.asdict(load_task("t", TaskSettings(**options), from_text))


def model(**options: Any) -> Seen:
    """What kind of model it is, and what it computes while it trains."""
    lm = load_lm(ModelSettings(**{"name": "bert", **options}))
    torch.manual_seed(0)
    with torch.no_grad():
        return lm.objective, lm.model.train()(torch.arange(10, 20)[None]).logits.sum().item()


def _carried_out(recipe: Any, page: bool | str) -> Seen:
    """What a run leaves, the checkpoints it writes on the way, and the shapes that pass its model."""
    out = Path(f"out{next(_NUMBERS)}")
    shapes: set[tuple[bool, int]] = set()
    saved: list[str] = []

    def watch(module: Any, inputs: Any, _result: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs and inputs[0].dim() == 2:
            shapes.add((module.training, len(inputs[0])))

    save = checkpoint.save
    hook = torch.nn.modules.module.register_module_forward_hook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint,
            "save",
            lambda folder, *rest, **more: (saved.append(folder.name), save(folder, *rest, **more))[1],
        )
        if not page:  # plots take most of a tiny run's time
            patch.setattr("eunoe.report.page.render", lambda *_: "")
        try:
            report = run(recipe, out)
        finally:
            hook.remove()
    if page == "all":
        return report.read_text(encoding="utf-8")
    if page:
        return re.sub(r"<pre>.*?</pre>", "", report.read_text(encoding="utf-8"), flags=re.DOTALL)
    return state(out, REPEATS), sorted(shapes), saved


_NUMBERS = itertools.count()


def domains(page: bool | str = False, **options: Any) -> Seen:
    return _carried_out(load_recipe("run.yaml", options), page)


def study(page: bool | str = False, **options: Any) -> Seen:
    return _carried_out(load_recipe("study.yaml", options), page)


# -- the table ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Effect:
    """``see`` with one value of the option and with another; ``shared`` is the same for both."""

    see: Callable[..., Seen]
    key: str
    one: Any
    other: Any
    shared: dict[str, Any]

    def seen(self, value: Any) -> Seen:
        return self.see(**{**self.shared, self.key: value})


def group(
    see: Callable[..., Seen], prefix: str, values: dict[str, tuple[Any, ...]], more: dict[str, Any] | None = None
) -> dict[str, Effect]:
    """Entries of one class: field -> (one value, another, what both need besides)."""
    return {
        name: Effect(see, prefix + name, one, other, {**(more or {}), **(rest[0] if rest else {})})
        for name, (one, other, *rest) in values.items()
    }


LOOP: dict[str, tuple[Any, ...]] = {
    "batch": (4, 8),
    "micro_batch": (None, 2),
    "epochs": (1, 2, {"steps": None}),
    "steps": (2, 3),
    "lr": (0.01, 0.001),
    "schedule": ("linear", "cosine"),
    "warmup": (0.0, 0.7),
    "clip": (None, 1e-3),
    "clip_by": ("global", "tensor", {"clip": 1e-3}),
    "optimizer": ("adamw", "bert_adam"),
    "precision": ("float32", "bf16"),
    "checkpoint_every": (1, 2),
}


def below(prefix: str, values: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The same entries with the prefix before the keys that both values need."""
    return {
        name: (one, other, *({prefix + k: v for k, v in need.items()} for need in rest))
        for name, (one, other, *rest) in values.items()
    }


def optimizer(name: str, values: dict[str, tuple[Any, ...]], **more: Any) -> dict[str, Effect]:
    """Entries of an optimizer's settings, with weights and moments that tell."""
    return group(
        study,
        "systems.a.optimizer.",
        below("systems.a.optimizer.", values),
        {"systems.a.optimizer": {"name": name, **more}},
    )


def method(name: str, values: dict[str, tuple[Any, ...]]) -> dict[str, Effect]:
    """Entries of a method's settings, over two domains without end tasks."""
    return group(domains, "methods.0.", values, {**TWO, "domains.*.task": None, "methods": [{"name": name}]})


ADAM: dict[str, tuple[Any, ...]] = {
    "betas": ([0.9, 0.999], [0.5, 0.9]),
    "eps": (1e-8, 1e-2),
    "weight_decay": (0.0, 0.5),
}
HUB = {"source": "hub:some/texts"}
CAUSAL = {"model.name": "gpt2", "evaluation.prompts": ["the team"]}
HEAD = {"corpora": [{"source": "sport.txt"}], "steps": 2, "block": 16, "batch": 2}
HEADLESS = {"model": {"name": "encoder", "head": "train"}, **GENERAL}
GRID = {
    "systems.a": {**FINE, "lr": 0.3, "steps": 8, "grid": {"evaluate_every": [100, 1]}},
    "tasks": [{"name": "t", "train": "mostly_bad.csv", "test": "mostly_good.csv"}],
}
"""Two points that differ in how often they are scored: their last scores are equal, and the best is seen by the second alone."""

ADAPTER: dict[str, tuple[Any, ...]] = {
    "reduction": (16, 4),
    "places": ("feed_forward", "both"),
    "activation": ("relu", "tanh"),
    "backbone": ("frozen", "trained", TASK),
}

ONWARD = {**TWO, "domains.*.task": None}
"""What is kept of a first domain is seen in a second."""
HAT: dict[str, tuple[Any, ...]] = {
    "attention_size": (None, 3),
    "ffn_size": (None, 3),
    "activation": ("gelu", "tanh"),
    "anneal_over": ("epoch", "all", {"training.steps": 24, "training.batch": 2}),
    "sparsity": (0.0, 0.75, ONWARD),
    "s_max": (400.0, 10.0),
    "cosh_clip": (50.0, 0.1),
    "embedding_clip": (6.0, 0.01),
}

EFFECTS: dict[type[Any], dict[str, Effect]] = {
    CorpusSettings: group(corpus, "", {
        "source": ("sport.txt", "money.txt"),
        "files": ("*.txt", "*.md", {"source": "texts"}),
        "column": ("text", "body", {"source": "columns.csv"}),
        "documents": ("paragraphs", "file", {"valid": "money.txt"}),
        "encoding": ("latin-1", "cp437", {"source": "latin.txt"}),
        "fallback_encoding": ("latin-1", "cp437", {"source": "latin.txt"}),
        "line_limit": (None, 20),
        "config": ("a", "b", HUB),
        "revision": ("a", "b", HUB),
        "split": ("train", "rest", HUB),
        "valid": (None, "money.txt"),
        "valid_share": (0.2, 0.5),
        "reserve": (0, 10),
        "tokens": (None, 40),
    }),
    TaskSettings: group(task, "", {
        "made": ("headlines", None, {"shots": 3}),
        "train": ("train.csv", "rows2.csv", {"test": "test.csv"}),
        "test": ("test.csv", "rows2.csv", {"train": "train.csv"}),
        "dev": ("dev.csv", "rows2.csv", {"train": "train.csv", "test": "test.csv", "resplit": 0.5}),
        "unlabelled": (None, "general.txt", {"train": "train.csv", "test": "test.csv"}),
        "config": ("a", "b", {"train": "hub:x/y", "test": "test.csv"}),
        "revision": ("a", "b", {"train": "hub:x/y", "test": "test.csv"}),
        "text": ("text", "second", {"train": "pairs.csv", "test": "pairs.csv"}),
        "pair": (None, "second", {"train": "pairs.csv", "test": "pairs.csv"}),
        "pair_first": (False, True, {"train": "pairs.csv", "test": "pairs.csv", "pair": "second"}),
        "label": ("label", "class", {"train": "pairs.csv", "test": "pairs.csv"}),
        "encoding": ("latin-1", "cp437", {"train": "latin.csv", "test_share": 0.2}),
        "line_limit": (None, 20, {"train": "train.csv", "test": "test.csv"}),
        "kind": ("classification", "regression", {"train": "pairs.csv", "test": "pairs.csv", "label": "score"}),
        "choices": ("few", "many", {"train": "forms.jsonl", "test": "forms.jsonl", "kind": "choice"}),
        "layout": (None, "snli", {"train": "forms.jsonl", "test": "forms.jsonl"}),
        "shots": ("all", 2, {"train": "train.csv", "test": "test.csv"}),
        "shots_seed": (1, 2, {"train": "train.csv", "test": "test.csv", "shots": 2}),
        "shots_strict": (False, True, {"train": "train.csv", "test": "test.csv", "shots": 20}),
        "resplit": (None, 0.5, {"train": "train.csv", "test": "test.csv"}),
        "test_share": (0.2, 0.4, {"train": "train.csv"}),
        "test_rows": (None, 3, {"train": "train.csv", "test": "test.csv"}),
    }),
    DomainSettings: group(domains, "domains.0.", {
        "name": ("sport", "games"),
        "corpus": ({"source": "sport.txt"}, {"source": "money.txt"}),
        "task": (None, TASK["domains.0.task"]),
    }),
    HeadSettings: group(domains, "head.", {
        "corpora": ([{"source": "sport.txt"}], [{"source": "sport.txt"}, {"source": "money.txt"}]),
        "rank": (0, 2),
        "block": (8, 16),
        "batch": (2, 4),
        "steps": (2, 3),
        "mask_rate": (0.15, 0.5),
        "lr": (2e-3, 1e-2),
        "warmup": (0.0, 0.9),
        "checkpoint_every": (1, 2),
    }, {**HEADLESS, "domains": [], "methods": [], "head": {"corpora": [{"source": "sport.txt"}], "steps": 2, "block": 16, "batch": 2}}),
    ModelSettings: group(model, "", {
        "name": ("bert", "other/bert"),
        "objective": ("auto", "causal"),
        "head": ("train", "pretrained", {"name": "encoder"}),
        "patch": (None, "no-such-folder"),
        "dropout": (0.0, 0.5),
    }),
    TrainingSettings: group(domains, "training.", below("training.", {**LOOP, "block": (16, 8), "mask_rate": (0.15, 0.5)})),
    TRANSFERS["finetune"].settings: group(study, "systems.a.", below("systems.a.", {
        **LOOP,
        "max_length": (16, 4),
        "freeze": ("none", "backbone"),
        "dropout": (0.0, 0.5),
        "pooling": ("auto", "mean"),
        "start": ("pretrained", "random"),
        "evaluate_every": (None, 1),
        "observe_every": (None, 1),
    })),
    TRANSFERS["gpt"].settings: group(study, "systems.a.", below("systems.a.", {
        **LOOP,
        "max_length": (16, 6),
        "lm_weight": (0.5, 0.0),
        "both_orders": (None, True),
        "dropout": (0.0, 0.5),
        "start": ("pretrained", "random"),
        "transferred": (None, 1),
        "evaluate_every": (None, 1),
        "observe_every": (None, 1),
    }), {"model.name": "gpt2", "tasks": [{"name": "mood", "train": "pairs.csv", "test": "pairs.csv", "pair": "second"}],
         "systems.a": {**FINE, "name": "gpt"}}),
    EvaluationSettings: group(domains, "evaluation.", {
        "blocks": (3, 2),
        "batch": (8, 2),
        "matrix": ("full", "ends", {"domains": [*TWO["domains"], {**TWO["domains"][0], "name": "games"}], "training.steps": 1}),
        "retention": (False, True, {**TASK, **GENERAL}),
        "base": (True, False, TASK),
        "prompts": ([], ["the team"], {"model.name": "gpt2"}),
        "answer_tokens": (2, 5, CAUSAL),
    }),
    PromptText: group(domains, "evaluation.prompts.0.", {
        "text": ("the [MASK] team", "good [MASK]"),
        "domain": ("sport", "money"),
    }, {**ONWARD, "methods": [{"name": "cpt", "ffn_size": 8, "attention_size": 8, "training": {"lr": 0.5}}],
        "evaluation.prompts": [{"text": "the [MASK] won", "domain": "sport"}]}),
    Recipe: group(domains, "", {
        "name": ("r", "q"),
        "about": ("one", "other", {"page": "all"}),
        "model": ({"name": "bert"}, {"name": "other/bert"}),
        "head": ({**HEAD, "steps": 1}, {**HEAD, "steps": 2}, HEADLESS),
        "domains": (RUN["domains"], TWO["domains"]),
        "general": (None, GENERAL["general"]),
        "methods": (["ncl"], ["cpt"]),
        "training": (RUN["training"], {**RUN["training"], "steps": 2}),
        "transfer": (RUN["transfer"], {**RUN["transfer"], "steps": 2}, TASK),
        "evaluation": (RUN["evaluation"], {**RUN["evaluation"], "blocks": 2}),
        "orders": ({"o": ["sport", "money"]}, {"o": ["money", "sport"]}, {**TWO, "domains.*.task": None}),
        "seeds": ([0], [1]),
    }),
    StudyTask: group(study, "tasks.0.", {
        "name": ("mood", "tone"),
        "glue": ("rte", "wnli", {"tasks": [{"name": "t", "folder": "GLUE0"}]}),
        "folder": ("GLUE0", "GLUE1", {"tasks": [{"name": "t", "glue": "rte"}]}),
        "train_rows": (None, 4, {"tasks": [{"name": "t", "glue": "rte", "folder": "GLUE0"}]}),
        "seeds": (None, [3]),
        "transfer": ({}, {"lr": 0.02}),
    }),
    SearchSettings: group(study, "search.", {"seed": (7, 8), "by": ("last", "best")}, {**GRID, "search": {"seed": 9}}),
    StudyEvaluation: group(study, "evaluation.", {
        "batch": (8, 2),
        "block": (16, 8),
        "blocks": (3, 2),
        "mask_rate": (0.15, 0.5),
        "predict_test": (False, True, {"tasks": [{"name": "t", "glue": "rte", "folder": "GLUE0"}]}),
    }, {"retention": {"general": {"source": "general.txt"}}}),
    Study: group(study, "", {
        "name": ("s", "q"),
        "about": ("one", "other", {"page": "all"}),
        "model": ({"name": "bert"}, {"name": "other/bert"}),
        "tasks": (STUDY["tasks"], [{**STUDY["tasks"][0], "train": "rows2.csv"}]),
        "systems": ({"a": FINE}, {"b": FINE}),
        "search": (None, {"seed": 7}, {"systems.a.grid": {"lr": [0.01, 0.02]}}),
        "seeds": ([0], [1]),
        "retention": ({}, {"general": {"source": "general.txt"}}),
        "evaluation": (STUDY["evaluation"], {**STUDY["evaluation"], "batch": 2}),
        "published": ({}, {"a": {"mood": 61.5}}, {"page": True}),
        "published_note": (None, "as printed", {"page": True, "published": {"a": {"mood": 61.5}}}),
    }),
    OPTIMIZERS["adamw"].settings: optimizer("adamw", ADAM),
    OPTIMIZERS["bert_adam"].settings: optimizer("bert_adam", ADAM),
    OPTIMIZERS["recadam"].settings: optimizer("recadam", {
        **ADAM,
        "gamma": (100, 50),
        "anneal": ("sigmoid", "linear"),
        "k": (0.5, 0.05),
        "rise": (0.5, 0.2),
        "t0": (2, 20),
        "weight": (1.0, 0.5),
        "correct_bias": (True, False),
        "form": ("released", "paper"),
    }, gamma=100, t0=2),
    METHODS["cpt"].settings: group(domains, "methods.0.", {
        "placement": ("sequential", "parallel"),
        "attention_size": (None, 3),
        "ffn_size": (None, 3),
        "activation": ("relu", "tanh"),
        "init": ("library", "normal"),
        "skip": ("auto", False),
        "anneal_over": ("epoch", "all", {"training.steps": 24, "training.batch": 2}),
        "sparsity": (0.0, 0.75, {**TWO, "domains.*.task": None}),
        "s_max": (400.0, 10.0),
        "cosh_clip": (50.0, 0.1),
        "embedding_clip": (6.0, 0.01),
        "masks": (True, False),
        "backbone": ("trained", "frozen", TASK),
        "plugins": (None, "plug-ins"),
    }, {"methods": [{"name": "cpt"}]}),
    METHODS["hat"].settings: group(domains, "methods.0.", HAT, {"methods": [{"name": "hat"}]}),
    METHODS["bcl"].settings: group(domains, "methods.0.", {
        **HAT,
        "capsule_size": (3, 2),
        "capsule_hidden": (100, 7),
        "iterations": (3, 1, ONWARD),
    }, {"methods": [{"name": "bcl"}]}),
    METHODS["classic"].settings: group(domains, "methods.0.", {
        **HAT,
        "contrast": (1.0, 0.0, ONWARD),
        "temperature": (1.0, 0.2, ONWARD),
        "dropout": (0.1, 0.5, ONWARD),
    }, {"methods": [{"name": "classic"}]}),
    METHODS["lora"].settings: group(domains, "methods.0.", {
        "r": (8, 2),
        "alpha": (16.0, 4.0),
        "dropout": (0.0, 0.5),
        "targets": ("layers", "attention"),
        "merge": ("never", "each", ONWARD),
    }, {"methods": [{"name": "lora"}]}),
    METHODS["o-lora"].settings: group(domains, "methods.0.", {
        "r": (8, 2),
        "alpha": (32.0, 4.0),
        "dropout": (0.1, 0.5),
        "strength": (0.5, 0.0, ONWARD),
        "norm": ("squares", "absolute", ONWARD),
        "targets": ("layers", "attention"),
    }, {"methods": [{"name": "o-lora"}]}),
    METHODS["peft"].settings: group(domains, "methods.0.", {
        "tuner": ("lora", "loha"),
        "options": ({"r": 8}, {"r": 2}),
        "targets": ("layers", "attention"),
        "merge": ("never", "each", ONWARD),
    }, {"methods": [{"name": "peft"}]}),
    METHODS["das"].settings: group(domains, "methods.0.", {
        "contrast": (1.0, 0.0),
        "temperature": (0.05, 0.5),
        "samples": (10_000, 1),
        "noise": (0.1, 0.5, {"model.dropout": 0.0}),
    }, {"methods": [{"name": "das"}]}),
    METHODS["ncl"].settings: {},
    METHODS["none"].settings: {},
    METHODS["joint"].settings: {},
    METHODS["one"].settings: {},
    METHODS["adapter-one"].settings: group(domains, "methods.0.", ADAPTER, {"methods": [{"name": "adapter-one"}]}),
    METHODS["demix"].settings: group(domains, "methods.0.", {
        **ADAPTER,
        "sample": (1, 10_000, {**TWO, "domains.*.task": None}),
    }, {"methods": [{"name": "demix"}]}),
    METHODS["prompt-one"].settings: group(domains, "methods.0.", {
        "length": (4, 6),
        "backbone": ("frozen", "trained", {**TASK, "methods": [{"name": "prompt-one", "length": 4}]}),
    }, {"methods": [{"name": "prompt-one"}]}),
    METHODS["kd"].settings: method("kd", {"weight": (0.0, 5.0), "temperature": (1.0, 4.0)}),
    METHODS["ewc"].settings: method("ewc", {
        "strength": (0.0, 1e4),
        "blocks": (1, None),
        "squared": (1, 4),
        "merge": ("mean", "online"),
        "gamma": (0.0, 1.0, {"methods.0.merge": "online"}),
    }),
    METHODS["der++"].settings: method("der++", {
        "capacity": (1, 20),
        "alpha": (0.0, 5.0),
        "beta": (0.0, 5.0),
        "rows": (1, 4),
        "top": (1, None),
    }),
    METHODS["replay"].settings: method("replay", {
        "share": (0.2, 0.5),
        "source": ("earlier", "general", GENERAL),
        "blocks": (1, None),
    }),
    METHODS["l2"].settings: method("l2", {"strength": (0.0, 5.0), "anchor": ("stage", "base", {"methods.0.strength": 5.0})}),
    METHODS["recadam"].settings: method("recadam", {
        "anneal": ("sigmoid", "linear"),
        "k": (0.0, 2.0),
        "t0": (0.2, 1.0),
        "pull": (0.1, 1.0, {"methods.0.k": 0}),
        "anchor": ("stage", "base", {"methods.0.k": 0}),
    }),
    METHODS["wise"].settings: method("wise", {"alpha": (0.5, None), "anchor": ("stage", "base")}),
    METHODS["merge"].settings: method("merge", {
        "how": ("average", "task_arithmetic"),
        "scale": (1.0, 0.1),
        "density": (0.2, 0.9, {"methods.0.how": "ties"}),
    }),
}  # fmt: skip
"""Settings class -> field -> how its effect is seen."""

TESTS = Path(__file__).parents[1] / "transfer"
TABLES = {
    TRANSFERS["ulmfit"].settings: ("test_ulmfit.py", "test_ulmfit_awd.py"),
    TRANSFERS["elmo"].settings: ("test_elmo.py", "test_features.py"),
    TRANSFERS["features"].settings: ("test_features.py",),
    TRANSFERS["vectors"].settings: ("test_vectors.py", "test_features.py"),
}
"""Settings whose effects are seen, each by a change of what is learnt, in the tests of their transfer."""

ELSEWHERE = {
    (Recipe, "scales"): "test_a_scale_sets_what_it_says",
    (Study, "scales"): "test_a_scale_sets_what_it_says",
    (Recipe, "trackers"): "tests/test_trackers.py: they change no bit",
    (Study, "trackers"): "tests/test_trackers.py: they change no bit",
    (Recipe, "threads"): "test_threads_are_those_a_run_computes_with",
    (Study, "threads"): "test_threads_are_those_a_run_computes_with",
    **{
        (entry.settings, "keep"): "tests/methods/test_store.py: it changes no bit"
        for entry in METHODS.values()
        if "keep" in entry.settings.__dataclass_fields__
    },
}


def own_fields(settings: type[Any]) -> list[str]:
    """Names of the options; those that a study's task shares with a domain's are read by one function, and seen there."""
    shared = {f.name for f in dataclasses.fields(TaskSettings)} if settings is StudyTask else set()
    return [f.name for f in dataclasses.fields(settings) if f.name not in shared]


CASES = [(settings, name) for settings in EFFECTS for name in own_fields(settings) if (settings, name) not in ELSEWHERE]


@pytest.mark.parametrize(("settings", "name"), CASES, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_an_option_changes_what_can_be_seen(settings: type[Any], name: str, world: Path) -> None:
    assert name in EFFECTS[settings], (
        f"{settings.__name__}.{name} has no entry in EFFECTS: say how its effect can be seen"
    )
    entry = EFFECTS[settings][name]
    assert entry.one != entry.other
    first = _remembered(entry, entry.one)
    refused = ""
    try:
        second = _remembered(entry, entry.other)
    except EunoeError as error:
        second, refused = None, str(error)
    assert first != second, f"{settings.__name__}.{name}: {entry.one!r} and {entry.other!r} end alike"
    if refused:
        assert re.search(rf"\b{name}\b|{re.escape(str(entry.other))}", refused), (
            "a refusal must name the option, or its value"
        )


_SEEN: dict[str, Seen] = {}


def _remembered(entry: Effect, value: Any) -> Seen:
    """What is seen; many entries have a side in common."""
    key = json.dumps([entry.see.__name__, entry.shared, entry.key, value], sort_keys=True)
    if key not in _SEEN:
        _SEEN[key] = entry.seen(value)
    return _SEEN[key]


def test_every_class_of_settings_has_its_table() -> None:
    import eunoe.recipe

    classes = {c for c in vars(eunoe.recipe).values() if dataclasses.is_dataclass(c)}
    classes |= {entry.settings for table in (METHODS, TRANSFERS, OPTIMIZERS) for entry in table.values()}
    lacking = [
        c.__name__
        for c in classes - set(TABLES)
        if c not in EFFECTS and not any(issubclass(known, c) for known in EFFECTS)
    ]
    assert lacking == []
    for entry in TRANSFERS.values():
        if entry.settings in TABLES:
            tests = "".join((TESTS / file).read_text(encoding="utf-8") for file in TABLES[entry.settings])
            loop = {f.name for f in dataclasses.fields(LoopSettings)}  # every training's: seen with finetune
            names = [f.name for f in dataclasses.fields(entry.settings) if f.name not in loop]
            unseen = [name for name in names if not re.search(rf"\b{name}\b", tests)]
            assert unseen == [], f"{entry.settings.__name__}: no test names them"
    for settings, entries in EFFECTS.items():
        assert set(entries) <= set(own_fields(settings)), f"{settings.__name__} has an entry for an option that is gone"


@pytest.mark.parametrize("see", [domains, study, corpus, model])
def test_the_same_options_are_seen_alike(see: Callable[..., Seen], world: Path) -> None:
    """Otherwise every option would seem to do something."""
    assert see() == see()


@pytest.mark.parametrize("file", ["run.yaml", "study.yaml"])
def test_a_scale_sets_what_it_says(file: str, world: Path) -> None:
    data = yaml.safe_load((world / file).read_text(encoding="utf-8"))
    (world / f"scaled_{file}").write_text(
        yaml.safe_dump({**data, "scales": {"large": {"seeds": [5], "evaluation.batch": 3}}}), encoding="utf-8"
    )
    recipe = load_recipe(f"scaled_{file}", scale="large")
    assert (recipe.seeds, recipe.evaluation.batch) == ([5], 3)
    assert load_recipe(f"scaled_{file}").seeds == [0]


@pytest.mark.parametrize("file", ["run.yaml", "study.yaml"])
def test_threads_are_those_a_run_computes_with(file: str, world: Path) -> None:
    seen: set[int] = set()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        run(load_recipe(file, {"threads": 2}), world / f"threads_{file}")
    finally:
        hook.remove()
        torch.set_num_threads(before)
    assert seen == {2}
