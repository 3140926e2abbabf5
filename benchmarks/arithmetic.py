"""The arithmetic a step of post-training cannot do without, in FLOP a token: what its speed is held against.

Matrix products only, 2 FLOP a multiplication with addition. A frozen weight costs 2 FLOP a token forward and 2 for the
gradient of its input; a trained one 2 more for its own gradient; the two products of attention have no weight and cost their
forward twice again. The vocabulary product counts at the target positions, and nothing below the first trained
weight is traversed backward. ``tests/test_benchmarks.py`` holds these counts to sums by hand and to torch's counter.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A masked LM of BERT's kind, whose head is a dense layer and the vocabulary product, read in rows of ``block`` tokens."""

    layers: int
    width: int
    inner: int
    vocabulary: int
    block: int

    @property
    def projections(self) -> int:
        """Weights of one layer's query, key, value and output."""
        return 4 * self.width**2

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        return self.projections + 2 * self.width * self.inner

    @property
    def attention(self) -> int:
        """Products a token of one layer's two attention products, forward: scores, and their sum over values."""
        return 2 * self.block * self.width

    @property
    def head(self) -> int:
        """Weights of the head's dense layer and the vocabulary product."""
        return self.width**2 + self.width * self.vocabulary


def all_weights(shape: Shape, targets: float) -> float:
    """FLOP a token of a step in which every weight trains; ``targets``: the share of target positions, which reach the head."""
    forward = shape.layers * (shape.layer + shape.attention) + targets * shape.head
    return 2 * 3 * forward


def plugins_alone(shape: Shape, attention_size: int, ffn_size: int, targets: float) -> float:
    """FLOP a token of CPT's step: the model and its head frozen, plug-ins of these inner sizes train (sequential)."""
    plugins = 2 * shape.width * (attention_size + ffn_size)
    forward = shape.layers * (shape.layer + shape.attention + plugins)
    # the first plug-in reads what no trained weight has touched: no gradient goes to its input or below
    below = shape.projections + 2 * shape.attention + shape.width * attention_size
    inputs = shape.layers * (shape.layer + 2 * shape.attention + plugins) - below
    own = shape.layers * plugins
    return 2 * (forward + inputs + own + targets * 2 * shape.head)


def as_released(shape: Shape, attention_size: int, ffn_size: int) -> float:
    """FLOP a token of the step of CPT's release: every position reaches the head, whose dense layer trains, and so do all
    LayerNorms, down to the embeddings'."""
    plugins = 2 * shape.width * (attention_size + ffn_size)
    forward = shape.layers * (shape.layer + shape.attention + plugins)
    inputs = shape.layers * (shape.layer + 2 * shape.attention + plugins)
    own = shape.layers * plugins + shape.width**2
    return 2 * (forward + inputs + own + 2 * shape.head)
