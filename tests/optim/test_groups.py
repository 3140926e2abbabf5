"""Which weights are paired with which anchor: by name, from the model, a state dict or a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, anchored_groups, param_groups
from eunoe.optim.groups import Anchor
from eunoe.optim.names import plain_name

TINY = BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def pairs(groups: list[dict[str, object]]) -> dict[str, Tensor | None]:
    """Weight name -> its anchor, over all groups."""
    collected: dict[str, Tensor | None] = {}
    for group in groups:
        anchors = group["anchor"] or [None] * len(group["params"])  # type: ignore[arg-type]
        collected.update({name: a for (name, _), a in zip(group["params"], anchors, strict=True)})  # type: ignore[call-overload]
    return collected


def test_a_classifier_has_an_anchored_trunk_and_a_free_head() -> None:
    model = BertForSequenceClassification(TINY)
    groups = anchored_groups(model, weight_decay=0.1)
    paired = pairs(groups)
    assert set(paired) == {name for name, _ in model.named_parameters()}
    assert {name for name, anchor in paired.items() if anchor is None} == {"classifier.weight", "classifier.bias"}
    assert [(g["anchor"] is None, g["weight_decay"]) for g in groups] == [
        (False, 0.1),
        (False, 0.0),
        (True, 0.1),
        (True, 0.0),
    ]
    for group in groups:
        for name, weight in group["params"]:
            assert (weight.ndim >= 2) is (group["weight_decay"] > 0), name


def test_the_live_anchor_is_a_copy_that_training_does_not_move() -> None:
    model = BertForSequenceClassification(TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = RecAdam(anchored_groups(model), 1e-4, t0=1)
    for _ in range(3):
        model(input_ids=torch.arange(6)[None], labels=torch.tensor([1])).loss.backward()
        optimizer.step()
    for group in optimizer.param_groups:
        for name, anchor in zip(group["param_names"], group["anchor"] or [], strict=group["anchor"] is not None):
            assert torch.equal(anchor, before[name])
    assert not torch.equal(model.bert.pooler.dense.weight, before["bert.pooler.dense.weight"])


def saved(kind: str, state: dict[str, Tensor], folder: Path) -> Anchor:
    state = {name: value.clone() for name, value in state.items()}
    if kind == "state dict":
        return state
    if kind == "file":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    names = sorted(state)
    save_file({n: state[n] for n in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: state[n] for n in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    return str(folder)


@pytest.mark.parametrize("kind", ["state dict", "file", "folder of shards"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_a_checkpoint_is_paired_by_name_whatever_its_order_prefix_and_extra_weights(
    kind: str, prefixed: bool, tmp_path: Path
) -> None:
    base = BertModel(TINY, add_pooling_layer=False)
    prefix = "bert." if prefixed else ""
    state = {f"{prefix}{n}": p.detach() for n, p in reversed(list(base.named_parameters()))}
    state["cls.extra.weight"] = torch.ones(2, 2)
    model = BertForSequenceClassification(TINY)
    paired = pairs(anchored_groups(model, anchor=saved(kind, state, tmp_path)))
    expected = {f"bert.{n}": p for n, p in base.named_parameters()}
    for name, anchor in paired.items():
        if name in expected:
            assert anchor is not None
            assert torch.equal(anchor, expected[name])
        else:  # the head, and a pooler that the checkpoint does not have
            assert anchor is None
            assert "pooler" in name or "classifier" in name


def test_a_base_model_takes_the_checkpoint_of_a_model_with_a_head() -> None:
    lm = BertForMaskedLM(TINY)
    base = BertModel(TINY, add_pooling_layer=False)
    paired = pairs(anchored_groups(base, anchor=lm.state_dict()))
    assert all(anchor is not None for anchor in paired.values())
    assert torch.equal(paired["embeddings.word_embeddings.weight"], lm.bert.embeddings.word_embeddings.weight)  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
        self.out.weight = self.inp.weight


@pytest.mark.parametrize("kept_name", ["inp.weight", "out.weight"])
def test_a_tied_weight_appears_once_and_is_found_under_either_name(kept_name: str) -> None:
    anchor = torch.randn(6, 3)
    paired = pairs(anchored_groups(Tied(), anchor={kept_name: anchor}))
    assert list(paired) == ["inp.weight"]
    assert paired["inp.weight"] is anchor


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(pairs(anchored_groups(model))) == {"1.weight", "1.bias"}
    assert [name for g in param_groups(model, 0.1) for name, _ in g["params"]] == ["1.weight", "1.bias"]
    with pytest.raises(EunoeError, match="every weight of the model is frozen"):
        param_groups(model.requires_grad_(False), 0.1)


def test_plain_groups_spare_biases_and_norms_from_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    decay, none = param_groups(model, 0.1)
    assert ([n for n, _ in decay["params"]], decay["weight_decay"]) == (["0.weight"], 0.1)
    assert ([n for n, _ in none["params"]], none["weight_decay"]) == (["0.bias", "1.weight", "1.bias"], 0.0)


def test_an_enlarged_embedding_keeps_the_anchor_of_its_old_rows() -> None:
    model = BertForSequenceClassification(TINY)
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.resize_token_embeddings(23)
    optimizer = RecAdam(anchored_groups(model, anchor=state), 1e-4)
    model(input_ids=torch.tensor([[1, 22]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    assert model.bert.embeddings.word_embeddings.weight.shape == (23, 8)


def test_a_mis_shaped_anchor_is_refused_by_name() -> None:
    model = BertForSequenceClassification(TINY)
    state = dict(model.state_dict())
    state["bert.pooler.dense.weight"] = torch.ones(8, 9)
    with pytest.raises(EunoeError, match=r"bert.pooler.dense.weight has shape \(8, 9\); the weight has \(8, 8\)"):
        RecAdam(anchored_groups(model, anchor=state), 1e-5)


def test_an_anchor_that_matches_no_name_is_refused_with_names_of_both() -> None:
    with pytest.raises(EunoeError, match=r"the model has weight, bias.*the anchor has decoder.w"):
        anchored_groups(nn.Linear(2, 2), anchor={"decoder.w": torch.ones(2, 2)})


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match="no safetensors weights at"):
        anchored_groups(nn.Linear(2, 2), anchor=tmp_path)
    with pytest.raises(EunoeError, match="no safetensors weights at"):
        anchored_groups(nn.Linear(2, 2), anchor=tmp_path / "absent.safetensors")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 91\n"
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "broken.safetensors")
    whole = (tmp_path / "broken.safetensors").read_bytes()
    for damaged in (b"", b"not weights", pointer, whole[:-1], whole[:30], b"\xff" * 8 + whole[8:]):
        (tmp_path / "broken.safetensors").write_bytes(damaged)
        with pytest.raises(EunoeError, match=r"broken\.safetensors cannot be read: .* fetch or save it again"):
            anchored_groups(nn.Linear(2, 2), anchor=tmp_path)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_a_file_as_anchor_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    def own() -> int:  # Anonymous: not backed by a file, so the kernel cannot drop it and read it again
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    model = nn.Linear(2048, 2048, bias=False)
    model.weight.grad = torch.ones_like(model.weight)
    save_file({"weight": torch.zeros(2048, 2048)}, tmp_path / "w.safetensors")
    optimizer = RecAdam(anchored_groups(model), 1e-5)  # and a step, so that moments and code are in memory
    optimizer.step()
    optimizer.param_groups[0]["anchor"] = None
    before = own()
    optimizer.param_groups[0]["anchor"] = anchored_groups(model, anchor=tmp_path / "w.safetensors")[0]["anchor"]
    optimizer.step()
    assert own() - before < 4 * 2048 * 2048 // 4


def test_the_models_own_state_dict_is_copied_and_a_foreign_one_is_not() -> None:
    model = nn.Linear(2, 2)
    own, foreign = model.state_dict(), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    assert pairs(anchored_groups(model, anchor=own))["weight"].data_ptr() != model.weight.data_ptr()  # type: ignore[union-attr]
    assert pairs(anchored_groups(model, anchor=foreign))["weight"] is foreign["weight"]


# -- an anchor that does not fit ---------------------------------------------------------------------------------------
DENSE = "bert.encoder.layer.0.output.dense.weight"


def layers(n: int) -> BertConfig:
    return BertConfig(**{**TINY.to_diff_dict(), "num_hidden_layers": n})


def free_names(groups: list[dict[str, object]]) -> set[str]:
    return {name for name, anchor in pairs(groups).items() if anchor is None}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_slip_in_a_name_of_the_anchor_is_refused_with_both_names(prefixed: bool) -> None:
    model = BertForSequenceClassification(TINY)
    state = values(model if prefixed else model.bert)
    kept = DENSE if prefixed else DENSE.removeprefix("bert.")
    slip = kept.replace("dense", "dnse")
    state[slip] = state.pop(kept)
    with pytest.raises(EunoeError, match=f"without an anchor: {DENSE}.*is close to {slip}.*free=\\('{DENSE}',"):
        anchored_groups(model, anchor=state)
    model.get_parameter(DENSE).requires_grad_(False)  # so it needs no anchor, but the slip is still one
    with pytest.raises(EunoeError, match=f"has no weight: {slip}.*is close to encoder.layer.0.output.dense.weight"):
        anchored_groups(model, anchor=state)


def test_a_checkpoint_with_fewer_or_more_layers_is_refused_unless_they_are_said_to_be_new() -> None:
    one, two = BertForSequenceClassification(layers(1)), BertForSequenceClassification(layers(2))
    with pytest.raises(EunoeError, match=r"without an anchor: bert.encoder.layer.1.*\(16 names\)"):
        anchored_groups(two, anchor=values(one))
    with pytest.raises(EunoeError, match=r"for which the model has no weight: bert.encoder.layer.1.*\(16 names\)"):
        anchored_groups(one, anchor=values(two))
    for part in ("encoder.layer.1", "bert.encoder.layer.1"):
        new = free_names(anchored_groups(two, anchor=values(one), free=(part,)))
        assert new == {n for n, _ in two.named_parameters() if ".layer.1." in n or "classifier" in n}
        assert free_names(anchored_groups(one, anchor=values(two), free=(part,))) == {
            "classifier.weight",
            "classifier.bias",
        }


def test_an_anchor_of_one_bias_is_refused() -> None:
    model = BertForSequenceClassification(TINY)
    with pytest.raises(EunoeError, match=r"without an anchor: .*\(22 names\)"):
        anchored_groups(model, anchor={"bert.pooler.dense.bias": torch.zeros(8)})


def test_what_is_said_to_be_free_is_free_whatever_the_anchor_holds() -> None:
    model = BertForSequenceClassification(TINY)
    expected = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    for anchor in (None, values(model)):
        assert free_names(anchored_groups(model, anchor=anchor, free=["pooler"])) == expected


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (("poolr",), "free names 'poolr', but no weight"),
        (("encoder.lay",), "free names 'encoder.lay', but no weight's name is that or begins so"),
        ("pooler", r"takes several names: free=\('pooler',\)"),
    ],
)
def test_a_slip_in_free_is_refused(free: tuple[str, ...], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        anchored_groups(BertForSequenceClassification(TINY), free=free)


def test_a_whole_pooler_may_be_missing_on_either_side_and_a_part_of_it_may_not() -> None:
    model, lm = BertForSequenceClassification(TINY), BertForMaskedLM(TINY)
    assert {n.split(".")[-3] for n in free_names(anchored_groups(model, anchor=values(lm))) if "bert" in n} == {
        "pooler"
    }
    assert free_names(anchored_groups(lm, anchor=values(model))) == {n for n in values(lm) if n.startswith("cls")} - {
        "cls.predictions.decoder.weight",  # tied to the embedding
        "cls.predictions.decoder.bias",  # tied to cls.predictions.bias
    }
    state = values(model)
    del state["bert.pooler.dense.bias"]
    with pytest.raises(EunoeError, match=r"without an anchor: bert.pooler.dense.bias\. "):
        anchored_groups(model, anchor=state)


SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES: list[tuple[PretrainedConfig, set[str]]] = [
    (AlbertConfig(**SIZE, embedding_size=8), {"albert.pooler", "classifier"}),
    (RobertaConfig(**SIZE), {"classifier.dense", "classifier.out_proj"}),
    (DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32), {"pre_classifier", "classifier"}),
    (GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2), {"score"}),
    (T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2), {
        "classification_head.dense", "classification_head.out_proj",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("config", "new"), FAMILIES)
def test_a_classifier_takes_the_checkpoint_of_the_language_model_in_every_family(
    config: PretrainedConfig, new: set[str], tmp_path: Path
) -> None:
    kind = AutoModelForCausalLM if config.model_type == "gpt2" else AutoModelForMaskedLM
    lm = (T5ForConditionalGeneration if config.model_type == "t5" else kind.from_config)(config)
    lm.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_config(config)
    assert {name.rpartition(".")[0] for name in free_names(anchored_groups(model, anchor=tmp_path))} == new
    assert all(name not in model.state_dict() for name in free_names(anchored_groups(lm, anchor=tmp_path)))


def test_names_of_old_checkpoints_are_understood() -> None:
    model = BertForSequenceClassification(TINY)
    state = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): p
        for n, p in values(model).items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(16)[None]
    paired = pairs(anchored_groups(model, anchor=state))
    assert paired["bert.embeddings.LayerNorm.bias"] is state["bert.embeddings.LayerNorm.beta"]
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    state = {**values(gpt.transformer), "h.0.attn.bias": torch.ones(1), "h.0.attn.masked_bias": torch.ones(1)}
    assert free_names(anchored_groups(gpt, anchor=state)) == set()


# -- wrapped models ----------------------------------------------------------------------------------------------------
WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    nn.DataParallel,
    torch.compile,  # type: ignore[list-item]
    lambda m: torch.compile(nn.DataParallel(m)),  # type: ignore[return-value]
    lambda m: nn.DataParallel(torch.compile(m)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_has_the_trunk_and_the_names_of_the_model_in_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = BertForSequenceClassification(TINY)
    wrapped = wrap(model)
    head = {"classifier.weight", "classifier.bias"}
    for anchor in (None, values(wrapped), values(model), values(model.bert)):
        paired = pairs(anchored_groups(wrapped, anchor=anchor))
        assert set(paired) == {name for name, _ in wrapped.named_parameters()}
        assert {plain_name(name) for name, value in paired.items() if value is None} == head
        for name, value in paired.items():
            assert value is None or torch.equal(value, wrapped.get_parameter(name))
    assert free_names(anchored_groups(model, anchor=values(wrapped))) == head
    assert {plain_name(n) for n in free_names(anchored_groups(wrapped, free=["bert.pooler"]))} > head


def test_a_part_of_a_model_called_module_is_no_wrapper() -> None:
    model = nn.ModuleDict({"module": BertForSequenceClassification(TINY), "head": nn.Linear(2, 2)})
    assert free_names(anchored_groups(model)) == set()  # the whole of it is the trunk, as for any plain module
    assert free_names(anchored_groups(model, anchor=values(model))) == set()


# -- fewer rows --------------------------------------------------------------------------------------------------------
def test_fewer_rows_are_for_embeddings_and_a_weight_of_another_kind_is_refused_by_name() -> None:
    model = BertForSequenceClassification(TINY)
    state = values(model)
    state["bert.pooler.dense.weight"] = state["bert.pooler.dense.weight"][:3].clone()
    message = (
        r"anchor of weight bert.pooler.dense.weight has shape \(3, 8\); the weight has \(8, 8\).*Only an embedding"
    )
    with pytest.raises(EunoeError, match=message):
        anchored_groups(model, anchor=state)


class Lm(nn.Module):
    """All trunk, with a head of its own over the vocabulary."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.table, self.dense, self.out = nn.Embedding(tokens, 3), nn.Linear(3, 9), nn.Linear(3, tokens)


def test_a_head_over_the_vocabulary_grows_with_the_embedding() -> None:
    old, new = Lm(6), Lm(8)
    paired = pairs(anchored_groups(new, anchor=values(old)))
    assert {name: len(value) for name, value in paired.items() if value is not None} == {
        "table.weight": 6, "dense.weight": 9, "dense.bias": 9, "out.weight": 6, "out.bias": 6,
    }  # fmt: skip
    RecAdam(anchored_groups(new, anchor=values(old)), 1e-5)
    state = {**values(old), "dense.bias": torch.zeros(6)}
    with pytest.raises(EunoeError, match=r"dense.bias has shape \(6,\); the weight has \(9,\)"):
        anchored_groups(new, anchor=state)
