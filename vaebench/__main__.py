"""`vaebench COMMAND ...`: the command lines of studies/ and bench/ under one name."""

import importlib
import importlib.metadata
import os
import sys

COMMANDS = {
    "train": ("vaebench.studies.train", "train one model, measure it, draw pictures of it"),
    "sweep": ("vaebench.studies.sweep", "search settings, every trial a run in MLflow"),
    "audit": ("vaebench.studies.audit", "measure a trained VAE of any library, and say what is wrong with it"),
    "report": ("vaebench.studies.report", "the tables and the page of a study, or of several"),
    "reproduce": ("vaebench.studies.reproduce", "train and measure what others have published, and compare"),
    "track-bench": ("vaebench.studies.track_bench", "put saved benchmark sessions into MLflow"),
    "profile": ("vaebench.bench.profile_step", "show where a training step spends its time"),
    "bench-report": ("vaebench.bench.report", "tables and pictures of a benchmark session, or of what changed"),
}


def main() -> int:
    """Run the command that the first argument names with the arguments after it; return its exit code."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        sys.argv[0] = f"vaebench {name}"  # argparse shows it as the program's name
        code: int = importlib.import_module(COMMANDS[name][0]).main(arguments)
        return code
    if name == "--version":
        print(f"vaebench {importlib.metadata.version('vaebench')}")
        return 0
    if name in ("-h", "--help"):
        try:
            print(usage(), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it exits
        return 0
    print(f"vaebench: there is no command {name!r}; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
    return 2


def usage() -> str:
    """Return one line for each command."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {sentence}" for name, (_, sentence) in COMMANDS.items()]
    return "\n".join(
        ["usage: vaebench COMMAND [...], vaebench COMMAND --help for its options, or vaebench --version\n", *rows]
    )


if __name__ == "__main__":
    sys.exit(main())
