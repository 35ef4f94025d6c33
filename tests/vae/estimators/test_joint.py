"""Values, gradients and Hessians of chosen data against closed forms, in blocks, and the count of what they cost."""

import pytest
import torch

from tests.exact_models import correlated_ppca, generator
from vaebench.vae.estimators.joint import CountedJoint

K, B = 3, 11


@pytest.fixture
def problem():
    model = correlated_ppca(K, correlation=0.3)
    return model, model.sample(B, generator(0))[0]


def joint_of(model, x, codes_at_once=10_000):
    return CountedJoint(lambda z, rows: model.log_joint(x[rows], z), x[:, :K], codes_at_once)


@pytest.mark.parametrize("codes_at_once", [1, 5, 9, 10_000])
def test_values_gradients_and_hessians_of_some_data_are_those_of_probabilistic_pca(problem, codes_at_once):
    model, x = problem
    joint, rows = joint_of(model, x, codes_at_once), torch.tensor([7, 0, 3, 10, 4])
    z = torch.randn(4, 5, K, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(joint(z, rows), model.log_joint(x[rows], z))
    slope = (model.posterior(x[rows]).mean - z[0]) @ model.precision()
    value, gradient = joint.gradient(z[0], rows)
    torch.testing.assert_close(value, model.log_joint(x[rows], z[0]))
    torch.testing.assert_close(gradient, slope)
    value, gradient, precision = joint.curvature(z[0], rows)
    torch.testing.assert_close(value, model.log_joint(x[rows], z[0]))
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(precision, model.precision().expand(5, K, K))


def test_curvature_is_minus_the_hessian_where_it_varies():
    """log p = -exp(a z1 + z2) has the Hessian -exp(a z1 + z2) [[a^2, a], [a, 1]]."""
    a = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    joint = CountedJoint(lambda z, rows: -torch.exp(a[rows] * z[..., 0] + z[..., 1]), a[:, None], 100)
    z = torch.randn(3, 2, generator=generator(0), dtype=torch.float64)
    one = torch.ones_like(a)
    expected = torch.stack([torch.stack([a * a, a], 1), torch.stack([a, one], 1)], 1)
    expected = expected * torch.exp(a * z[:, 0] + z[:, 1])[:, None, None]
    torch.testing.assert_close(joint.curvature(z, joint.rows)[2], expected)


@pytest.mark.parametrize("learned", [False, True])
def test_a_linear_density_has_no_curvature(learned):
    """The gradient of z @ a has no graph, or, where a is learned, one without z."""
    a = torch.tensor([1.0, -2.0, 0.5], requires_grad=learned)
    joint = CountedJoint(lambda z, rows: z @ a, torch.zeros(2, 3), 100)
    assert joint.curvature(torch.zeros(2, 3), joint.rows)[2].abs().max() == 0


def test_only_few_codes_are_evaluated_at_once_and_fewer_in_a_graph(problem):
    model, x = problem
    sizes = []

    def recording(z, rows):
        sizes.append((z.requires_grad, z.shape[0] * z.shape[1]))
        return model.log_joint(x[rows], z)

    joint = CountedJoint(recording, x[:, :K], 8)
    z = torch.zeros(6, B, K, dtype=torch.float64)
    joint(z, joint.rows)
    joint.gradient(z[0], joint.rows)
    joint.curvature(z[0], joint.rows)
    assert max(size for graph, size in sizes if not graph) == 8
    assert max(size for graph, size in sizes if graph) == 2


def test_the_count_is_of_passes_through_the_model(problem, monkeypatch):
    """Forward passes are counted as they are called, backward ones in torch: two for each row of a Hessian."""
    model, x = problem
    passes = torch.zeros(B)
    backwards = []

    def counting(z, rows):
        passes[rows] += len(z)
        return model.log_joint(x[rows], z)

    joint, grad = CountedJoint(counting, x[:, :K], 10_000), torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(k) or grad(*a, **k))
    rows, z = torch.tensor([2, 5]), torch.zeros(7, 2, K, dtype=torch.float64)
    joint(z, rows)
    assert joint.spent[rows].tolist() == passes[rows].tolist() == [7, 7]
    joint.gradient(z[0], rows)
    assert joint.spent[rows].tolist() == [7 + 2] * 2 == (passes[rows] + len(backwards)).tolist()
    joint.gradient(z[:3, 0], torch.tensor([2, 2, 2]))
    assert joint.spent[rows].tolist() == [9 + 6, 9]
    joint.spent[2] -= 6
    before = len(backwards)
    joint.curvature(z[0], rows)
    second = [k for k in backwards[before:] if not k.get("create_graph")]
    assert len(second) == K
    assert joint.spent[rows].tolist() == [9 + 2 + 2 * K] * 2
    assert joint.spent.sum() == joint.spent[rows].sum()
