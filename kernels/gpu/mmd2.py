"""mmd2 on a GPU: plans of the kernel launches, operators and autograd."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..shared import torch_library
from ..shared.accumulate import accumulator
from ..shared.autograd import cache_signature, refuse_second_derivative
from ..shared.centre import centre
from .launch import Launch, cut
from .mmd2_kernels import gradient_kernel, value_kernel

SIDE, STEP, DEEPEST, NARROWEST, WIDEST = 64, 16, 16, 16, 64


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y). Only x and y are saved for the backward pass."""
    value: Tensor = _MMD2.apply(x, y, kernel, bandwidths, estimator)
    return value


class _MMD2(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @cache_signature
    def forward(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
        (value,) = _value_operator(x, y, kernel, bandwidths, estimator)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, *ctx.options = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor | None, ...]:
        x_needed, y_needed, *_ = ctx.needs_input_grad
        dx, dy = _gradient_operator(g, *saved, *ctx.options, x_needed, y_needed)
        return dx if x_needed else None, dy if y_needed else None, None, None, None


def plan_value(x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str) -> Launch:
    """Return the launch that fills `sums_ptr` with numbers that add up to MMD^2."""
    points = _points(x, y)
    blocks = points.shape[0] // SIDE
    programs = triton.cdiv(blocks, 2) * (blocks + 1)
    arguments, constants = _shared_arguments(x, y, points, kernel, bandwidths, estimator)
    arguments["sums_ptr"] = points.new_empty(programs, dtype=torch.float64)
    return Launch(value_kernel, (programs,), arguments, constants)


def plan_gradient(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> Launch:
    """Return the launch that fills `gradients_ptr`, `(strips, rows, stride)`, for the blocks of x, of y, or of both."""
    points = _points(x, y)
    blocks, stride = points.shape[0] // SIDE, points.shape[1]
    x_blocks = triton.cdiv(x.shape[0], SIDE)
    first, last = 0 if x_needed else x_blocks, blocks if y_needed else x_blocks
    width = min(WIDEST, stride)
    strip_length, strips = cut(points.shape[0], 4 * (last - first) * (stride // width), SIDE)
    rows = (last - first) * SIDE
    arguments, constants = _shared_arguments(x, y, points, kernel, bandwidths, estimator)
    arguments |= {
        "gradients_ptr": points.new_empty(strips, rows, stride),
        "first": first,
        "rows": rows,
        "strip_length": strip_length,
    }
    constants |= {"STEP": STEP, "WIDTH": width}
    return Launch(gradient_kernel, (last - first, stride // width, strips), arguments, constants)


def _points(x: Tensor, y: Tensor) -> Tensor:
    """Return the rows of x and of y relative to their centre, padded with zeros to whole blocks and whole columns."""
    (N, K), M = x.shape, y.shape[0]
    p = torch.cat((x, y)).to(accumulator(x))
    if K > 0:
        p = p - centre(p)
    stride = max(NARROWEST, triton.next_power_of_2(K)) if K <= WIDEST else triton.cdiv(K, WIDEST) * WIDEST
    start_of_y = triton.cdiv(N, SIDE) * SIDE
    points = p.new_zeros(start_of_y + triton.cdiv(M, SIDE) * SIDE, stride)
    points[:N, :K] = p[:N]
    points[start_of_y : start_of_y + M, :K] = p[N:]
    return points


def _shared_arguments(
    x: Tensor, y: Tensor, points: Tensor, kernel: str, bandwidths: list[float], estimator: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the constants that both kernels have."""
    bandwidths_on_device = points.new_empty(len(bandwidths), dtype=torch.float64)
    for element, bandwidth in zip(bandwidths_on_device.split(1), bandwidths, strict=True):
        element.fill_(bandwidth)  # unlike a copy from the host, a fill does not wait for the GPU
    arguments = {
        "points_ptr": points,
        "squares_ptr": points.square().sum(1),
        "bandwidths_ptr": bandwidths_on_device,
        "N": x.shape[0],
        "M": y.shape[0],
        "blocks": points.shape[0] // SIDE,
        "stride": points.shape[1],
    }
    constants = {
        "RBF": kernel == "rbf",
        "UNBIASED": estimator == "u",
        "BANDWIDTHS": len(bandwidths),
        "SIDE": SIDE,
        "DEPTH": min(DEEPEST, points.shape[1]),
    }
    return arguments, constants


def _value(x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str) -> tuple[Tensor]:
    launch = plan_value(x, y, kernel, bandwidths, estimator)
    launch.run()
    return (launch.arguments["sums_ptr"].sum().to(accumulator(x)),)


def _fake_value(x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor]:
    return (x.new_empty((), dtype=accumulator(x)),)


def _gradient(g: Tensor, x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *_, x_needed, y_needed = options
    launch = plan_gradient(x, y, *options)
    launch.run()
    dp = launch.arguments["gradients_ptr"].sum(0)[:, : x.shape[1]] * g
    start_of_y = len(dp) - triton.cdiv(y.shape[0], SIDE) * SIDE if y_needed else 0
    dx, dy = dp[: x.shape[0] * x_needed], dp[start_of_y : start_of_y + y.shape[0] * y_needed]
    return dx.to(x.dtype, copy=True), dy.to(x.dtype, copy=True)


def _fake_gradient(g: Tensor, x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *_, x_needed, y_needed = options
    return x.new_empty(x.shape[0] * x_needed, x.shape[1]), y.new_empty(y.shape[0] * y_needed, y.shape[1])


_OPTIONS = "str kernel, float[] bandwidths, str estimator"
_value_operator = torch_library.define(f"mmd2(Tensor x, Tensor y, {_OPTIONS}) -> Tensor[]", _value, _fake_value)
_gradient_operator = torch_library.define(
    f"mmd2_backward(Tensor g, Tensor x, Tensor y, {_OPTIONS}, bool x_needed, bool y_needed) -> (Tensor, Tensor)",
    _gradient,
    _fake_gradient,
)
