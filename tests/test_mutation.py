"""The command that plants bugs: where it plants them, and that a larger sample goes on from a smaller one."""

import pytest

pytest.importorskip("cosmic_ray", reason="the command that plants bugs needs cosmic-ray")

from tests import mutation

SOURCE = '''"""Documented 1 + 1."""

from elsewhere import *

SIZE: int = 2 * 64
__all__ = ["a" + "b"]


def clamp(x: "int - 1", *, least: int = 3) -> "int * 2":
    """Return x + 1."""
    assert x > 0
    if x < least:
        raise ValueError(f"{x + 1} is less than {-least}")
    show(x, progress=not True)
    return max(x - 1, least)


class Model:
    def evaluate(self, x):
        self.eval()

        def score(y):
            return y.std(0, correction=0)

        return score(x)
'''


@pytest.fixture
def places(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(SOURCE)
    return mutation.positions(str(file))


def test_bugs_are_planted_where_they_can_change_a_result(places):
    found = mutation.draw(places, 1000, seed=0)
    lines = SOURCE.splitlines()
    planted = {lines[mutant.line - 1].strip(): mutant.function for mutant in found}
    assert planted == {
        "SIZE: int = 2 * 64": "",
        "if x < least:": "clamp",
        "show(x, progress=not True)": "clamp",
        "return max(x - 1, least)": "clamp",
        "self.eval()": "Model.evaluate",
        "return y.std(0, correction=0)": "Model.evaluate.<locals>.score",
    }
    codes = {mutant.code for mutant in found}
    assert len(codes) == len(found)
    for bug in (
        "y.std(0,**{})",
        "max(x + 1, least)",
        "        pass\n\n        def",
        "y.std( 1, correction=0)",
        "x <= least",
    ):
        assert any(bug in code for code in codes), bug


def test_a_larger_sample_holds_a_smaller_one(places):
    few, many = (mutation.draw(places, count, seed=3) for count in (4, 9))
    assert few == many[:4]
    assert mutation.draw(places, 4, seed=4) != few
