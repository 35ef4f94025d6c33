"""Where the time of a training step goes, with textbook operations and with those of kernels/.

`python bench/profile_step.py` profiles a step of a reference VAE with each backend of the latent head that can run. It
prints the time of each operation and the number of kernels launched, and writes a table, a figure and a Chrome trace
for each backend (for https://ui.perfetto.dev) into a folder. A CPU launches no kernels: there operators are counted.
"""

import argparse
import bisect
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # hides the profiler's remarks on missing GPUs; torch reads it once

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

from vaebench.bench.report import format_table
from vaebench.bench.timing import machine

WARM_UP, MEASURED = 5, 20
SHOWN = 12  # entries; the others are added up
GREYS = (14, 15)  # of matplotlib's tab20: grey is for the others
STEP = "one step"
PAGE = "profile.md"
PACKAGES = "numpy scikit-learn safetensors tqdm pillow"  # that vae/ needs, and the benchmarks of kernels/ do not


@dataclass(frozen=True)
class Profile:
    """The times of one backend's step, by kernel on a GPU and by operator on a CPU.

    Attributes:
        microseconds: own time in the median step by name, the largest first.
        launches: kernels launched in a step; on a CPU, operators run.
    """

    backend: str
    microseconds: dict[str, float]
    launches: float

    @property
    def total(self) -> float:
        """Return the microseconds of a step."""
        return sum(self.microseconds.values())

    @property
    def largest(self) -> dict[str, float]:
        """Return the largest entries, and the sum of the others."""
        entries = list(self.microseconds.items())
        others = sum(value for _, value in entries[SHOWN:])
        return dict(entries[:SHOWN]) | ({"others": others} if others else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        print(f"profile_step.py: needs {error.name}, which is not installed; pip install {PACKAGES}.", file=sys.stderr)
        return 2


def run(arguments: Sequence[str] | None) -> int:
    """Run the command line; raise ModuleNotFoundError where a package is missing."""
    from vaebench.bench.cases import training_step
    from vaebench.vae.errors import InputError
    from vaebench.vae.training.setup import open_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=training_step.CONFIGS, default="digits-mlp", help="which VAE (digits-mlp)")
    parser.add_argument("--folder", type=Path, default=Path("runs/profile"), help="for the files (runs/profile)")
    options = parser.parse_args(arguments)
    try:
        profile_model(options.model, open_folder(options.folder))
    except InputError as error:
        print(f"profile_step.py: {error}", file=sys.stderr)
        return 2
    return 0


def profile_model(model: str, folder: Path) -> None:
    """Profile a step with each backend, write the files, and print the page."""
    from vaebench.bench.cases import training_step

    device = machine.pick_device()
    profiles = [
        profile_call(backend, training_step.TrainingStep.prepare(model, device).with_backend(backend), device, folder)
        for backend in training_step.list_backends(device)
    ]
    page = format_page(profiles, model, device)
    (folder / PAGE).write_text(page)
    print(page, end="")
    files = [PAGE, *(f"trace-{one.backend}.json" for one in profiles), *draw(profiles, folder)]
    print(f"\nin {folder}: {', '.join(files)}")


def profile_call(backend: str, step: Callable[[], object], device: torch.device, folder: Path) -> Profile:
    """Profile steps after some that warm up, and save their trace."""
    for _ in range(WARM_UP):
        step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(MEASURED):
            with record_function(STEP):
                step()
                if on_gpu:
                    torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / f"trace-{backend}.json"))
    return summarise_events(backend, list(profiler.events()), on_gpu)


def summarise_events(backend: str, events: Sequence[FunctionEvent], on_gpu: bool) -> Profile:
    """Return the times of the median step by name: a step that another program interrupted has little effect.

    A GPU's timeline also holds ranges, such as the optimizer's, beside the kernels that they consist of.
    """
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    starts = sorted(one.time_range.start for one in events if one.name == STEP and one.device_type == DeviceType.CPU)
    times: dict[str, list[float]] = {}
    launches = [0] * len(starts)
    for one in events:
        step = bisect.bisect_right(starts, one.time_range.start) - 1
        if one.device_type == wanted and one.name != STEP and step >= 0 and not (on_gpu and one.is_user_annotation):
            by_step = times.setdefault(one.name, [0.0] * len(starts))
            by_step[step] += one.self_device_time_total if on_gpu else one.self_cpu_time_total
            launches[step] += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Profile(backend, dict(sorted(medians.items(), key=lambda pair: -pair[1])), statistics.median(launches))


def format_page(profiles: Sequence[Profile], model: str, device: torch.device) -> str:
    """Return the page: a line and a table for each backend."""
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    parts = [f"# A training step of {model}, {where}, torch {torch.__version__}"]
    overview = [("latent head", "us a step", "kernels launched" if on_gpu else "operators run")]
    overview += [(one.backend, f"{one.total:.0f}", f"{one.launches:.0f}") for one in profiles]
    parts += [format_table(overview)]
    for one in profiles:
        rows = [("us a step", "share", one.backend)]
        rows += [(f"{value:.1f}", f"{value / one.total:.0%}", _shorten(name)) for name, value in one.largest.items()]
        parts += [format_table(rows)]
    return "\n\n".join(parts) + "\n"


def draw(profiles: Sequence[Profile], folder: Path) -> list[str]:
    """Draw a bar for each backend, its largest entries stacked; return the file's name, or none without matplotlib."""
    try:
        from matplotlib import color_sequences
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    figure = Figure(figsize=(10, 1.4 + 0.9 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for one in profiles for name in one.largest if name != "others"))[:SHOWN]
    colours = [colour for i, colour in enumerate(color_sequences["tab20"]) if i not in GREYS]
    starts = [0.0] * len(profiles)
    for name, colour in [*zip(names, colours, strict=False), ("others", "lightgray")]:
        widths = [one.microseconds.get(name, 0.0) for one in profiles]
        if name == "others":
            widths = [one.total - sum(one.microseconds.get(known, 0.0) for known in names) for one in profiles]
        axes.barh([one.backend for one in profiles], widths, left=starts, label=_shorten(name), color=colour)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set(xlabel="us a step", title="Where a training step spends its time")
    axes.invert_yaxis()
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "profile.png", dpi=110)
    return ["profile.png"]


def _shorten(name: str) -> str:
    """Return the start of a kernel's name, which may be long with templates, as the cell of a table."""
    return name.replace("|", "/")[:60]


if __name__ == "__main__":
    sys.exit(main())
