"""Training: it learns, it resumes bit for bit, it stops when told to, and it refuses what cannot be trained."""

import json
import math
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save
from torch import nn

from tests import ROOT
from vaebench import kernels
from vaebench.vae import model as vae_model
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import from_tensors
from vaebench.vae.data import load as load_data
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.model import VAE
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.objective import InfoVAE
from vaebench.vae.training import checkpoint
from vaebench.vae.training import epoch as epochs
from vaebench.vae.training.epoch import validate
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state
from vaebench.vae.training.state import load_model, save_model

# Dropout, dynamic binarisation, a batch statistic and warm-up: everything that draws or counts while it trains.
RESTLESS = Run(
    data=Data(binarise="dynamic"),
    model=Model(latent=3, hidden=(24,), dropout=0.2, likelihood="bernoulli"),
    objective=InfoVAE(alpha=0.3, lambda_=5.0),
    train=Train(epochs=6, batch_size=128, warmup_epochs=3, weight_decay=0.01, checkpoint_epochs=2, device="cpu"),
)


class StopEarlyError(Exception):
    pass


def stop_after(last):
    def report(epoch, metrics):
        if epoch == last:
            raise StopEarlyError

    return report


def tensors_of(folder):
    return checkpoint.read(folder / checkpoint.CURRENT)[0]


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fit(RESTLESS, folder=folder), tensors_of(folder)


def test_training_improves_the_validation_elbo_and_reports_every_epoch():
    seen = []
    result = fit(RESTLESS, report=lambda epoch, metrics: seen.append((epoch, metrics)))
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [metrics for _, metrics in seen] == result.history
    first, last = result.history[0], result.history[-1]
    assert last["valid/elbo"] > first["valid/elbo"] + 2
    assert last["train/elbo"] == pytest.approx(-last["train/distortion"] - last["train/rate"], rel=1e-6)
    assert {"train/divergence", "train/grad_norm", "perf/images_per_s", "valid/rate"} <= last.keys()


def test_two_runs_give_the_same_bits_whatever_else_draws(uninterrupted):
    torch.manual_seed(987)
    before = torch.get_rng_state()
    again = fit(RESTLESS)
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator was disturbed"
    assert_identical(again.model.state_dict(), uninterrupted[0].model.state_dict())
    other = fit(RESTLESS.replace({"train.seed": 1}))
    assert not torch.equal(other.model.encoder[1].weight, again.model.encoder[1].weight)


def test_the_order_of_the_examples_is_drawn_from_its_own_stream():
    split = load_data(RESTLESS.data).valid
    drawn = [torch.cat(epochs.batch_indices(split, 7, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0].sort().values, torch.arange(len(drawn[0])))
    assert len(split) - len(drawn[0]) == (len(split) % 7 == 1), "a last batch of one has no pairs"


@pytest.mark.parametrize("k", [1, 2])
def test_a_validation_tells_the_bound_of_several_draws(k):
    history = fit(RESTLESS.replace({"objective.name": "iwae", "objective.samples": k, "train.epochs": 1})).history
    assert ("valid/bound" in history[0]) == (k > 1)
    assert history[0].get("valid/bound", math.inf) > history[0]["valid/elbo"]


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, uninterrupted, stopped_after):
    """Checkpoints fall on epochs 2, 4 and 6: up to one epoch is trained again, with the same result."""
    with pytest.raises(StopEarlyError):
        fit(RESTLESS, folder=tmp_path, report=stop_after(stopped_after))
    resumed = fit(RESTLESS, folder=tmp_path)
    assert_identical(tensors_of(tmp_path), uninterrupted[1])
    assert_identical(resumed.model.state_dict(), uninterrupted[0].model.state_dict())
    assert len(resumed.history) == 6
    assert resumed.best_epoch == uninterrupted[0].best_epoch


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_the_best_epoch_before_a_stop_is_the_best_afterwards(tmp_path, monkeypatch, stopped_after):
    """Validation ELBOs of 5, 9, 7 and 8: the second epoch is the best, and what is kept and loaded has its weights."""
    elbos = [5.0, 9.0, 7.0, 8.0]

    def scripted(model, split, config):
        return {"valid/elbo": elbos[len(seen)], "valid/rate": 0.0, "valid/distortion": 0.0}

    def report(epoch, metrics):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if epoch == stopped_after and not resumed:
            raise StopEarlyError

    monkeypatch.setattr(epochs, "validate", scripted)
    config = RESTLESS.replace({"train.epochs": 4, "train.patience": 9, "train.warmup_epochs": 0})
    config = config.replace({"train.checkpoint_epochs": 1})
    seen, resumed = [], False
    model = vae_model.build(config.model, (1, 8, 8), 2)
    with pytest.raises(StopEarlyError):
        fit(config, model=model, folder=tmp_path, report=report)
    resumed = True
    result = fit(config, model=model, folder=tmp_path, report=report)
    assert result.best_epoch == 2
    assert [epoch["valid/elbo"] for epoch in result.history] == elbos
    assert_identical(result.model.state_dict(), seen[1])
    assert_identical(load_model(tmp_path)[0].state_dict(), seen[1])
    assert not torch.equal(seen[1]["encoder.1.weight"], seen[3]["encoder.1.weight"])


def test_an_epoch_of_the_warm_up_is_not_the_best_however_high_its_elbo(monkeypatch):
    elbos = iter([9.0, 5.0, 7.0, 6.0])
    monkeypatch.setattr(epochs, "validate", lambda model, split, config: {"valid/elbo": next(elbos)})
    result = fit(RESTLESS.replace({"train.epochs": 4, "train.patience": 9, "train.warmup_epochs": 2}))
    assert result.best_epoch == 3


def test_every_step_trains_with_dropout_and_no_validation_has_it():
    modes = []
    model = vae_model.build(RESTLESS.model, (1, 8, 8), 2)
    model.encoder[1].register_forward_hook(
        lambda layer, inputs, output: modes.append((torch.is_grad_enabled(), layer.training))
    )
    fit(RESTLESS.replace({"train.epochs": 2}), model=model)
    assert set(modes) == {(True, True), (False, False)}


@pytest.mark.parametrize("objective", ["infovae", "factor_vae"])
def test_a_model_that_was_built_before_is_trained_to_the_same_bits(objective):
    """Dropout and critics draw from torch's own generator, as initial weights do."""
    changes = {"objective.name": objective, "train.epochs": 2, "train.seed": 4}
    config = RESTLESS.replace(changes)
    with own_random_state(4, torch.device("cpu")):
        model = vae_model.build(config.model, (1, 8, 8), 2)
    assert_identical(fit(config, model=model).model.state_dict(), fit(config).model.state_dict())


def test_a_run_stopped_before_its_objective_has_settled_is_loaded_as_it_was(tmp_path):
    config = RESTLESS.replace({"train.warmup_epochs": 6, "train.checkpoint_epochs": 1, "train.patience": 9})

    def stop(epoch, metrics):
        if epoch == 2:
            raise StopEarlyError

    model = vae_model.build(config.model, (1, 8, 8), 2)
    with pytest.raises(StopEarlyError):
        fit(config, model=model, report=stop, folder=tmp_path)
    loaded, _ = load_model(tmp_path / checkpoint.CURRENT)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_goes_on_bit_for_bit(tmp_path):
    """SIGKILL to the real command, twice, at moments that nobody chose."""
    settings = [f"{name}={value}" for name, value in RESTLESS.replace({"train.epochs": 400}).flat().items()]
    command = [sys.executable, "studies/train.py", *(f"--set={setting}" for setting in settings)]
    command += ["--tracking-uri", "none", "--folder"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills = 0
    for _ in range(2):
        process = subprocess.Popen([*command, str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        written = (killed / "metrics.jsonl").stat().st_size if (killed / "metrics.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            path = killed / "metrics.jsonl"
            if path.exists() and path.stat().st_size > written:
                break
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert kills == 2
    assert_identical(tensors_of(killed), tensors_of(whole))
    epochs = [json.loads(line)["epoch"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert epochs[:-1] == list(range(1, len(epochs)))


def test_a_truncated_checkpoint_is_refused_by_name_and_the_previous_one_used(tmp_path, uninterrupted, caplog):
    with pytest.raises(StopEarlyError):
        fit(RESTLESS, folder=tmp_path, report=stop_after(5))
    current = tmp_path / checkpoint.CURRENT
    current.write_bytes(current.read_bytes()[:-100])
    fit(RESTLESS, folder=tmp_path)
    assert str(current) in caplog.text
    assert "cannot be used" in caplog.text
    assert_identical(tensors_of(tmp_path), uninterrupted[1])


def test_a_flipped_bit_of_a_weight_is_noticed_and_the_previous_checkpoint_used(tmp_path, uninterrupted, caplog):
    with pytest.raises(StopEarlyError):
        fit(RESTLESS, folder=tmp_path, report=stop_after(5))
    current = tmp_path / checkpoint.CURRENT
    stored = bytearray(current.read_bytes())
    stored[len(stored) // 2] ^= 1 << 6
    current.write_bytes(stored)
    fit(RESTLESS, folder=tmp_path)
    assert f"checkpoint {current} cannot be used (its values are not those that were written" in caplog.text
    assert_identical(tensors_of(tmp_path), uninterrupted[1])


def test_a_file_of_tensors_alone_is_refused_and_the_previous_checkpoint_used(tmp_path):
    stored = save({"model.weight": torch.zeros(2)})
    checkpoint.write(tmp_path, {"model.weight": torch.ones(2)}, {"epoch": 1})
    (tmp_path / checkpoint.CURRENT).rename(tmp_path / checkpoint.PREVIOUS)
    (tmp_path / checkpoint.CURRENT).write_bytes(stored)
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.read(tmp_path / checkpoint.CURRENT)
    assert checkpoint.read_latest(tmp_path)[1] == checkpoint.read_latest_meta(tmp_path) == {"epoch": 1}
    assert checkpoint.read_latest_meta(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(2.0), torch.empty(0, 3), torch.tensor([True, False]), torch.randn(4, 6).to(torch.bfloat16).T],
    ids=["number", "empty", "bool", "transposed bfloat16"],
)
def test_a_checksum_is_of_any_tensor(tmp_path, tensor):
    checkpoint.write(tmp_path, {"x": tensor}, {})
    assert_identical(checkpoint.read(tmp_path / checkpoint.CURRENT)[0], {"x": tensor})


def test_a_checkpoint_of_a_version_without_checksums_is_read(tmp_path):
    tensors = {"model.weight": torch.randn(3, 2), "rng.order": torch.arange(4, dtype=torch.uint8)}
    path = tmp_path / checkpoint.CURRENT
    path.write_bytes(save(tensors, {"meta": '{"epoch": 2}'}))
    read, meta = checkpoint.read(path)
    assert meta == {"epoch": 2}
    assert_identical(read, tensors)


def test_a_folder_whose_checkpoints_are_all_damaged_is_refused(tmp_path):
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"\x00" * 9)
    with pytest.raises(InputError, match=r"no checkpoint in .* can be used; delete checkpoint\.safetensors"):
        fit(RESTLESS, folder=tmp_path)


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(RESTLESS.replace({"train.epochs": 1}), folder=tmp_path)
    with pytest.raises(InputError, match=r"holds a run with train\.epochs = 1, not 6; choose another folder"):
        fit(RESTLESS, folder=tmp_path)
    data = load_data(Data(seed=5, binarise="dynamic"))
    with pytest.raises(InputError, match=r"holds a run on other data"):
        fit(RESTLESS.replace({"train.epochs": 1}), data=data, folder=tmp_path)


def test_a_checkpoint_of_other_streams_is_loaded_but_not_resumed(tmp_path):
    """Its noise would silently be another."""
    short = RESTLESS.replace({"train.epochs": 1})
    result = fit(short, folder=tmp_path)
    tensors, meta = checkpoint.read(tmp_path / checkpoint.CURRENT)
    assert meta.pop("streams") == 1
    checkpoint.write(tmp_path, tensors, meta)
    with pytest.raises(InputError, match=r"is of an earlier version, whose noise was another; choose another folder"):
        fit(short, folder=tmp_path)
    assert_identical(load_model(tmp_path / checkpoint.CURRENT)[0].state_dict(), result.model.state_dict())


def test_a_checkpoint_gives_the_model_back(tmp_path):
    result = fit(RESTLESS, folder=tmp_path)
    model, config = load_model(tmp_path / checkpoint.CURRENT)
    assert config == result.config
    assert_identical(model.state_dict(), result.model.state_dict())
    assert validate(model, result.splits.valid, config)["valid/elbo"] == pytest.approx(
        max(epoch["valid/elbo"] for epoch in result.history), abs=1e-9
    )


def test_patience_ends_the_run_and_keeps_the_best_epoch():
    config = RESTLESS.replace({"train.epochs": 40, "train.patience": 2, "train.learning_rate": 0.05})
    result = fit(config)
    scores = [epoch["valid/elbo"] for epoch in result.history]
    assert len(scores) < 40
    assert result.best_epoch == len(scores) - 2 == 1 + scores.index(max(scores))
    assert validate(result.model, result.splits.valid, config)["valid/elbo"] == pytest.approx(max(scores), abs=1e-9)


def test_without_patience_the_last_epoch_stays():
    config = RESTLESS.replace({"train.epochs": 8, "train.patience": 0, "train.learning_rate": 0.05})
    result = fit(config)
    final = validate(result.model, result.splits.valid, config)["valid/elbo"]
    assert len(result.history) == 8
    assert final == pytest.approx(result.history[-1]["valid/elbo"], abs=1e-9)


def test_schedules_end_where_they_say(monkeypatch):
    step = torch.optim.AdamW.step

    def rates(schedule):
        seen = []

        def spy(optimizer, *args, **options):
            seen.append(optimizer.param_groups[0]["lr"])
            return step(optimizer, *args, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", spy)
        fit(RESTLESS.replace({"train.schedule": schedule, "train.epochs": 4}))
        return seen

    cosine = rates("cosine")
    assert cosine[0] == 2e-3
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[len(cosine) // 2] == pytest.approx(1e-3)
    assert 0 < cosine[-1] < 1e-5
    assert set(rates("constant")) == {2e-3}


def test_gradients_are_clipped_to_the_norm():
    """Adam undoes any scale above its epsilon of 1e-8; below that, a clipped gradient moves nothing."""
    config = RESTLESS.replace({"train.clip_norm": 1e-12, "train.epochs": 1, "train.learning_rate": 1e-3})
    unclipped = RESTLESS.replace({"train.epochs": 1, "train.learning_rate": 1e-3})
    start = fit(RESTLESS.replace({"train.epochs": 1, "train.learning_rate": 1e-30})).model.state_dict()
    moved = {
        name: max((result.model.state_dict()[key] - start[key]).abs().max() for key in start)
        for name, result in (("clipped", fit(config)), ("free", fit(unclipped)))
    }
    assert moved["clipped"] < 0.01 * moved["free"]


def test_a_loss_that_is_not_finite_names_step_terms_and_norm():
    with pytest.raises(DivergedError, match=r"in epoch \d+ at step \d+: objective .*, log p.*, KL .*, gradient norm"):
        fit(RESTLESS.replace({"train.learning_rate": 1e18, "train.clip_norm": 1e30, "train.epochs": 30}))


def test_a_last_batch_of_one_is_left_out_of_the_epoch():
    """A single code has no pairs; the next epoch's order leaves out another example."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    config = Run(
        model=Model(network="linear", latent=2, likelihood="gaussian"),
        objective=objectives.mmd_vae(3.0),
        train=Train(epochs=2, batch_size=4, device="cpu"),
    )
    result = fit(config, data=from_tensors(x, x, x))
    assert len(result.history) == 2


def test_your_own_data_and_networks():
    x = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    encoder, decoder = nn.Linear(5, 4), nn.Linear(2, 5)
    model = VAE(encoder, decoder, Likelihood("gaussian", (5,), sigma=0.2, learn=True), latent=2)
    config = Run(train=Train(epochs=20, device="cpu"))
    result = fit(config, data=from_tensors(x[:160], x[160:180], x[180:]), model=model)
    assert result.model is model
    assert result.history[-1]["valid/elbo"] > result.history[0]["valid/elbo"]


def test_mixed_precision_trains():
    result = fit(RESTLESS.replace({"train.precision": "bfloat16"}))
    assert result.history[-1]["valid/elbo"] > result.history[0]["valid/elbo"]
    assert result.model.encoder[1].weight.dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"train\.device = cuda needs a GPU"):
        fit(RESTLESS.replace({"train.device": "cuda"}))


def test_the_objective_is_told_the_size_of_the_set_and_how_warm_it_is(monkeypatch):
    told = []
    value = objectives.value

    def spy(objective, terms, *, data_size, warmup, **options):
        told.append((data_size, warmup))
        return value(objective, terms, data_size=data_size, warmup=warmup, **options)

    monkeypatch.setattr(objectives, "value", spy)
    fit(RESTLESS)
    steps = len(told) // 6
    assert {size for size, _ in told} == {1439}
    assert [warmth for _, warmth in told[: 3 * steps]] == pytest.approx([i / (3 * steps) for i in range(3 * steps)])
    assert {warmth for _, warmth in told[3 * steps :]} == {1.0}


def test_neither_patience_nor_the_best_epoch_looks_at_the_warm_up():
    config = RESTLESS.replace({"train.epochs": 12, "train.patience": 2, "train.warmup_epochs": 6})
    config = config.replace({"objective.beta": 50.0, "objective.alpha": 0.0, "objective.lambda": 1.0})
    result = fit(config)
    scores = [epoch["valid/elbo"] for epoch in result.history]
    assert len(scores) >= 8
    assert result.best_epoch == 6 + scores[5:].index(max(scores[5:]))


def test_weight_decay_shrinks_and_precision_reaches_the_networks():
    """Decay alone, without a gradient to speak of: weights shrink by (1 - lr * decay) a step."""
    still = {"train.clip_norm": 1e-30, "train.learning_rate": 1e-3, "train.schedule": "constant", "train.epochs": 1}
    free, decayed = (fit(RESTLESS.replace({**still, "train.weight_decay": w})).model for w in (0.0, 10.0))
    ratio = decayed.encoder[1].weight / free.encoder[1].weight
    assert ratio.median().item() == pytest.approx((1 - 1e-3 * 10) ** 12, rel=1e-3)
    seen = []
    model = RESTLESS.replace({"train.precision": "bfloat16", "train.epochs": 1})
    built = vae_model.build(model.model, (1, 8, 8), 2)
    built.encoder[1].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    fit(model, model=built)
    assert set(seen) == {torch.bfloat16}


def test_history_holds_means_over_examples(monkeypatch):
    """A batch of 31 after eleven of 128 counts for less; the norm and D are those that the steps had."""
    steps = []
    real = epochs.take_step
    monkeypatch.setattr(epochs, "take_step", lambda *arguments: steps.append(real(*arguments)) or steps[-1])
    (epoch,) = fit(RESTLESS.replace({"train.epochs": 1})).history
    kl = torch.cat([step.kl for step in steps])
    assert len(kl) == 1439
    assert epoch["train/rate"] == pytest.approx(kl.mean().item(), rel=1e-5)
    weights = torch.tensor([len(step.kl) / 1439 for step in steps])
    for name, values in (("grad_norm", [s.grad_norm for s in steps]), ("divergence", [s.divergence for s in steps])):
        assert epoch[f"train/{name}"] == pytest.approx((torch.stack(values).detach() * weights).sum().item(), rel=1e-4)


def test_a_backend_is_used_or_refused(monkeypatch):
    used = []
    real = kernels.reparam_kl
    monkeypatch.setattr(kernels, "reparam_kl", lambda *a, **o: used.append(o["backend"]) or real(*a, **o))
    result = fit(RESTLESS.replace({"train.epochs": 1, "train.backend": "eager"}))
    assert used.count("eager") == 12
    assert result.config.train.backend == "eager"
    settled = fit(RESTLESS.replace({"train.epochs": 1})).config.train
    assert (settled.backend, settled.device, settled.precision) == ("numba", "cpu", "float32")


def test_facts_of_your_own_model_are_what_is_logged():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    model = VAE(nn.Linear(5, 4), nn.Linear(2, 5), Likelihood("gaussian", (5,)), latent=2)
    config = Run(objective=InfoVAE(alpha=1.0, lambda_=10.0), train=Train(epochs=1, device="cpu"))
    found = fit(config, data=from_tensors(x, x, x), model=model).config
    assert (found.model.latent, found.model.likelihood, found.objective.bandwidth) == (2, "gaussian", (4.0,))


def test_your_own_binary_data_and_binarised_levels():
    bits = torch.randint(0, 2, (60, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = Run(model=Model(latent=2, hidden=(8,), likelihood="bernoulli"), train=Train(epochs=1, device="cpu"))
    assert fit(config, data=from_tensors(bits, bits, bits, levels=2)).splits.levels == 2
    grey = bits * 100
    drawn = fit(config.replace({"data.binarise": "dynamic"}), data=from_tensors(grey, grey, grey, levels=256))
    assert set(drawn.splits.train.batch().unique().tolist()) <= {0.0, 1.0}


def test_weights_that_are_shared_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, z):
            return z @ self.encoder.weight[:2]

    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    encoder = nn.Linear(5, 4)
    model = VAE(encoder, Tied(encoder), Likelihood("gaussian", (5,)), latent=2)
    fit(Run(train=Train(epochs=1, device="cpu")), data=from_tensors(x, x, x), model=model, folder=tmp_path / "new")
    assert (tmp_path / "new" / checkpoint.CURRENT).exists()


@pytest.mark.parametrize(
    ("shape", "likelihood", "message"),
    [
        ((8, 8), Likelihood("gaussian", (1, 8, 8)), r"of data of shape \(1, 8, 8\), yours has \(8, 8\)"),
        ((1, 8, 8), Likelihood("bernoulli", (1, 8, 8), levels=2), r"bernoulli is of 2 levels, yours has 17"),
    ],
)
def test_a_likelihood_of_other_data_is_refused(shape, likelihood, message):
    x = torch.randint(0, 17, (40, *shape), dtype=torch.uint8)
    model = VAE(nn.Flatten(), nn.Flatten(), likelihood, latent=32)
    with pytest.raises(InputError, match=message):
        fit(Run(train=Train(epochs=1, device="cpu")), data=from_tensors(x, x, x, levels=17), model=model)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    config, splits = Run(train=Train(epochs=1, device="cpu")), from_tensors(x, x, x)
    models = [
        VAE(nn.Sequential(nn.Linear(5, width), nn.Linear(width, 4)), nn.Linear(2, 5), Likelihood("gaussian", (5,)), 2)
        for width in (7, 9)
    ]
    fit(config, data=splits, model=models[0], folder=tmp_path)
    with pytest.raises(InputError, match="was written by a model of other layers or sizes"):
        fit(config, data=splits, model=models[1], folder=tmp_path)


def test_a_validation_elbo_that_is_not_finite_ends_the_run():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    far = x.clone()
    far[0, 0] = 1e30
    config = Run(model=Model(network="linear", latent=2, likelihood="gaussian"), train=Train(epochs=3, device="cpu"))
    with pytest.raises(DivergedError, match="validation ELBO of epoch 1 is -inf"):
        fit(config, data=from_tensors(x, far, x))


def test_a_report_cannot_change_the_history():
    result = fit(RESTLESS.replace({"train.epochs": 1}), report=lambda epoch, metrics: metrics.clear())
    assert "valid/elbo" in result.history[0]


@pytest.mark.parametrize("patience", [0, 3])
def test_weights_without_the_state_of_their_training_are_not_trained_further(tmp_path, patience):
    config = RESTLESS.replace({"train.epochs": 1, "train.patience": patience})
    result = fit(config)
    save_model(result.model, result.config, result.splits, tmp_path)
    with pytest.raises(InputError, match="holds weights without the state of a training; choose another folder"):
        fit(config, folder=tmp_path)
