"""Views of a study in MLflow's pages: its leaderboard with preset charts, and the addresses that open them.

MLflow keeps a view as an experiment's tag, in the form in which its pages keep their own state.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from vaebench.studies.passwords import without_passwords

LEADERBOARD = "leaderboard"
VIEW_TAG = "mlflow.sharedViewState."
KIND = "workflowType=machine_learning"  # without it, MLflow shows its pages for language models
LOCAL_SERVER = "http://127.0.0.1:5000"  # where `mlflow ui` serves
NUMBER = "study/trial"
RATE, DISTORTION, ACTIVE = "valid/rate", "valid/distortion", "latent/active_units"
RUN_NAME = "attributes.`Run Name`"
FOLDED = ("valid", "train", "test", "latent", "perf", "study")


@dataclass(frozen=True)
class Leaderboard:
    """The trials of a study, the best first.

    Attributes:
        targets: metrics that are optimised; the first one sorts.
        ascending: whether a smaller target is better.
        searched: settings that are searched: the columns.
        axes: params of parallel coordinates, logarithms where they are searched on a logarithmic scale.
    """

    targets: Sequence[str]
    ascending: bool
    searched: Sequence[str]
    axes: Sequence[str]

    def state(self) -> dict[str, Any]:
        """Return the view as MLflow's pages read it; the study's own run is no trial and is left out."""
        metrics = dict.fromkeys([*self.targets, RATE, DISTORTION, ACTIVE, "test/nll"])
        columns = [*(_key("metrics", name) for name in metrics), *(_key("params", name) for name in self.searched)]
        columns.append(_key("tags", "state"))
        sections = [{"uuid": "search", "name": "search", "display": True, "isReordered": True}]
        sections += [{"uuid": name, "name": name, "display": False, "isReordered": False} for name in FOLDED]
        return {
            "searchFilter": "tags.trial LIKE '%'",
            "orderByKey": _key("metrics", self.targets[0]),
            "orderByAsc": self.ascending,
            "selectedColumns": columns,
            "columnOrder": [RUN_NAME, *columns],
            "columnWidths": {RUN_NAME: 300},
            "runsHiddenMode": "SHOW_ALL",
            "compareRunCharts": self.charts(),
            "compareRunSections": sections,
            "isAccordionReordered": True,
        }

    def charts(self) -> list[dict[str, Any]]:
        """Return the preset charts: target over trials, rate against distortion, and parallel coordinates."""
        target = self.targets[0]
        parallel = {"selectedParams": list(self.axes), "selectedMetrics": [target], "showAllRuns": False}
        return [
            _chart("target", "SCATTER", xaxis=_axis(NUMBER), yaxis=_axis(target)),
            _chart("rate_distortion", "SCATTER", xaxis=_axis(RATE), yaxis=_axis(DISTORTION)),
            _chart("parallel", "PARALLEL", **parallel),
        ]


def encode_view(state: Mapping[str, Any]) -> str:
    """Return a view as the value of a tag, in the compressed form that MLflow's pages write themselves."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def list_addresses(uri: str, experiment: str, best: Sequence[str]) -> dict[str, str]:
    """Return the addresses of a study's leaderboard, of its charts, and of the comparison of its best runs, by name.

    A store that is no server is served by `mlflow ui` on this machine.
    """
    server = without_passwords(uri).rstrip("/") if uri.startswith("http") else LOCAL_SERVER
    table = f"{server}/#/experiments/{experiment}/runs?{KIND}&viewStateShareKey={LEADERBOARD}"
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(best), [experiment]))
    return {
        "leaderboard": table,
        "charts": f"{table}&compareRunsMode=CHART",
        "the best compared": f"{server}/#/compare-runs?runs={runs}&experiments={experiments}&{KIND}",
    }


def _key(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _chart(name: str, kind: str, **details: Any) -> dict[str, Any]:
    shown = {"isGenerated": False, "deleted": False, "runsCountToCompare": 100}
    return {"uuid": name, "type": kind, "metricSectionId": "search", **shown, **details}
