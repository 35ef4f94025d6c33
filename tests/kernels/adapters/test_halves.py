"""The two halves of a tensor, whose gradients are joined without a copy."""

import pytest
import torch

from vaebench.kernels.adapters import halves


@pytest.mark.parametrize(("shape", "dim"), [((5, 8), -1), ((3, 6, 2, 2), 1), ((3, 4, 6), -1)])
def test_halves_are_chunks_whose_gradients_are_joined_without_a_copy(shape, dim):
    h, h2 = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    parts, chunks = halves(h, dim), h2.chunk(2, dim)
    for part, chunk in zip(parts, chunks, strict=True):
        assert part.equal(chunk)
        assert part.data_ptr() - h.data_ptr() == chunk.data_ptr() - h2.data_ptr()
    apart = [torch.randn_like(part) for part in parts]
    (joined,), (expected,) = (torch.autograd.grad(p, x, apart) for p, x in ((parts, h), (chunks, h2)))
    assert joined.equal(expected)
    together = torch.randn(shape)
    (same,) = torch.autograd.grad(halves(h, dim), h, together.chunk(2, dim))
    assert same.equal(together)
    assert same.data_ptr() == together.data_ptr()


def test_halves_can_be_differentiated_twice():
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(torch.cat(halves(h), -1).pow(3).sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), h)
    torch.testing.assert_close((first, second), (3 * h**2, 6 * h))
    assert torch.autograd.gradgradcheck(lambda h: [part.pow(3) for part in halves(h)], h)


@pytest.mark.parametrize("dim", [-1, 0])
def test_halves_under_function_transforms(dim):
    h = torch.randn(3, 4, 6, dtype=torch.float64)

    def cubes(h):
        first, second = halves(h, dim)
        return (first**3).sum() + 2 * (second**3).sum()

    weight = torch.cat([torch.full_like(half, w) for w, half in zip((1, 2), h[0].chunk(2, dim), strict=True)], dim)
    torch.testing.assert_close(torch.func.vmap(cubes)(h), (weight * h**3).sum((1, 2)))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cubes))(h), 3 * weight * h**2)
    torch.testing.assert_close(torch.func.vmap(cubes, in_dims=1)(h.movedim(0, 1)), (weight * h**3).sum((1, 2)))
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(cubes))(h[0]).sum((2, 3)), 6 * weight * h[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")  # torch's own, in its first jvp
def test_halves_of_a_dual_tensor():
    h, direction = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    values, slopes = torch.func.jvp(lambda h: [part**3 for part in halves(h)], (h,), (direction,))
    torch.testing.assert_close(torch.cat(values, -1), h**3)
    torch.testing.assert_close(torch.cat(slopes, -1), 3 * h**2 * direction)
    each = torch.func.vmap(lambda h, d: torch.func.jvp(halves, (h,), (d,))[1])(h, direction)
    torch.testing.assert_close(torch.cat(each, -1), direction)


def test_halves_of_a_batch_of_gradients():
    h, gradients = torch.randn(3, 4, requires_grad=True), torch.randn(5, 3, 4)
    (joined,) = torch.autograd.grad(halves(h), h, gradients.chunk(2, -1), is_grads_batched=True)
    assert joined.equal(gradients)


def test_halves_that_lie_in_one_buffer_the_other_way_round_are_copied():
    h, gradient = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    first, second = gradient.chunk(2, -1)
    (joined,) = torch.autograd.grad(halves(h), h, (second, first))
    assert joined.equal(torch.cat([second, first], -1))


def test_an_odd_number_of_moments_is_refused():
    with pytest.raises(ValueError, match="an even number of entries along dim 1, got 3"):
        halves(torch.zeros(2, 3), 1)
