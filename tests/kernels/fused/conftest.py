"""All tests of this folder run where errors show: fresh memory is full of NaN, and bfloat16 is rounded as on a GPU."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def environment():
    from tests.fused_checks import harsh_environment  # imported late, because it skips a module that cannot run

    with harsh_environment():
        yield
