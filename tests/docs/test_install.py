"""A wheel holds the four folders under one name, and takes no name of another package."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

PROGRAM = """
import sys
import kernels, vaebench
from vaebench.bench.session.read import load
from vaebench.kernels import reparam_kl
from vaebench.studies.sweep import main
from vaebench.vae import Run

assert kernels.whose == "another's", "the name kernels was taken"
assert reparam_kl.__module__ == "vaebench.kernels"
assert [name for name in sys.modules if name.split(".")[0] in ("vae", "bench", "studies")] == []
print(vaebench.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder into which a wheel of a copy of the sources was installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    copied = [
        name for name in files if name.startswith(("kernels", "vae", "bench", "studies", "pyproject", "README", "LIC"))
    ]
    for name in copied:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.exists():
            target.write_bytes(source.read_bytes())
    pip = [sys.executable, "-m", "pip", "-q"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(wheel, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", made], check=True, capture_output=True)
    return folder / "site"


def test_the_wheel_is_imported_as_vaebench_alone(installed, tmp_path):
    """Beside another package called kernels, from a folder that is no checkout."""
    (tmp_path / "kernels.py").write_text('whose = "another\'s"')
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [installed, tmp_path]))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "vaebench" / "__init__.py")


def test_the_wheel_has_the_template_of_the_report(installed):
    template = "studies/engine/report/template"
    files = {path.name for path in (ROOT / template).iterdir()}
    assert {path.name for path in (installed / "vaebench" / template).iterdir()} == files
    assert files == {"page.html", "page.css", "page.js"}


def test_the_wheel_has_nothing_beside_the_package(installed):
    assert {path.name for path in installed.iterdir()} - {"bin"} == {
        "vaebench",
        *(p.name for p in installed.glob("*.dist-info")),
    }


def test_a_checkout_without_links_is_imported_too(tmp_path):
    """As on a system whose git writes a link as a file that names its target."""
    (tmp_path / "vaebench").mkdir()
    for name in ("kernels", "pyproject.toml", "vaebench/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith((".py", ".toml")):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "vaebench" / "kernels").write_text("../kernels")
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    program = "from vaebench import kernels; print(kernels.__file__)"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd="/", env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "kernels" / "__init__.py"), done.stderr
