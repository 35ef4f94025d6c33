"""Linear maps z = W x stored as factors: no determinant is formed and no matrix is inverted.

A layer factorises W once, in its constructor. Its parameters are then D^2 numbers, as many as W has, packed into one
matrix: below the diagonal the first factor, above it the unit upper triangular one, on it log |s|:

    W = (first factor) diag(s) (unit upper triangular)

    log |det W| = sum_i log |s_i|

Cost of either direction for B rows: O(B D^2), where inverse and determinant of W take O(D^3).
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.flows.transform import Transform, ValueAndLogDet

BLOCK = 64


def random_rotation(features: int) -> Tensor:
    """Return a random orthogonal matrix, an initial weight, drawn from torch's global generator."""
    Q: Tensor = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64)).Q
    return Q.to(torch.get_default_dtype())


class _Factored(Transform):
    """The part that both factorisations share: the packed matrix, diag(s), and the unit upper triangular factor."""

    signs: Tensor

    def __init__(self, below: Tensor, upper: Tensor) -> None:
        super().__init__()
        diagonal = upper.diagonal()
        if not diagonal.abs().log().isfinite().all():
            raise InputError("the weight of a linear layer must be invertible, got a singular matrix.")
        unit_upper = upper / diagonal[:, None]
        self.factors = nn.Parameter(below.tril(-1) + unit_upper.triu(1) + diagonal.abs().log().diag())
        self.register_buffer("signs", diagonal.sign())

    def extra_repr(self) -> str:
        return f"features={len(self.factors)}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        log_s = self.factors.diagonal()
        rows = x.reshape(-1, x.shape[-1])
        scaled = (rows + rows @ self.factors.triu(1).mT) * (self.signs * log_s.exp())
        return self._multiply_first(scaled).reshape(x.shape), log_s.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        log_s = self.factors.diagonal()
        scaled = self._solve_first(z.reshape(-1, z.shape[-1])) * (self.signs * torch.exp(-log_s))
        return _solve_unit(self.factors, scaled, upper=True).reshape(z.shape), -log_s.sum().expand(z.shape[:-1])

    @abstractmethod
    def _multiply_first(self, y: Tensor) -> Tensor:
        """Multiply rows `(B, D)` by the first factor."""

    @abstractmethod
    def _solve_first(self, z: Tensor) -> Tensor:
        """Return the rows that the first factor maps to z `(B, D)`."""


class LU(_Factored):
    """W = P L U: a fixed permutation, a unit lower and an upper triangular matrix.

    Forward: two products with triangular matrices. Inverse: two triangular solves.

    Reference: Kingma and Dhariwal, Glow, 2018, section 3.2.

    Example:
        >>> layer = LU(torch.tensor([[0.0, 2.0], [3.0, 1.0]]))
        >>> z, log_det = layer(torch.tensor([1.0, 1.0]))
        >>> z.tolist(), round(log_det.exp().item(), 5)
        ([2.0, 4.0], 6.0)
    """

    rows: Tensor

    def __init__(self, weight: Tensor) -> None:
        _require_square(weight)
        permutation, lower, upper = torch.linalg.lu(weight)
        super().__init__(lower, upper)
        self.register_buffer("rows", permutation.argmax(1))

    def _multiply_first(self, y: Tensor) -> Tensor:
        return (y + y @ self.factors.tril(-1).mT)[:, self.rows]

    def _solve_first(self, z: Tensor) -> Tensor:
        return _solve_unit(self.factors, z[:, self.rows.argsort()], upper=False)


class QR(_Factored):
    """W = Q R: a product of D Householder reflections and an upper triangular matrix.

        Q = H_1 ... H_D,    H_i = I - 2 v_i v_i^T / |v_i|^2,    v_i = (0, ..., 0, 1, w_i)

    with w_i below the diagonal in column i. Reflections act in blocks of 64: with their vectors as the columns of V,

        H_i ... H_j = I - V M^-1 V^T,    M = strict upper part of V^T V + 1/2 diag(V^T V)

    so that a block costs two thin products and a triangular solve of its size, and does not change elements before i.
    Forward: one product with R, then the blocks from last to first. Inverse: the transposed blocks from first to last,
    then one triangular solve.

    Reference: Joffrain et al., Accumulating Householder Transformations, Revisited, 2006; Hoogeboom et al., Emerging
    Convolutions for Generative Normalizing Flows, 2019.
    """

    def __init__(self, weight: Tensor) -> None:
        _require_square(weight)
        packed, tau = torch.geqrf(weight)
        # LAPACK does not reflect a column with tau = 0. Here H_i flips axis i, and a flip of row i of R undoes it.
        unreflected = torch.where(tau == 0, -1.0, 1.0).to(weight.dtype)
        super().__init__(packed, packed.triu() * unreflected[:, None])

    def _multiply_first(self, y: Tensor) -> Tensor:
        blocks, parts = self._blocks(), y.split(BLOCK, dim=1)
        z = y[:, :0]
        for (vectors, gram), part in zip(reversed(blocks), reversed(parts), strict=True):
            z = torch.cat([part, z], dim=1)
            weights = torch.linalg.solve_triangular(gram.mT, z @ vectors, upper=False, left=False)
            z = z - weights @ vectors.mT
        return z

    def _solve_first(self, z: Tensor) -> Tensor:
        finished = []
        for vectors, gram in self._blocks():
            weights = torch.linalg.solve_triangular(gram, z @ vectors, upper=True, left=False)
            width = vectors.shape[1]
            done, z = (z - weights @ vectors.mT).split([width, z.shape[1] - width], dim=1)
            finished.append(done)
        return torch.cat(finished, dim=1)

    def _blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Return V `(D - i, 64)` and M `(64, 64)` of each block, i the element where it starts."""
        blocks, D = [], len(self.factors)
        identity = torch.eye(BLOCK, dtype=self.factors.dtype, device=self.factors.device)
        half_diagonal = torch.ones_like(identity).triu() - 0.5 * identity
        for start, columns in zip(range(0, D, BLOCK), self.factors.split(BLOCK, dim=1), strict=True):
            width = columns.shape[1]
            _, corner, below = columns.split([start, width, D - start - width])
            vectors = torch.cat([corner.tril(-1) + identity[:width, :width], below])
            blocks.append((vectors, vectors.mT @ vectors * half_diagonal[:width, :width]))
        return blocks


def _solve_unit(factors: Tensor, rows: Tensor, *, upper: bool) -> Tensor:
    """Return the rows that the unit triangular part T of packed factors maps to `rows`; only T is read."""
    return torch.linalg.solve_triangular(factors, rows.mT, upper=upper, unitriangular=True).mT


def _require_square(weight: Tensor) -> None:
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise InputError(f"the weight of a linear layer must be (D, D), got {tuple(weight.shape)}.")
