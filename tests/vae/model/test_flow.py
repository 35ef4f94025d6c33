"""A flow as a model of its own: its density, its codes, its checkpoints, and `fit` as a VAE has it."""

import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from tests.exact_models import generator
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.study.space import Space, check_space
from vaebench.studies.engine.workers.job import Job
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Data, Eval, Model, Run, Train
from vaebench.vae.data import from_tensors, load
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.evaluation.evaluate import evaluate, importance_nll, measure
from vaebench.vae.flows import LU, NSF, ActivationNorm, Coupling, RealNVP, alternating_mask
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.prob.levels import dequantise, quantise
from vaebench.vae.training import checkpoint
from vaebench.vae.training.fit import fit
from vaebench.vae.training.state import load_model

SMALL = Run(
    model=Model(latent=3, hidden=(24,)),
    train=Train(epochs=4, batch_size=256, checkpoint_epochs=1, device="cpu"),
    eval=Eval(samples=40, examples=40),
)
KINDS = {
    "flows in the vae": SMALL.replace({"model.prior": "flow", "model.posterior": "iaf", "model.flow_layers": 2}),
    "coupling": SMALL.replace({"model.kind": "coupling", "model.spline_bins": 4}),
    "autoregressive": SMALL.replace({"model.kind": "autoregressive", "model.flow_layers": 2}),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


class StopEarlyError(Exception):
    pass


def stop(epoch, metrics):
    if epoch == 2:
        raise StopEarlyError


def assert_same_tensors(*folders):
    one, other = (checkpoint.read(folder / checkpoint.CURRENT)[0] for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@every_kind
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, config):
    config = config.replace({"train.epochs": 3})
    whole = fit(config, folder=tmp_path / "whole")
    with pytest.raises(StopEarlyError):
        fit(config, folder=tmp_path / "parts", report=stop)
    fit(config, folder=tmp_path / "parts")
    assert_same_tensors(tmp_path / "whole", tmp_path / "parts")
    model, restored = load_model(tmp_path / "parts" / checkpoint.CURRENT)
    assert restored == whole.config
    assert measure(model, whole.splits, restored) == measure(whole.model, whole.splits, whole.config)


@every_kind
def test_it_learns_and_every_parameter_moves(config):
    start = {}
    splits = load(config.data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(config.model, splits.shape, splits.levels)

    def remember(epoch, metrics):
        start.setdefault("weights", {name: p.detach().clone() for name, p in model.named_parameters()})

    result = fit(config, data=splits, model=model, report=remember)
    assert result.config == fit(config.replace({"train.epochs": 1})).config.replace({"train.epochs": 4})
    assert result.history[-1]["valid/elbo"] > result.history[0]["valid/elbo"] + 1
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start["weights"][name]), name
    ordinary = fit(SMALL.replace({"train.epochs": 1}))
    assert result.history[0].keys() == ordinary.history[0].keys()
    assert evaluate(result).keys() <= evaluate(ordinary).keys()


def test_a_checkpoint_from_before_there_were_flows_is_read_and_gone_on_with(tmp_path):
    """Settings that it does not have are what they are by default."""
    whole = fit(SMALL, folder=tmp_path / "whole")
    old = tmp_path / "old"
    with pytest.raises(StopEarlyError):
        fit(SMALL, folder=old, report=stop)
    tensors, meta = checkpoint.read(old / checkpoint.CURRENT)
    for name in ("kind", "prior", "posterior", "flow_layers", "spline_bins"):
        del meta["config"][f"model.{name}"]
    checkpoint.write(old, tensors, meta)
    assert load_model(old / checkpoint.CURRENT)[1] == whole.config
    with pytest.raises(InputError, match=r"holds a run with model\.prior = normal, not flow"):
        fit(SMALL.replace({"model.prior": "flow"}), folder=old)
    fit(SMALL, folder=old)
    assert_same_tensors(tmp_path / "whole", old)


def test_an_autoregressive_flow_comes_to_the_full_gaussian_that_made_the_data():
    """Gaussian data: affine conditionals are all there is to learn, and the likelihood has a closed optimum."""
    data = Data(name="linear", size=3000, features=4, rank=2, noise=0.5)
    config = Run(
        data,
        Model(kind="autoregressive", flow_layers=1, hidden=(32,), likelihood="gaussian"),
        train=Train(epochs=25, batch_size=200, learning_rate=1e-2, device="cpu"),
    )
    result = fit(config)
    train, test = (split.batch().double() for split in (result.splits.train, result.splits.test))
    best = FullGaussian(train.mean(0), torch.cov(train.T, correction=0)).log_prob(test).mean().item()
    found = evaluate(result)
    assert found["test/nll"] == pytest.approx(-best, abs=0.08)
    assert found["test/elbo"] == pytest.approx(-found["test/nll"], abs=1e-4), "continuous data are not dequantised"
    assert found["test/nll_stderr"] == pytest.approx(0, abs=1e-6)
    assert "test/bits_per_dim" not in found


def flow_model(levels=5):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FlowModel(NSF((1, 2, 2), layers=2, bins=4, hidden=(8,)), (1, 2, 2), levels).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model


def levels_of(shape, levels=5, seed=0):
    return torch.randint(0, levels, shape, generator=generator(seed)) / (levels - 1)


def test_the_likelihood_of_a_flow_is_its_density_in_units_of_one_level():
    model, x = flow_model(), levels_of((6, 1, 2, 2)).double()
    u = torch.rand(x.shape, generator=generator(4), dtype=x.dtype)
    terms = objectives.terms(model, x, generator=generator(4))
    in_levels = 4 * x + u  # between 0 and 5: one level has length 1
    noise = lambda y: model.flow((y / 5).flatten(-3))[0]  # noqa: E731
    jacobian = vmap(jacrev(noise))(in_levels).reshape(6, 4, 4)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise(in_levels)).sum(-1)
    torch.testing.assert_close(terms.log_px, normal + torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-9)
    assert not terms.kl.any()
    assert torch.equal(terms.z, noise(in_levels))


def test_ten_places_of_each_level_in_its_cell_are_averaged():
    model, x = flow_model(), levels_of((50, 1, 2, 2)).double()
    splits = from_tensors(*(3 * [(4 * x).to(torch.uint8)]), levels=5)
    found = importance_nll(model.float(), splits.test, SMALL)
    once = objectives.terms(model, x[:40].float(), generator=generator(9)).log_px.mean().item()
    assert found["nll_samples"] == 10
    assert found["nll"] == pytest.approx(-once, abs=0.5)
    draws = [importance_nll(model, splits.test, SMALL.replace({"eval.seed": s})) for s in range(60)]
    spread = torch.tensor([d["nll"] for d in draws]).std().item()
    assert found["nll_stderr"] == pytest.approx(spread, rel=0.35)


def test_a_flow_reads_its_codes_back_to_the_very_levels():
    model, x = flow_model(), levels_of((40, 1, 2, 2)).double()
    q = model.encode(x)
    assert torch.equal(model.decode(q.mu).mean, x)
    assert torch.equal(model.decode(model.represent(x).expand(3, -1, -1)).sample(), x.expand(3, *x.shape))
    assert (model.decode(q.mu).log_prob(x) == torch.inf).all()
    assert (model.decode(q.mu).log_prob(1 - x)[(x != 0.5).flatten(1).any(1)] == -torch.inf).all()
    assert q.logvar.max() == -torch.inf
    assert (q.log_prob(q.mu) == torch.inf).all()
    assert (q.log_prob(q.mu + 1e-9) == -torch.inf).all()
    assert torch.equal(q.sample(), q.mu)
    terms = objectives.terms(model, x, generator=generator(0))
    assert (terms.q.log_prob(terms.z) == torch.inf).all()


def test_a_flow_has_no_joint_of_x_and_a_code_to_integrate():
    with pytest.raises(
        InputError, match=r"base_joint needs a p\(x\|z\) that has a density, got a FlowModel .* coupling"
    ):
        flow_model().base_joint(levels_of((2, 1, 2, 2)))


def test_layers_that_start_from_data_see_the_training_set_dequantised():
    splits = load(Data())
    config = KINDS["coupling"].replace({"train.learning_rate": 1e-30, "train.epochs": 1})
    model = fit(config).model
    x = splits.train.batch()
    y = dequantise(x, 17, torch.rand(x.shape, generator=generator(0))).flatten(1)
    first = model.flow.transforms[0]
    assert isinstance(first, ActivationNorm)
    with torch.no_grad():
        z, _ = first(y)
    assert z.mean(0).abs().max() < 0.2
    assert (z.std(0) - 1).abs().max() < 0.2


def test_masks_of_images_are_checkerboards_and_take_turns():
    masks = [layer.stays.tolist() for layer in RealNVP((1, 4, 4), layers=2).transforms if isinstance(layer, Coupling)]
    assert masks == [[0, 2, 5, 7, 8, 10, 13, 15], [1, 3, 4, 6, 9, 11, 12, 14]]
    flat = [layer.stays.tolist() for layer in RealNVP((4,), layers=2).transforms if isinstance(layer, Coupling)]
    assert flat == [alternating_mask(4).nonzero()[:, 0].tolist(), [1, 3]]


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_levels_are_spread_over_cells_and_gathered_from_them(levels):
    x = torch.arange(levels) / (levels - 1)
    for u in (0.01, 0.5, 0.99):
        y = dequantise(x, levels, u)
        torch.testing.assert_close(y * levels - torch.arange(levels), torch.full((levels,), u), atol=1e-4, rtol=0)
        assert torch.equal(quantise(y, levels), x)
    assert quantise(torch.tensor([-3.0, 9.0]), levels).tolist() == [0, 1]


def test_a_density_constant_in_each_cell_has_the_bits_of_its_levels():
    """The bound is tight, so that a flow can be compared with a VAE of levels."""
    P = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    k, u = torch.arange(3), torch.rand(3, generator=generator(0), dtype=torch.float64)
    y = dequantise(k / 2, 3, u)
    density = P[(y * 3).long()] * 3
    torch.testing.assert_close(density.log() - math.log(3), P.log())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.prior": "flow", "model.latent": 1}, "a coupling flow needs at least two elements to couple, got 1"),
        ({"model.kind": "coupling", "model.spline_bins": 1}, "a spline needs 2 to 999 bins"),
    ],
)
def test_flows_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        fit(SMALL.replace(changes))


def test_your_own_flow_and_your_own_flows_in_a_vae_are_what_is_logged():
    x = torch.randn(60, 4, generator=generator(0))
    short = Run(train=Train(epochs=1, device="cpu"), eval=Eval(samples=10))
    own = FlowModel(RealNVP((4,), layers=1), (4,), kind="coupling")
    found = fit(short, data=from_tensors(x, x, x), model=own)
    assert found.config.model.kind == "coupling"
    inside = VAE(nn.Linear(4, 4), nn.Linear(2, 4), Likelihood("gaussian", (4,)), 2, prior_flow=LU(torch.eye(2)))
    config = fit(short, data=from_tensors(x, x, x), model=inside).config
    assert (config.model.prior, config.model.posterior) == ("flow", "gaussian")
    with pytest.raises(InputError, match=r"must return \(B, 2 \* latent \+ context\) = \(60, 7\), one tensor, got"):
        VAE(nn.Linear(4, 4), nn.Linear(2, 4), Likelihood("gaussian", (4,)), 2, context=3).encode(x)


@pytest.mark.parametrize("changes", [{}, {"model.prior": "flow", "model.posterior": "iaf"}, {"model.kind": "coupling"}])
def test_every_model_has_what_its_callers_need(changes):
    """No caller asks for the class of a model: `sample` draws what `prior` and `decode` draw, and terms add up."""
    model = models.build(SMALL.replace(changes).model, (1, 8, 8), 17)
    x = model.sample(3, generator(0))
    assert x.equal(model.decode(model.sample_prior(3, (noise := generator(0)))).sample(noise))
    assert model.represent(x).shape == model.encode(x).mu.shape == (3, model.latent)
    assert model.has_codes == (model.settings["model.kind"] == "vae")
    terms = objectives.terms(model, x, generator=generator(1))
    assert terms.log_px.shape == terms.kl.shape == (3,)
    assert model.has_codes == bool(terms.kl.any())


def test_the_bandwidth_of_a_flow_is_that_of_its_own_codes():
    """Twice the 64 pixels, not twice model.latent, in what `fit` uses and in the record of a sweep's trial."""
    config = KINDS["coupling"].replace({"objective.lambda": 3.0, "train.epochs": 1})
    assert fit(config).config.objective.bandwidth == (128.0,)
    assert fit(SMALL.replace({"train.epochs": 1})).config.objective.bandwidth == (6.0,)
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--space", "infovae", "--set", "model.kind=coupling"]))
    record = Job(plan, load(Data()), None, {}, 1).begin_record(
        0, {"objective.alpha": 0.0, "objective.lambda": 3.0, "train.learning_rate": 1e-3}
    )
    assert record.tags["objective.bandwidth"] == "128.0"


def test_a_sweep_can_choose_among_them():
    tables = {
        "model": {
            "kind": {"choices": ["vae", "coupling", "autoregressive"]},
            "prior": {"choices": ["normal", "flow"]},
            "posterior": {"choices": ["gaussian", "iaf"]},
            "flow_layers": {"low": 1, "high": 3},
            "latent": 4,
        },
        "objective": {"lambda": {"low": 1.0, "high": 10.0}},
    }
    check_space(Space.from_tables("flows", tables), SMALL, load(Data()))
    with pytest.raises(InputError, match=r"space flows reaches .* tc_vae needs"):
        check_space(Space.from_tables("flows", tables), SMALL.replace({"objective.name": "tc_vae"}), load(Data()))
