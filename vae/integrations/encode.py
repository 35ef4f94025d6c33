"""Models whose `encode(x)` returns a distribution: it is replaced in the result."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Independent, Normal

from vaebench.kernels.adapters import FusedMoments, FusedNormal
from vaebench.kernels.adapters.moments import fused_class
from vaebench.vae.integrations.adapter import Adapter, Replacement

LOOKS_FOR = "a method encode(x) that returns a Normal, or a distribution of packed moments"


class FusedEncode:
    """`encode(x)` whose distribution draws by the kernel: alone, as `.latent_dist`, or as the only entry of a tuple.

    Any other result is returned as it is, with a warning at the first one of its class.
    """

    def __init__(self, model: Any, *posteriors: type) -> None:
        self._original = model.encode
        self._fused: dict[type, type[FusedMoments] | None] = {one: fused_class(one) for one in posteriors}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fuse(self._original(*args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the classes out of copies, since they have no name to be pickled by: each is made anew when needed."""
        return {**vars(self), "_fused": {}}

    def _fuse(self, encoded: Any) -> Any:
        if isinstance(encoded, tuple) and len(encoded) == 1:
            return (self._fuse(encoded[0]),)
        if hasattr(encoded, "latent_dist"):
            encoded.latent_dist = self._fuse(encoded.latent_dist)
            return encoded
        if isinstance(encoded, Independent):
            base = self._fuse(encoded.base_dist)
            same = base is encoded.base_dist
            return encoded if same else Independent(base, encoded.reinterpreted_batch_ndims, validate_args=False)
        if type(encoded) is Normal:
            return FusedNormal(encoded.loc, encoded.scale, validate_args=False)
        if type(encoded) not in self._fused:
            self._fused[type(encoded)] = _class_for(encoded)
        fused = self._fused[type(encoded)]
        return encoded if fused is None else fused.of(encoded)


def _class_for(posterior: Any) -> type[FusedMoments] | None:
    """Return the class that draws by the kernel, or None, with a warning, where there is none."""
    base: Any = type(posterior)
    reason = f"patch looked for {LOOKS_FOR}, and encode returned {base.__name__}"
    if isinstance(getattr(posterior, "parameters", None), Tensor):
        try:
            return fused_class(base)
        except ValueError as error:
            reason = str(error)
    warnings.warn(f"{reason}; it is returned as it is.", stacklevel=4)
    return None


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    return [Replacement(model, "encode", FusedEncode(model))] if callable(getattr(model, "encode", None)) else []


ADAPTER = Adapter(LOOKS_FOR, _find)
