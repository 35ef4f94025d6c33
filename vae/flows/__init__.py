"""Normalizing flows: invertible maps between data and noise whose volume change is known, so that log p(x) is exact."""

from vae.flows.autoregressive import Autoregressive
from vae.flows.coupling import Coupling, alternating, channels, checkerboard
from vae.flows.elements import Affine, ElementMap
from vae.flows.linear import LU, QR, rotation
from vae.flows.normalisation import ActivationNorm
from vae.flows.splines import RationalQuadratic
from vae.flows.transform import Compose, FlowDistribution, Inverse, Transform

__all__ = [
    "LU",
    "QR",
    "ActivationNorm",
    "Affine",
    "Autoregressive",
    "Compose",
    "Coupling",
    "ElementMap",
    "FlowDistribution",
    "Inverse",
    "RationalQuadratic",
    "Transform",
    "alternating",
    "channels",
    "checkerboard",
    "rotation",
]
