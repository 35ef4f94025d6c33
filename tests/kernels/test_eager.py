"""Beyond MOST_BYTES `eager` works in blocks of rows: same results and derivatives, and no matrix of pairs in memory."""

import pytest
import torch

from tests.kernel_checks import LargestTensor, seeded, values_and_gradients
from vaebench import kernels
from vaebench.bench.timing.memory import peak_bytes
from vaebench.kernels import eager

N, M, B, K = 50, 37, 41, 5
SMALL = 2**13  # bytes: 1024 float64
CPU = torch.device("cpu")


def mmd2(**options):
    return lambda x, y: kernels.mmd2(x, y, backend="eager", **options)


def log_aggregate(**options):
    return lambda z, mu, logvar: kernels.log_aggregate(z, mu, logvar, backend="eager", **options)


SAMPLES = (seeded(N, K), seeded(M, K, seed=1, shift=0.3))
POSTERIORS = (seeded(B, K), seeded(M, K, seed=1), seeded(M, K, seed=2, scale=0.5))
CASES = {
    "mmd2 imq u": (mmd2(), SAMPLES),
    "mmd2 imq v": (mmd2(estimator="v", bandwidth=[1.0, 3.0]), SAMPLES),
    "mmd2 rbf u": (mmd2(kernel="rbf", bandwidth=[2.0, 4.0, 8.0]), SAMPLES[::-1]),
    "log_aggregate": (log_aggregate(), POSTERIORS),
    "log_aggregate weights": (log_aggregate(log_weights=seeded(M, seed=3)), POSTERIORS),
    "log_aggregate rows of weights": (log_aggregate(log_weights=seeded(B, M, seed=3)), POSTERIORS),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def blocks(monkeypatch):
    """Counts the blocks that are evaluated, with a small limit."""
    counted, right = [], eager.recompute
    monkeypatch.setattr(eager, "MOST_BYTES", SMALL)
    monkeypatch.setattr(eager, "recompute", lambda *arguments: counted.append(0) or right(*arguments))
    return counted


@pytest.fixture
def in_one_block():
    """Return a function that evaluates as without a limit."""

    def run(function, *inputs):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(eager, "MOST_BYTES", 2**40)
            return function(*inputs)

    return run


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def total(function):
    return lambda *inputs: sum(out.square().sum() for out in as_tuple(function(*inputs)))


def test_values_and_gradients_are_those_of_one_block(case, blocks, in_one_block):
    function, inputs = case
    found = values_and_gradients(function, inputs)
    assert len(blocks) > 3
    assert_close(found, in_one_block(values_and_gradients, function, inputs))


def test_at_the_limit_there_is_one_block(monkeypatch, blocks):
    monkeypatch.setattr(eager, "MOST_BYTES", 8 * N * N)
    mmd2()(*SAMPLES)
    monkeypatch.setattr(eager, "MOST_BYTES", 8 * B * M * K)
    log_aggregate()(*POSTERIORS)
    assert not blocks
    monkeypatch.setattr(eager, "MOST_BYTES", 8 * N * N - 1)
    mmd2()(*SAMPLES)
    assert blocks
    blocks.clear()
    monkeypatch.setattr(eager, "MOST_BYTES", 8 * B * M * K - 1)
    log_aggregate()(*POSTERIORS)
    assert blocks


def test_a_row_that_passes_the_limit_alone_is_a_block(case, monkeypatch, in_one_block):
    monkeypatch.setattr(eager, "MOST_BYTES", 8)
    assert_close(values_and_gradients(*case), in_one_block(values_and_gradients, *case))


def test_second_derivatives_are_right(case, blocks, in_one_block):
    """Along a random direction, with respect to all inputs; a third derivative along the same one, too."""
    function, inputs = case
    direction = [seeded(*x.shape, seed=20 + i) for i, x in enumerate(inputs)]

    def derivatives(*inputs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        found, value = [], total(function)(*leaves)
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            found += [gradient.detach() for gradient in gradients]
            value = sum((gradient * step).sum() for gradient, step in zip(gradients, direction, strict=True))
        return found

    assert_close(derivatives(*inputs), in_one_block(derivatives, *inputs))
    assert blocks


def test_gradients_are_right_under_checkpointing_and_of_one_input_alone(case, blocks, in_one_block):
    function, inputs = case
    expected = in_one_block(values_and_gradients, total(function), inputs)
    found = values_and_gradients(
        lambda *x: torch.utils.checkpoint.checkpoint(total(function), *x, use_reentrant=False), inputs
    )
    assert_close(found, expected)
    for i in range(len(inputs)):
        leaf = inputs[i].clone().requires_grad_()
        value = total(function)(*inputs[:i], leaf, *inputs[i + 1 :])
        (gradient,) = torch.autograd.grad(value, leaf)
        assert_close([gradient * seeded(seed=7)], [expected[1 + i]])


def test_transforms_are_those_of_one_block(case, blocks, in_one_block):
    function, inputs = case
    places = tuple(range(len(inputs)))
    gradient = torch.func.grad(total(function), places)
    assert_close(gradient(*inputs), in_one_block(gradient, *inputs))
    hessian = torch.func.jacrev(torch.func.grad(total(function)))
    small = [x[:, :2] for x in inputs]
    assert_close([hessian(*small)], [in_one_block(hessian, *small)])
    members = [torch.stack([x, x / 2, x + 1]) for x in inputs]
    for of_members in (torch.func.vmap(function), torch.func.vmap(gradient)):
        assert_close(as_tuple(of_members(*members)), as_tuple(in_one_block(of_members, *members)))
    assert blocks


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_forward_mode_is_refused_by_torch(case, blocks):
    function, inputs = case
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jacfwd(function)(*inputs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["mmd2 imq u", "log_aggregate"])
def test_compiled_it_has_the_same_values_and_gradients(name, blocks, monkeypatch, in_one_block, dynamic):
    """In few blocks: the compiler takes a quarter of a second for each."""
    monkeypatch.setattr(eager, "_rows_per_block", lambda *_: 20)
    function, inputs = CASES[name]
    expected = in_one_block(values_and_gradients, function, inputs)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_close(values_and_gradients(compiled, inputs), expected)
    transformed = torch.compile(torch.func.grad(total(function)), fullgraph=True, backend="aot_eager")
    assert_close([transformed(*inputs)], [in_one_block(torch.func.grad(total(function)), *inputs)])


def test_autocast_changes_nothing_in_blocks(case, blocks):
    function, inputs = case
    inputs = [x.float() for x in inputs]
    expected = values_and_gradients(function, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(function, inputs)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_dtypes_are_summed_in_float32(case, blocks, in_one_block, dtype):
    function, inputs = case
    inputs = [x.to(dtype) for x in inputs]
    found = function(*inputs)
    assert {out.dtype for out in as_tuple(found)} == {torch.float32}
    for one, other in zip(as_tuple(found), as_tuple(in_one_block(function, *inputs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


SHARE = {"mmd2": 5, "log_aggregate": 10}  # tensors of a block that stand at once, at least
LARGE = {
    "mmd2": (mmd2(), (seeded(1200, 4), seeded(800, 4, seed=1))),
    "log_aggregate": (log_aggregate(), (seeded(300, 8), seeded(400, 8, seed=1), seeded(400, 8, seed=2))),
}


@pytest.mark.parametrize("operation", LARGE)
@pytest.mark.parametrize("order", [1, 2])
def test_no_tensor_is_larger_than_a_block(operation, order, monkeypatch):
    """In forward, in backward, and in the backward pass of backward."""
    monkeypatch.setattr(eager, "MOST_BYTES", 2**20)
    function, inputs = LARGE[operation]
    inputs = [x.clone().requires_grad_() for x in inputs]
    with LargestTensor() as largest:
        gradients = torch.autograd.grad(total(function)(*inputs), inputs, create_graph=order == 2)
        if order == 2:
            torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)
    rows = 2**20 // 8
    assert max(x.numel() for x in inputs) < largest.numel <= rows / SHARE[operation]


@pytest.mark.parametrize("operation", LARGE)
def test_memory_is_the_limit_and_some_copies_of_inputs_and_results(operation, monkeypatch):
    """In one block it is many times the limit."""
    monkeypatch.setattr(eager, "MOST_BYTES", 2**20)
    function, inputs = LARGE[operation]

    def call():
        values_and_gradients(function, inputs)

    copies = 8 * sum(x.nbytes for x in inputs)
    assert peak_bytes(call, CPU) <= 2**20 + copies
    monkeypatch.setattr(eager, "MOST_BYTES", 2**40)
    assert peak_bytes(call, CPU) > 10 * (2**20 + copies)
