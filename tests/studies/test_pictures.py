"""Pictures: what is in them, what they cost, and what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.factors import seeded
from vaebench.studies import pictures
from vaebench.studies import train as command
from vaebench.studies.engine.report import best_trials
from vaebench.vae import model as models
from vaebench.vae.config.run import Data, Model
from vaebench.vae.data import from_tensors, load
from vaebench.vae.model.autoencoder import VAE, Likelihood

SMALL = ["--set", "model.hidden=16", "--set", "eval.examples=20", "--set", "train.device=cpu"]
SIDE = 48 + 4


@pytest.fixture(scope="module")
def digits():
    return load(Data())


def strip_in(folder):
    """Return the strip's pixels, `(3, H, W)`."""
    return torch.from_numpy(np.array(Image.open(folder / "training.png"))).movedim(-1, 0)


def built(splits, **settings):
    return models.build(Model(hidden=(16,), **settings), splits.shape, splits.levels).eval()


def test_reconstructions_stand_over_their_errors(digits):
    model = built(digits, latent=2)
    picture = pictures.reconstructions(model, digits, torch.Generator(), rows=2)
    x = digits.test.batch()[:20]
    with torch.no_grad():
        mean = model.decode(model.encode(x).mu).mean
    lines = [x[:10], mean[:10], (x - mean).abs()[:10], x[10:], mean[10:], (x - mean).abs()[10:]]
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            tile = picture[0, 2 + 50 * row :, 2 + 50 * column :][:48:6, :48:6]
            assert torch.allclose(tile, image[0].clamp(0, 1), atol=1e-6), (row, column)


def test_the_strip_grows_by_a_line_at_powers_of_two_from_the_same_noise(digits, tmp_path):
    model, device = built(digits, latent=2), torch.device("cpu")
    for epoch in range(1, 7):
        if epoch == 4:
            nn.init.zeros_(model.decoder[-2].weight)
        pictures.extend_strip(model, epoch, device, tmp_path)
    strip = strip_in(tmp_path)
    first, second, third = strip.split(SIDE, dim=1)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


def test_the_strip_of_a_run_that_goes_on_keeps_what_was_before(digits, tmp_path):
    model, device = built(digits, latent=2), torch.device("cpu")
    for epoch in (1, 2, 4, 8):
        pictures.extend_strip(model, epoch, device, tmp_path)
    nn.init.zeros_(model.decoder[-2].weight)
    before = strip_in(tmp_path)
    pictures.extend_strip(model, 4, device, tmp_path)
    after = strip_in(tmp_path)
    assert after.shape[1] == 3 * SIDE
    assert torch.equal(after[:, : 2 * SIDE], before[:, : 2 * SIDE])
    assert not torch.equal(after[:, 2 * SIDE :], before[:, 2 * SIDE : 3 * SIDE])


class Known(nn.Module):
    """Four latents: noise, a third of the second factor, the first factor, and the second."""

    def forward(self, x):
        first, second = x[:, 0, 0, 0], x[:, 0, 0, 1]
        noise = torch.sin(1000 * x.flatten(1).sum(1))
        mu = torch.stack([noise, second.round(), first, second], 1)
        return torch.cat([mu, torch.zeros_like(mu)], 1)


def test_a_scatter_shows_the_latents_that_know_most_of_each_factor():
    labels = torch.stack(
        [torch.randint(4, (2000,), generator=seeded()), torch.randint(20, (2000,), generator=seeded(1))], 1
    )
    x = torch.rand(2000, 1, 4, 4, generator=seeded(2))
    x[:, 0, 0, :2] = labels / torch.tensor([3, 19])
    splits = from_tensors(x, x, x, labels=[labels] * 3, label_names=("first", "second"))
    model = VAE(Known(), nn.Identity(), Likelihood("gaussian", (1, 4, 4)), 4)
    figure = pictures.latent_scatter(model, splits, torch.Generator())
    first, second = figure.axes[:2]
    assert (first.get_title(), first.get_xlabel()) == ("first", "z[2]")
    assert (second.get_title(), second.get_xlabel(), second.get_ylabel()) == ("second", "z[3]", "z[1]")
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["0", "1", "2", "3"]
    points = second.collections[0]
    assert torch.equal(torch.from_numpy(points.get_array().data).long(), labels[:, 1])


def test_a_scatter_is_coloured_by_class_and_does_without_labels(digits):
    model = built(digits, latent=3)
    (axes,) = pictures.latent_scatter(model, digits, torch.Generator()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [str(digit) for digit in range(10)]
    codes = sum(len(points.get_offsets()) for points in axes.collections)
    assert codes == len(digits.train)
    images = digits.train.stored
    (axes,) = pictures.latent_scatter(model, from_tensors(images, images, images, levels=17), torch.Generator()).axes
    assert axes.get_legend() is None


def test_a_flow_that_takes_minutes_to_draw_from_is_not_drawn(tmp_path):
    splits = load(Data(name="sprites", size=20))
    model = models.build(Model(kind="autoregressive", hidden=(4,), flow_layers=2), splits.shape, splits.levels)
    model.decode = None
    assert "takes 8195 passes one after the other" in pictures.reason_not_drawn(model)
    assert pictures.draw_all(model, splits, tmp_path) == []
    assert best_trials.draw(model, splits, tmp_path) == ([], [])
    pictures.extend_strip(model, 1, torch.device("cpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_strip_that_was_damaged_begins_anew(digits, tmp_path):
    model = built(digits, latent=2)
    (tmp_path / pictures.STRIP).write_bytes(b"half a file")
    pictures.extend_strip(model, 2, torch.device("cpu"), tmp_path)
    with Image.open(tmp_path / pictures.STRIP) as image:
        assert image.size[1] < image.size[0]
    assert [path.name for path in tmp_path.iterdir()] == [pictures.STRIP]


def test_pictures_draw_from_their_own_generator(tmp_path):
    splits = load(Data(binarise="dynamic"))
    model, before = built(splits, latent=2, likelihood="bernoulli"), torch.get_rng_state()
    pictures.draw_all(model, splits, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_flows_that_can_be_drawn_are(digits, tmp_path):
    model = built(digits, kind="autoregressive", flow_layers=1)
    assert pictures.reason_not_drawn(model) == ""
    assert [path.name for path in pictures.draw_all(model, digits, tmp_path)] == ["reconstructions.png", "samples.png"]


def test_a_run_says_what_it_left_out_and_leaves_the_strip_of_its_training(capsys, tmp_path, monkeypatch):
    assert command.main([*SMALL, "--epochs", "5", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "left out" not in out
    assert "latent.png, training.png" in out
    assert strip_in(tmp_path).shape[1] == 3 * SIDE
    monkeypatch.setattr(pictures, "MOST_PASSES", 0)
    assert command.main([*SMALL, "--epochs", "5", "--folder", str(tmp_path)]) == 0
    assert "samples and reconstructions are left out: to draw from this flow takes 1 passes" in capsys.readouterr().out
