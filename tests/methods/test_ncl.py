from __future__ import annotations

from eunoe.methods import METHODS
from eunoe.methods.base import freeze, trainable
from eunoe.methods.ncl import Ncl, NclSettings
from tests.models.families import tiny


def test_all_weights_train_and_nothing_is_protected() -> None:
    model = tiny("bert")
    freeze(model)
    method = Ncl(model, NclSettings(), ["a", "b"])
    assert len(trainable(model)) == len(list(model.parameters()))
    assert method.protected() == {}
    assert method.state_dict() == {}
    assert method.forgets


def test_it_stands_in_the_table_of_methods() -> None:
    assert (METHODS["ncl"].method, METHODS["ncl"].settings) == (Ncl, NclSettings)
