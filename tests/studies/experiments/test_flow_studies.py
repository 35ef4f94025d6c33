"""The comparison of VAE and flows, and the preference for information, at sizes that take seconds."""

import dataclasses
import math

import pytest
import torch

from tests.exact_models import generator
from vaebench.studies.experiments import information_preference, vae_vs_flow
from vaebench.studies.experiments.output import format_table, mark_bounds, save
from vaebench.vae.data import load
from vaebench.vae.flows.autoregressive import MaskedNetwork
from vaebench.vae.model.build import build


def test_every_model_is_trained_measured_and_drawn(tmp_path, monkeypatch):
    small = {
        name: {**settings, "eval.examples": 20, "train.batch_size": 512}
        for name, settings in vae_vs_flow.MODELS.items()
    }
    monkeypatch.setattr(vae_vs_flow, "MODELS", small)
    monkeypatch.setattr(vae_vs_flow, "DRAWN", 10)
    configs = {name: vae_vs_flow.configure("digits", name, 0, 1) for name in vae_vs_flow.MODELS}
    measurements = {name: [vae_vs_flow.train(config)] for name, config in configs.items()}
    splits = load(information_preference.Data())
    rows = vae_vs_flow.compare(measurements, {"full Gaussian": 2.5})
    save(rows, vae_vs_flow.plot(rows, measurements, splits), tmp_path)
    assert [row["model"] for row in rows] == [*vae_vs_flow.MODELS, "full Gaussian"]
    for (measurement,) in measurements.values():
        assert measurement.images.shape == (vae_vs_flow.SHOWN, 8, 8)
        assert torch.equal(16 * measurement.images, (16 * measurement.images).round()), "what is drawn are levels"
        assert min(measurement.training, measurement.drawing, measurement.measuring) > 0
    sizes = {row["model"]: row["parameters"] for row in rows}
    assert sizes["VAE"] < sizes["VAE, flow prior"] <= sizes["VAE, wider"] < 1.05 * sizes["VAE, flow prior"]
    assert "VAE, flow prior" in format_table(rows)
    assert "nan" not in format_table(rows) + (tmp_path / "table.csv").read_text()
    assert "+-" not in format_table(rows), "one seed has no standard error"


def test_on_every_data_set_the_wider_vae_is_as_large_as_the_vae_with_a_flow_prior():
    for dataset in vae_vs_flow.DATASETS:
        splits = load(vae_vs_flow.configure(dataset, "VAE", 0, 1).data)
        configs = [vae_vs_flow.configure(dataset, name, 0, 1) for name in ("VAE, flow prior", "VAE, wider")]
        models = [build(config.model, splits.shape, splits.levels) for config in configs]
        flow, wider = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
        assert flow <= wider < 1.05 * flow


def test_levels_are_whole_numbers_whether_stored_or_rendered():
    digits = load(information_preference.Data()).test
    assert torch.equal(vae_vs_flow.levels(digits), digits.stored.flatten(1).double())
    sprites = load(information_preference.Data(name="sprites", size=40)).test
    assert set(vae_vs_flow.levels(sprites).unique().tolist()) == {0.0, 1.0}


def test_rows_are_means_over_seeds_and_gains_are_paired():
    runs = dict.fromkeys(vae_vs_flow.MODELS, (1.0, 1.0)) | {"VAE": (2.0, 3.0), "coupling flow": (1.5, 2.3)}
    measurements = {
        name: [vae_vs_flow.Measurement(value, 0, 7, 1.0, 2.0, 3.0, torch.zeros(1, 1, 1)) for value in bits]
        for name, bits in runs.items()
    }
    row = next(row for row in vae_vs_flow.compare(measurements, {}) if row["model"] == "coupling flow")
    assert (row["bits/dim"], row["bits/dim +-"]) == pytest.approx((1.9, 0.4))
    assert (row["below the VAE"], row["below the VAE +-"]) == pytest.approx((0.6, 0.1))
    assert row["drawing, ms an image"] == 2000


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_picture_says_what_its_marks_are_and_is_logarithmic_where_bits_span_orders(seeds):
    splits = load(information_preference.Data())
    image = torch.zeros(vae_vs_flow.SHOWN, 8, 8)
    bits = {"VAE": 0.03, "coupling flow": 2.0}
    measurements = {
        name: [vae_vs_flow.Measurement(value * (1 + i), 0, 7, 1.0, 2.0, 3.0, image) for i in range(seeds)]
        for name, value in bits.items()
    }
    for references, scale in (({"full Gaussian": 2.5}, "log"), ({}, "log")):
        rows = vae_vs_flow.compare(measurements, references)
        axes = vae_vs_flow.plot(rows, measurements, splits).axes[0]
        assert axes.get_xscale() == scale
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        models = "one seed" if seeds == 1 else "mean of 3 seeds, standard error"
        assert labels == [models, *(["without a network"] if references else [])]
        bars = [container.has_xerr for container in axes.containers]
        assert bars == [seeds > 1] * 2 + [False] * len(references)
    near = {
        name: [dataclasses.replace(run, bits=2.0 + i) for i, run in enumerate(runs)]
        for name, runs in measurements.items()
    }
    assert vae_vs_flow.plot(vae_vs_flow.compare(near, {}), near, splits).axes[0].get_xscale() == "linear"


def test_images_without_an_estimate_are_counted_over_the_seeds():
    measured = [vae_vs_flow.Measurement(2.0, count, 7, 1.0, 2.0, 3.0, torch.zeros(1, 1, 1)) for count in (3, 0, 4)]
    rows = vae_vs_flow.compare({"VAE": measured}, {"full Gaussian": 2.5})
    assert rows[0]["unresolved"] == 7
    assert math.isnan(rows[1]["unresolved"])


@pytest.mark.parametrize(
    ("unresolved", "below", "figures", "differences"),
    [
        ((0, 0), False, (2.0, 1.5), (0.0, -0.5)),
        ((0, 1), False, (2.0, "<= 1.5"), (0.0, "<= -0.5")),
        ((1, 0), False, ("<= 2", 1.5), (0.0, ">= -0.5")),
        ((1, 1), False, ("<= 2", "<= 1.5"), (0.0, "unknown")),
        ((0, 1), True, (2.0, "<= 1.5"), (0.0, ">= 0.5")),
        ((1, 0), True, ("<= 2", 1.5), (0.0, "<= 0.5")),
    ],
)
def test_a_figure_with_unresolved_images_is_printed_as_a_bound(unresolved, below, figures, differences):
    """nll 2 and 1.5. If the second may be lower, so may its excess over the first; what the first may be raises it."""
    rows = [
        {"nll": nll, "nll +-": 0.1, "gap": gap if below else -gap, "gap +-": 0.2, "unresolved": count}
        for nll, gap, count in zip((2.0, 1.5), (0.0, 0.5), unresolved, strict=True)
    ]
    printed = mark_bounds(rows, "nll", "gap", below=below)
    assert tuple(row["nll"] for row in printed) == figures
    assert tuple(row["gap"] for row in printed) == differences
    assert [math.isnan(row["nll +-"]) for row in printed] == [count > 0 for count in unresolved]
    assert [math.isnan(row["gap +-"]) for row in printed] == [False, any(unresolved)]
    assert all(isinstance(row[name], float) for row in rows for name in ("nll", "gap")), "what is saved is numeric"
    assert format_table(printed).splitlines()[2].split()[0] == str(figures[1]).split()[0]


def test_references_without_a_network():
    """A Gaussian fitted to the dequantised digits takes 2.93 bits a pixel, a histogram of each pixel 2.43."""
    splits = load(information_preference.Data())
    assert vae_vs_flow.full_gaussian(splits) == pytest.approx(2.93, abs=0.02)
    assert vae_vs_flow.pixel_histogram(splits) == pytest.approx(2.43, abs=0.01)


def decoder(D=4, K=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MaskedNetwork(torch.arange(D), 1, (16,), K).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn_like(parameter)
    return network


def test_autoregressive_bits_have_one_distribution_and_are_drawn_from_it():
    """All 16 images: their probabilities add up to 1 for each code, and 20 000 draws come as often as they say."""
    z = torch.randn(3, 1, 2, generator=generator(1), dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4).reshape(16, 1, 2, 2)
    p = information_preference.AutoregressiveBits(decoder(), z, (1, 2, 2)).log_prob(every).exp()
    assert p.shape == (3, 16)
    torch.testing.assert_close(p.sum(1), torch.ones(3, dtype=torch.float64))
    assert (p[0] - p[1]).abs().max() > 0.05, "the code matters"
    many = information_preference.AutoregressiveBits(decoder(), z[0].expand(20_000, 2), (1, 2, 2))
    drawn = (many.sample(generator(2)).flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    share = torch.bincount(drawn, minlength=16) / 20_000
    assert ((share - p[0]).abs() <= 6 * (p[0] * (1 - p[0]) / 20_000).sqrt() + 1e-3).all()


def test_alpha_buys_information(tmp_path):
    configs = {alpha: information_preference.configure(alpha, 3, 12) for alpha in (0.0, 1.0)}
    assert {config.train.seed for config in configs.values()} == {3}
    configs = {alpha: config.replace({"eval.examples": 20}) for alpha, config in configs.items()}
    measurements = {alpha: [information_preference.train(config)] for alpha, config in configs.items()}
    rows = information_preference.compare(measurements)
    save(rows, information_preference.plot(rows, measurements), tmp_path)
    assert rows[0]["rate"] < rows[1]["rate"]
    assert rows[0]["mutual information"] < rows[1]["mutual information"]
    assert math.isnan(rows[0]["rate +-"])
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert measurements[0.0][0].images.shape == (2, information_preference.SHOWN, 8, 8)


def test_the_nll_is_compared_with_that_of_alpha_0_seed_by_seed():
    """Seeds differ by 10 nats, alphas by 0.5 and 0.7: the error of the difference is 0.1, that of the mean 5."""
    images = torch.zeros(2, 1, 8, 8)

    def measured(*nlls, unresolved=0.0):
        others = {"test/rate": 1.0, "latent/mi": 1.0, "latent/log_n": 7.0, "test/nll_ess": 150.0}
        metrics = [others | {"test/nll": nll, "test/nll_unresolved": unresolved} for nll in nlls]
        return [information_preference.Measurement(values, images) for values in metrics]

    rows = information_preference.compare({0.0: measured(20.0, 30.0), 1.0: measured(20.5, 30.7, unresolved=2.0)})
    assert (rows[0]["above alpha 0"], rows[0]["above alpha 0 +-"]) == (0, 0)
    assert (rows[1]["above alpha 0"], rows[1]["above alpha 0 +-"]) == pytest.approx((0.6, 0.1))
    assert rows[1]["-log p(x) +-"] == pytest.approx(5.1)
    assert [row["unresolved"] for row in rows] == [0, 4]
