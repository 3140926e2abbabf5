from __future__ import annotations

import pytest

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown


def test_a_known_name_gives_its_entry() -> None:
    assert lookup({"ncl": 1, "cpt": 2}, "cpt", "method") == 2


def test_an_unknown_name_gets_close_matches_and_all_that_is_allowed() -> None:
    with pytest.raises(EunoeError, match=r"^unknown method 'cptt'\. Did you mean cpt\? Allowed: cpt, ncl\.$"):
        lookup({"ncl": 1, "cpt": 2}, "cptt", "method")


def test_case_does_not_hide_a_close_match() -> None:
    assert "Did you mean LABEL?" in str(unknown("label", ["LABEL", "TEXT"], "column"))
    assert "Did you mean label?" in str(unknown("Label", ["label", "text"], "column"))


def test_a_name_far_from_all_gets_no_guess() -> None:
    assert str(unknown("zebra", ["cpt"], "method")) == "unknown method 'zebra'. Allowed: cpt."
    assert str(unknown("zebra", [], "method")) == "unknown method 'zebra'. Allowed: none."
