"""Autoencoders of other libraries use the kernels: `patch(model)`, and a file for each library.

A file imports nothing of its library: it reads what the library has imported already.
"""

from vaebench.kernels.adapters import FusedNormal, halves
from vaebench.vae.integrations.adapter import Patched
from vaebench.vae.integrations.patch import patch

__all__ = ["FusedNormal", "Patched", "halves", "patch"]
