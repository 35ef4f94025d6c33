"""Where the time of a training step goes, with textbook operations and with those of kernels/.

`python bench/profile_step.py` profiles a step of a reference VAE with each backend of the latent head that can run,
prints where its time goes and how many kernels it launches, and writes a table, a picture and a Chrome trace of each
(for https://ui.perfetto.dev) into a folder. On a CPU, which launches nothing, operators are counted instead.
"""

import argparse
import bisect
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's remarks on missing GPUs

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from vaebench.bench.report import table
from vaebench.bench.timing import machine

WARM_UP, MEASURED = 5, 20
LARGEST = 12
GREYS = (14, 15)  # of matplotlib's tab20: grey is for the others
STEP = "one step"
PACKAGES = "numpy scikit-learn safetensors tqdm pillow"  # of vae/: benchmarks of kernels/ alone run without


@dataclass(frozen=True)
class Profile:
    """What one backend's step spends, by kernel on a GPU and by operator on a CPU.

    Attributes:
        microseconds: the median step's own time by name, the largest first.
        launches: kernels a step launches; on a CPU, operators that it runs.
    """

    backend: str
    microseconds: dict[str, float]
    launches: float

    @property
    def total(self) -> float:
        """Return the microseconds of a step."""
        return sum(self.microseconds.values())

    def largest(self) -> dict[str, float]:
        """Return the largest entries, and the sum of the others."""
        entries = list(self.microseconds.items())
        others = sum(value for _, value in entries[LARGEST:])
        return dict(entries[:LARGEST]) | ({"others": others} if others else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        return command(arguments)
    except ModuleNotFoundError as error:
        print(f"profile_step.py: needs {error.name}, which is not installed; pip install {PACKAGES}.", file=sys.stderr)
        return 2


def command(arguments: Sequence[str] | None) -> int:
    """Run the command line where all packages are there."""
    from vaebench.bench.cases import training_step
    from vaebench.vae.errors import InputError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=training_step.CONFIGS, default="digits-mlp", help="which VAE (digits-mlp)")
    parser.add_argument("--folder", type=Path, default=Path("runs/profile"), help="for the files (runs/profile)")
    options = parser.parse_args(arguments)
    try:
        require_writable(options.folder)
    except OSError as error:
        print(f"profile_step.py: cannot write to {options.folder}: {error.strerror}; name another.", file=sys.stderr)
        return 2
    try:
        return run(options.model, options.folder)
    except InputError as error:
        print(f"profile_step.py: {error}", file=sys.stderr)
        return 2


def require_writable(folder: Path) -> None:
    """Make a folder, and raise OSError where nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def run(model: str, folder: Path) -> int:
    """Profile a step with each backend, write the files, and print the page."""
    from vaebench.bench.cases import training_step

    device = machine.device()
    profiles = [
        profiled(backend, training_step.Steps.start(model, device).with_backend(backend), device, folder)
        for backend in training_step.able(device)
    ]
    page = summary(profiles, model, device)
    (folder / "profile.md").write_text(page)
    print(page, end="")
    files = ["profile.md", *(f"trace-{one.backend}.json" for one in profiles), *picture(profiles, folder)]
    print(f"\nin {folder}: {', '.join(files)}")
    return 0


def profiled(backend: str, step: Callable[[], object], device: torch.device, folder: Path) -> Profile:
    """Profile steps after some that warm up, and save their trace."""
    for _ in range(WARM_UP):
        step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        for _ in range(MEASURED):
            with record_function(STEP):
                step()
                if on_gpu:
                    torch.cuda.synchronize()
    recorded.export_chrome_trace(str(folder / f"trace-{backend}.json"))
    return of_events(backend, recorded.events(), on_gpu)


def of_events(backend: str, events: Iterable[Any], on_gpu: bool) -> Profile:
    """Return what the median step spends by name; a step that something else interrupted counts little.

    Ranges such as the optimizer's stand on a GPU's timeline too, beside the kernels that they are made of.
    """
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = list(events)
    starts = sorted(one.time_range.start for one in events if one.name == STEP and one.device_type == DeviceType.CPU)
    spent: dict[str, list[float]] = {}
    launched = [0] * len(starts)
    for one in events:
        place = bisect.bisect_right(starts, one.time_range.start) - 1
        if one.device_type == wanted and one.name != STEP and place >= 0 and not (on_gpu and one.is_user_annotation):
            steps_of = spent.setdefault(one.name, [0.0] * len(starts))
            steps_of[place] += one.self_device_time_total if on_gpu else one.self_cpu_time_total
            launched[place] += 1
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return Profile(backend, dict(sorted(medians.items(), key=lambda pair: -pair[1])), statistics.median(launched))


def summary(profiles: Sequence[Profile], model: str, device: torch.device) -> str:
    """Return the page: a line and a table for each backend."""
    counted = "kernels launched" if device.type == "cuda" else "operators run"
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    parts = [f"# A training step of {model}, {where}, torch {torch.__version__}"]
    overview = [("latent head", "us a step", counted)]
    overview += [(one.backend, f"{one.total:.0f}", f"{one.launches:.0f}") for one in profiles]
    parts += [table(overview)]
    for one in profiles:
        rows = [("us a step", "share", one.backend)]
        rows += [(f"{value:.1f}", f"{value / one.total:.0%}", _short(name)) for name, value in one.largest().items()]
        parts += [table(rows)]
    return "\n\n".join(parts) + "\n"


def picture(profiles: Sequence[Profile], folder: Path) -> list[str]:
    """Draw a bar for each backend, its largest entries stacked; return the file's name, none without matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    figure = Figure(figsize=(10, 1.4 + 0.9 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for one in profiles for name in one.largest() if name != "others"))[:LARGEST]
    colours = [colour for i, colour in enumerate(colormaps["tab20"].colors) if i not in GREYS]
    starts = [0.0] * len(profiles)
    for name, colour in [*zip(names, colours, strict=False), ("others", "lightgray")]:
        widths = [one.total - sum(one.microseconds.get(known, 0.0) for known in names) for one in profiles]
        widths = [one.microseconds.get(name, 0.0) for one in profiles] if name != "others" else widths
        axes.barh([one.backend for one in profiles], widths, left=starts, label=_short(name), color=colour)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set(xlabel="us a step", title="Where a training step spends its time")
    axes.invert_yaxis()
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "profile.png", dpi=110)
    return ["profile.png"]


def _short(name: str) -> str:
    """Return the start of a kernel's name, which may be a page of templates, as a cell of a table takes it."""
    return name.replace("|", "/")[:60]


if __name__ == "__main__":
    sys.exit(main())
