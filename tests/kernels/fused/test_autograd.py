"""The fused kernels under autograd, torch.func, torch.compile and CUDA graphs, by the backend of fused_checks.py."""

import importlib
import shutil
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.fused_checks import (
    BACKEND,
    DEVICE,
    DTYPES,
    REDUCTIONS,
    SCALES,
    fused,
    in_layout,
    large,
    needs_triton,
    prior_shapes,
    randn,
    slow_interpreted,
    spread_of,
)
from tests.kernel_checks import assert_second_derivatives_are_refused
from vaebench import kernels
from vaebench.kernels import backends
from vaebench.kernels.adapters import halves

OPERATOR = "reparam_kl" if BACKEND == "triton" else "numba_reparam_kl"
COMPILED = {"fullgraph": True, "dynamic": True}
AGGRESSIVE, NO_BUDGET = {"aggressive_recomputation": True}, {"activation_memory_budget": 0.0}
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="about graphs and memory of a GPU")


@pytest.mark.parametrize("layout", ["contiguous", "halves", "transposed"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_prior", [False, True])
def test_opcheck(with_prior, reduction, layout):
    mu, logvar = in_layout([randn(4, 3, 6, seed=i) for i in range(2)], layout)
    prior = (randn(3, 6).expand(4, 3, 6), randn(4, 1, 1).expand(4, 3, 6)) if with_prior else (None, None)
    backends.resolve("reparam_kl", BACKEND, DEVICE)  # the operators are registered when they are first asked for
    operators, seed = torch.ops.vaebench_kernels, torch.tensor([3, 4], device=DEVICE)
    inputs = mu, logvar, *prior, seed, "logvar", reduction
    forward, backward = (getattr(operators, OPERATOR + part).default for part in ("", "_backward"))
    z, kl = forward(*inputs)
    torch.library.opcheck(forward, inputs)
    torch.library.opcheck(backward, (torch.ones_like(z), torch.ones_like(kl), *inputs))


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_the_noise(dtype):
    importlib.import_module("vaebench.kernels.gpu.normal_noise")
    operator, seed = torch.ops.vaebench_kernels.normal_noise.default, torch.tensor([3, 4], device=DEVICE)
    torch.library.opcheck(operator, (seed, [4, 3, 2], dtype))


@pytest.mark.parametrize("reduction", ["sample", *large("none", "dim", "batch")])
def test_gradcheck(reduction):
    h = randn(3, 10, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: fused(*h.chunk(2, -1), reduction=reduction), h)


@slow_interpreted
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", SCALES)
def test_gradcheck_with_a_prior(scale, reduction):
    mu, logvar = (randn(2, 2, 3, dtype=torch.float64, seed=i) for i in range(2))
    shapes, i = prior_shapes(mu.shape), REDUCTIONS.index(reduction)
    pair = [randn(*shapes[j % 4], dtype=torch.float64, seed=j) for j in (i, i + 1)]
    inputs = [x.requires_grad_() for x in (mu, spread_of(logvar, scale), *pair)]

    def both(mu, spread, *prior):
        return fused(mu, spread, scale=scale, prior=prior, reduction=reduction)

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_has_the_gradient_of_that_output(used):
    h = randn(3, 10, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: fused(*h.chunk(2, -1))[used], h)


@pytest.mark.parametrize("used", [slice(1), slice(1, 2), slice(2)], ids=["z", "kl", "both"])
def test_second_derivatives_are_refused(used):
    seed = torch.tensor([3], device=DEVICE)
    assert_second_derivatives_are_refused(lambda *inputs: fused(*inputs, seed=seed)[used], (randn(3, 4), randn(3, 4)))


def test_second_derivatives_are_refused_with_a_prior():
    def divergence(mu, spread, *prior):
        return fused(mu, spread, scale="std", prior=prior)[1]

    inputs = randn(3, 4), spread_of(randn(3, 4, seed=1), "std"), randn(4), randn(4, seed=2)
    assert_second_derivatives_are_refused(divergence, inputs)


def test_only_the_inputs_and_the_seed_are_saved():
    mu, logvar = (randn(8, 16, seed=i).requires_grad_() for i in range(2))
    seed, saved = torch.tensor([3], device=DEVICE), []
    prior = randn(16, seed=2).requires_grad_(), randn(16, seed=3)
    for inputs in ((), prior):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
            fused(mu, logvar, seed=seed, prior=inputs or None)
        assert sorted(saved) == sorted(x.data_ptr() for x in (mu, logvar, seed, *inputs))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seeds", ["one", "two", "each"])
def test_vmap_of_grad_equals_a_loop(reduction, seeds):
    V, B, K = 3, 4, 6
    mu, logvar = randn(V, B, K), randn(B, K, seed=1)
    values = {"one": [4], "two": [4, 9], "each": [[v] for v in range(V)]}
    seed = torch.tensor(values[seeds], device=DEVICE)

    def loss(mu, logvar, seed):
        z, kl = fused(mu, logvar, seed=seed, reduction=reduction)
        return (z**3).sum() + (kl**2).sum()

    derivative = torch.func.grad(loss, argnums=(0, 1))
    together = torch.func.vmap(derivative, in_dims=(0, None, 0 if seeds == "each" else None))(mu, logvar, seed)
    alone = [derivative(mu[v], logvar, seed[v] if seeds == "each" else seed) for v in range(V)]
    for got, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("in_dims", [(0, None, None, 0), (None, None, 0, 0), (0, 0, None, None)])
def test_vmap_of_grad_with_a_prior_equals_a_loop(in_dims, reduction):
    shapes = (4, 6), (4, 6), (6,), (4, 1)
    members = [() if dim is None else (3,) for dim in in_dims]
    inputs = [randn(*members[i], *shape, seed=i) for i, shape in enumerate(shapes)]

    def loss(mu, logvar, *prior):
        z, kl = fused(mu, logvar, prior=prior, reduction=reduction)
        return (z**3).sum() + (kl**2).sum()

    derivative = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    together = torch.func.vmap(derivative, in_dims=in_dims)(*inputs)
    alone = [derivative(*(x[v] if size else x for x, size in zip(inputs, members, strict=True))) for v in range(3)]
    for got, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("reduction", ["sample", *large("none", "dim")])
@pytest.mark.parametrize("with_prior", [False, True])
def test_a_vectorised_jacobian_is_that_of_a_loop(with_prior, reduction):
    inputs = tuple(randn(3, 4, seed=i) for i in range(4 if with_prior else 2))
    evaluate = lambda *x: fused(*x[:2], prior=x[2:] or None, reduction=reduction)  # noqa: E731
    vectorised, loop = (torch.autograd.functional.jacobian(evaluate, inputs, vectorize=v) for v in (True, False))
    torch.testing.assert_close(vectorised, loop)


@needs_triton
def test_vmap_of_the_noise_equals_a_loop():
    normal = importlib.import_module("vaebench.kernels.gpu.normal_noise").normal
    seeds = torch.tensor([[3, 4], [5, -6], [7, 8]], device=DEVICE)
    draw = lambda seed: normal(seed, (4, 3), torch.float32)  # noqa: E731
    assert torch.func.vmap(draw)(seeds).equal(torch.stack([draw(seed) for seed in seeds]))
    assert torch.func.vmap(draw, in_dims=1)(seeds.T.contiguous()).equal(torch.func.vmap(draw)(seeds))


def test_a_seed_may_have_any_stride():
    mu, logvar = randn(4, 6), randn(4, 6, seed=1)
    for seed in (torch.arange(9, device=DEVICE)[::5], torch.tensor(5, device=DEVICE).expand(2)):
        for got, expected in zip(fused(mu, logvar, seed=seed), fused(mu, logvar, seed=seed.clone()), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("place", range(4))
def test_a_lazy_sign_is_read(place):
    """conj().imag of a complex tensor has the numbers of imag in memory, and a bit that negates them."""
    leaves = [randn(4, 6, seed=i).requires_grad_() for i in range(4)]
    negated = [*leaves]
    negated[place] = torch.complex(leaves[place], -leaves[place]).conj().imag
    assert negated[place].is_neg()
    results = []
    for x in (negated, leaves):
        z, kl = fused(*x[:2], prior=tuple(x[2:]))
        results.append((z, kl, *torch.autograd.grad((z**3).sum() + (kl**2).sum(), leaves)))
    torch.testing.assert_close(*results)


class Operations(TorchDispatchMode):
    """Records the names of the operations that run under it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("split", [torch.chunk, halves])
def test_gradients_of_halves_are_joined_without_a_copy(split):
    h = randn(6, 16).requires_grad_()
    z, kl = fused(*split(h, 2, -1) if split is torch.chunk else split(h))
    with Operations() as operations:
        (gradient,) = torch.autograd.grad((z, kl), h, (torch.ones_like(z), torch.ones_like(kl)))
    assert ("cat" in operations.names) == (split is torch.chunk)
    assert gradient.is_contiguous()


def training_loss(h, seed):
    z, kl = fused(*(h * 1.5).chunk(2, -1), seed=seed)
    return z.sin().sum() + (kl**2).sum()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("recomputed", [{}, AGGRESSIVE, NO_BUDGET], ids=["default", "aggressive", "no budget"])
def test_compiled_with_a_seed_from_outside(backend, recomputed):
    h, seed = randn(6, 8).requires_grad_(), torch.tensor([3], device=DEVICE)
    (expected,) = torch.autograd.grad(training_loss(h, seed), h)
    torch._dynamo.reset()
    with torch._functorch.config.patch(**recomputed):
        loss = torch.compile(training_loss, backend=backend, **COMPILED)(h, seed)
        (got,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("scale", SCALES)
def test_compiled_with_a_prior_at_two_batch_sizes(scale, backend):
    def loss(h, seed, *prior):
        mu, logvar = (h * 1.5).chunk(2, -1)
        spread = logvar if scale == "logvar" else logvar.exp()
        z, kl = fused(mu, spread, scale=scale, prior=(prior[0] * 2, prior[1]), seed=seed)
        return z.sin().sum() + (kl**2).sum()

    seed, prior = torch.tensor([3], device=DEVICE), [randn(4, seed=i).requires_grad_() for i in (1, 2)]
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=backend, **COMPILED)
    for rows in (6, 5):
        inputs = randn(rows, 8).requires_grad_(), *prior
        got, expected = (
            torch.autograd.grad(function(inputs[0], seed, *prior), inputs) for function in (compiled, loss)
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@needs_triton
def test_compiled_noise():
    def doubled(seed, x):
        return 2 * kernels_noise(seed, tuple(x.shape), torch.float32)

    kernels_noise = importlib.import_module("vaebench.kernels.gpu.normal_noise").normal
    seed, compiled = torch.tensor([3], device=DEVICE), torch.compile(doubled, backend="aot_eager", **COMPILED)
    for rows in (6, 5):
        assert compiled(seed, randn(rows, 3)).equal(doubled(seed, randn(rows, 3)))


def fused_head(h):
    return kernels.reparam_kl(*h.sin().chunk(2, -1), backend=BACKEND)[0]


def plain_head(h):
    mu, logvar = h.sin().chunk(2, -1)
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


def noise_seen_and_used(head, recomputed, **options):
    """At mu = logvar = 0, where z is the noise: the noise that backward worked with, and the one in z."""
    h = torch.zeros(4, 8, device=DEVICE, requires_grad=True)
    torch._dynamo.reset()
    with torch._functorch.config.patch(**recomputed):
        z = torch.compile(head, backend="aot_eager", **options)(h)
        (gradient,) = torch.autograd.grad(z.sum(), h)
    return 2 * gradient[:, 4:], z.detach()


def test_compiled_without_a_seed():
    torch.testing.assert_close(*noise_seen_and_used(fused_head, {}, **COMPILED))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("recomputed", [AGGRESSIVE, NO_BUDGET], ids=["aggressive", "no budget"])
def test_a_seed_that_backward_would_draw_again_is_refused_or_drawn_outside(recomputed):
    with pytest.raises(torch._dynamo.exc.Unsupported, match="draw the seed outside the compiled function"):
        noise_seen_and_used(fused_head, recomputed, **COMPILED)
    torch.testing.assert_close(*noise_seen_and_used(fused_head, recomputed, fullgraph=False))


def test_plain_pytorch_has_gradients_of_other_noise():
    seen, used = noise_seen_and_used(plain_head, NO_BUDGET, **COMPILED)
    if torch.allclose(seen, used):
        pytest.skip("torch.compile now keeps the noise that it drew, so the fused head need not refuse any more")
    assert (seen - used).abs().max() > 0.5


def test_checkpointing_draws_the_same_noise():
    def loss(h):
        z, kl = fused(*h.chunk(2, -1), seed=None)
        return (z**2).sum() + kl.sum()

    h, gradients = randn(5, 12).requires_grad_(), []
    for run in (loss, lambda h: checkpoint(loss, h, use_reentrant=False)):
        torch.manual_seed(5)
        gradients.append(torch.autograd.grad(run(h), h)[0])
    torch.testing.assert_close(*gradients)


def test_under_autocast_a_head_in_bfloat16_keeps_its_dtype():
    head, x = torch.nn.Linear(6, 16, device=DEVICE), randn(5, 6)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        h = head(x)
        z, kl = fused(*h.chunk(2, -1))
        (kl.sum() + z.float().sum()).backward()
    assert (h.dtype, z.dtype, kl.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    outside = fused(*h.detach().chunk(2, -1))
    assert z.equal(outside[0])
    assert kl.equal(outside[1])
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("operation", ["reparam_kl", "mmd2", "log_aggregate"])
def test_autocast_changes_nothing(operation):
    """The kernels do not see autocast; neither may the torch code around them."""
    inputs = [randn(40, 16, seed=i) for i in range(3 if operation == "log_aggregate" else 2)]
    settings = {"seed": torch.ones(1, dtype=torch.int64, device=DEVICE)} if operation == "reparam_kl" else {}
    results = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=enabled):
            outputs = getattr(kernels, operation)(*leaves, backend=BACKEND, **settings)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            results.append([*outputs, *torch.autograd.grad(sum(out.sum() for out in outputs), leaves)])
    assert all(map(torch.equal, *results))


def test_a_copy_under_another_name_defines_operators_of_its_own(tmp_path, monkeypatch):
    shutil.copytree(Path(kernels.__file__).parent, tmp_path / "someones" / "heads")
    monkeypatch.syspath_prepend(tmp_path)
    copy = importlib.import_module("someones.heads")
    mu, logvar = randn(3, 5), randn(3, 5, seed=1)
    for mine, original in zip(copy.reparam_kl(mu, logvar, seed=7, backend=BACKEND), fused(mu, logvar), strict=True):
        assert mine.equal(original)
    assert hasattr(torch.ops.someones_heads, OPERATOR)
    for name in [name for name in sys.modules if name.startswith("someones")]:
        monkeypatch.delitem(sys.modules, name)


@needs_gpu
def test_a_cuda_graph_replays_fresh_noise():
    h = randn(256, 128).requires_grad_()

    def step():
        z, kl = fused(*h.chunk(2, -1), seed=None)
        return z, *torch.autograd.grad((z**2).sum() / 2 + kl.sum(), h)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()  # backward too: a kernel is loaded at its first launch, which a capture forbids
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, gradient = step()
    mu, logvar = h.detach().chunk(2, -1)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(z.detach().clone())
        expected = replays[-1] * (replays[-1] - mu) / 2 + logvar.expm1() / 2
        torch.testing.assert_close(gradient[:, 64:], expected, rtol=1e-4, atol=1e-4)
    assert not replays[0].equal(replays[1])
    assert not replays[1].equal(replays[2])


@needs_gpu
def test_nothing_waits_for_the_gpu():
    h = randn(256, 128).requires_grad_()
    fused(*h.chunk(2, -1), seed=None)
    with waiting_for_the_gpu_refused():
        z, kl = fused(*h.chunk(2, -1), seed=None)
        (z.sum() + kl.sum()).backward()


@contextmanager
def waiting_for_the_gpu_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that the mode is a prototype
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_peak_memory_is_at_most_two_fifths_of_eagers():
    def peak(step):
        h = randn(2**16, 512).requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        z, kl = step(*h.chunk(2, -1))
        torch.autograd.grad((z, kl), h, (torch.ones_like(z), torch.ones_like(kl)))
        return torch.cuda.max_memory_allocated() - before

    assert peak(fused) <= 0.4 * peak(lambda mu, logvar: kernels.reparam_kl(mu, logvar, backend="eager"))
