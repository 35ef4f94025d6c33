"""Normalizing flows: invertible maps between data and noise whose volume change is known, so that log p(x) is exact."""

from vaebench.vae.flows.autoregressive import Autoregressive
from vaebench.vae.flows.build import MAF, NSF, RealNVP
from vaebench.vae.flows.coupling import Coupling, alternating_mask, channel_mask, checkerboard_mask
from vaebench.vae.flows.elementwise import Affine, ElementMap
from vaebench.vae.flows.linear import LU, QR, random_rotation
from vaebench.vae.flows.normalisation import ActivationNorm
from vaebench.vae.flows.splines import RationalQuadratic
from vaebench.vae.flows.transform import Compose, FlowDistribution, Inverse, Transform

__all__ = [
    "LU",
    "MAF",
    "NSF",
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
    "RealNVP",
    "Transform",
    "alternating_mask",
    "channel_mask",
    "checkerboard_mask",
    "random_rotation",
]
