"""A tree of images: what is found, how it is cut and coloured, what is kept of it, and what is left out."""

import contextlib
import hashlib
import logging
import os
import pickle
import resource
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from vaebench.vae import data
from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import decoding, folder, images
from vaebench.vae.errors import InputError
from vaebench.vae.training.fit import fit

PARTS = ("train", "valid", "test")


def paint(path, colour, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def shade(i):
    return (i * 5 % 256, i * 3 % 256, i)


@pytest.fixture
def tree(tmp_path):
    """Fifty lossless images of as many colours in two classes, of which one has a folder of its own inside."""
    for i in range(50):
        below = ("cats", "dogs/small", "dogs")[i % 3]
        paint(tmp_path / "tree" / below / f"{i:02d}.png", shade(i))
    return tmp_path / "tree"


def load(path, **settings):
    return data.load(Data(name="folder", dir=str(path), **{"side": 8, **settings}))


def whole(splits):
    """Return every image with its label and split."""
    kept = {}
    for name in PARTS:
        split = getattr(splits, name)
        labels = [None] * len(split) if split.labels is None else split.labels[:, 0].tolist()
        for image, label in zip((split.batch() * 255).byte(), labels, strict=True):
            kept[tuple(image[:, 4, 4].tolist())] = (name, label)
    return kept


@contextlib.contextmanager
def unprivileged():
    """Root may read everything: be somebody else for a moment."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_every_image_is_in_one_split_once_with_the_class_of_its_folder(tree):
    splits = load(tree)
    assert (splits.shape, splits.levels, splits.name, splits.label_names) == ((3, 8, 8), 256, "folder", ("class",))
    assert [len(getattr(splits, name)) for name in PARTS] == [40, 5, 5]
    assert splits.class_names == ("cats", "dogs")
    kept = whole(splits)
    assert set(kept) == {shade(i) for i in range(50)}
    assert all(kept[shade(i)][1] == (0 if i % 3 == 0 else 1) for i in range(50))


def test_splits_follow_a_hash_of_seed_and_path_alone(tree, monkeypatch):
    """Worked out here once more: a tenth of the paths in the order of SHA-256 to test, the next tenth to valid."""
    paths = [path.relative_to(tree).as_posix() for path in tree.rglob("*.png")]
    for seed in (0, 1):
        order = sorted(paths, key=lambda path: hashlib.sha256(f"{seed} {path}".encode()).hexdigest())
        expected = {"test": order[:5], "valid": order[5:10], "train": order[10:]}
        kept = whole(load(tree, seed=seed))
        for name, members in expected.items():
            assert {shade(int(Path(path).stem)) for path in members} == {
                colour for colour, (split, _) in kept.items() if split == name
            }
    digest = load(tree).digest
    assert load(tree, seed=1).digest != digest
    walk = os.walk

    def backwards(*arguments, **options):
        for top, below, files in walk(*arguments, **options):
            below.reverse()
            yield top, below, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    shutil.rmtree(tree / ".vaebench")
    assert load(tree).digest == digest


def test_one_more_image_moves_few(tree):
    before = whole(load(tree))
    paint(tree / "cats" / "more.png", (255, 255, 255))
    after = whole(load(tree))
    assert len(after) == 51
    assert sum(after[colour][0] != before[colour][0] for colour in before) <= 2


def test_images_without_two_folders_have_no_classes(tree, tmp_path):
    for i in range(12):
        paint(tmp_path / "flat" / f"{i}.png", shade(i))
        paint(tmp_path / "one" / "only" / f"{i}.png", shade(i))
    paint(tree / "stray.png", (9, 9, 9))
    for path in (tmp_path / "flat", tmp_path / "one", tree):
        splits = load(path)
        assert splits.label_names == ()
        assert splits.train.labels is None


def test_what_counts_as_an_image(tmp_path):
    for name in ("a.png", "B.JPG", "c.Jpeg", "d.webp", "e.bmp", "f.gif", "g.tiff", "deep/er/h.ppm", ".hidden.png"):
        paint(tmp_path / name, (1, 2, 3))
    paint(tmp_path / ".git" / "x.png", (1, 2, 3))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    paint(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "i.png", (1, 2, 3))
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere", target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "linked", target_is_directory=True)
    assert folder.find_images(tmp_path) == [
        *("B.JPG", "a.png", "again/i.png", "c.Jpeg", "d.webp", "deep/er/h.ppm", "e.bmp", "f.gif", "g.tiff")
    ]


def test_an_image_is_cut_in_the_middle_and_scaled_with_antialiasing(tmp_path):
    """Of a wide image, red at one end and blue at the other, the green middle; a fine chequerboard becomes grey.

    At the cut the filter sees as much of the one end as of the other.
    """
    wide = np.zeros((64, 192, 3), dtype=np.uint8)
    wide[:, :64], wide[:, 64:128], wide[:, 128:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for name, array in (("wide", wide), ("tall", wide.transpose(1, 0, 2))):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        red, green, blue = images.read(tmp_path / f"{name}.png", 16, 3)
        assert (red[1:-1, 1:-1] == 0).all()
        assert (green[1:-1, 1:-1] == 255).all()
        assert (red == (blue[:, ::-1] if name == "wide" else blue[::-1])).all()
        assert red.max() < 30
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    pixels = images.read(tmp_path / "board.png", 32, 1)
    assert pixels.shape == (1, 32, 32)
    assert abs(pixels.astype(float) - 127.5).max() < 3


def test_left_and_up_stay_where_they_are(tmp_path):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[:2, :4], array[6:, 4:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(array).save(tmp_path / "x.png")
    assert (images.read(tmp_path / "x.png", 8, 3) == array.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(tmp_path, orientation):
    """Exif numbers what row 0 and column 0 of the file show: top and left, top and right, ..."""
    upright = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    kept = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright[::-1, ::-1].T,
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(kept)).save(tmp_path / "x.png", exif=exif)
    found = images.read(tmp_path / "x.png", 6, 1)[0]
    assert (found == upright[:, 1:7]).all()


def kinds():
    red = Image.new("RGB", (9, 9), (200, 30, 10))
    grey16 = np.full((9, 9), 200 * 257 - 100, dtype=np.uint16)
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    half = Image.new("RGBA", (9, 9), (200, 30, 10, 51))
    palette = red.quantize(4)
    hidden = Image.new("P", (9, 9), 1)
    hidden.putpalette([0, 0, 0, 90, 80, 70])
    return [
        pytest.param(red, "png", {}, (200, 30, 10), id="RGB"),
        pytest.param(red.convert("L"), "png", {}, (79, 79, 79), id="grey"),
        pytest.param(palette, "png", {}, (200, 30, 10), id="palette"),
        pytest.param(palette, "gif", {}, (200, 30, 10), id="GIF"),
        pytest.param(hidden, "png", {"transparency": 1}, (255, 255, 255), id="transparent palette"),
        pytest.param(clear, "png", {}, (255, 255, 255), id="transparent"),
        pytest.param(half, "png", {}, (244, 210, 206), id="a fifth opaque"),
        pytest.param(Image.new("LA", (9, 9), (10, 0)), "png", {}, (255, 255, 255), id="grey and alpha"),
        pytest.param(Image.fromarray(grey16), "png", {}, (200, 200, 200), id="16-bit grey"),
        pytest.param(Image.fromarray(grey16), "tiff", {}, (200, 200, 200), id="16-bit TIFF"),
        pytest.param(Image.new("1", (9, 9), 1), "png", {}, (255, 255, 255), id="black and white"),
        pytest.param(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "tiff", {}, (255, 0, 0), id="CMYK"),
        pytest.param(Image.new("CMYK", (9, 9), (0, 0, 0, 255)), "jpg", {}, (0, 0, 0), id="CMYK JPEG"),
    ]


@pytest.mark.parametrize(("image", "suffix", "options", "colour"), kinds())
def test_every_kind_of_pixel_becomes_rgb_or_grey(tmp_path, image, suffix, options, colour):
    path = tmp_path / f"x.{suffix}"
    image.save(path, **options)
    pixels = images.read(path, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(colour)[:, None, None]).all()
    grey = images.read(path, 4, 1)
    assert grey.shape == (1, 4, 4)
    assert abs(grey.astype(float) - np.dot(colour, (0.299, 0.587, 0.114))).max() <= 1


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert images.read(tmp_path / "x.gif", 4, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_photo_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    """The decoder's own halving, down to four times the side, is a few levels off all pixels at hard edges."""
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (30, 30, 3), dtype=np.uint8)).resize((300, 300))
    noise = generator.integers(-20, 21, (300, 300, 3))
    Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
    found, drafted = images.read(tmp_path / "x.jpg", 32, 3).astype(int), []
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, mode, size: drafted.append(size))
    assert abs(images.read(tmp_path / "x.jpg", 32, 3) - found).max() <= 6
    assert drafted == [(128, 128)]


def test_files_that_cannot_be_read_are_named_and_left_out(tree, caplog):
    whole_jpeg = tree / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(whole_jpeg)
    (tree / "cats" / "cut.jpg").write_bytes(whole_jpeg.read_bytes()[:-3000])
    whole_jpeg.unlink()
    (tree / "cats" / "text.png").write_text("no image at all")
    (tree / "cats" / "empty.gif").touch()
    (tree / "cats" / "gone.png").symlink_to(tree / "nowhere.png")
    Image.fromarray(np.zeros((9, 9), dtype=np.float32)).save(tree / "dogs" / "float.tiff")
    for i in range(3):
        (tree / "dogs" / f"zz{i}.bmp").write_bytes(b"BM")
    for _ in range(2):  # decoded, and from what was kept
        caplog.clear()
        folder.warn_once.cache_clear()
        splits = load(tree)
        assert load(tree).digest == splits.digest
        assert set(whole(splits)) == {shade(i) for i in range(50)}
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        message = record.getMessage()
        assert message.startswith(f"8 of 58 images in {tree} cannot be read and are left out: cats/cut.jpg (")
        assert "cats/empty.gif (not an image), cats/gone.png (No such file or directory), cats/text.png (not" in message
        assert "dogs/float.tiff (its pixels are floating-point numbers) and 3 more." in message
        assert "\n" not in message


def test_a_second_start_decodes_nothing(tree, monkeypatch):
    digest = load(tree).digest
    monkeypatch.setattr(images, "read", None)
    again = load(tree)
    assert again.digest == digest
    assert set(whole(again)) == {shade(i) for i in range(50)}


def kept_files(tree):
    return sorted(path.suffix for path in (tree / ".vaebench").iterdir() if path.name != decoding.LOCK)


def test_a_change_of_the_tree_is_decoded_anew_and_the_old_file_removed(tree):
    before = load(tree)
    kept = next((tree / ".vaebench").glob("*.npy"))
    paint(tree / "cats" / "00.png", (250, 250, 250))
    after = load(tree)
    assert shade(0) not in whole(after)
    assert (250, 250, 250) in whole(after)
    assert after.digest != before.digest
    assert not kept.exists()
    assert kept_files(tree) == [".json", ".npy"]
    assert shade(0) in whole(before), "a mapped file is there until it is let go"
    (tree / "cats" / "00.png").unlink()
    assert len(whole(load(tree))) == 49


def test_an_image_painted_over_is_decoded_anew(tree):
    """Of the same size in bytes: the time of its last change tells."""
    paint(tree / "cats" / "x.bmp", (1, 2, 3))
    load(tree)
    size = (tree / "cats" / "x.bmp").stat().st_size
    paint(tree / "cats" / "x.bmp", (3, 2, 1))
    assert (tree / "cats" / "x.bmp").stat().st_size == size
    assert (3, 2, 1) in whole(load(tree))


def test_each_size_and_colouring_is_kept_beside_the_others(tree):
    assert load(tree, side=16).shape == (3, 16, 16)
    assert load(tree, side=16, channels=1).shape == (1, 16, 16)
    load(tree)
    assert kept_files(tree) == [".json", ".json", ".json", ".npy", ".npy", ".npy"]


@pytest.mark.parametrize("harm", ["no json", "half a json", "half a file", "no file"])
def test_what_a_crash_leaves_is_decoded_anew(tree, harm):
    digest = load(tree).digest
    (array,), (record,) = ((tree / ".vaebench").glob(f"*.{suffix}") for suffix in ("npy", "json"))
    (array.parent / f"{array.name}.tmp").write_bytes(b"begun by a process that was killed")
    if harm == "no json":
        record.unlink()
    elif harm == "half a json":
        record.write_bytes(record.read_bytes()[:-20])
    elif harm == "half a file":
        array.write_bytes(array.read_bytes()[:-100])
    else:
        array.unlink()
    assert load(tree).digest == digest
    assert set(whole(load(tree))) == {shade(i) for i in range(50)}
    assert kept_files(tree) == [".json", ".npy"]


def test_two_that_start_at_once_decode_once(tree, monkeypatch):
    read, counted = images.read, []
    monkeypatch.setattr(images, "read", lambda *arguments: counted.append(1) or read(*arguments))
    digests = []
    threads = [threading.Thread(target=lambda: digests.append(load(tree).digest)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 50
    assert len(set(digests)) == 1


def test_decoded_images_are_kept_where_one_says(tree, tmp_path):
    cache = tmp_path / "elsewhere"
    digest = load(tree, cache=str(cache)).digest
    assert not (tree / ".vaebench").exists()
    assert len(list(cache.glob("tree-*/8x8x3-*.npy"))) == 1
    assert load(tree).digest == digest


def test_a_folder_that_cannot_be_written_to_says_what_to_do(tree, tmp_path):
    (tree / ".vaebench").touch()
    with pytest.raises(InputError, match=r"cannot write the decoded images to .*vaebench \(.*--set data\.cache=DIR"):
        load(tree)
    assert len(whole(load(tree, cache=str(tmp_path / "cache")))) == 50


def test_a_disk_that_is_full_is_told_and_left_as_it_was(tree):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write the decoded images to .*vaebench \(File too large\), 0 MB"):
            load(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept_files(tree) == []
    assert len(whole(load(tree))) == 50


def test_names_that_are_no_text(tree, caplog):
    """A file system takes any bytes as a name."""
    odd = os.fsdecode(b"\xff\xfe.png")
    paint(tree / "cats" / odd, (1, 2, 3))
    (tree / "cats" / os.fsdecode(b"\xfd.png")).touch()
    assert (1, 2, 3) in whole(load(tree))
    assert (1, 2, 3) in whole(load(tree))
    assert "1 of 52 images" in caplog.text
    assert "cats/\\xfd.png (" in caplog.text


def test_a_run_on_a_tree_that_moved_goes_on(tree, tmp_path):
    """Copied, so that every time of change is another: what is decoded is the same."""
    run = Run(
        data=Data(name="folder", dir=str(tree), side=8),
        model=Model(network="conv", hidden=(4,), latent=2),
        train=Train(epochs=2, device="cpu"),
    )
    first = fit(run, folder=tmp_path / "run")
    moved = tmp_path / "far" / "away"
    shutil.copytree(tree, moved, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".vaebench"))
    shutil.rmtree(tree)
    there = run.replace({"data.dir": str(moved), "data.cache": str(tmp_path / "cache")})
    again = fit(there, folder=tmp_path / "run", report=lambda *arguments: pytest.fail("it was trained anew"))
    assert again.history == first.history
    assert there.identity() == run.identity() != there.replace({"data.seed": 1}).identity()
    paint(moved / "cats" / "00.png", (250, 250, 250))
    with pytest.raises(InputError, match="holds a run on other data"):
        fit(there, folder=tmp_path / "run")


def test_a_tree_reaches_another_process(tree):
    splits = load(tree)
    found = pickle.loads(pickle.dumps(splits))
    assert found.digest == splits.digest
    assert torch.equal(found.train.batch(), splits.train.batch())


def test_a_pipe_is_left_out(tree, caplog):
    os.mkfifo(tree / "pipe.png")
    load(tree)
    assert "pipe.png (no regular file)" in caplog.text


def test_trees_that_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the folder .*nowhere: No such file or directory; give the tree"):
        load(tmp_path / "nowhere")
    (tmp_path / "file.png").touch()
    with pytest.raises(InputError, match=r"cannot read the folder .*file\.png: Not a directory; give the tree of im"):
        load(tmp_path / "file.png")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "below" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"there is no image in .*empty; files end in one of \.bmp, \.gif, \.jpeg, \."):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match=r"none of the 1 images in .* can be read; file\.png: not an image\."):
        load(tmp_path)
    assert [path.name for path in (tmp_path / ".vaebench").iterdir()] == [decoding.LOCK]
    with pytest.raises(InputError, match=r"data\.channels must be one of 1, 3, got 2\."):
        load(tmp_path, channels=2)
    with pytest.raises(InputError, match=r"data\.side must be >= 4, got 2"):
        load(tmp_path, side=2)


def test_folders_that_may_not_be_read_are_refused_and_files_left_out(caplog):
    """A sub-folder that is closed is refused, since its images would be missing; a file that is closed is named."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        tree = Path(top) / "tree"
        for i in range(12):
            paint(tree / f"{i}.png", shade(i))
        (tree / "closed").mkdir(mode=0o000)
        with unprivileged(), pytest.raises(InputError, match=r"cannot read the folder .*closed: Permission denied"):
            load(tree, cache=f"{top}/cache")
        (tree / "closed").rmdir()
        (tree / "3.png").chmod(0o000)
        os.chmod(top, 0o777)
        with unprivileged():
            assert len(whole(load(tree, cache=f"{top}/cache"))) == 11
        assert "1 of 12 images" in caplog.text
        assert "3.png (Permission denied)" in caplog.text


def test_decoded_images_are_torch_tensors_that_train(tree):
    splits = load(tree)
    assert splits.train.batch(torch.tensor([1, 0])).shape == (2, 3, 8, 8)
    binary = data.load(Data(name="folder", dir=str(tree), side=8, channels=1, binarise="static"))
    assert set(binary.train.batch().unique().tolist()) == {0.0, 1.0}
