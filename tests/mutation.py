"""Plant bugs one at a time in the modules that decide a number, and count those that the tests see.

    python -m tests.mutation vae/estimators --sample 60 --seed 0

Mutants are drawn at random from those of cosmic-ray (signs, operators, comparisons, constants, conditions, loops) and
of the two operators below. They are planted in a copy of the tree, one after another. A mutant meets the tests that
enter its function, then the other tests of their files, until these take `--seconds`: other tests may see a survivor.
One whose function no listed test enters is counted apart: code for GPUs, or for several processes.

Not planted are mutants that change no result by construction: in annotations, decorators, imports, `__all__`, `assert`
and `raise`, in arguments of progress bars, of `strict=` and of `device=`, since without a GPU there is one device, and
numbers that are constants or defaults, which are choices. Docstrings have no operators. Modules compiled by
numba or Triton are not in the table.

A run that is given again goes on where it was stopped: killed mutants are kept while the module is the same, survivors
while the tests are the same too.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from pathlib import Path

import parso
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword
from tqdm import tqdm

from tests import ROOT

ENGINE, TRACKING = "tests/studies/engine", "tests/studies/tracking"
REPORT = " ".join(f"{ENGINE}/test_{name}.py" for name in ("effects", "paired", "reported_figures", "table", "warnings"))
SEARCH = " ".join(
    f"{ENGINE}/test_{name}.py"
    for name in ("paired", "pruners", "queue", "repeats", "samplers", "space", "target", "trial")
)
EXAMPLES = "tests/docs/test_documents.py"
TRACKED = f"{TRACKING}/test_figures.py {TRACKING}/test_mlflow_runs.py {ENGINE}/test_trial.py"
TESTS = {  # modules, and the tests that hold them; ordeals of killed workers and browsers are left out
    "vae/objective": f"tests/vae/objective tests/vae/config/test_unused.py tests/vae/ensemble/test_stack.py {EXAMPLES}",
    "vae/prob": f"tests/vae/prob {EXAMPLES}",
    "vae/estimators": f"tests/vae/estimators {EXAMPLES}",
    "vae/metrics": f"tests/vae/metrics tests/vae/evaluation/test_labels.py {EXAMPLES}",
    "vae/evaluation": f"tests/vae/evaluation {EXAMPLES}",
    "vae/training": " ".join(
        f"tests/vae/{name}.py"
        for name in ("objective/test_iwae", *(f"training/test_{of}" for of in ("averaging", "fit", "setup", "state")))
    ),
    "studies/engine/workers": SEARCH,
    "studies/engine/search": SEARCH,
    "studies/engine/study": SEARCH,
    "studies/engine/report/table.py": REPORT,
    "studies/engine/report/comparison.py": REPORT,
    "studies/engine/report/best_trials.py": f"{REPORT} tests/studies/test_pictures.py",
    "studies/engine/report/effects.py": REPORT,
    "studies/engine/report/warnings.py": REPORT,
    "studies/engine/report/finish.py": f"{REPORT} {ENGINE}/test_background_call.py",
    "studies/tracking/figures.py": TRACKED,
    "studies/tracking/record.py": TRACKED,
    "studies/tracking/recorder.py": TRACKED,
    "studies/tracking/provenance.py": f"{TRACKING}/test_provenance.py",
    "bench/timing": "tests/bench",
    "bench/cases/kernel_cases.py": "tests/bench",
    "bench/cases/kernel_providers.py": "tests/bench",
    "bench/session/compare.py": "tests/bench",
    "bench/session/group.py": "tests/bench",
    "bench/session/summary.py": "tests/bench",
}
WARM = ("matplotlib", "mlflow", "numba", "optuna", "pandas", "scipy.stats", "sklearn", "torchvision")  # imported once
BINARY = ["Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr"]
COMPARISONS = ["Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "Gt_LtE", "Is_IsNot"]
OTHERS = [
    *("ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
]
SILENT = re.compile(r"(progress|disable|desc|leave|unit|strict|total|position|daemon|encoding|device)$")  # arguments
VERDICTS = ("killed", "timeout", "survived", "not entered")
CANNOT_RUN = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
NO_RESULT = re.compile(r"(raise|assert|import)\b|__all__\b")


class DropArgument(Operator):
    """Leave out a keyword argument of a call, so that the function's default is used."""

    def mutation_positions(self, node):
        if node.type == "argument" and node.children[1:2] == ["="] and node.parent.type == "arglist":
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        return next(part for part in ast_nodes(parso.parse("f(**{})")) if part.type == "argument")

    @classmethod
    def examples(cls):
        return ()


class DropCall(Operator):
    """Leave out a call whose result is not used, such as `model.eval()`."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "power"):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node, index):
        call = node.children[0]
        node.children[0] = Keyword("pass", call.start_pos, prefix=call.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls):
        return ()


@cache
def operators():
    """Return the operators by their names."""
    names = [f"ReplaceBinaryOperator_{name}" for name in BINARY]
    names += [f"ReplaceComparisonOperator_{name}" for name in COMPARISONS] + OTHERS
    found = {name: get_operator(f"core/{name}")() for name in names}
    return found | {"DropArgument": DropArgument(), "DropCall": DropCall()}


def changes_no_result(node, operator):
    """Whether a mutant at this node is equivalent by construction, see above."""
    child, parent = node, node.parent
    while parent is not None:
        if parent.type in ("decorator", "tfpdef", "parameters") or child is getattr(parent, "annotation", None):
            return True
        if parent.type == "annassign" and child is parent.children[1]:
            return True
        if parent.type.endswith("_stmt") and NO_RESULT.match(parent.get_code(include_prefix=False)):
            return True
        if child.type == "argument" and SILENT.match(child.children[0].get_code().strip()):
            return True
        child, parent = parent, parent.parent
    inside = node.search_ancestor("funcdef", "param")
    return operator == "NumberReplacer" and (inside is None or inside.type == "param")


@dataclass(frozen=True)
class Mutant:
    """A file with one bug; `function` is the qualified name of the function around it, empty where there is none."""

    file: str
    line: int
    function: str
    code: str

    @property
    def key(self):
        """Return a digest of the code."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]

    def diff(self):
        """Return the lines that differ, after their place."""
        before, after = (ROOT / self.file).read_text().splitlines(), self.code.splitlines()
        return [line for line in unified_diff(before, after, n=0, lineterm="") if line[:3] not in ("---", "+++")][1:]


def positions(file):
    """Return where a file can be mutated: an operator, the number of its occurrence, and the node."""
    found = []
    for name, operator in operators().items():
        nodes = [node for node in ast_nodes(tree_of(file)) for _ in operator.mutation_positions(node)]
        found += [(file, name, i, node) for i, node in enumerate(nodes) if not changes_no_result(node, name)]
    return found


@cache
def tree_of(file):
    """Return the syntax tree of a file."""
    return parso.parse((ROOT / file).read_text())


def draw(places, count, seed):
    """Return random mutants of different code that compile; those of a smaller sample come first."""
    places, found = random.Random(seed).sample(places, len(places)), {}
    for file, name, occurrence, node in places:
        if len(found) == count:
            break
        source = (ROOT / file).read_text()
        code = mutate_code(source, operators()[name], occurrence)
        with contextlib.suppress(SyntaxError):
            if ast.dump(ast.parse(code)) != ast.dump(ast.parse(source)):
                found.setdefault(code, Mutant(file, node.start_pos[0], name_function(node), code))
    return list(found.values())


def name_function(node):
    """Return the qualified name of the function around a node, empty where there is none."""
    names = []
    while (node := node.search_ancestor("funcdef", "classdef")) is not None:
        if names or node.type == "funcdef":
            names.insert(0, node.name.value + (".<locals>" if names and node.type == "funcdef" else ""))
    return ".".join(names)


class Reach:
    """A plugin of pytest: write which functions of the tree each test enters, in its forked processes too.

    A line of the file is `test, file:function`, or `test, seconds` at the end of a test.
    """

    def __init__(self, tree, file):
        self.tree, self.file = f"{tree}/", os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, test, what):
        """Append a line, in one call, since several processes write."""
        os.write(self.file, json.dumps([test, what]).encode() + b"\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        entered = set()

        def enter(frame, event, argument):
            code = frame.f_code
            if code not in entered and code.co_filename.startswith(self.tree):
                entered.add(code)
                path = os.path.realpath(code.co_filename).removeprefix(self.tree)
                self.write(item.nodeid, f"{path}:{code.co_qualname}")

        start = time.monotonic()
        sys.settrace(enter)
        threading.settrace(enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.write(item.nodeid, time.monotonic() - start)


class Tree:
    """A copy of the working tree, in which tests run in forked processes of this one."""

    def __init__(self, folder):
        self.root, self.log = (folder / "tree").resolve(), (folder / "last.log").resolve()
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for name in listed.splitlines():
            source, copy = ROOT / name, self.root / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink() or not copy.exists() or source.read_bytes() != copy.read_bytes():
                copy.unlink(missing_ok=True)
                shutil.copy2(source, copy, follow_symlinks=False)

    def test(self, arguments, limit, *plugins):
        """Run tests and return pytest's exit code, or None after `limit` seconds."""
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os.chdir(self.root)
            sys.path[:] = [str(self.root), *(path for path in sys.path if path not in ("", str(ROOT)))]
            # anyio has a plugin, and a pytest within a test would warn that it cannot rewrite a module that is imported
            for name in [name for name in sys.modules if name.split(".")[0] in ("anyio", "tests", "vaebench")]:
                del sys.modules[name]
            os.environ.update(PYTHONPATH=str(self.root), PYTHONDONTWRITEBYTECODE="1")
            sys.dont_write_bytecode = not plugins
            options = [
                "-q",
                "-n0",
                "-pno:cacheprovider",
                "--benchmark-disable",
                "-Wignore::pytest.PytestAssertRewriteWarning",
            ]
            os._exit(pytest.main([*options, *arguments], [*plugins]))
        return wait(child, limit)

    @contextlib.contextmanager
    def plant(self, mutant):
        """Hold a mutant in the tree inside the block."""
        path = self.root / mutant.file
        source, times = path.read_bytes(), path.stat()
        path.write_text(mutant.code)
        try:
            yield
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def wait(child, limit):
    """Return the exit code of a process, or None after ending it and its children at the time limit."""
    until = time.monotonic() + limit
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if ended[0] == 0:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(ended[1])


class Baseline:
    """What tests enter and how long they take without a bug, measured once for each test file and kept."""

    def __init__(self, tree, tests, folder):
        self.entered, self.seconds = defaultdict(set), {}
        for path in sorted(file for name in tests.split() for file in expand(ROOT / name)):
            name = str(path.relative_to(ROOT))
            record = folder / f"{name.replace('/', '-')}-{digest(path)}.reach"
            if not record.exists():
                part = record.with_suffix(".part")
                part.unlink(missing_ok=True)
                if tree.test([name], 3600, Reach(tree.root, part)) != 0:
                    sys.exit(f"{name} fails without a bug, see {tree.log}")
                part.rename(record)
            for test, what in map(json.loads, record.read_text().splitlines()):
                if isinstance(what, float):
                    self.seconds[test] = what
                else:
                    self.entered[what].add(test)

    def tests_of(self, mutant, seconds):
        """Return the tests that a mutant meets: those that enter its function, then others of their files; or none."""
        name = f"{mutant.file}:{mutant.function}"
        names = [name] if mutant.function else [what for what in self.entered if what.startswith(name)]
        enters = {test for what in names for test in self.entered[what]}
        if not enters:
            return []
        files = {test.partition("::")[0] for test in enters}
        near = [test for test in self.seconds if test.partition("::")[0] in files]
        ordered = sorted(near, key=lambda test: (test not in enters, self.seconds[test]))
        so_far = list(itertools.accumulate(self.seconds[test] for test in ordered))
        return [test for test, until in zip(ordered, so_far, strict=True) if until <= max(seconds, so_far[0])]

    def seconds_of_files(self, tests):
        """Return the seconds of the whole files of tests: any of these may be the first to need a file's fixtures."""
        files = {test.partition("::")[0] for test in tests}
        return sum(seconds for test, seconds in self.seconds.items() if test.partition("::")[0] in files)


def expand(path):
    """Return the test files of a folder, or the file itself."""
    return [path] if path.is_file() else path.glob("test_*.py")


def digest(*folders):
    """Return a digest of the Python files of folders."""
    found = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (folder.rglob("*.py") if folder.is_dir() else [folder])):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def measure(module, arguments):
    """Judge a sample of the mutants of a module; return its row of the table and the survivors."""
    path = ROOT / module
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    places = [place for file in files for place in positions(str(file.relative_to(ROOT)))]
    drawn = draw(places, arguments.sample, arguments.seed)
    tree, verdicts = Tree(arguments.folder), Verdicts(arguments.folder / "verdicts.jsonl", arguments.seconds)
    baseline = Baseline(tree, TESTS[module], arguments.folder)
    for mutant in tqdm(drawn, desc=module):
        if verdicts.of(mutant) is None:
            verdicts.add(mutant, judge(tree, baseline, mutant, arguments.seconds))
    found = [verdicts.of(mutant) for mutant in drawn]
    row = (module, len(drawn), len(places), *(found.count(word) for word in VERDICTS))
    return row, [mutant for mutant in drawn if verdicts.of(mutant) == "survived"]


class Verdicts:
    """The verdicts so far, one a line; that of a survivor counts while the tests and their seconds are the same."""

    def __init__(self, file, seconds):
        self.file, self.tests = file, f"{digest(ROOT / 'tests')}-{seconds:g}"
        lines = file.read_text().splitlines() if file.exists() else []
        self.known = {tuple(key): verdict for key, verdict in map(json.loads, lines)}

    def of(self, mutant):
        """Return the verdict on a mutant, None where there is none yet."""
        key = (mutant.file, mutant.key)
        return self.known.get(key) or self.known.get((*key, self.tests))

    def add(self, mutant, verdict):
        """Keep a verdict."""
        key = (mutant.file, mutant.key, *([self.tests] if verdict in ("survived", "not entered") else []))
        self.known[key] = verdict
        with self.file.open("a") as file:
            print(json.dumps([key, verdict]), file=file)


def judge(tree, baseline, mutant, seconds):
    """Return `killed`, `survived`, `timeout`, which is killed too, or `not entered`, where no test has a say."""
    tests = baseline.tests_of(mutant, seconds)
    if not tests:
        return "not entered"
    with tree.plant(mutant):
        code = tree.test(["-x", *tests], 20 + 3 * baseline.seconds_of_files(tests))
    if code in CANNOT_RUN:
        sys.exit(f"the tests of {mutant.file}:{mutant.line} could not be run, see {tree.log}")
    return {None: "timeout", 0: "survived"}.get(code, "killed")


def main():
    """Judge samples of the mutants of modules, and print the survivors and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--seconds", type=float, default=15, help="of tests that each mutant meets at most (15)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "mutation", help="of the copy and the verdicts")
    arguments = parser.parse_args()
    if unknown := [module for module in arguments.modules if module not in TESTS]:
        parser.error(f"{unknown[0]} is none of {', '.join(TESTS)}.")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in WARM:
        importlib.import_module(name)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows, survivors = [], []
    for module in arguments.modules:
        row, left = measure(module, arguments)
        rows.append(row)
        survivors += left
    for mutant in survivors:
        print(f"\n{mutant.file}:{mutant.line}", *mutant.diff(), sep="\n")
    print(
        "\n| module | mutants | places | killed | by time | survived | not entered | score |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for module, drawn, of, killed, late, survived, apart in rows:
        score = (killed + late) / max(killed + late + survived, 1)
        print(f"| {module} | {drawn} | {of} | {killed} | {late} | {survived} | {apart} | {score:.0%} |")


if __name__ == "__main__":
    main()
