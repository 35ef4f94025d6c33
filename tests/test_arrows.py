"""Which file may import which: torch <- kernels <- vae <- {bench, studies}, and inside these, floor by floor."""

import ast
import sys
from pathlib import Path

import pytest

from tests import ROOT

FOLDERS = ("kernels", "vae", "bench", "studies")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = {f"vaebench.{folder}" for folder in FOLDERS}
MATHS = {"torch", "numpy", "safetensors", "tqdm"}
PACKAGES = {
    "kernels": {"torch"},
    "vae": {"torchvision", "sklearn", "PIL", *MATHS},
    "bench": {"pandas", "pytest", "pytest_benchmark", "matplotlib", "torchvision", *MATHS},
    "studies": {
        *{"optuna", "pandas", "sqlalchemy", "jinja2", "markupsafe", "matplotlib", "torchvision", "PIL", "sklearn"},
        *MATHS,
    },
}
BELOW = {
    "kernels": {"kernels"},
    "vae": {"kernels", "vae"},
    "bench": {"kernels", "vae", "bench"},
    "studies": {"kernels", "vae", "studies"},
}
# What may be imported in one place alone.
ONLY_IN = {
    **dict.fromkeys(("numba", "llvmlite", "numpy"), "kernels/cpu/"),
    "triton": "kernels/gpu/",
    "mlflow": "studies/tracking/mlflow_",
    "ray": "studies/engine/launch/ray_",
    "pythae": "studies/experiments/library_training.py",
    "vl_convert": "studies/engine/report/vega.py",
}
EXCEPTIONS = {"studies/commands/track_bench.py": {"vaebench.bench.session.read"}}

# Floors of a folder, from below: a room may import those of lower floors.
FLOORS = {
    "kernels": [{"shared"}, {"arguments", "reference", "eager"}, {"cpu", "gpu"}, {"backends"}, {"adapters"}],
    "vae": [
        {"errors"},
        {"prob", "metrics"},
        {"config", "flows", "estimators"},
        {"data"},
        {"model"},
        {"objective"},
        {"training"},
        {"evaluation", "ensemble", "integrations", "adapters"},
    ],
    "studies": [
        {"machine", "image_grid", "learning_curves", "passwords", "whole_file"},
        {"pictures"},
        {"tracking"},
        {"command_line"},
        {"engine", "experiments", "auditing"},
        {"train", "sweep", "report", "reproduce", "track_bench", "audit"},
        {"commands"},
        {"overhead"},
    ],
    "studies/engine": [{"study", "processes"}, {"search"}, {"workers"}, {"driver"}, {"launch", "report"}],
    "bench": [
        {"timing"},
        {"cases", "session"},
        {"report", "conftest", "selfcheck", "bench_kernels", "bench_models", "bench_flows"},
        {"profile_step"},
    ],
}


def name_of(path):
    """Return the full name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("vaebench", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imported(path):
    """Return every module that a file imports, at any depth, relative ones by their full name."""
    package = ("vaebench", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def is_in(module, package):
    return module == package or module.startswith(f"{package}.")


def foreign(path):
    """Return what a file imports and may not: another folder of ours, or a package that its folder does without."""
    place, folder = path.relative_to(ROOT).as_posix(), path.relative_to(ROOT).parts[0]
    allowed = {f"vaebench.{name}" for name in BELOW[folder]} | PACKAGES[folder] | set(sys.stdlib_module_names)
    allowed |= EXCEPTIONS.get(place, set()) | {name for name, home in ONLY_IN.items() if place.startswith(home)}
    return {name for name in imported(path) if not any(is_in(name, one) for one in allowed)}


def rooms(folder):
    """Return the rooms of a folder with the other rooms of it that each imports."""
    package, found = name_of(ROOT / folder / "__init__.py"), {}
    for path in (ROOT / folder).rglob("*.py"):
        inside = [name.removeprefix(f"{package}.") for name in imported(path) if is_in(name, package)]
        room = name_of(path).removeprefix(f"{package}.").partition(".")[0]
        found.setdefault(room, set()).update(name.partition(".")[0] for name in inside)
    return {room: others & found.keys() - {room} for room, others in found.items() if room != "vaebench"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    assert not foreign(path), f"{path.relative_to(ROOT)} may not import these"


@pytest.mark.parametrize("folder", FLOORS)
def test_rooms_import_lower_floors_alone(folder):
    floor = {room: height for height, members in enumerate(FLOORS[folder]) for room in members}
    for room, others in rooms(folder).items():
        assert room in floor, f"{folder}/{room} stands on no floor: give it one in FLOORS"
        upwards = {other for other in others if floor[other] >= floor[room]}
        assert not upwards, f"{folder}/{room} may not import {upwards}"


@pytest.mark.parametrize(
    ("folder", "most", "floors"), [("kernels", 9, 5), ("vae", 14, 8), ("studies/engine", 8, 5), ("bench", 10, 4)]
)
def test_a_folder_can_be_taken_in_at_a_glance(folder, most, floors):
    assert len(rooms(folder)) <= most
    assert len(FLOORS[folder]) <= floors


def test_files_import_each_other_in_no_circle():
    names = {name_of(path): path for path in FILES}
    found = {}
    for name, path in names.items():
        hit = {next((n for n in (one, one.rpartition(".")[0]) if n in names), None) for one in imported(path)}
        found[name] = {one for one in hit if one and one != name and names[one].name != "__init__.py"}

    def walk(name, above):
        assert name not in above, f"a circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in sorted(found[name]):
                walk(other, [*above, name])
            done.add(name)

    done = set()
    for name in sorted(names):
        walk(name, [])


def test_kernels_name_themselves_only_relatively():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert "vaebench" not in path.read_text(), f"{path} could not be copied into another package"


def test_estimators_take_callables_and_know_no_model():
    models = ("vaebench.vae.model", "vaebench.vae.estimators.exact")
    for path in (ROOT / "vae" / "estimators").glob("*.py"):
        assert not [name for name in imported(path) if any(is_in(name, one) for one in models)]


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES if "__main__" in path.read_text()}))
def test_no_script_hides_a_module(folder):
    """A script puts its folder first on the path; a profile.py there would break cProfile."""
    packages = {"torch", "triton", "mlflow", "optuna", "pandas", "numpy", "pytest", "vaebench"}
    stems = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert not stems & (set(sys.stdlib_module_names) | packages)


@pytest.mark.parametrize(
    "line",
    [
        "import vaebench.vae.model",
        "from vaebench.vae import model",
        "from vaebench import vae",
        "def f():\n    import mlflow",
        "from .. import studies",
        "from ..vae.model import build",
    ],
)
def test_an_arrow_in_the_wrong_direction_is_found_however_it_is_written(line, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    planted = tmp_path / "kernels" / "planted.py"
    planted.parent.mkdir()
    planted.write_text(line)
    assert foreign(planted)


def test_an_arrow_up_the_floors_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name in ("model/build.py", "training/fit.py"):
        path: Path = tmp_path / "vae" / name
        path.parent.mkdir(parents=True)
        path.write_text("from vaebench.vae.training import fit")
    with pytest.raises(AssertionError, match="vae/model may not import"):
        test_rooms_import_lower_floors_alone("vae")
