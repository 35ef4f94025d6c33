"""What figures mean, in plain words: each sentence where it is due, and nowhere else."""

import math

import pytest

from vaebench.studies.auditing.findings import find

FINE = {
    "test/nll": 100.0,
    "test/nll_unresolved": 0.0,
    "test/nll_examples": 200.0,
    "gap/amortisation": 0.1,
    "gap/amortisation_stderr": 0.02,
    "gap/family": 0.1,
    "gap/family_stderr": 0.02,
    "gap/unresolved": 0.0,
    "q/narrowness": 1.02,
    "q/narrowness_of_best": 1.01,
    "q/offset": 0.1,
    "latent/active_units": 32.0,
    "latent/mi": 5.0,
    "latent/log_n": 9.2,
    "latent/kl_aggregate": 0.3,
    "latent/kl_aggregate_stderr": 0.05,
    "enclosure/shortfall": 0.1,
    "enclosure/shortfall_stderr": 0.05,
    "enclosure/excess": 0.1,
    "enclosure/excess_stderr": 0.05,
    "enclosure/unresolved": 0.0,
}


def test_a_sound_model_has_no_finding():
    assert find(FINE, 32) == []
    assert find({**FINE, "model/sigma": 0.2, "model/sigma_fitted": 0.21}, 32) == []


@pytest.mark.parametrize(
    ("changed", "severe", "words"),
    [
        ({"latent/active_units": 3.0}, False, "collapsed in 29 of 32 latents"),
        ({"latent/active_units": 0.0}, True, "collapsed in all 32 latents: the code says nothing of x."),
        ({"q/narrowness": 1.9}, False, "q is too narrow by 1.9x"),
        ({"q/narrowness": 0.5, "q/narrowness_of_best": 0.99}, False, "q is too wide by 2x"),
        ({"q/narrowness": 1.9, "q/narrowness_of_best": 1.2}, False, "best ELBO is itself narrower by 1.2x."),
        ({"q/offset": 1.25}, False, "its mean lies 1.25 of the posterior's standard deviations"),
        ({"gap/amortisation": 3.2}, False, "The encoder costs 3.2 nats"),
        ({"gap/family": 4.2}, False, "A Gaussian q costs 4.2 nats"),
        ({"gap/family": 4.2, "gap/unresolved": 1.0}, False, "It is in doubt: so is log p(x) of 1 of these examples."),
        ({"latent/mi": 8.9}, False, "is at its limit log N = 9.2"),
        ({"latent/kl_aggregate": 12.3}, False, "KL(q(z)||p(z)) is 12.3 nats"),
        ({"test/nll_unresolved": 7.0}, False, "log p(x) is a lower bound: in 7 of 200 examples"),
        (
            {"enclosure/shortfall": -1.0},
            True,
            "it lies 1.00 ± 0.05 nats above the upper bound, so that nll is too low.",
        ),
        ({"enclosure/excess": -1.0}, True, "it lies 1.00 ± 0.05 nats below the lower bound, so that nll is too high."),
        ({"model/sigma": 1.0, "model/sigma_fitted": 0.2}, True, "p(x|z) has sigma 1, the validation data prefer 0.2"),
        ({"model/sigma": 0.1, "model/sigma_fitted": 0.2}, True, "errors are punished too much"),
    ],
)
def test_each_fault_is_one_sentence(changed, severe, words):
    (finding,) = find({**FINE, **changed}, 32)
    assert words in finding.text
    assert finding.severe == severe
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    "changed",
    [
        {"gap/amortisation": 3.2, "gap/amortisation_stderr": 1.5},
        {"latent/kl_aggregate": 2.0, "latent/kl_aggregate_stderr": 1.0},
        {"enclosure/excess": -1.0, "enclosure/unresolved": 1.0},
        {"enclosure/shortfall": -0.1},
        {"q/narrowness": 1 / 1.1},
    ],
)
def test_what_the_errors_allow_is_no_finding(changed):
    assert find({**FINE, **changed}, 32) == []


def test_figures_that_a_flow_posterior_lacks_are_not_judged():
    left = {name: value for name, value in FINE.items() if "kl_aggregate" not in name}
    assert find({name: value for name, value in left.items() if name not in ("latent/mi", "latent/log_n")}, 32) == []


def test_a_prior_that_cannot_be_judged_is_not_judged_and_severe_findings_come_first():
    found = find({**FINE, "latent/mi": math.inf, "latent/kl_aggregate": 50.0, "enclosure/shortfall": -1.0}, 32)
    assert [finding.severe for finding in found] == [True, False]
    assert "limit log N" in found[1].text


def test_a_model_with_a_posterior_flow_is_not_told_to_take_one():
    (finding,) = find({**FINE, "gap/family": 4.2}, 32, flow=True)
    assert "A flow as posterior" not in finding.text
