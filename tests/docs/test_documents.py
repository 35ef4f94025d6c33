"""What the documents show runs as it stands: examples in docstrings, and Python blocks in docs/ and README."""

import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from vaebench import kernels, vae
from vaebench.studies.engine.study.space import Space, check_space, find_unused
from vaebench.vae.config.run import FAMILIES, Run, unregister
from vaebench.vae.data import load
from vaebench.vae.training.fit import fit

MODULES = sorted(
    name
    for package in (kernels, vae)
    for name in [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]
    if ".gpu." not in name
) + [
    ".".join(("vaebench", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted((ROOT / "studies").rglob("*.py"))
    if ">>>" in path.read_text()
]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{i}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    import torch

    with torch.random.fork_rng():
        failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs={"torch": torch})
    assert failures == 0


@pytest.fixture
def _same_families():
    """Remove the families of objectives that an example registers: other tests run in this process."""
    before = set(FAMILIES)
    yield
    for name in set(FAMILIES) - before:
        unregister(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with the run that documents load."""
    folder = tmp_path_factory.mktemp("runs")
    fit(Run().replace({"model.hidden": (16,), "train.epochs": 1, "train.device": "cpu"}), folder=folder / "digits")
    return folder


@pytest.mark.usefixtures("_same_families")
@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_of_the_documents(block, tmp_path, monkeypatch, capsys, runs):
    monkeypatch.chdir(tmp_path)
    if "runs/digits" in block:
        Path("runs").symlink_to(runs)
    exec(compile(block, "<document>", "exec"), {"__name__": "document"})


def test_the_space_of_the_sweep_page_can_be_searched():
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/sweep.md").read_text(), re.MULTILINE | re.DOTALL)
    space = Space.from_tables("page", tomllib.loads(text))
    check_space(space, Run().replace(space.constants), load(Run().data))
    assert len(space.dimensions) == 5
    assert find_unused(space, Run().replace(space.constants)) == []


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
