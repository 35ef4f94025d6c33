"""A trained model is found again by the folder of its run, or a sentence says why not."""

import pytest
import torch

import vaebench
from vaebench.vae.config.run import Run
from vaebench.vae.errors import InputError
from vaebench.vae.training import checkpoint
from vaebench.vae.training.fit import fit

TINY = Run().replace({"model.hidden": (8,), "model.latent": 2, "train.epochs": 1, "train.device": "cpu"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "trials" / "3"
    return folder, fit(TINY, folder=folder)


def test_a_folder_or_a_checkpoint_gives_the_model_in_eval_mode_and_its_configuration(trained):
    folder, result = trained
    for path in (folder, str(folder), folder / checkpoint.CURRENT):
        model, config = vaebench.load(path)
        assert config == result.config
        assert not model.training
        x = result.splits.test.batch()[:4]
        assert torch.equal(model.reconstruct(x), result.model.reconstruct(x))


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(trained, tmp_path):
    folder, result = trained
    (tmp_path / checkpoint.CURRENT).write_bytes(b"half a file")
    (tmp_path / checkpoint.PREVIOUS).write_bytes((folder / checkpoint.CURRENT).read_bytes())
    assert vaebench.load(tmp_path)[1] == result.config


def test_a_folder_without_a_run_is_one_sentence(trained, tmp_path):
    folder, _ = trained
    expected = rf"there is no run in .*: it has no checkpoint\.safetensors; give the folder, such as {folder}\.$"
    with pytest.raises(InputError, match=expected):
        vaebench.load(folder.parent.parent)
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"give the folder that train\.py printed, or of a sweep's trial\.$"):
            vaebench.load(place)


def test_a_checkpoint_of_another_version_is_one_sentence(trained, tmp_path):
    tensors, meta = checkpoint.read(trained[0] / checkpoint.CURRENT)
    later = {**meta, "config": {**meta["config"], "model.later": 1}}
    checkpoint.write(tmp_path, tensors, later)
    with pytest.raises(InputError, match=r"by another version of vaebench, whose setting model\.later is unknown here"):
        vaebench.load(tmp_path)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "model.decoder.0.weight"}
    checkpoint.write(tmp_path, fewer, {**meta, "config": {**meta["config"], "train.patience": 0}})
    with pytest.raises(InputError, match=r"of other layers or sizes; .* with the version of vaebench that wrote it\.$"):
        vaebench.load(tmp_path)
