"""Where the time of a training step goes, with textbook operations and with those of kernels/.

`python bench/profile_step.py` profiles a step of a reference VAE with each backend of the latent head that can run. It
prints the time of each operation and the number of kernels launched, and writes a table, a figure and a Chrome trace
for each backend (for https://ui.perfetto.dev) into a folder. A CPU launches no kernels: there operators are counted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.bench.report import format_table

if TYPE_CHECKING:
    import torch

    from vaebench.bench.cases.step_profile import Profile

PAGE = "profile.md"
COLOURS = 12  # entries of the figure that are not among the others
GREYS = (14, 15)  # of matplotlib's tab20: grey is for the others
MODELS = ("digits-mlp", "32x32-conv")
PACKAGES = "numpy scikit-learn safetensors tqdm pillow"  # that vae/ needs, and the benchmarks of kernels/ do not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code. What takes seconds to import is imported after the options are read.

    The exit code is 2 where a package is missing or a file cannot be written, and 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="digits-mlp", help="which VAE (digits-mlp)")
    parser.add_argument("--folder", type=Path, default=Path("runs/profile"), help="for the files (runs/profile)")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ModuleNotFoundError as error:
        print(f"profile_step.py: needs {error.name}, which is not installed; pip install {PACKAGES}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command starts again.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Profile the model; raise ModuleNotFoundError where a package is missing."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # hides the profiler's remarks on missing GPUs; torch reads it once
    from vaebench.vae.errors import InputError
    from vaebench.vae.training.setup import open_folder

    try:
        profile_model(options.model, open_folder(options.folder))
    except InputError as error:
        print(f"profile_step.py: {error}", file=sys.stderr)
        return 2
    return 0


def profile_model(model: str, folder: Path) -> None:
    """Profile a step with each backend, write the files, and print the page."""
    from vaebench.bench.cases.step_profile import profile_backends
    from vaebench.bench.timing import machine

    device = machine.pick_device()
    profiles = profile_backends(model, device, folder)
    page = format_page(profiles, model, device)
    (folder / PAGE).write_text(page)
    print(page, end="")
    files = [PAGE, *(f"trace-{one.backend}.json" for one in profiles), *draw(profiles, folder)]
    print(f"\nin {folder}: {', '.join(files)}")


def format_page(profiles: Sequence["Profile"], model: str, device: "torch.device") -> str:
    """Return the page: a line and a table for each backend."""
    import torch

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


def draw(profiles: Sequence["Profile"], folder: Path) -> list[str]:
    """Draw a bar for each backend, its largest entries stacked; return the file's name, or none without matplotlib."""
    try:
        from matplotlib import color_sequences
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    figure = Figure(figsize=(10, 1.4 + 0.9 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for one in profiles for name in one.largest if name != "others"))[:COLOURS]
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
