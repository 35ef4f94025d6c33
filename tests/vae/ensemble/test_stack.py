"""The parts of a stack: rows of parameters, their optimizer, their clipping, and latents that a model does not have."""

import pytest
import torch
from torch import nn

from vaebench.vae import data
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.ensemble.epoch import RATE, schedule_of
from vaebench.vae.ensemble.fit_many import fit_many
from vaebench.vae.ensemble.layers import stack
from vaebench.vae.ensemble.stack import Layout, Member, RowAdamW, Stack
from vaebench.vae.errors import InputError
from vaebench.vae.model.build import build
from vaebench.vae.objective import TCVAE, InfoVAE
from vaebench.vae.training.state import State

CPU = torch.device("cpu")
SPLIT = data.load(Run().data).train
BASE = Run(model=Model(hidden=(12,)), train=Train(batch_size=16, device="cpu", backend="numba"))


def stacked(configs):
    members = []
    for config in configs:
        model = build(config.model, (1, 8, 8), 17)
        state = State.start(model, config, CPU)
        members.append(Member.start(config, state, CPU))
    return Stack(members, CPU, data_size=1000)


def batches(count, seed=0):
    return SPLIT.batch(torch.randint(1000, (16 * count,), generator=torch.Generator().manual_seed(seed)))


def test_rows_move_as_torchs_adamw_would_move_them_each_at_its_rate_decay_and_age():
    """The second row is three steps older; rates change from step to step."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 40, generator=generator)
    decays, ages = [0.0, 0.2, 0.01], [0, 3, 0]
    values, gradients = start.clone(), torch.zeros(3, 40)
    together = RowAdamW(values, gradients)
    alone = [nn.Parameter(row.clone()) for row in start]
    own = [torch.optim.AdamW([row], weight_decay=w) for row, w in zip(alone, decays, strict=True)]
    for row, optimizer, age in zip(alone, own, ages, strict=True):
        for _ in range(age):
            row.grad = torch.randn(40, generator=generator)
            optimizer.step()
    together.torch.state[together.rows[1]] = {name: x.clone() for name, x in own[1].state[alone[1]].items()}
    with torch.no_grad():
        values[1] = alone[1]
    for step in range(1, 6):
        rates = torch.tensor([1e-3 * step, 0.5, 1e-5])
        gradients.copy_(torch.randn(3, 40, generator=generator) * torch.tensor([[1.0], [1e-6], [1e4]]))
        together.step(rates[:, None], torch.tensor(decays)[:, None])
        for row, optimizer, rate, gradient in zip(alone, own, rates.tolist(), gradients, strict=True):
            row.grad, optimizer.param_groups[0]["lr"] = gradient.clone(), rate
            optimizer.step()
    torch.testing.assert_close(values, torch.stack([row.detach() for row in alone]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "linear"])
def test_parameters_go_into_rows_and_come_back(network):
    """Each number of a row belongs to one parameter of the largest model, and a smaller model finds its own there."""
    large, small = (build(Model(network=network, latent=K, hidden=(12,)), (1, 8, 8), 17) for K in (5, 3))
    layout = Layout(large)
    row = torch.arange(1.0, layout.size + 1)
    taken = torch.cat([view.flatten() for _, view in layout.view_one(row, large)])
    assert torch.equal(taken.sort().values, row)
    for parameter, view in layout.view_one(row, large):
        parameter.data.copy_(view.reshape(parameter.shape))
    for parameter, view in layout.view_one(row, small):
        parameter.data.copy_(view.reshape(parameter.shape))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1e-6
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 1e-6
    for found, whole in zip(small.encoder(x).chunk(2, 1), large.encoder(x).chunk(2, 1), strict=True):
        torch.testing.assert_close(found, whole[:, :3])
    padded = torch.cat([z, torch.zeros(4, 2)], 1)
    torch.testing.assert_close(small.decoder(z), large.decoder(padded))


OBJECTIVES = {
    "elbo": InfoVAE(beta=2.0),
    "mmd": InfoVAE(alpha=0.5, lambda_=10.0, bandwidth=(6.0,)),
    "kl": InfoVAE(lambda_=4.0, divergence="kl", bandwidth=(6.0,)),
    "tc": TCVAE(w_tc=5.0),
}


def step(together, x, rate):
    """Take a step with the final weights of each member's objective."""
    each = [schedule_of(member.config, 1e9) for member in together.members]
    weights = {name: torch.tensor([one.get(name, 0.0) for one in each]) for name in each[0] if name != RATE}
    return together.step(x, torch.full((len(each),), rate), weights)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_latents_that_a_model_lacks_neither_count_nor_move(objective):
    """Where they are zero they stay zero, to the bit; where they are not, nothing else is another number for it."""
    configs = [Run(model=Model(latent=K, hidden=(12,)), objective=objective, train=BASE.train) for K in (7, 2, 4)]
    left = []
    for garbage in (False, True):
        torch.manual_seed(0)
        together = stacked([config.resolve() for config in configs])
        lacking = [torch.ones(together.layout.size, dtype=torch.bool) for _ in configs]
        for member, row in zip(together.members, lacking, strict=True):
            for _, view in together.layout.view_one(row, member.state.model):
                view.fill_(False)
        unused = torch.stack(lacking)
        assert [bool(row.any()) for row in unused] == [True, True, False]
        if garbage:
            together.values[unused] = torch.randn(int(unused.sum()), generator=torch.Generator().manual_seed(1))
        untouched = together.values[unused].clone()
        steps = [step(together, batches(3, i), 1e-3) for i in range(3)]
        assert torch.equal(together.values[unused], untouched)
        left.append((torch.stack(steps), together.values[~unused]))
    for clean, dirty in zip(*left, strict=True):
        assert torch.equal(clean, dirty)


def test_each_model_is_clipped_to_its_own_norm():
    """Adam hides a scale; the gradients show it."""
    limits = [0.5, 1e6, 2.0]
    together = stacked([BASE.replace({"train.clip_norm": limit}) for limit in limits])
    _, _, _, norms, _ = step(together, batches(3), 0.0)
    assert (norms > 2).all()
    clipped = together.gradients.norm(dim=1)
    torch.testing.assert_close(clipped, torch.minimum(norms, torch.tensor(limits)), rtol=1e-5, atol=0)


def test_models_of_a_stack_draw_from_their_own_generators_alone():
    """Three of one seed and one batch leave the same; a fourth of another seed does not, nor do they notice it."""
    configs = [BASE.replace({"train.seed": seed}) for seed in (1, 1, 2, 1)]
    together = stacked(configs)
    with torch.no_grad():
        together.values.copy_(together.values[0].clone().expand_as(together.values))
    left = step(together, batches(1).repeat(4, 1, 1, 1), 1e-3)
    torch.testing.assert_close(left[:, 0], left[:, 1])
    torch.testing.assert_close(left[:, 0], left[:, 3])
    assert (left[1, 2] - left[1, 0]).abs() > 1e-3


def test_a_layer_that_has_no_stacked_form_is_named():
    with pytest.raises(InputError, match="a Conv2d layer cannot be stacked; train its models with fit"):
        stack(nn.Sequential(nn.Flatten(), nn.Conv2d(1, 2, 3)), iter([]), [])


def test_one_model_is_a_stack_too():
    (result,) = fit_many([BASE.replace({"train.epochs": 1, "train.batch_size": 256})])
    assert len(result.history) == 1
