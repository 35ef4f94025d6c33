"""Scores of whole models against labels: of models that encode every factor, one factor twice, or none."""

import dataclasses
import re
from fnmatch import fnmatch
from functools import partial

import numpy as np
import pytest
import sklearn.svm
import torch
from torch import nn

from tests import ROOT
from tests.factors import seeded
from vaebench.vae import metrics
from vaebench.vae.config.run import Data, Eval, Model, Run
from vaebench.vae.data import FactorGrid, Split, Splits, from_files, from_tensors, load
from vaebench.vae.evaluation import class_metrics as classes
from vaebench.vae.evaluation import label_baselines
from vaebench.vae.evaluation.class_metrics import class_metrics
from vaebench.vae.evaluation.evaluate import latent_metrics, measure
from vaebench.vae.evaluation.factor_metrics import cache_codes, factor_metrics
from vaebench.vae.evaluation.label_baselines import fit_projection
from vaebench.vae.flows import Autoregressive, Compose, Inverse
from vaebench.vae.metrics.labels import renumber
from vaebench.vae.model.autoencoder import VAE, Likelihood
from vaebench.vae.model.build import build
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.prob.densities import PointMass

SIZES = (3, 4)
CONFIG = Run(eval=Eval(examples=20))
ALL = dataclasses.replace(CONFIG, eval=Eval(examples=20, labels="all"))
DCI = {f"latent/dci_{name}" for name in ("disentanglement", "completeness", "informativeness")}


def render(index):
    """Return "images" of two pixels, the factors of an index."""
    return torch.stack(torch.unravel_index(index, SIZES), dim=-1).to(torch.uint8)


def find(factors):
    return factors[:, 0] * SIZES[1] + factors[:, 1]


def two_factors(count=900, named=("row", "column")):
    index = torch.randint(12, (count,), generator=seeded())
    parts = index.split([count // 3 * 2, count // 6, count // 6])
    splits = [Split(part, top=3, render=render, labels=render(part).long()) for part in parts]
    return Splits("two", *splits, levels=4, label_names=named, factor_grid=FactorGrid(SIZES, find))


class Reader(nn.Module):
    """An encoder whose means are a matrix times the factors in units of their deviations; its variances are small."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        factors = (3 * x - torch.tensor([1.0, 1.5])) / torch.tensor([2 / 3, 5 / 4]).sqrt()
        mu = factors @ self.weight
        return torch.cat([mu, torch.full_like(mu, -7.0)], 1)


def reader(weight):
    likelihood = Likelihood("gaussian", (2,), sigma=0.1)
    return VAE(Reader(weight), nn.Linear(weight.shape[1], 2), likelihood, weight.shape[1]).eval()


@pytest.fixture
def few_votes(monkeypatch):
    few = partial(metrics.factor_vae_score, train_votes=200, test_votes=100)
    monkeypatch.setattr(metrics, "factor_vae_score", few)


def test_a_model_that_reads_the_factors_reaches_every_ceiling(few_votes):
    found = measure(reader(torch.eye(2)), two_factors(), ALL)
    assert set(found) >= DCI | {"latent/mig", "latent/posterior_mig", "latent/sap", "latent/factor_vae"}
    for name in (*DCI, "latent/mig", "latent/sap", "latent/factor_vae"):
        assert found[name] == pytest.approx(found[f"{name}_ceiling"], abs=0.02), name
        assert found[f"{name}_floor"] < found[name] - 0.2, name
    assert found["latent/posterior_mig"] == pytest.approx(1, abs=0.05)
    assert found["latent/gaussian_tc"] < 0.01


def test_classifiers_are_given_the_low_bits_of_a_large_seed(few_votes, monkeypatch):
    seeds = []
    for name in ("dci", "sap_score"):
        score = getattr(metrics, name)

        def spy(*points, seed, score=score, **options):
            seeds.append(seed)
            return score(*points, seed=seed, **options)

        monkeypatch.setattr(metrics, name, spy)
    splits, config = two_factors(), dataclasses.replace(ALL.eval, seed=2**40 + 5)
    factor_metrics(reader(torch.eye(2)), splits, splits.test, config)
    assert set(seeds) == {5}
    assert len(seeds) == 6, "scores, their floors and ceilings"


def test_a_model_that_repeats_a_factor_and_ignores_another_does_not(few_votes):
    found = measure(reader(torch.tensor([[1.0, -2.0], [0.0, 0.0]])), two_factors(), ALL)
    assert found["latent/mig"] == pytest.approx(0, abs=1e-9)
    assert found["latent/sap"] < 0.02
    assert found["latent/posterior_mig"] < 0.05
    assert found["latent/dci_informativeness"] < 0.8 < found["latent/dci_informativeness_ceiling"]
    assert found["latent/gaussian_tc"] > 5
    assert found["latent/factor_vae"] < 0.8


def test_how_much_is_scored_is_a_setting(few_votes):
    splits, model = two_factors(), reader(torch.eye(2))
    names = {
        level: set(measure(model, splits, CONFIG.replace({"eval.labels": level}))) for level in ("none", "fast", "all")
    }
    assert names["fast"] - names["none"] == {"latent/mig", "latent/mig_floor", "latent/mig_ceiling"}
    scores = DCI | {"latent/posterior_mig", "latent/sap", "latent/factor_vae"}
    assert names["all"] - names["fast"] == {f"{name}{end}" for name in scores for end in ("", "_floor", "_ceiling")}
    assert {"latent/gaussian_tc", "latent/gaussian_tc_floor", "latent/log_det_cov"} <= names["none"]


def test_labels_of_examples_that_cannot_be_rendered_have_all_scores_but_one():
    splits = dataclasses.replace(two_factors(), factor_grid=None)
    found = factor_metrics(reader(torch.eye(2)), splits, splits.test, ALL.eval)
    assert "latent/sap" in found
    assert "latent/factor_vae" not in found


def relabel(split, seed=9):
    """Return a split whose labels are drawn anew, so that codes know nothing of them."""
    order = torch.randperm(len(split), generator=seeded(seed))
    return dataclasses.replace(split, labels=split.labels[order])


def test_classifiers_of_factors_learn_from_the_training_split_and_are_scored_on_the_one_that_is_asked_for():
    """Labels drawn anew: of the split that is not asked for they change nothing; of the one that is, only chance is
    left, a third for three values and a quarter for four."""
    splits, model = dataclasses.replace(two_factors(480), factor_grid=None), reader(torch.eye(2))
    right = measure(model, splits, ALL, split="test")
    assert measure(model, dataclasses.replace(splits, valid=relabel(splits.valid)), ALL, split="test") == right
    wrong = measure(model, dataclasses.replace(splits, test=relabel(splits.test)), ALL, split="test")
    learned = {"latent/dci_informativeness", "latent/sap"}
    ours = {name for name in right if not name.endswith(("_floor", "_ceiling"))}
    assert {name for name in ours if wrong[name] != right[name]} == learned
    assert right["latent/dci_informativeness"] == 1
    assert wrong["latent/dci_informativeness"] == pytest.approx(7 / 24, abs=0.15)
    assert wrong["latent/sap"] < right["latent/sap"] / 2


def test_classifiers_of_classes_learn_from_the_training_split_and_are_scored_on_the_one_that_is_asked_for():
    """Two classes that one pixel tells apart; of labels drawn anew half are wrong."""
    classes_of = [torch.randint(2, (count, 1), generator=seeded(count)) for count in (400, 201, 200)]
    parts = [torch.cat([labels, 1 - labels], 1).float() for labels in classes_of]
    splits = from_tensors(*parts, labels=classes_of, label_names=("class",))
    model = reader(torch.eye(2))
    right = class_metrics(model, splits, splits.test, CONFIG.eval)
    assert (right["latent/svm_error"], right["samples/classifier_accuracy"]) == (0, 1)
    found = measure(model, dataclasses.replace(splits, valid=relabel(splits.valid)), CONFIG, split="test")
    assert found.items() >= right.items()
    wrong = measure(model, dataclasses.replace(splits, test=relabel(splits.test)), CONFIG, split="test")
    assert wrong["latent/svm_error"] == pytest.approx(0.5, abs=0.12)
    assert wrong["samples/classifier_accuracy"] == pytest.approx(0.5, abs=0.12)


def test_labels_may_be_any_numbers():
    x = torch.rand(60, 2, generator=seeded())
    labels = torch.stack([(x[:, 0] > 0.5) * 1000 - 7, (x[:, 1] * 3).long() ** 3], 1)
    splits = from_tensors(x[:40], x[40:50], x[50:], labels=labels.split([40, 10, 10]), label_names=("a", "b"))
    found = latent_metrics(reader(torch.eye(2)), splits.train, CONFIG)
    assert found["latent/mig_ceiling"] > 0.8
    assert 0.2 < found["latent/mig"] < found["latent/mig_ceiling"]


def test_each_image_is_encoded_once():
    seen = []
    model, splits = reader(torch.eye(2)), two_factors()
    encoder = model.encoder.forward
    model.encoder.forward = lambda x: seen.append(len(x)) or encoder(x)
    codes = cache_codes(model, splits.factor_grid, splits.train)
    factors = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    expected = (factors - torch.tensor([1, 1.5])) / torch.tensor([2 / 3, 5 / 4]).sqrt()
    assert torch.allclose(codes(factors[:5]), expected[:5])
    assert torch.allclose(codes(factors), expected)
    assert torch.allclose(codes(factors.flip(0)), expected.flip(0))
    assert seen == [5, 7]


def test_sprites_that_look_alike_are_one_image():
    splits = load(Data(name="sprites", size=100))
    factors = torch.tensor([[0, 2, 3, 4, 5], [0, 2, 13, 4, 5], [1, 2, 13, 4, 5], [1, 2, 33, 4, 5], [2, 2, 33, 4, 5]])
    found = splits.factor_grid.find(factors)
    images = splits.train.render(found)
    assert len(found.unique()) == 3
    assert splits.factor_grid.count == 737_280
    for image, row in zip(images, factors, strict=True):
        index = int(row[4] + 32 * (row[3] + 32 * (row[2] + 40 * (row[1] + 6 * row[0]))))
        assert torch.equal(image, splits.train.render(torch.tensor([index]))[0])


def test_a_flow_of_the_posterior_is_scored_at_the_codes_that_it_gives():
    splits = two_factors()
    config = CONFIG.replace({"model.posterior": "iaf", "model.latent": 2, "model.hidden": "8"})
    model = build(config.model, splits.shape, splits.levels).eval()
    with torch.no_grad():
        for parameter in model.posterior_flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded()))
        codes = model.represent(splits.train.batch())
    found = latent_metrics(model, splits.train, config)
    assert found["latent/mig"] == pytest.approx(metrics.binned_mig(codes, splits.train.labels), abs=1e-9)
    assert found["latent/gaussian_tc"] == pytest.approx(metrics.gaussian_total_correlation(codes), abs=1e-4)


class Memory(VAE):
    """A model that draws examples of the training set, of some classes only."""

    def __init__(self, splits, classes):
        super().__init__(nn.Identity(), nn.Identity(), Likelihood("gaussian", splits.shape), 10)
        chosen = (splits.train.labels == torch.tensor(classes)).any(1)
        self.images, self.known = splits.train.batch()[chosen], splits.train.labels[chosen, 0]

    def represent(self, x):
        """Return the class that a nearest neighbour has, one latent for each class."""
        nearest = torch.cdist(x.flatten(1), self.images.flatten(1)).argmin(1)
        return nn.functional.one_hot(self.known[nearest], 10).float()

    def decode(self, z):
        chosen = torch.randint(len(self.images), (len(z),), generator=seeded(int(z.abs().sum() * 1000)))
        return PointMass(self.images[chosen], 3)


def test_a_model_that_knows_the_digits_by_heart():
    splits = load(Data())
    found = class_metrics(Memory(splits, list(range(10))), splits, splits.test, CONFIG.eval)
    assert found["samples/class_mismatch"] < 2 * found["samples/class_mismatch_floor"] < 0.06
    assert found["samples/classifier_accuracy"] > 0.97
    assert found["latent/svm_error"] < 0.03 < found["latent/svm_error_pixels"] < 0.2
    counts = splits.test.labels[:, 0].bincount()
    assert found["latent/svm_error_chance"] == pytest.approx(1 - (counts.max() / counts.sum()).item())


def test_digits_in_a_file_in_the_order_of_their_classes_are_sampled_evenly(tmp_path, monkeypatch):
    splits, parts, labels = load(Data()), {}, []
    for name in ("train", "valid", "test"):
        split = getattr(splits, name)
        order = split.labels[:, 0].argsort()
        parts[name] = tmp_path / f"{name}.npy"
        np.save(parts[name], split.stored[order].numpy())
        labels.append(split.labels[order])
    sorted_splits = from_files(**parts, levels=17, labels=labels)
    monkeypatch.setattr(classes, "TRAIN_EXAMPLES", 700)
    monkeypatch.setattr(classes, "TEST_EXAMPLES", 100)
    model = Memory(splits, list(range(10)))
    found = class_metrics(model, sorted_splits, sorted_splits.test, CONFIG.eval)
    assert found["samples/classifier_accuracy"] > 0.95
    assert found["latent/svm_error"] < 0.05
    shares = splits.test.labels[:, 0].bincount() / len(splits.test)
    assert found["latent/svm_error_chance"] == pytest.approx(1 - shares.max().item(), abs=0.03)


def test_large_examples_are_seen_by_their_principal_components():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 100) + 5
    seen = fit_projection(x)(x)
    assert seen.shape == (300, 64)
    assert torch.allclose(torch.pdist(seen.double()), torch.pdist(x.double()), atol=1e-3), (
        "three directions are all there is"
    )
    assert torch.equal(fit_projection(x[:, :64])(x[:, :64]), x[:, :64])


def test_what_the_data_alone_say_is_measured_once_and_anew_for_other_data(monkeypatch):
    splits, fitted = load(Data()), []
    monkeypatch.setattr(label_baselines, "_latest", {})
    fit = sklearn.svm.SVC.fit
    monkeypatch.setattr(sklearn.svm.SVC, "fit", lambda self, x, y: fitted.append(x.shape) or fit(self, x, y))

    def scored(splits, seed=0):
        fitted.clear()
        found = class_metrics(Memory(load(Data()), [0, 1]), splits, splits.test, Eval(seed=seed))
        return found, len(fitted)

    first, count = scored(splits)
    again, fewer = scored(splits)
    assert again == first
    assert (count, fewer) == (21, 10), "ten of codes, ten of pixels and the one that names samples"
    shuffled = splits.test.labels[torch.randperm(len(splits.test), generator=seeded())]
    other = dataclasses.replace(splits, test=dataclasses.replace(splits.test, labels=shuffled))
    assert other.digest == splits.digest
    found, count = scored(other)
    assert count == 21
    assert found["samples/classifier_accuracy"] < 0.3
    assert scored(splits, seed=1)[1] == 21


def test_a_model_of_half_the_digits_lacks_the_other_half():
    splits = load(Data())
    found = class_metrics(Memory(splits, [0, 1, 2, 3, 4]), splits, splits.test, CONFIG.eval)
    assert found["samples/class_mismatch"] == pytest.approx(0.5, abs=0.03)
    assert found["latent/svm_error"] > 0.3


def test_classes_are_scored_only_where_there_are_any():
    splits = load(Data())
    model = Memory(splits, list(range(10)))
    assert class_metrics(model, splits, splits.test, Eval(labels="none")) == {}
    linear = load(Data(name="linear", size=50))
    assert class_metrics(model, linear, linear.test, CONFIG.eval) == {}
    one = dataclasses.replace(splits.train, labels=torch.zeros_like(splits.train.labels))
    alone = dataclasses.replace(splits, train=one, valid=one, test=one)
    assert class_metrics(model, alone, alone.test, CONFIG.eval) == {}
    named = dataclasses.replace(splits, label_names=("writer",))
    assert class_metrics(model, named, named.test, CONFIG.eval) == {}


def test_what_no_label_tells_apart_is_not_scored():
    images, one = torch.rand(40, 3), torch.zeros(40, 2, dtype=torch.int64)
    splits = from_tensors(images, images, images, labels=[one] * 3, label_names=("row", "column"))
    model = build(Model(latent=2, hidden=(4,), likelihood="gaussian"), (3,), 0).eval()
    assert factor_metrics(model, splits, splits.test, Eval(labels="all")) == {}
    assert "latent/mig" not in latent_metrics(model, splits.train, Run())
    wide = build(Model(latent=50, hidden=(4,), likelihood="gaussian"), (3,), 0).eval()
    assert "latent/gaussian_tc_floor" not in latent_metrics(wide, splits.train, Run())


def test_a_class_that_is_too_rare_to_be_seen_is_no_class(monkeypatch):
    monkeypatch.setattr(classes, "TRAIN_EXAMPLES", 10)
    images, known = torch.rand(40, 3), torch.zeros(40, dtype=torch.int64)
    known[1] = 1
    splits = from_tensors(images, images, images, labels=[known] * 3)
    model = build(Model(latent=2, hidden=(4,), likelihood="gaussian"), (3,), 0).eval()
    assert class_metrics(model, splits, splits.test, Eval()) == {}


def test_a_flow_of_its_own_has_samples_and_no_codes(monkeypatch):
    splits = load(Data())
    model = build(Model(kind="coupling", hidden=(8,), flow_layers=2), splits.shape, splits.levels).eval()
    found = class_metrics(model, splits, splits.test, CONFIG.eval)
    assert set(found) == {
        f"samples/{name}" for name in ("class_mismatch", "class_mismatch_floor", "classifier_accuracy")
    }
    assert found["samples/class_mismatch"] > 0.3, "it was not trained"
    slow = build(Model(kind="autoregressive", hidden=(8,), flow_layers=9), splits.shape, splits.levels).eval()
    assert class_metrics(slow, splits, splits.test, CONFIG.eval) == {}
    assert factor_metrics(model, two_factors(), two_factors().test, ALL.eval) == {}


def test_passes_are_as_many_as_the_network_makes():
    first, second = (
        Autoregressive(torch.arange(5), hidden=(8,)),
        Autoregressive(torch.tensor([0, 0, 1, 1, 2]), hidden=(8,)),
    )
    flow, calls = Compose(first, Inverse(second)), []
    for part in (first, second):
        part.network.register_forward_hook(lambda *_: calls.append(1))
    x = torch.zeros(2, 5)
    flow.forward_and_log_det(x)
    assert flow.passes[0] == len(calls) == 1 + 3
    calls.clear()
    flow.inverse_and_log_det(x)
    assert flow.passes[1] == len(calls) == 5 + 1
    assert FlowModel(flow, (5,)).passes == 6
    assert build(Model(latent=2), (1, 8, 8), 17).passes == 1


def test_every_score_has_a_line_in_the_page_of_metrics(few_votes):
    page = (ROOT / "docs" / "metrics.md").read_text()
    lines = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    patterns = [pattern for line in lines for pattern in re.findall(r"`([^`]+)`", line)]
    digits = load(Data())
    found = measure(reader(torch.eye(2)), two_factors(), ALL)
    found |= class_metrics(Memory(digits, list(range(10))), digits, digits.test, CONFIG.eval)
    assert [name for name in found if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_renumbered_labels_have_no_gaps():
    labels = torch.tensor([[5, -1], [9, 7], [5, 100]])
    assert renumber(labels).tolist() == [[0, 0], [1, 1], [0, 2]]
