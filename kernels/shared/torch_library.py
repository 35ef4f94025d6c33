"""Register pure functions as operators, opaque to `torch.compile` and to autocast.

The compiler then traces no loop over tiles, and autocast does not round matrix products to half precision.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMESPACE = (__package__ or "kernels.shared").rpartition(".")[0].replace(".", "_")
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def define(
    signature: str, function: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Register a pure function of tensors as an operator, and return the operator.

    Args:
        signature: name, arguments and results in the schema language of torch.library.
        fake: takes the same arguments and returns empty tensors with the shapes and dtypes of the results.
        vmap: a rule as `torch.library.register_vmap` takes it. Without a rule `function` must return a tuple or list,
            and runs once for each member.
    """
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)

    def run_without_autocast(*inputs: Any) -> Any:
        with torch._C._DisableAutocast():
            return function(*inputs)

    _LIBRARY.impl(name, run_without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def refuse_gradient(*inputs: Any) -> Any:
        """Raise an error if the compiler has traced into the autograd function around it: gradients would be zero."""
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            raise RuntimeError(f"kernels: torch.compile lost the gradient of {name}; choose backend='eager' here.")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    _LIBRARY.impl(name, refuse_gradient, "Autograd")

    def run_each_member(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        members = [
            operator(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        outputs = tuple(torch.stack(parts) for parts in zip(*members, strict=True))
        return outputs, (0,) * len(outputs)

    torch.library.register_vmap(f"{_NAMESPACE}::{name}", vmap or run_each_member, lib=_LIBRARY)
    return operator
