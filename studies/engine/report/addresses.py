"""Where the pages of a study are in MLflow."""

import pandas as pd

from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import StoreError
from vaebench.studies.tracking.views import list_addresses


def find_addresses(plan: Plan, best: pd.DataFrame) -> dict[str, str]:
    """Return the addresses of leaderboard, charts and comparison of the best trials by their names.

    There are none without a tracker, or where it does not answer.
    """
    runs = best["run"].dropna().tolist() if "run" in best else []
    if plan.tracking == "none" or not runs:
        return {}
    try:
        return list_addresses(plan.tracking, Tracker(plan.tracking, plan.name).experiment, runs)
    except StoreError:
        return {}
