"""Sprites: the factors of an index, and pixels against an outline drawn by other means."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.path import Path

from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import load, sprites
from vaebench.vae.data.sprites import COUNT, SIZES, factors, labels, render, subset
from vaebench.vae.errors import InputError
from vaebench.vae.objective import InfoVAE
from vaebench.vae.training.fit import fit


def some(count=300, seed=0):
    return torch.randint(0, COUNT, (count,), generator=torch.Generator().manual_seed(seed))


def outline(shape, scale, angle, centre):
    """Return a polygon of many corners around a sprite, `(P, 2)` as (x, y) of pixels, y downwards."""
    t = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    if shape == 0:
        corners = sprites.HALF_SQUARE * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    elif shape == 1:
        corners = np.stack([sprites.ELLIPSE[0] * np.cos(t), sprites.ELLIPSE[1] * np.sin(t)], 1)
    else:
        corners = sprites.HEART * hearts() * [1, -1]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * corners @ turn.T + centre


@cache
def hearts():
    return np.array([heart(angle) for angle in np.linspace(0, 2 * np.pi, 2000, endpoint=False)])


def heart(angle):
    """Return the point of the curve (x^2 + y^2 - 1)^3 = x^2 y^3 in a direction, by bisection along the ray."""
    direction, low, high = np.array([math.cos(angle), math.sin(angle)]), 0.0, 2.0
    for _ in range(50):
        x, y = direction * (middle := (low + high) / 2)
        inside = (x * x + y * y - 1) ** 3 <= x * x * y**3
        low, high = (middle, high) if inside else (low, middle)
    return direction * low


def test_every_index_has_its_own_factors_and_y_varies_fastest():
    index = torch.arange(COUNT)
    found = factors(index)
    assert COUNT == 737_280
    assert found.unique(dim=0).shape == (COUNT, 5)
    assert found.amax(0).tolist() == [size - 1 for size in SIZES.values()]
    assert (found[1] - found[0]).tolist() == [0, 0, 0, 0, 1]


def test_pixels_lie_inside_the_outline():
    """Within a hundredth of a pixel of the outline either answer will do."""
    grid = np.stack(np.meshgrid(np.arange(64.0), np.arange(64.0)), -1).reshape(-1, 2)
    index = some(60)
    for image, (shape, scale, orientation, x, y) in zip(render(index), factors(index).tolist(), strict=True):
        centre = np.array([16 + x, 16 + y])
        path = Path(outline(shape, 0.5 + scale / 10, 2 * math.pi * orientation / 40, centre))
        surely_in, maybe_in = (path.contains_points(grid, radius=sign * 0.01).reshape(64, 64) for sign in (-1, 1))
        surely_in, maybe_in = surely_in & maybe_in, surely_in | maybe_in
        assert (image[0].numpy() >= surely_in).all()
        assert (image[0].numpy() <= maybe_in).all()


def test_no_sprite_touches_the_frame():
    images = render(subset({"orientation": range(0, 40, 3), "scale": [5], "x": [0, 31], "y": [0, 31]}))
    assert images[:, :, [0, -1]].sum() == 0
    assert images[..., [0, -1]].sum() == 0


def test_a_sprite_moves_by_whole_pixels():
    left, right = subset({"x": [3]}), subset({"x": [20]})
    few = some(200) % len(left)
    assert render(left[few]).roll(17, -1).equal(render(right[few]))


def test_labels_tell_apart_exactly_what_the_pixels_do():
    index = subset({"x": [5], "y": [9]})
    images, told = render(index), labels(index)
    assert len(images.unique(dim=0)) == len(told.unique(dim=0)) == 6 * (10 + 20 + 40)
    same_label = (told[:, None] == told).all(-1)
    flat = images.flatten(1).float()
    differing = flat.sum(1)[:, None] + flat.sum(1) - 2 * flat @ flat.T
    assert ((differing == 0) == same_label).all()


def test_the_mean_pixel_is_that_of_the_published_set():
    assert render(some(3000)).float().mean().item() == pytest.approx(0.043, abs=0.003)


def test_images_are_rendered_alike_one_by_one_and_together():
    index = some(20)
    assert render(index).equal(torch.cat([render(one[None]) for one in index]))
    assert render(index).shape == (20, 1, 64, 64)
    assert render(index).dtype == torch.uint8


def test_a_split_renders_its_batches_and_keeps_its_indices():
    splits = load(Data(name="sprites", size=100))
    assert (splits.shape, splits.levels) == ((1, 64, 64), 2)
    assert [len(split) for split in (splits.train, splits.valid, splits.test)] == [80, 10, 10]
    index = torch.tensor([7, 3])
    assert splits.train.batch(index).equal(render(splits.train.stored[index]).float())
    drawn = torch.cat([splits.train.stored, splits.valid.stored, splits.test.stored])
    assert len(drawn.unique()) == 100
    assert load(Data(name="sprites", size=100, binarise="dynamic")).digest == splits.digest
    assert load(Data(name="sprites", size=100, seed=1)).digest != splits.digest


def test_a_convolutional_vae_trains_on_sprites():
    model = Model(network="conv", hidden=(8, 16), latent=4, likelihood="bernoulli")
    result = fit(Run(Data(name="sprites", size=400), model, InfoVAE(), Train(epochs=2, device="cpu")))
    assert result.history[1]["valid/elbo"] > result.history[0]["valid/elbo"]


def test_more_sprites_than_there_are_cannot_be_drawn():
    with pytest.raises(InputError, match="there are 737280 sprites"):
        load(Data(name="sprites", size=COUNT + 1))


def test_combinations_can_be_held_out():
    held_out = subset({"shape": [2], "orientation": range(20, 40)})
    rest = torch.ones(COUNT, dtype=torch.bool).index_fill(0, held_out, False).nonzero()[:, 0]
    assert len(held_out) + len(rest) == COUNT
    assert (factors(held_out)[:, 0] == 2).all()
    assert not ((factors(rest)[:, 0] == 2) & (factors(rest)[:, 2] >= 20)).any()
    assert len(sprites.from_indices(rest[:50], rest[50:60], held_out[:10]).test) == 10


@pytest.mark.parametrize(
    ("kept", "message"),
    [({"colour": [1]}, "got 'colour'"), ({"scale": [6]}, "from 0 to 5"), ({"shape": []}, r"got \[\]")],
)
def test_factors_that_are_not_there_are_refused(kept, message):
    with pytest.raises(InputError, match=message):
        subset(kept)


def test_splits_know_the_labels_of_what_they_render():
    splits = load(Data(name="sprites", size=40))
    assert splits.label_names == tuple(SIZES)
    for split in (splits.train, splits.valid, splits.test):
        assert torch.equal(split.labels, labels(split.stored))
