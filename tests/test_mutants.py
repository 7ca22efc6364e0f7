"""The table of seeded bugs fits the code; make mutants tries them."""

from __future__ import annotations

import pytest
from mutants.__main__ import ROOT, mutate
from mutants.table import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_occurs_once_and_its_tests_exist(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text()
        assert f"def {name.partition('[')[0]}(" in text or not name


def test_there_are_sixteen_of_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) == 16


def test_a_bug_that_does_not_fit_is_told(tmp_path: object) -> None:
    with pytest.raises(AssertionError, match="occurs 0 times"):
        mutate(ROOT, MUTANTS[0]._replace(old="no such text"))
