"""What of a study is not to be trusted: each doubt is found where it is planted, and nowhere else."""

import dataclasses
import html

import pytest

from tests.studies.engine.made_studies import make_rows
from vaebench.studies.engine.report import files, finish, page
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.study.target import TARGETS


def about(kind, study):
    """Return the warnings of a study of one kind."""
    return [line for line in study.warnings.lines if line.startswith(kind)]


def sound_study(plan, count=12):
    """Return the rows of a study without anything to warn of: the best trial lies in the middle of the space."""
    rows = make_rows(plan, count).assign(error=None, command="train", seconds=1.0, **{"latent/active_units": 3.0})
    for dimension in plan.space.dimensions:
        rows.loc[0, dimension.name] = dimension.grid(5)[2]
    rows.loc[0, "valid/nll"] = -1.0
    return rows


def test_a_sound_study_has_no_warning(plan):
    assert page.Study(plan, sound_study(plan)).warnings.lines == []


def test_every_kind_of_warning_has_one_line_the_gravest_first(plan):
    rows = sound_study(plan, 17)
    rows.loc[[0, 3], "latent/active_units"] = 0.0
    rows.loc[[4, 5, 6], "state"] = "failed"
    rows.loc[[4, 5], "error"] = ["training diverged in epoch 2 at step 7: ...", "the target is not finite: nan"]
    rows.loc[6, "error"] = "CUDA error"
    rows.loc[7, "state"] = "lost"
    rows.loc[[8, 9], "weights_sha256"] = "same"
    rows.loc[10:, "state"] = "pruned"
    rows.loc[[8, 9], "state"] = "pruned"
    rows.loc[0, ["model.latent", "objective.lambda"]] = [32, 1.0]
    rows["ais/gap"], rows["ais/gap_stderr"] = [0.5, 0.6, *[0.0] * 15], 0.1
    rows["latent/mi"], rows["latent/log_n"] = 7.2, 7.27
    study = page.Study(plan, rows)
    assert study.warnings.lines == [
        "posterior collapse: trials 0, 3 ended without an active unit, the best one among them, so that codes say "
        "nothing about x; lower objective.beta, or warm up with train.warmup_epochs",
        "divergence: trials 4, 5 did not train; lower train.learning_rate",
        "failure: trial 6 failed, the first by: CUDA error",
        "settings not applied: trials 8, 9 differ in their settings, yet have the same weights_sha256 (same)",
        "few trials: 4 finished and 9 were pruned, too few to rank settings by; --pruner none, or more --trials",
        "edge of the space: the best trial has model.latent = 32 of 2 to 32, integers, log; objective.lambda = 1 of 1 "
        "to 1000, numbers, log; a wider range may hold a better one",
        "estimator of log p(x): under trials 0, 1 annealed importance sampling finds it 0.50 ± 0.10, 0.60 ± 0.10 nats "
        "higher, so that nll is too high",
    ]
    assert study.warnings.footnotes == ["latent/mi is within 1 nat of log N, its ceiling, in all trials shown"]
    whole = files.render(ChartData.read([study]), "mine", plan.folder)
    for text in (finish.summarise(study, "", []), page.render_markdown(study), whole):
        places = [html.unescape(text).index(line) for line in (*study.warnings.lines, *study.warnings.footnotes)]
        assert places == sorted(places)


def test_a_collapsed_trial_that_is_not_the_best_is_named_without_it(plan):
    rows = sound_study(plan)
    rows.loc[3, ["latent/active_units", "valid/nll"]] = [0.0, 99.0]
    (line,) = page.Study(plan, rows).warnings.lines
    assert line.startswith("posterior collapse: trial 3 ended without an active unit, so that codes say nothing")
    rows.loc[3, "state"] = "pruned"
    assert page.Study(plan, rows).warnings.lines == []


@pytest.mark.parametrize(
    ("setting", "value", "warns"),
    [
        *[("objective.alpha", alpha, warns) for alpha, warns in ((0.0, 1), (0.019, 1), (0.021, 0), (1.0, 0))],
        *[("objective.beta", 10 ** (-1 + 0.02 * decades), warns) for decades, warns in ((1.9, 1), (2.1, 0))],
    ],
)
def test_a_bound_of_the_setting_itself_is_no_edge(plan, setting, value, warns):
    """alpha is at most 1 by its definition, so that no space reaches further; below 0 one could."""
    rows = sound_study(plan)
    rows.loc[0, setting] = value
    assert len(about("edge", page.Study(plan, rows))) == warns


def test_of_several_targets_no_trial_is_the_best_at_an_edge(plan):
    rows = sound_study(plan).assign(**{"valid/distortion": 1.0, "valid/rate": 2.0})
    rows.loc[0, "objective.beta"] = 0.1
    assert len(about("edge", page.Study(plan, rows))) == 1
    assert about("edge", page.Study(dataclasses.replace(plan, target=TARGETS["rate-distortion"]), rows)) == []


def test_estimates_not_to_be_trusted_are_named(plan):
    """Annealing tells against the estimator where it finds more than three errors more; less tells nothing."""
    rows = make_rows(plan, 4)
    rows["valid/nll"] = [1.0, 2.0, 3.0, 4.0]
    rows["ais/gap"], rows["ais/gap_stderr"] = [0.31, 0.29, -0.9, 0.75], [0.1, 0.1, 0.1, 0.25]
    rows["latent/mi"], rows["latent/log_n"] = [7.0, 3.0, 6.5, 6.25], 7.25
    study = page.Study(plan, rows)
    (doubt,) = about("estimator", study)
    assert doubt == (
        "estimator of log p(x): under trial 0 annealed importance sampling finds it 0.31 ± 0.10 nats higher, so that "
        "nll is too high"
    )
    assert study.warnings.footnotes == ["latent/mi is within 1 nat of log N, its ceiling, in trials 0, 2"]
    (said,) = page.describe_estimates(study)
    assert (
        "On trials 0, 1, 2, 3 its log p(x) minus the estimate is 0.31 ± 0.10, 0.29 ± 0.10, -0.90 ± 0.10, 0.75" in said
    )


def test_gaps_of_an_older_study_have_no_error(plan):
    rows = make_rows(plan, 3).assign(**{"valid/nll": [1.0, 2.0, 3.0], "ais/gap": [0.31, 0.29, None]})
    study = page.Study(plan, rows)
    assert about("estimator", study) == []
    (said,) = page.describe_estimates(study)
    assert "On trials 0, 1 its log p(x) minus the estimate is 0.31, 0.29 nats" in said


def test_a_checked_trial_without_a_resolved_example_is_named(plan):
    rows = make_rows(plan, 3).assign(**{"valid/nll": [1.0, 2.0, 3.0], "ais/nll": [90.0, 91.0, None]})
    expected = "On trials 0, 1 annealing has no estimate to compare with: all examples are unresolved."
    assert page.describe_estimates(page.Study(plan, rows)) == [expected]
    gaps = rows.assign(**{"ais/gap": [0.1, None, None], "ais/gap_stderr": [0.2, None, None]})
    said = page.describe_estimates(page.Study(plan, gaps))
    assert "On trials 0 its log p(x) minus the estimate is 0.10 ± 0.20 nats" in said[0]
    assert said[1:] == [expected.replace("0, 1", "1")]


def test_the_enclosure_of_the_best_trial_is_told_with_its_errors(plan):
    rows = make_rows(plan, 3)
    rows["valid/nll"] = [1.0, 2.0, 3.0]
    figures = {
        "lower": -80.0,
        "upper": -79.5,
        "width_stderr": 0.1,
        "log_px": -79.75,
        "shortfall": 0.25,
        "shortfall_stderr": 0.05,
        "unresolved": 0.0,
        "examples": 16.0,
    }
    for name, value in figures.items():
        rows[f"enclosure/{name}"] = [value, None, None]
    expected = (
        "Under trial 0, on simulated data log p(x) lies within [-80.200, -79.300]: the mean of 16 examples, "
        "2 standard errors included; the estimate is -79.750, and the upper bound without its error, -79.500, lies "
        "0.250 ± 0.050 nats above it."
    )
    assert page.describe_estimates(page.Study(plan, rows)) == [expected]
    rows["enclosure/unresolved"] = [1.0, None, None]
    assert ">= -79.750 (1 of 16 examples unresolved)" in page.describe_estimates(page.Study(plan, rows))[0]


def find_enclosure_doubts(plan, excess, shortfall, unresolved=0.0):
    """Return the doubts about an estimate with these distances to its bounds, each with an error of 0.1."""
    found = {"excess": excess, "excess_stderr": 0.1, "shortfall": shortfall, "shortfall_stderr": 0.1}
    rows = make_rows(plan, 2).assign(**{"valid/nll": [1.0, 2.0]})
    for name, value in {**found, "unresolved": unresolved}.items():
        rows[f"enclosure/{name}"] = [value, None]
    return about("estimator", page.Study(plan, rows))


def test_an_estimate_outside_its_enclosure_is_in_doubt(plan):
    """Beyond three standard errors: below the lower bound it is too low, above the upper one too high."""
    assert find_enclosure_doubts(plan, -0.29, 0.5) == find_enclosure_doubts(plan, 0.5, -0.29) == []
    (below,) = find_enclosure_doubts(plan, -0.31, 0.5)
    assert below == (
        "estimator of log p(x): on data simulated by trial 0 it lies 0.31 ± 0.10 nats below the lower bound, so that "
        "nll is too high"
    )
    (above,) = find_enclosure_doubts(plan, 0.5, -0.31)
    assert above.endswith("it lies 0.31 ± 0.10 nats above the upper bound, so that nll is too low")
    assert find_enclosure_doubts(plan, -0.31, 0.5, unresolved=1.0) == [], "it is told to be a lower bound"
