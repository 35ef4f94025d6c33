"""Linear flow layers against dense linear algebra on the matrix that they were made from, and planted mistakes."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from tests.exact_models import generator
from tests.vae.flows.test_transform import data, matrix, standard
from vaebench.vae.flows import LU, QR, FlowDistribution, random_rotation


def hold_against_the_matrix(layer, D):
    """Compare a linear layer with dense linear algebra on the matrix that it was made from."""
    weight = matrix(D).double()
    transform = layer(weight)
    x = torch.randn(4, D, generator=generator(1), dtype=torch.float64)
    log_det = torch.linalg.slogdet(weight).logabsdet.expand(4)
    z, forward = transform(x)
    torch.testing.assert_close(z, x @ weight.T)
    torch.testing.assert_close(forward, log_det)
    found, backward = transform.inverse_and_log_det(x)
    torch.testing.assert_close(found, torch.linalg.solve(weight, x.T).T)
    torch.testing.assert_close(backward, -log_det)


@pytest.mark.parametrize("layer", [LU, QR])
@pytest.mark.parametrize("D", [1, 2, 7, 64, 65, 150])
def test_linear_layers_are_the_matrix_that_they_were_made_from(layer, D):
    hold_against_the_matrix(layer, D)


def wrong_order(layer):
    """The product of the factors taken the other way round, its inverse likewise: each undoes the other."""

    class WrongOrder(layer):
        def forward_and_log_det(self, x, context=None):
            y = self._multiply_first(x)
            log_s = self.factors.diagonal()
            return (y + y @ self.factors.triu(1).mT) * self.signs * log_s.exp(), log_s.sum().expand(len(x))

    return WrongOrder


class TransposedLower(LU):
    def _multiply_first(self, y):
        return (y + y @ self.factors.tril(-1))[:, self.rows]


class TransposedPermutation(LU):
    def _multiply_first(self, y):
        return super()._multiply_first(y)[:, self.rows.argsort()][:, self.rows.argsort()]


class TransposedReflections(QR):
    """Q^T for Q: still a rotation, with a perfect inverse and the right volume."""

    def _multiply_first(self, y):
        return QR._solve_first(self, y)

    def _solve_first(self, z):
        return QR._multiply_first(self, z)


class TransposedGram(QR):
    """The reflections of each block in the wrong order."""

    def _blocks(self):
        return [(vectors, gram.mT.triu() + gram.tril().mT) for vectors, gram in super()._blocks()]


class BlocksInWrongOrder(QR):
    def _multiply_first(self, y):
        for start, (vectors, gram) in zip(range(0, y.shape[1], 64), self._blocks(), strict=True):
            rows = y[:, start:]
            weights = torch.linalg.solve_triangular(gram.mT, rows @ vectors, upper=False, left=False)
            y = torch.cat([y[:, :start], rows - weights @ vectors.mT], 1)
        return y


MUTANTS = {
    "LU, wrong order": wrong_order(LU),
    "QR, wrong order": wrong_order(QR),
    "LU, transposed lower": TransposedLower,
    "LU, transposed permutation": TransposedPermutation,
    "QR, transposed reflections": TransposedReflections,
    "QR, transposed gram": TransposedGram,
    "QR, blocks in wrong order": BlocksInWrongOrder,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_in_a_linear_layer_is_caught(name):
    with pytest.raises(AssertionError, match="not close"):
        hold_against_the_matrix(MUTANTS[name], 150)


@pytest.mark.parametrize("layer", [LU, QR])
def test_linear_layers_take_a_matrix_apart_only_once(layer, monkeypatch):
    """Neither decompositions nor determinants nor inverses are called after the layer was made."""
    transform = layer(matrix(5))
    for name in ("lu", "lu_factor", "qr", "inv", "det", "slogdet", "solve", "svd"):
        monkeypatch.setattr(torch.linalg, name, None)
    monkeypatch.setattr(torch, "geqrf", None)
    x = torch.randn(3, 5, generator=generator(0))
    z, log_det = transform(x)
    torch.testing.assert_close(transform.inverse_and_log_det(z)[0], x)
    log_det.sum().backward()


@pytest.mark.parametrize("layer", [LU, QR])
def test_linear_layers_can_be_made_from_the_identity_and_from_a_rotation(layer):
    x = torch.randn(3, 6, generator=generator(0))
    torch.testing.assert_close(layer(torch.eye(6))(x)[0], x)
    with torch.random.fork_rng():
        weight = random_rotation(6)
    torch.testing.assert_close(weight @ weight.T, torch.eye(6))
    torch.testing.assert_close(layer(weight)(x)[0], x @ weight.T)


def test_a_linear_flow_is_a_full_gaussian():
    weight = matrix(4).double()
    x, _ = data(4)
    precision = weight.T @ weight
    expected = MultivariateNormal(torch.zeros(4, dtype=torch.float64), precision_matrix=precision)
    for layer in (LU, QR):
        torch.testing.assert_close(FlowDistribution(layer(weight), standard(4)).log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize("layer", [LU, QR])
def test_a_matrix_that_cannot_be_taken_apart_is_refused(layer):
    with pytest.raises(ValueError, match=r"must be \(D, D\), got \(2, 3\)"):
        layer(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must be invertible"):
        layer(torch.ones(2, 2))
