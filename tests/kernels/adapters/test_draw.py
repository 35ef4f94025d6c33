"""Methods that draw a code: what the probe finds, and what still belongs to the model."""

import pytest
import torch
from torch import nn

from tests.kernels.adapters.lookalikes import noise_like
from vaebench import kernels
from vaebench.kernels.adapters import fuse_draw

MU, SIGMA = torch.randn(6, 4), torch.rand(6, 4) + 0.1


def model_with(method):
    """Return a module whose class has this method as `reparameterize`."""
    return type("Theirs", (nn.Module,), {"reparameterize": method})()


def of_logvar(self, mu, logvar):
    return mu + torch.exp(0.5 * logvar) * noise_like(mu)


def of_std(self, mu, std):
    return mu + std * noise_like(std)


def of_var(self, mean, var):
    return mean + var.sqrt() * noise_like(mean)


def of_normal(self, mu, log_var):
    return torch.distributions.Normal(mu, (0.5 * log_var).exp()).rsample()


def with_noise(self, mu, std):
    eps = noise_like(std)
    return mu + eps * std, eps


def mu_in_eval(self, mu, logvar):
    return of_logvar(self, mu, logvar) if self.training else mu


SPREADS = {of_logvar: 2 * SIGMA.log(), of_normal: 2 * SIGMA.log(), of_std: SIGMA, of_var: SIGMA**2, with_noise: SIGMA}


@pytest.mark.parametrize("method", SPREADS, ids=lambda method: method.__name__)
def test_the_scale_is_found_out(method):
    model, spread = model_with(method), SPREADS[method].clone().requires_grad_()
    draw = fuse_draw(model)
    torch.manual_seed(1)
    z = draw(MU, spread)
    torch.manual_seed(1)
    eps = noise_like(MU)
    if method is with_noise:
        z, noise = z
        torch.testing.assert_close(noise, eps)
    torch.testing.assert_close(z, MU + SIGMA * eps)
    kl = 0.5 * (MU**2 + SIGMA**2 - 1 - 2 * SIGMA.log()).sum(1)
    torch.testing.assert_close(draw.kl, kl)
    torch.testing.assert_close(draw.kl_of(MU, z), kl)
    assert draw.kl_of(MU, z.clone()) is None


def test_a_model_that_returns_mu_in_eval_mode_still_does():
    model = model_with(mu_in_eval)
    draw = fuse_draw(model)
    logvar = 2 * SIGMA.log()
    assert not draw(MU, logvar).equal(MU)
    model.eval()
    assert draw(MU, logvar).equal(MU)
    torch.testing.assert_close(draw.kl, 0.5 * (MU**2 + SIGMA**2 - 1 - logvar).sum(1))
    model.train()
    assert not draw(MU, logvar).equal(MU)


def test_keywords_and_further_arguments():
    def several(self, mu, log_var, n=1):
        return torch.stack([of_logvar(self, mu, log_var) for _ in range(n)]).squeeze(0)

    model, logvar = model_with(several), 2 * SIGMA.log()
    draw = fuse_draw(model)
    results = []
    for call in (lambda: draw(MU, logvar), lambda: draw(MU, log_var=logvar), lambda: draw(mu=MU, log_var=logvar)):
        torch.manual_seed(1)
        results.append(call())
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])
    torch.manual_seed(1)
    codes = draw(MU, logvar, n=3)
    torch.manual_seed(1)
    assert codes.equal(model.reparameterize(MU, logvar, n=3))
    torch.testing.assert_close(draw.kl, 0.5 * (MU**2 + SIGMA**2 - 1 - logvar).sum(1))


def test_tensors_that_broadcast_are_the_model_s_own():
    model = model_with(of_logvar)
    draw, logvar = fuse_draw(model), torch.zeros(4)
    torch.manual_seed(1)
    z = draw(MU, logvar)
    torch.manual_seed(1)
    assert z.equal(model.reparameterize(MU, logvar))
    assert draw.kl is None


REFUSED = {
    "half": (lambda self, mu, logvar: mu + 0.5 * torch.exp(0.5 * logvar) * noise_like(mu), "is not z = mu"),
    "no noise": (lambda self, mu, logvar: mu, "is not z = mu"),
    "uniform": (lambda self, mu, logvar: mu + torch.exp(0.5 * logvar) * torch.rand_like(mu), "is not z = mu"),
    "logs": (lambda self, mu, logsigma: mu + logsigma.exp() * noise_like(mu), "is not z = mu"),
    "clamp": (lambda self, mu, logvar: of_logvar(self, mu, logvar.clamp(-4, 4)), "where log.sigma.2. = -30"),
    "clamp of large ones": (lambda self, mu, std: of_std(self, mu, std.clamp(max=50)), "where log.sigma.2. = 12"),
    "three": (lambda self, mu, logvar: (mu, mu, mu), "is no tensor of the shape"),
    "raises": (lambda self, mu, logvar: mu @ logvar, "it raised RuntimeError"),
}


@pytest.mark.parametrize(("method", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_method_that_does_something_else_is_refused(method, reason):
    with pytest.raises(ValueError, match=f"reparameterize.mu, spread. cannot be replaced: .* {reason}"):
        fuse_draw(model_with(method))


def test_the_probe_leaves_no_trace():
    def remembers(self, mu, logvar):
        self.latest = mu
        return of_logvar(self, mu, logvar)

    model = model_with(remembers)
    model.part = nn.Dropout().eval()
    before, state = dict(vars(model)), torch.get_rng_state()
    fuse_draw(model)
    assert vars(model) == before
    assert model.training
    assert not model.part.training
    assert torch.get_rng_state().equal(state)


def test_the_probe_puts_buffers_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.BatchNorm1d(8)
            self.register_buffer("calls", torch.zeros(()))

        def reparameterize(self, mu, logvar):
            self.part(mu)
            self.part.latest = mu
            self.calls = self.calls + 1
            return of_logvar(self, mu, logvar)

    model = Counts()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fuse_draw(model)
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert not hasattr(model.part, "latest")


def test_a_clamp_beyond_the_probe_is_served():
    fuse_draw(model_with(lambda self, mu, logvar: of_logvar(self, mu, logvar.clamp(-30, 20))))


def test_codes_of_images_need_their_shape():
    def as_image(self, mu, logvar):
        return of_logvar(self, mu.view(-1, 2, 3, 3), logvar.view(-1, 2, 3, 3))

    with pytest.raises(ValueError, match=r"of shape \(B, 8\) it raised RuntimeError"):
        fuse_draw(model_with(as_image))
    draw = fuse_draw(model_with(as_image), shape=(2, 3, 3))
    assert draw(torch.zeros(5, 2, 3, 3), torch.zeros(5, 2, 3, 3)).shape == (5, 2, 3, 3)
    assert draw.kl.equal(torch.zeros(5))


def test_the_noise_is_that_of_reparam_kl():
    draw = fuse_draw(model_with(of_logvar))
    torch.manual_seed(1)
    z = draw(MU, torch.zeros_like(MU))
    torch.manual_seed(1)
    torch.testing.assert_close(z, kernels.reparam_kl(MU, torch.zeros_like(MU))[0])
