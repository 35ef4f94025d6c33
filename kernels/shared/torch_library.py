"""Pure functions as library operators: opaque to `torch.compile`, which then traces no loop over tiles."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMESPACE = (__package__ or "kernels.shared").rpartition(".")[0].replace(".", "_")
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def define(
    signature: str, function: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Return a function of tensors as an operator.

    Args:
        signature: name, arguments and results in the schema language of torch.library.
        fake: from the same arguments, empty tensors of the shapes and dtypes of the results.
        vmap: its rule, as of `torch.library.register_vmap`; absent, `function`, whose outputs are then a tuple, runs
            once for each member.
    """
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def without_derivative(*inputs: Any) -> Any:
        """Refuse where the compiler has looked into the autograd function around it: the gradient would be zero."""
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            raise RuntimeError(f"kernels: torch.compile lost the gradient of {name}; choose backend='eager' here.")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    _LIBRARY.impl(name, without_derivative, "Autograd")

    def member_by_member(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        members = [
            operator(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        outputs = tuple(torch.stack(parts) for parts in zip(*members, strict=True))
        return outputs, (0,) * len(outputs)

    torch.library.register_vmap(f"{_NAMESPACE}::{name}", vmap or member_by_member, lib=_LIBRARY)
    return operator
