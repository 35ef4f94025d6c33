"""Where the time of a training step goes, with textbook operations and with those of kernels/.

`python bench/profile_step.py` profiles a step of a reference VAE with each backend of the latent head that can run. It
prints the time of each part of the model, forward and backward, and of each operation, with the number of kernels
launched. It writes a table, a figure and a Chrome trace for each backend (for https://ui.perfetto.dev) into a folder. A
CPU launches no kernels: there operators are counted, and the time of a part includes Python's.
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
    """Return the page: a table of parts with a column for each backend, and a table of operations for each."""
    import torch

    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    parts = [f"# A training step of {model}, {where}, torch {torch.__version__}"]
    backends = [one.backend for one in profiles]
    overview = [("us a step", *backends), ("all", *(f"{one.total:.0f}" for one in profiles))]
    for part in profiles[0].parts:
        overview.append((part, *(f"{one.parts[part]:.0f} ({one.parts[part] / one.total:.0%})" for one in profiles)))
    overview.append(("kernels launched" if on_gpu else "operators run", *(f"{one.launches:.0f}" for one in profiles)))
    parts += [format_table(overview)]
    for one in profiles:
        rows, all_of_them = [("us a step", "share", one.backend)], sum(one.microseconds.values())
        rows += [(f"{value:.1f}", f"{value / all_of_them:.0%}", _shorten(name)) for name, value in one.largest.items()]
        parts += [format_table(rows)]
    return "\n\n".join(parts) + "\n"


def draw(profiles: Sequence["Profile"], folder: Path) -> list[str]:
    """Draw a bar for each backend, its parts stacked; return the file's name, or none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    starts = [0.0] * len(profiles)
    *named, others = profiles[0].parts
    for part, colour in [*((part, f"C{i}") for i, part in enumerate(named)), (others, "lightgray")]:
        widths = [one.parts[part] for one in profiles]
        bars = axes.barh([one.backend for one in profiles], widths, left=starts, label=part, color=colour)
        shares = [width / one.total for width, one in zip(widths, profiles, strict=True)]
        axes.bar_label(bars, [f"{share:.0%}" if share > 0.04 else "" for share in shares], label_type="center")
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set(xlabel="us a step", title="A training step by part of the model, forward and backward")
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "profile.png", dpi=110)
    return ["profile.png"]


def _shorten(name: str) -> str:
    """Return the start of a kernel's name, which may be long with templates, as the cell of a table."""
    return name.replace("|", "/")[:60]


if __name__ == "__main__":
    sys.exit(main())
