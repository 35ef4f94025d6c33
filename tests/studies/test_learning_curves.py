"""The curves show what was recorded, train and valid apart, and mark the warm-up and the best epoch."""

import pytest

from vaebench.studies.learning_curves import draw_curves
from vaebench.vae.config.run import Run

RECORDS = [
    {
        "epoch": epoch,
        "train/elbo": -epoch,
        "valid/elbo": -2 * epoch,
        "train/distortion": 3 * epoch,
        "valid/distortion": 4 * epoch,
        "train/rate": 5 * epoch,
        "valid/rate": 6 * epoch,
    }
    for epoch in range(1, 11)
]


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_every_term_has_a_panel_with_both_splits():
    figure = draw_curves([{**one, "latent/active_units": 2.0} for one in RECORDS], Run(), 7)
    assert [axes.get_title() for axes in figure.axes] == [
        "ELBO, nats",
        "distortion, nats",
        "rate, nats",
        "active units",
    ]
    epochs = list(range(1, 11))
    for axes, factors in zip(figure.axes[:3], ((-1, -2), (3, 4), (5, 6)), strict=True):
        found = lines(axes)
        for split, factor in zip(("train", "valid"), factors, strict=True):
            assert found[split] == (epochs, [factor * epoch for epoch in epochs])
        assert found["best epoch"][0] == [7, 7]


def test_epochs_without_active_units_are_left_out():
    known = [{**one, "latent/active_units": 3.0} if one["epoch"] > 4 else one for one in RECORDS]
    units = draw_curves(known, Run(), 0).axes[3]
    assert lines(units)["latent"] == (list(range(5, 11)), [3.0] * 6)
    assert len(draw_curves(RECORDS, Run(), 0).axes) == 3


@pytest.mark.parametrize(
    ("settings", "label", "last"),
    [
        ({"train.warmup_epochs": 4}, "warm-up of the weights", 4),
        ({"train.warmup_epochs": 40}, "warm-up of the weights", 10),
        ({"objective.name": "capacity", "objective.capacity_epochs": 6}, "objective changes", 6),
    ],
)
def test_weights_that_rise_are_marked_in_every_panel(settings, label, last):
    for axes in draw_curves(RECORDS, Run().replace(settings), 0).axes:
        (patch,) = axes.patches
        assert patch.get_label() == label
        assert (patch.get_x(), patch.get_x() + patch.get_width()) == (0, last)
    assert not draw_curves(RECORDS, Run(), 0).axes[0].patches
