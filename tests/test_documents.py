"""What the documents show runs as it stands: examples in docstrings, and Python blocks in docs/ and README."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import kernels
import vae

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    name
    for package in (kernels, vae)
    for name in [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]
    if not name.rpartition(".")[2].startswith("fused_")
)
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


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_of_the_documents(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "<document>", "exec"), {"__name__": "document"})


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
