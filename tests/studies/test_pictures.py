"""Pictures: what is in them, what they cost, and what is left out."""

import dataclasses

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

SMALL = [
    *("--set", "model.hidden=16", "--set", "eval.examples=20", "--set", "train.device=cpu", "--tracking-uri", "none"),
]
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
            tile = picture[0, 2 + 50 * row :, -502:][:, 2 + 50 * column :][:48:6, :48:6]
            assert torch.allclose(tile, image[0].clamp(0, 1), atol=1 / 255), (row, column)


def test_a_best_trial_has_pages_of_other_examples_and_samples(digits, tmp_path):
    slides, files = best_trials.draw(built(digits, latent=2), digits, tmp_path)
    assert [(name, page) for name, _, page in slides] == [
        (name, page) for page in range(3) for name in ("reconstructions", "samples")
    ]
    assert [path.name for path in files] == ["traversal.png", "latent.png"]
    assert all(path.stat().st_size > 1000 for path in files)
    read = {(name, page): np.array(Image.open(path))[..., 0] / 255 for name, path, page in slides}
    x = digits.test.batch()[:, 0].numpy()
    for page in range(3):
        for column in range(10):
            tile = read["reconstructions", page][2:, -502:][:, 2 + 50 * column :][:48:6, :48:6]
            assert np.allclose(tile, x[30 * page + column], atol=1 / 255), (page, column)
    assert not np.array_equal(read["samples", 0], read["samples", 1])


@pytest.fixture
def names(monkeypatch):
    """Return the names that pictures are given: a list of rows, columns, note for each call."""
    calls, right = [], pictures.annotate

    def spy(grid, rows, columns=(), note="", **options):
        calls.append((list(rows), list(columns), note))
        return right(grid, rows, columns, note, **options)

    monkeypatch.setattr(pictures, "annotate", spy)
    return calls


def test_rows_have_names(digits, names, tmp_path):
    model = built(digits, latent=2)
    pictures.reconstructions(model, digits, torch.Generator(), rows=2)
    for epoch in (1, 2, 3, 16):
        pictures.extend_strip(model, epoch, torch.device("cpu"), tmp_path)
    assert names[0] == (["original", "reconstruction", "error"] * 2, [], "")
    assert [rows for rows, _, _ in names[1:]] == [["epoch 1"], ["epoch 2"], ["epoch 16"]]


def known_latents(latents):
    """Return a linear VAE in which the mean of the first latent is 2, of the last a pixel of x, and of others 0."""
    model = models.build(Model(network="linear", latent=latents, likelihood="gaussian"), (1, 8, 8), levels=0)
    with torch.no_grad():
        model.encoder.mu.weight.zero_()
        model.encoder.mu.weight[-1, 20] = 1.0
        model.encoder.mu.bias.zero_()
        model.encoder.mu.bias[0] = 2.0
        model.decoder[0].weight.fill_(0.1)
        model.decoder[0].bias.fill_(0.5)
    return model.eval()


def test_a_traversal_names_latents_and_values_and_leaves_out_those_that_do_not_move(digits, names):
    """The first latent has the larger KL, (2^2)/2, but its mean is the same for every x."""
    model = known_latents(3)
    picture = pictures.traversal(model, digits, torch.Generator())
    kl = digits.train.batch()[:, 0, 2, 4].square().mean().item() / 2
    values = ["-3.0", "-2.3", "-1.7", "-1.0", "-0.3", "0.3", "1.0", "1.7", "2.3", "3.0"]
    assert names == [([f"z[2]  KL {kl:.2f}"], values, "2 of 3 latents not shown: their means do not move with x")]
    top = picture[0, 16 + 10, -502:][10::50]
    assert torch.allclose(top, (0.5 + 0.2 + 0.1 * torch.linspace(-3, 3, 10)).clamp(0, 1), atol=1 / 255)


def test_a_traversal_without_a_latent_in_use_says_so_and_shows_the_first(digits, names):
    model = known_latents(3)
    model.encoder.mu.weight.data.zero_()
    pictures.traversal(model, digits, torch.Generator())
    ((rows, _, note),) = names
    assert rows == ["z[0]  KL 2.00"]
    assert note == "none of the 3 latents is in use: no mean moves with x"


def test_a_traversal_of_a_model_with_a_flow_claims_no_kl(digits, names):
    pictures.traversal(built(digits, latent=2, prior="flow"), digits, torch.Generator())
    assert all(name in ("z[0]", "z[1]") for name in names[0][0])


def test_the_strip_grows_by_a_line_at_powers_of_two_from_the_same_noise(digits, tmp_path):
    model, device = built(digits, latent=2), torch.device("cpu")
    for epoch in range(1, 7):
        if epoch == 4:
            nn.init.zeros_(model.decoder[-2].weight)
        pictures.extend_strip(model, epoch, device, tmp_path)
    strip = strip_in(tmp_path)
    first, second, third = strip[..., -502:].split(SIDE, dim=1)
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
    named = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
    (axes,) = pictures.latent_scatter(model, named, torch.Generator()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcdefghij")
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
