"""Names beside a grid of images stand where they belong, and change no pixel of it."""

import torch

from vaebench.studies.image_grid import LINE, annotate, arrange


def grid_of(rows, columns):
    shades = torch.arange(rows * columns) / (rows * columns)
    return arrange(shades[:, None, None, None].expand(-1, 1, 8, 8), columns)


def rows_with_ink(picture):
    """Return the numbers of the lines of pixels that are not white everywhere."""
    return (picture < 1).any(0).any(1).nonzero().flatten()


def test_names_change_no_pixel_of_the_grid():
    grid = grid_of(3, 4)
    picture = annotate(grid, ["a", "bcd", "e"], ["1", "2", "3", "4"], "a note")
    height, width = grid.shape[-2:]
    inside = picture[:, LINE : LINE + height, -width:]
    assert torch.allclose(inside, grid, atol=1 / 255)
    assert picture.shape[1] == LINE + height + LINE


def test_each_row_has_its_name_on_its_left_and_each_column_on_its_top():
    grid = grid_of(3, 4)
    picture = annotate(grid, ["", "b", ""], ["", "", "3", ""])
    left = picture.shape[2] - grid.shape[2]
    named = rows_with_ink(picture[:, LINE:, :left])
    assert 50 < named.min() <= named.max() < 102
    top = (picture[:, :LINE, left:] < 1).any(0).any(0).nonzero().flatten()
    assert 102 < top.min() <= top.max() < 152


def test_pictures_with_room_for_one_text_have_one_width():
    short, long = (annotate(grid_of(1, 4), [text], widest="epoch 999") for text in ("epoch 1", "epoch 999"))
    assert short.shape == long.shape
    assert not torch.equal(short, long)


def test_a_note_that_is_longer_than_the_grid_is_not_cut():
    note = "many words that need more room than two images have"
    picture = annotate(grid_of(1, 2), ["a"], note=note)
    assert torch.equal(picture[:, :, -2:], torch.ones_like(picture[:, :, -2:]))
    assert picture.shape[2] > grid_of(1, 2).shape[2] + 100
