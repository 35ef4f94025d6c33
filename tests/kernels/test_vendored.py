"""The folder kernels/, copied alone into an empty project under another name, works there; triton stays out of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SOURCE = ROOT / "kernels"

PROGRAM = """
import importlib.util, sys
import torch
from borrowed.latent_ops import log_aggregate, mmd2, normal_noise, reparam_kl
from borrowed.latent_ops.adapters import FusedNormal, fuse_draw

assert "triton" not in sys.modules, "importing took triton along"
mu = torch.zeros(6, 3, requires_grad=True)
z, kl = reparam_kl(mu, mu, seed=1)
joint, marginals = log_aggregate(z, mu, mu)
(mmd2(z, normal_noise(2, (6, 3))) + joint.sum() + marginals.sum() + kl.sum()).backward()
assert mu.grad.isfinite().all() and mu.grad.any()
model = torch.nn.Module()
model.draw = lambda mu, std: mu + std * torch.randn_like(std)
draw, q = fuse_draw(model, "draw"), FusedNormal(mu, torch.ones_like(mu))
assert draw(mu, torch.ones_like(mu)).shape == q.rsample().shape
assert torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).equal(draw.kl)
assert "triton" not in sys.modules, "CPU backends took triton along"
assert "kernels" not in sys.modules and "vae" not in sys.modules
print(reparam_kl.__module__)
"""

WITHOUT_PACKAGES = """
import sys
sys.modules["triton"] = sys.modules["numba"] = None
import torch
from borrowed.latent_ops import reparam_kl

x = torch.zeros(2, 2)
reparam_kl(x, x)
for backend in ("triton", "numba"):
    try:
        reparam_kl(x, x, backend=backend)
    except ValueError as error:
        print(error)
"""


def run(program, tmp_path):
    shutil.copytree(SOURCE, tmp_path / "borrowed" / "latent_ops", ignore=shutil.ignore_patterns("__pycache__"))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_it_works_under_another_name(tmp_path):
    done = run(PROGRAM, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "borrowed.latent_ops"


def test_without_triton_and_numba_it_runs_in_pytorch_and_says_so_when_asked(tmp_path):
    done = run(WITHOUT_PACKAGES, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for package in ("triton", "numba"):
        assert f"needs the package {package}, which is not installed" in done.stdout
    assert done.stdout.count("choose from reference, eager.\n") == 2


def test_it_is_our_kernels_that_is_imported():
    """Another package on the index has the same name."""
    from vaebench import kernels

    assert Path(kernels.__file__).parent.resolve() == SOURCE
