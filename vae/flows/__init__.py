"""Normalizing flows: invertible maps between data and noise whose volume change is known, so that log p(x) is exact."""

from vaebench.vae.flows.autoregressive import Autoregressive
from vaebench.vae.flows.coupling import Coupling, alternating, channels, checkerboard
from vaebench.vae.flows.elements import Affine, ElementMap
from vaebench.vae.flows.linear import LU, QR, rotation
from vaebench.vae.flows.normalisation import ActivationNorm
from vaebench.vae.flows.splines import RationalQuadratic
from vaebench.vae.flows.transform import Compose, FlowDistribution, Inverse, Transform

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
