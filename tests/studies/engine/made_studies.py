"""Studies of made-up trials, for tests of what is computed from their table."""

import numpy as np
import pandas as pd


def make_rows(plan, count=40, seed=0):
    """Return a table of random settings whose target depends on w_kl alone."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"trial": range(count), "state": "finished"})
    for dimension in plan.space.dimensions:
        frame[dimension.name] = random.uniform(dimension.low, dimension.high, count)
    frame["w_kl"] = frame["objective.beta"] * (1 - frame["objective.alpha"])
    frame["w_d"] = frame["objective.beta"] * (frame["objective.alpha"] + frame["objective.lambda"] - 1)
    frame["valid/nll"] = np.log(frame["w_kl"]) ** 2
    frame["weights_sha256"] = [f"{i:08x}" for i in range(count)]
    return frame
