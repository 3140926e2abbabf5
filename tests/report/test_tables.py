"""From rows to numbers and sentences: worked examples, holes, contradictions, and the width of a terminal."""

from __future__ import annotations

import csv
import doctest
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eunoe.errors import EunoeError
from eunoe.report import answer as answers
from eunoe.report import files, metrics
from eunoe.report import matrices as matrix_rows
from eunoe.report import summary as summaries
from eunoe.report.classes import class_counts
from eunoe.report.matrices import matrices, write_matrix
from eunoe.report.metrics import metric_of, number
from eunoe.report.page import write_report
from eunoe.report.retention import kept_by_domains
from eunoe.report.schema import Row
from eunoe.report.summary import summarize
from eunoe.report.terminal import print_summary
from tests.report.made_up import DOMAINS, made_up_rows, made_up_run


def loss(method: str, learnt: tuple[str, ...], task: str, value: float, seed: int = 0, order: str = "given") -> Row:
    return Row(run="r", method=method, transfer=None, order=order, seed=seed, shots_seed=None, learnt=learnt, task=task,
               metric="lm_loss", value=value, n=100, steps=1)  # fmt: skip


def score(
    method: str, learnt: tuple[str, ...], task: str, value: float, metric: str = "accuracy", shots: int = 1
) -> Row:
    return replace(loss(method, learnt, task, value), transfer="finetune", shots_seed=shots, metric=metric)


# Domain a: 2.0 right after, 2.5 at the end; b: 3.0. Pretrained: 4.0 and 5.0.
SMALL = [
    loss("base", (), "a", 4.0), loss("base", (), "b", 5.0), loss("base", (), "general", 6.0),
    loss("ncl", ("a",), "a", 2.0), loss("ncl", ("a", "b"), "a", 2.5), loss("ncl", ("a", "b"), "b", 3.0),
    loss("ncl", ("a", "b"), "general", 6.25),
]  # fmt: skip


def answer(rows: list[Row]) -> str:
    return answers.answer(summarize(rows))


def printed(rows: list[Row], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_summary(rows, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_examples_of_the_docstrings_hold() -> None:
    results = [doctest.testmod(module) for module in (answers, files, matrix_rows, metrics, summaries)]
    assert sum(one.attempted for one in results) >= 7
    assert sum(one.failed for one in results) == 0


def many(*methods: tuple[str, float, float], seeds: Sequence[int] = (0,), wobble: float = 0.0) -> list[Row]:
    """Base rows, and for each (name, loss of a right after learning, loss of a at the end); b is 3.0. With the seed both losses of a rise
    by ``wobble``, for all methods alike."""
    rows = []
    for seed in seeds:
        rows += [replace(row, seed=seed) for row in SMALL[:3]]
        for name, after, end in methods:
            rows += [replace(loss(name, learnt, task, value), seed=seed) for learnt, task, value in
                     ((("a",), "a", after + wobble * seed), (("a", "b"), "a", end + wobble * seed), (("a", "b"), "b", 3.0))]  # fmt: skip
    return rows


def test_the_heading_names_the_best_two_at_the_end_and_the_naive_one() -> None:
    methods = [(f"m{k:02}", 2.0, 2.0 + k / 100) for k in range(26)]
    heading, sure = answers.heading_and_doubts(summarize(many(("ncl", 1.5, 3.0), *reversed(methods))), ["ncl"])
    assert heading == (
        "Best at the end of 27 methods is m00, which learnt 2.000 nats of its domains' language and forgot exactly 0; "
        "next comes m01, which learnt 2.000 and forgot 0.010; naive training (ncl) learnt 2.250 and forgot 1.500."
    )
    assert sure.startswith(" At the end m00 is 0.005 nats ahead of m01 and 0.500 ahead of ncl. Without ±: one sequence")


def test_the_naive_method_is_known_by_what_the_run_says_of_it_and_comes_in_its_place() -> None:
    rows = many(("plain", 1.0, 1.0), ("ewc", 2.0, 2.1))
    heading, _ = answers.heading_and_doubts(summarize(rows), ["plain"])
    assert heading == (
        "Best at the end is naive training (plain), which learnt 2.500 nats of its domains' language and forgot exactly 0; "
        "next comes ewc, which learnt 2.000 and forgot 0.100."
    )
    assert "naive" not in answers.heading_and_doubts(summarize(rows))[0]


def test_the_best_of_those_that_forgot_nothing_is_named_where_it_is_not_among_the_best() -> None:
    methods = [("good", 1.0, 1.2), ("fair", 1.0, 1.4), ("stays", 2.0, 2.0), ("also", 2.5, 2.5), ("ncl", 0.5, 3.0)]
    heading, _ = answers.heading_and_doubts(summarize(many(*methods)), ["ncl"])
    assert heading.endswith(
        "naive training (ncl) learnt 2.750 and forgot 2.500. stays forgot exactly 0 (like 1 other) and learnt 2.000."
    )
    assert "exactly 0" not in answers.heading_and_doubts(summarize(many(*methods[:2], methods[-1])), ["ncl"])[0]


def test_of_equal_ends_the_one_that_forgot_less_comes_first_and_nobody_is_called_ahead() -> None:
    heading, sure = answers.heading_and_doubts(summarize(many(("moves", 2.0, 2.5), ("stays", 2.5, 2.5), seeds=(0, 1))))
    assert heading.startswith("Best at the end is stays, which learnt 1.750")
    assert sure.startswith(" stays and moves end exactly alike.")
    assert "ahead of" not in sure


def test_who_is_ahead_is_judged_by_paired_sequences() -> None:
    """Between seeds both move by far more than they differ: their own intervals overlap, that of their difference is clear of 0."""
    rows = many(("near", 2.0, 2.02), ("far", 2.0, 2.12), seeds=(0, 1, 2), wobble=0.3)
    near, far = (line.final for line in summarize(rows).lines[1:])
    assert near is not None and far is not None and near.interval and far.interval  # noqa: PT018
    assert near.interval[1] > far.interval[0]
    sure = answers.heading_and_doubts(summarize(rows))[1]
    assert sure.startswith(" At the end near is 0.050 nats ahead of far.") or "0.050 ± 0.000 nats ahead of far" in sure
    assert "differences are over 3 paired sequences" in sure


def test_what_cannot_be_distinguished_is_said_and_counted() -> None:
    rows = many(("a1", 2.0, 2.0), ("a2", 2.0, 2.01), ("a3", 2.0, 2.02), ("bad", 2.0, 3.0), seeds=(0, 1, 2))
    noise = {(m, s): 0.05 * (-1) ** (k + s) for k, m in enumerate(("a1", "a2", "a3")) for s in (0, 1, 2)}
    rows = [replace(r, value=r.value + noise.get((r.method, r.seed), 0.0)) for r in rows]
    _, sure = answers.heading_and_doubts(summarize(rows))
    assert "cannot be distinguished at the end: " in sure
    assert "1 more cannot be distinguished from " in sure
    assert "bad" not in sure


def test_a_method_whose_scores_are_missing_is_no_candidate() -> None:
    rows = [
        r
        for r in many(("best", 2.0, 2.0), ("good", 2.0, 2.1), ("poor", 2.0, 2.9))
        if r.method != "best" or r.task != "b"
    ]
    heading, sure = answers.heading_and_doubts(summarize(rows))
    assert heading.startswith("Best at the end is good")
    assert "Unfinished: 1 sequence still lacks scores." in sure


def test_a_matrix_has_a_row_for_each_learnt_domain_and_none_where_nothing_was_measured() -> None:
    (scores,) = matrices(SMALL)
    assert scores.domains == ("a", "b")
    assert scores.seeds == {0: [[2.0, None], [2.5, 3.0]]}
    assert scores.before == {0: [4.0, 5.0]}
    assert scores.tasks == (0, 1)
    assert scores.n == {0: 100, 1: 100}


def test_the_summary_of_a_small_run_worked_by_hand() -> None:
    summary = summarize(SMALL)
    base, ncl = summary.lines
    assert (base.label, base.final and base.final.mean) == ("base", 4.5)
    assert ncl.final is not None and ncl.forgetting is not None and ncl.backward is not None and ncl.forward is not None  # noqa: PT018
    assert ncl.final.mean == 2.75
    assert ncl.forgetting.mean == 0.5
    assert ncl.backward.mean == -0.5
    assert ncl.forward.mean == 2.0  # (4.0 - 2.0 + 5.0 - 3.0) / 2: what each domain gained over the pretrained model
    assert ncl.forgetting.interval is None
    (general,) = summary.general
    assert general.change is not None
    assert general.change.mean == 0.25
    assert answers.answer(summary) == (
        "ncl learnt 2.000 nats of its domains' language and forgot 0.500. Without ±: one sequence, so nothing says how "
        "much another seed would change."
    )
    assert summary.unfinished == []


def test_averages_over_seeds_carry_students_interval() -> None:
    rows = SMALL + [replace(row, seed=1, value=row.value + (0.25 if len(row.learnt) == 2 else 0)) for row in SMALL]
    line = summarize(rows).lines[1]
    assert line.forgetting is not None
    assert line.forgetting.values == (0.5, 0.75)
    assert line.n == 2
    interval = line.forgetting.interval
    assert interval is not None
    assert interval[1] - 0.625 == pytest.approx(12.706204736 * 0.125, rel=1e-6)  # t(0.975, 1 df) * sd / sqrt(2)


def test_orders_and_seeds_are_pooled_per_method_and_each_order_keeps_its_matrix() -> None:
    other = {"a": "b", "b": "a", "general": "general"}
    turned = [replace(r, order="ba", task=other[r.task], learnt=tuple(other[d] for d in r.learnt)) for r in SMALL]
    assert [s.domains for s in matrices(SMALL + turned)] == [("a", "b"), ("b", "a")]
    line = summarize(SMALL + turned).lines[1]
    assert line.n == 2
    assert line.per_domain["a"].values == (0.5,)
    assert line.per_domain["b"].values == (0.5,)


def test_the_answer_orders_methods_by_forgetting_and_tells_an_exact_zero_from_a_rounded_one() -> None:
    rows = made_up_rows()
    told = answer(rows)
    assert "cpt, which learnt 0.746 ± 0.017 and forgot exactly 0." in told
    assert "On the end tasks ncl forgot 6.7 ± 1.0 accuracy points, cpt exactly 0." in told
    nudged = [replace(r, value=r.value + 1e-9) if r.method == "cpt" and r.learnt == DOMAINS else r for r in rows]
    assert "cpt, which learnt 0.746 ± 0.017 and forgot 0.000" in answer(nudged)
    assert "0 (exactly)" not in printed([r for r in nudged if r.metric == "lm_loss" and r.task != "general"])


def test_drops_that_cancel_are_no_exact_zero() -> None:
    rows = [
        score("m", ("a",), "a", 0.5), score("m", ("a", "b"), "b", 0.5), score("m", ("a", "b", "c"), "c", 0.5),
        score("m", ("a", "b", "c"), "a", 0.75), score("m", ("a", "b", "c"), "b", 0.25),
    ]  # fmt: skip
    (line,) = summarize(rows).lines
    assert line.forgetting is not None
    assert line.forgetting.mean == 0
    assert not line.forgetting.exact
    assert answer(rows) == (
        "m forgot 0.0 accuracy points on its domains' end tasks. Without ±: one sequence, so nothing says how much another seed would "
        "change."
    )


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((1.5,), "-0.500. Without ±: one sequence, so nothing says how much another seed would change."),
        ((1.5, 1.49), "-0.505 ± 0.064. Clearly below 0: later domains helped."),
        (
            (1.5, 2.4),
            "-0.050 ± 5.718 (interval contains 0). Where the interval contains 0, it cannot be distinguished from 0.",
        ),
        ((1.5, 1.5), "-0.500. Without ±: equal in all sequences."),
        ((2.5, 2.51), "0.505 ± 0.064."),
    ],
)
def test_the_answer_claims_no_more_than_the_interval_does(ends: tuple[float, ...], told: str) -> None:
    rows = [
        replace(r, seed=seed, value=end if r.learnt == ("a", "b") and r.task == "a" else r.value)
        for seed, end in enumerate(ends)
        for r in SMALL
    ]
    assert answer(rows) == f"ncl learnt 2.000 nats of its domains' language and forgot {told}"


def test_the_answer_marks_each_figure_by_itself() -> None:
    ends = [score("ncl", ("a",), "a", 0.5), score("ncl", ("a", "b"), "a", 0.75), score("ncl", ("a", "b"), "b", 0.5)]
    rows = [replace(r, seed=seed, value=r.value + seed / 100 * len(r.learnt)) for seed in (0, 1) for r in SMALL]
    rows += [*ends, *(replace(r, seed=1, value=0.5) for r in ends)]
    assert answer(rows) == (
        "ncl learnt 1.993 ± 0.095 nats of its domains' language and forgot 0.505 ± 0.064. On the end tasks ncl forgot "
        "-12.5 ± 158.8 (interval contains 0) accuracy points. Where the interval contains 0, it cannot be distinguished from 0."
    )


def test_one_domain_has_nothing_to_forget_but_a_gain_over_the_pretrained_model() -> None:
    rows = [row for row in SMALL if len(row.learnt) < 2 and row.task == "a"]
    summary = summarize(rows)
    assert answers.answer(summary).startswith("One domain was learnt (a), so nothing could be forgotten yet")
    line = summary.lines[1]
    assert line.forgetting is None
    assert line.forward is not None
    assert line.forward.mean == 2.0
    assert summary.unfinished == []
    assert "One domain was learnt" in printed(rows)


def test_domains_without_an_end_task_are_left_out_of_its_averages_only() -> None:
    ends = [score("ncl", ("a",), "a", 0.75), score("ncl", ("a", "b"), "a", 0.5)]
    summary = summarize(SMALL + ends)
    line = summary.lines[-1]
    assert line.metric.name == "accuracy"
    assert line.final is not None and line.forgetting is not None  # noqa: PT018
    assert (line.final.mean, line.forgetting.mean) == (0.5, 0.25)
    assert summary.unfinished == []
    assert answers.answer(summary) == (
        "ncl learnt 2.000 nats of its domains' language and forgot 0.500. On the end tasks ncl forgot 25.0 accuracy "
        "points. Without ±: one sequence, so nothing says how much another seed would change."
    )


def test_a_run_without_end_tasks_or_base_rows_is_told_by_its_loss() -> None:
    rows = made_up_rows(end_tasks=False, base=False)
    assert answer(rows).startswith("Best at the end is ncl, which forgot 0.1")
    assert "next comes cpt, which forgot exactly 0. At the end" in answer(rows)
    assert all(line.forward is None for line in summarize(rows).lines)
    assert "forward transfer" in printed(rows)


def test_an_unfinished_run_is_summarized_as_far_as_it_goes() -> None:
    summary = summarize([row for row in SMALL if (row.learnt, row.task) != (("a", "b"), "a")])
    assert summary.unfinished == [
        "unfinished: ncl (order given, seed 0) lacks 1 of 3 scores, first lm_loss of a after b"
    ]
    assert answers.answer(summary) == "Unfinished: no method has all the scores that forgetting is counted from."
    early = summarize([row for row in SMALL if len(row.learnt) < 2])
    assert "lacks 2 of 3 scores, first lm_loss of a after b" in early.unfinished[0]


@pytest.mark.parametrize("length", [1, 5, 14, 15, 30, 31, 60, 100, 150, 200])
def test_any_beginning_of_a_run_can_be_printed(length: int) -> None:
    text = printed(made_up_rows()[:length])
    assert text.strip()


def test_base_rows_alone_say_that_nothing_was_learnt() -> None:
    assert answer([r for r in SMALL if r.method == "base"]).startswith("No domain has been learnt yet")


def test_a_model_scored_on_its_own_stands_beside_the_methods() -> None:
    heads = [
        loss("head-start", (), "general", 10.5, order="none"),
        loss("head-trained", (), "general", 6.0, order="none"),
    ]
    summary = summarize(heads + SMALL)
    assert [(g.label, g.before and g.before.mean, g.n) for g in summary.general] == [
        ("head-start", 10.5, 1),
        ("head-trained", 6.0, 1),
        ("ncl", 6.0, 1),
    ]
    assert summary.unfinished == []


def test_an_evaluation_of_diagonal_and_last_row_is_not_unfinished() -> None:
    rows = [
        r for r in made_up_rows() if not r.learnt or r.transfer is None or r.task == r.learnt[-1] or r.learnt == DOMAINS
    ]
    assert summarize(rows).unfinished == []
    assert answer(rows) == answer(made_up_rows())


def test_scores_of_several_few_shot_samples_are_one_sequence() -> None:
    rows = [
        score("m", ("a",), "a", 0.5, shots=1), score("m", ("a",), "a", 1.0, shots=2), score("m", ("a", "b"), "a", 0.5, shots=1),
        score("m", ("a", "b"), "b", 0.5, shots=1), score("m", ("a", "b"), "b", 0.5, shots=2),
    ]  # fmt: skip
    assert matrices(rows)[0].seeds == {0: [[0.75, None], [None, 0.5]]}  # a's second sample is still owed at the end
    rows.append(score("m", ("a", "b"), "a", 0.25, shots=2))
    line = summarize(rows).lines[0]
    assert line.forgetting is not None
    assert line.forgetting.values == (0.375,)


def test_methods_of_several_runs_are_told_apart_only_where_they_clash() -> None:
    rows = made_up_rows(run="one") + made_up_rows(run="two", methods=("ncl", "ewc"))
    labels = {line.label for line in summarize(rows).lines}
    assert {"one: ncl", "two: ncl", "cpt", "ewc"} <= labels
    assert answer(rows).startswith("Best at the end of 4 methods is ")
    assert "naive training (one: ncl)" in answers.answer(summarize(rows), ["one: ncl", "two: ncl"])


def test_rows_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(EunoeError, match=r"two rows of run 'r' give lm_loss of 'a'.*as 2.0 and 2.125"):
        summarize([*SMALL, loss("ncl", ("a",), "a", 2.125)])
    with pytest.raises(EunoeError, match=r"order 'given' of run 'r' is learnt as .*Rows of one order must agree"):
        summarize([*SMALL, loss("cpt", ("b",), "b", 2.0)])
    assert answer([*SMALL, SMALL[3]]) == answer(SMALL)


def test_the_terminal_table_fits_80_columns() -> None:
    text = printed(made_up_rows(methods=("a-method-with-quite-a-long-name", "cpt")))
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text
    assert "…" not in text  # nothing was cut off
    for word in ("at the end", "forgotten", "backward", "forward transfer", "0 (exactly)", "general text"):
        assert word in text
    assert "[/red]" in printed([replace(r, method="[/red]") if r.method == "ncl" else r for r in SMALL])


def test_matrix_csv_holds_every_row_in_full_precision(tmp_path: Path) -> None:
    rows = made_up_rows()
    write_matrix(rows, tmp_path / "matrix.csv")
    with open(tmp_path / "matrix.csv", encoding="utf-8", newline="") as file:
        held = list(csv.DictReader(file))
    assert [float(line["value"]) for line in held] == [row.value for row in rows]
    assert held[0]["learnt"] == "0"
    assert held[-1]["after"] == DOMAINS[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.csv"]


def test_metrics_are_read_in_their_own_units() -> None:
    names = ("matthews", "accuracy_mm", "f1", "lm_loss@brown", "anchor_distance", "cka@x")
    told = [(metric_of(name).title, number(0.4321, metric_of(name))) for name in names]
    assert told == [("Matthews", "43.2"), ("Accuracy, mismatched", "43.2"), ("F1", "43.2"), ("LM loss of brown", "0.432"),
                    ("Distance to the pretrained weights", "0.43"), ("CKA on x", "0.432")]  # fmt: skip


def retained(row: Row) -> list[Row]:
    """What a run over domains may say of a fine-tuning beside its score."""
    return [
        replace(row, metric="lm_loss@brown", value=4.5, detail={"before": 4.25 if row.method == "cpt" else 4.0}),
        replace(row, metric="cka@brown", value=0.75, detail={"layers": {"0": 1.0, "1": 0.5}}),
        replace(row, metric="anchor_distance", value=2.0, detail={"layers": {"embeddings": 2.0}}),
        replace(row, at="best", value=0.99),
    ]  # fmt: skip


def test_measures_of_retention_and_best_scores_change_no_matrix(tmp_path: Path) -> None:
    rows = made_up_rows()
    more = [r for row in rows for r in [row, *(retained(row) if row.learnt and row.metric == "accuracy" else [])]]
    assert len(more) > len(rows)
    assert summarize(more) == summarize(rows)
    assert class_counts(more) == class_counts(rows)
    for name, held in (("one", rows), ("two", more)):
        write_matrix(held, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_run_over_domains_tells_what_fine_tuning_left_after_its_last_domain(tmp_path: Path) -> None:
    rows = made_up_rows()
    more = rows + [r for row in rows if row.learnt and row.metric == "accuracy" for r in retained(row)]
    early = [replace(r, value=9.0) if r.metric == "lm_loss@brown" and r.learnt != DOMAINS else r for r in more]
    held = kept_by_domains(early, {("four_domains", m): m for m in ("base", "ncl", "cpt")})
    assert [(one.task, one.label) for one in held] == [(d, m) for d in DOMAINS for m in ("ncl", "cpt")]
    assert [one.texts["brown"].change.values for one in held[:2]] == [(0.5,) * 3, (0.25,) * 3]
    assert held[0].distance is not None
    assert held[0].distance.values == (2.0,) * 3
    text = printed(more)
    assert "4.000 > 4.500" in text
    assert max(map(len, text.splitlines())) <= 80
    run = made_up_run(tmp_path / "r", more)
    for words in ("How much of the pretrained model is preserved", "4.250 → 4.500", "acl_abstracts, layer by layer"):
        assert words in write_report([run]).read_text(encoding="utf-8")


def test_class_counts_are_summed_over_seeds_and_never_twice() -> None:
    counts = class_counts(made_up_rows(seeds=(0, 1)))
    states = counts[("four_domains", "finetune", DOMAINS[0])]
    assert list(states) == [("base", "before"), ("ncl", "learnt"), ("ncl", "end"), ("cpt", "learnt"), ("cpt", "end")]
    assert sum(c["support"] for c in states[("cpt", "end")].values()) == 400
    assert states[("cpt", "learnt")] == states[("cpt", "end")]
    broken = [replace(r, detail={"x": {"support": "many"}}) for r in made_up_rows(seeds=(0,))]
    assert class_counts(broken) == {}
