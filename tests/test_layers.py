"""The arrows between the folders: torch <- kernels <- vae <- {bench, studies}, and nothing else."""

import ast
import sys

import pytest

from tests import ROOT

FOLDERS = ("kernels", "vae", "bench", "studies")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MATHS = {"torch", "numpy", "safetensors", "tqdm"}
ALLOWED = {
    "kernels": {"torch"},
    "vae": {"kernels", "vae", "torchvision", "sklearn", "PIL", *MATHS},
    "bench": {"kernels", "vae", "bench", "pandas", "pytest", "pytest_benchmark", "matplotlib", "torchvision", *MATHS},
    "studies": {
        *{"kernels", "vae", "studies", "optuna", "pandas", "sqlalchemy", "jinja2", "markupsafe"},
        *{"matplotlib", "torchvision", "PIL", "sklearn", *MATHS},
    },
}
SHARED_BY_STUDIES = {"exits", "machine", "pictures", "pool", "provenance", "records", "rows", "tracking"}
CALLABLES_ONLY = {"evidence", "mcmc", "ais", "gradients"}


def imported(path):
    """Return every module that a file imports, at any depth, relative ones resolved to their full name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("vaebench.") for name in found - {"vaebench"}}


def foreign(path, allowed):
    tops = {name.partition(".")[0] for name in imported(path)}
    return tops - allowed - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    folder = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[folder]
    if folder == "kernels":
        allowed = allowed | {"kernels"} | ({"triton"} if path.parent.name == "gpu" else set())
    if path == ROOT / "studies" / "tracking.py":
        allowed = allowed | {"mlflow"}
    if path == ROOT / "studies" / "engine" / "actors.py":
        allowed = allowed | {"ray"}
    assert not foreign(path, allowed), f"{path.relative_to(ROOT)} may not import these"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_name_themselves_only_relatively(path):
    absolute = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("vaebench"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("vaebench") for alias in node.names))
    ]
    assert not absolute


@pytest.mark.parametrize("name", sorted(CALLABLES_ONLY))
def test_estimators_take_callables_and_know_no_model(name):
    path = ROOT / "vae" / f"{name}.py"
    known = {
        module
        for module in imported(path)
        if module.startswith(
            (
                "vaebench.vae.model.autoencoder.autoencoder",
                "vaebench.vae.estimators.exact",
                "vaebench.vae.model.autoencoder.autoencoder.networks",
            )
        )
    }
    assert not known


@pytest.mark.parametrize("path", sorted((ROOT / "studies" / "engine").glob("*.py")), ids=lambda path: path.name)
def test_the_engine_knows_no_command(path):
    parts = [name.split(".") for name in imported(path) if name.startswith("studies.")]
    assert {name[1] for name in parts} <= SHARED_BY_STUDIES | {"engine"}


@pytest.mark.parametrize("name", sorted(SHARED_BY_STUDIES))
def test_what_studies_share_knows_neither_engine_nor_command(name):
    parts = [name.split(".") for name in imported(ROOT / "studies" / f"{name}.py") if name.startswith("studies.")]
    assert {name[1] for name in parts} <= SHARED_BY_STUDIES


@pytest.mark.parametrize("folder", ["bench", "studies"])
def test_no_script_hides_a_module(folder):
    """Scripts put their folder first on the path for a moment; a profile.py there would break cProfile."""
    packages = {"torch", "triton", "mlflow", "optuna", "pandas", "numpy", "kernels", "vae", "pytest"}
    stems = {path.stem for path in (ROOT / folder).glob("*.py")}
    assert not stems & (set(sys.stdlib_module_names) | packages)


def test_the_walker_sees_what_it_should(tmp_path, monkeypatch):
    """A planted arrow in the wrong direction is found, whatever way it is written."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    planted = tmp_path / "kernels" / "planted.py"
    planted.parent.mkdir()
    for line in (
        "import vaebench.vae.model.autoencoder",
        "from vaebench.vae import model",
        "def f():\n    import mlflow",
        "from .. import studies",
    ):
        planted.write_text(line)
        assert foreign(planted, ALLOWED["kernels"] | {"kernels"}), line
