"""Where the sub-layers of a Hugging Face model are: the only place of the project that knows layer names.

A plug-in method needs a handful of places in every layer: what enters the attention and the feed-forward sub-layer,
and what leaves each of them just before it is added to the residual stream. Every family names them differently, so
each family is one frozen row of dotted names in ``FAMILIES`` (checked against transformers 5.23), and ``anatomy``
resolves a row on a model. A new family is a new row; no code asks for a family by name.

What to look for when a row is written:

- ``attention_out`` must be the module whose *output* is the sub-layer's result after output projection and dropout and
  before add & norm: a dropout where there is one (``nn.Dropout`` and ``nn.Identity`` are called, and so can be hooked,
  in evaluation mode too), else the projection. It must return a tensor: attention modules return tuples.
- BERT's ``attention.output`` and ``output`` are not it: they hold the LayerNorm as well.
- ALBERT runs one layer many times. ``layers`` are the distinct layer modules, so a plug-in belongs to a shared layer
  and runs each time that layer runs; with one group there is one plug-in pair for the whole model.
- ModernBERT's first layer has no attention norm (``nn.Identity``): ``norms`` holds only what has weights.
- Gemma 3 normalises a sub-layer's result once more before adding it (a sandwich), so that norm is ``attention_out`` or
  ``feed_forward_out``: what leaves it is what enters the residual stream.
- GPT-NeoX runs both sub-layers beside each other (``use_parallel_residual``): the feed-forward one reads the layer's
  input and not the attention's result. The places are the same; a plug-in of the attention is then not seen by the
  feed-forward sub-layer of its own layer, only by later layers.
- T5 has its row for the encoder: ``T5EncoderModel``, the encoder-only heads, or the encoder inside a T5 that generates,
  whose decoder then reads what the plug-ins changed. transformers has no masked-LM head for T5, so a recipe cannot
  post-train one; plug-ins attach, train under a loss of one's own, save and load as on any family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING

from torch import nn

from eunoe.errors import EunoeError
from eunoe.lookup import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """Dotted names of one model family: ``embeddings`` and ``layers`` from the base model, the rest from a layer."""

    embeddings: str
    """The input embedding table."""
    layers: str
    """The layers, in order; ``*`` stands for every entry of a list."""
    attention_in: str
    """The first projection of the attention sub-layer; its input is the sub-layer's input."""
    attention_heads: tuple[str, ...]
    """The projections whose outputs belong to heads (query, key, value, or one for all three), one head after the other."""
    interleaved: bool = False
    """Is the one projection for all three cut by heads first (query, key and value of a head side by side)?"""
    attention_proj: str
    """The attention output projection; its input is the concatenated heads."""
    attention_out: str
    """The module whose output is the attention sub-layer's result, before add & norm."""
    feed_forward_in: tuple[str, ...]
    """What reads the feed-forward sub-layer's input: its first projection(s), or the module around all of them."""
    feed_forward_proj: str
    """The feed-forward sub-layer's last projection; its input are the inner (intermediate) units."""
    feed_forward_out: str
    """The module whose output is the feed-forward sub-layer's result, before add & norm."""
    positions: str | None = None
    """The table of absolute positions, counted from the base model, where the family has one (and this model: DeBERTa's
    may have none)."""
    above: tuple[str, ...] = ()
    """What is behind the last layer, counted from the base model: a last norm. (A pooler is known by its name.)"""
    norms: tuple[str, ...]
    """LayerNorms or RMSNorms of a layer, where this layer has them; those that read what enters the attention and the
    feed-forward sub-layer (or what leaves it, in families that normalise afterwards) come first, in this order."""


_BERT = Family(
    embeddings="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    layers="encoder.layer.*",
    attention_in="attention.self.query",
    attention_heads=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_proj="attention.output.dense",
    attention_out="attention.output.dropout",
    feed_forward_in=("intermediate.dense",),
    feed_forward_proj="output.dense",
    feed_forward_out="output.dropout",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)

_LLAMA = Family(
    embeddings="embed_tokens",
    layers="layers.*",
    above=("norm",),
    attention_in="self_attn.q_proj",
    attention_heads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_proj="self_attn.o_proj",
    attention_out="self_attn.o_proj",
    feed_forward_in=("mlp.gate_proj", "mlp.up_proj"),
    feed_forward_proj="mlp.down_proj",
    feed_forward_out="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
)

_GPT2 = Family(
    embeddings="wte",
    positions="wpe",
    layers="h.*",
    above=("ln_f",),
    attention_in="attn.c_attn",
    attention_heads=("attn.c_attn",),
    attention_proj="attn.c_proj",
    attention_out="attn.resid_dropout",
    feed_forward_in=("mlp.c_fc",),
    feed_forward_proj="mlp.c_proj",
    feed_forward_out="mlp.dropout",
    norms=("ln_1", "ln_2"),
)
_GEMMA3 = replace(
    _LLAMA,
    attention_out="post_attention_layernorm",
    feed_forward_out="post_feedforward_layernorm",
    norms=(
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    ),
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": replace(
        _BERT,
        attention_in="attention.self.value_proj",  # the others project positions as well
        attention_heads=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    ),
    "distilbert": Family(
        embeddings="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        layers="transformer.layer.*",
        attention_in="attention.q_lin",
        attention_heads=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_proj="attention.out_lin",
        attention_out="attention.out_lin",
        feed_forward_in=("ffn.lin1",),
        feed_forward_proj="ffn.lin2",
        feed_forward_out="ffn",
        norms=("sa_layer_norm", "output_layer_norm"),
    ),
    "albert": Family(
        embeddings="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        layers="encoder.albert_layer_groups.*.albert_layers.*",
        attention_in="attention.query",
        attention_heads=("attention.query", "attention.key", "attention.value"),
        attention_proj="attention.dense",
        attention_out="attention.output_dropout",
        feed_forward_in=("ffn",),
        feed_forward_proj="ffn_output",
        feed_forward_out="ffn_output",
        norms=("attention.LayerNorm", "full_layer_layer_norm"),
    ),
    "modernbert": Family(
        embeddings="embeddings.tok_embeddings",
        layers="layers.*",
        above=("final_norm",),
        attention_in="attn.Wqkv",
        attention_heads=("attn.Wqkv",),
        attention_proj="attn.Wo",
        attention_out="attn.out_drop",
        feed_forward_in=("mlp.Wi",),
        feed_forward_proj="mlp.Wo",
        feed_forward_out="mlp",
        norms=("attn_norm", "mlp_norm"),
    ),
    "gpt2": _GPT2,
    "openai-gpt": replace(_GPT2, embeddings="tokens_embed", positions="positions_embed", above=()),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": _GEMMA3,
    "gemma3": replace(
        _GEMMA3,
        embeddings="language_model.embed_tokens",
        layers="language_model.layers.*",
        above=("language_model.norm",),
    ),
    "gpt_neox": Family(
        embeddings="embed_in",
        layers="layers.*",
        above=("final_layer_norm",),
        attention_in="attention.query_key_value",
        attention_heads=("attention.query_key_value",),
        interleaved=True,
        attention_proj="attention.dense",
        attention_out="post_attention_dropout",
        feed_forward_in=("mlp.dense_h_to_4h",),
        feed_forward_proj="mlp.dense_4h_to_h",
        feed_forward_out="post_mlp_dropout",
        norms=("input_layernorm", "post_attention_layernorm"),
    ),
    "t5": Family(
        embeddings="shared",
        layers="encoder.block.*",
        above=("encoder.final_layer_norm", "decoder"),
        attention_in="layer.0.SelfAttention.q",
        attention_heads=("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
        attention_proj="layer.0.SelfAttention.o",
        attention_out="layer.0.dropout",
        feed_forward_in=("layer.1.DenseReluDense",),  # its first projections differ between T5 1.0 and 1.1
        feed_forward_proj="layer.1.DenseReluDense.wo",
        feed_forward_out="layer.1.dropout",
        norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    ),
}
"""``config.model_type`` -> names. A family is added here and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A family whose layers have no sub-layers: dotted names from the base model, as in ``Family``."""

    embeddings: str
    layers: str


RECURRENT: dict[str, Recurrent] = {"awd_lstm": Recurrent(embeddings="embeddings", layers="layers.*")}
"""``config.model_type`` -> names, of families without attention and feed-forward sub-layers."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The modules of one layer that ``Family`` names. Shapes are (batch, tokens, width) unless said otherwise."""

    name: str
    module: nn.Module
    attention_in: nn.Module
    attention_heads: tuple[nn.Module, ...]
    attention_proj: nn.Module
    attention_out: nn.Module
    feed_forward_in: tuple[nn.Module, ...]
    feed_forward_proj: nn.Module
    feed_forward_out: nn.Module
    norms: tuple[nn.Module, ...]


class RecurrentLayer(Layer):
    """A layer without sub-layers: what asks for a part of one is refused, in its place and by its name."""

    def __init__(self, name: str, module: nn.Module) -> None:
        for field, value in (("name", name), ("module", module), ("norms", ())):
            object.__setattr__(self, field, value)  # the fields of sub-layers stay unset, so that __getattr__ is asked

    def __repr__(self) -> str:
        return f"RecurrentLayer({self.name!r})"

    def __getattr__(self, field: str) -> nn.Module:
        if field.startswith(("attention_", "feed_forward_")):
            raise EunoeError(
                f"{type(self.module).__name__} is a recurrent layer: it has no attention and feed-forward sub-layers, so there is no "
                f"{field} for a plug-in, a gate or an adapter of attention to stand at. Choose a method that trains the model's own "
                "weights: ncl, one, joint, ewc, kd, replay, der++, l2, recadam (`eunoe list methods`)."
            )
        raise AttributeError(field)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A model's parts. ``name`` of a layer counts from ``base``, so it is the same with any head or wrapper."""

    model_type: str
    base: PreTrainedModel
    embeddings: nn.Module
    positions: nn.Embedding | None
    """The table of absolute positions; None where positions are rotary or relative."""
    layers: tuple[Layer, ...]
    width: int
    """Width of the residual stream: of ``attention_out``, ``feed_forward_out`` and of what enters the sub-layers."""
    heads: int
    """Attention heads of a layer; 0 in recurrent families."""
    interleaved: bool
    """As ``Family`` says it of ``attention_heads``."""
    heads_width: int
    """Width of the concatenated heads, the input of ``attention_proj``. Qwen3's and some Llamas' differs from width."""


def anatomy(model: nn.Module) -> Anatomy:
    """The parts of ``model``: a transformers model with any head, or any module that has one inside.

    Raises ``EunoeError`` if there is none, if its family has no row in ``FAMILIES``, or if it has no layers.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    >>> [layer.name for layer in anatomy(BertModel(tiny)).layers]
    ['encoder.layer.0', 'encoder.layer.1']
    """
    base = _base(model)
    model_type = str(base.config.model_type)
    if model_type in RECURRENT:
        return _recurrent(base, RECURRENT[model_type])
    if model_type not in FAMILIES:
        names = ", ".join(f'{field.name}="..."' for field in fields(Family) if field.default is MISSING)
        raise EunoeError(
            f"{unknown(model_type, FAMILIES, 'model family')} To add it, write one row into FAMILIES of "
            f'eunoe/models/anatomy.py: "{model_type}": Family({names}), with the names of {type(base).__name__}; '
            "that file says what each of them must be."
        )
    family = FAMILIES[model_type]
    embeddings = _find(base, family.embeddings, base)
    config = base.config.get_text_config()  # of an image-and-text model the part that has these layers
    heads = int(config.num_attention_heads)
    head_width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    layers = tuple(_layer(base, name, module, family) for name, module in _every(base, family.layers))
    if not layers:
        raise EunoeError(
            f"this {type(base).__name__} has no layers: its configuration asks for {getattr(config, 'num_hidden_layers', 0)!r}."
        )
    positions = _get(base, family.positions) if family.positions is not None else None
    return Anatomy(
        model_type=model_type,
        base=base,
        embeddings=embeddings,
        positions=positions if isinstance(positions, nn.Embedding) else None,
        layers=layers,
        width=int(config.hidden_size),
        heads=heads,
        interleaved=family.interleaved,
        heads_width=heads * int(head_width),
    )


def refuse_recurrent(parts: Anatomy) -> None:
    """Raises ``EunoeError`` where layers have no attention and feed-forward sub-layers to attach anything to."""
    for layer in parts.layers:
        _ = layer.attention_out, layer.feed_forward_out


def _recurrent(base: PreTrainedModel, family: Recurrent) -> Anatomy:
    return Anatomy(
        model_type=str(base.config.model_type),
        base=base,
        embeddings=_find(base, family.embeddings, base),
        positions=None,
        layers=tuple(RecurrentLayer(name, module) for name, module in _every(base, family.layers)),
        width=int(base.config.hidden_size),
        heads=0,
        interleaved=False,
        heads_width=0,
    )


def takes_token_types(model: nn.Module) -> bool:
    """Does the model look up, in a table of its own with two rows or more, which text of a pair a token belongs to?

    Others must not be given ``token_type_ids``: GPT-2 looks them up among its words, a RoBERTa's table has one row.
    """
    tables = (m for name, m in _base(model).named_modules() if name.rpartition(".")[2] == "token_type_embeddings")
    return any(isinstance(table, nn.Embedding) and table.num_embeddings > 1 for table in tables)


def _base(model: nn.Module) -> PreTrainedModel:
    from transformers import PreTrainedModel  # two seconds to load, and a list of methods needs no model

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module.base_model
    raise EunoeError(
        f"{type(model).__name__} holds no transformers model. Pass a model made by transformers (AutoModelForMaskedLM, "
        "AutoModelForCausalLM, ...), or a module that keeps one in an attribute."
    )


def _layer(base: nn.Module, name: str, layer: nn.Module, family: Family) -> Layer:
    present = [_get(layer, norm) for norm in family.norms]
    return Layer(
        name=name,
        module=layer,
        attention_in=_find(layer, family.attention_in, base),
        attention_heads=tuple(_find(layer, part, base) for part in family.attention_heads),
        attention_proj=_find(layer, family.attention_proj, base),
        attention_out=_find(layer, family.attention_out, base),
        feed_forward_in=tuple(_find(layer, part, base) for part in family.feed_forward_in),
        feed_forward_proj=_find(layer, family.feed_forward_proj, base),
        feed_forward_out=_find(layer, family.feed_forward_out, base),
        norms=tuple(norm for norm in present if norm is not None and any(True for _ in norm.parameters())),
    )


def _every(base: nn.Module, pattern: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules a pattern with ``*`` names, in order, each with its dotted name."""
    head, star, rest = pattern.partition(".*")
    for name, module in _find(base, head, base).named_children() if star else [("", base)]:
        if not rest:
            yield f"{head}.{name}", module
        else:
            yield from ((f"{head}.{name}.{below}", deeper) for below, deeper in _every(module, rest.lstrip(".")))


def _get(module: nn.Module, name: str) -> nn.Module | None:
    reached: object = module
    for part in name.split("."):
        reached = getattr(reached, part, None)
    return reached if isinstance(reached, nn.Module) else None


def _find(module: nn.Module, name: str, base: nn.Module) -> nn.Module:
    reached = _get(module, name)
    if reached is None:
        raise EunoeError(
            f"{type(base).__name__} has no {name!r} in {type(module).__name__}: its row in FAMILIES of "
            "eunoe/models/anatomy.py does not fit the installed transformers. Correct it, or install transformers 5.23."
        )
    return reached


__all__ = [
    "FAMILIES",
    "RECURRENT",
    "Anatomy",
    "Family",
    "Layer",
    "Recurrent",
    "anatomy",
    "refuse_recurrent",
    "takes_token_types",
]
