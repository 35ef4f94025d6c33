"""What the fused kernels become on GPUs that this machine need not have: compiled ahead of time, counted, and budgeted.

Counting. A thread has a share of ROWS x COLUMNS / threads elements in a tile, with 128 threads (256 on gfx942). Counted
is what it executes for one tile: every instruction of the kernel where the code is straight, the body of the loop where
it walks tiles; then divided by that share. It is SASS, from nvdisasm, without the padding after the end, on NVIDIA's
architectures, and the assembly text on gfx942.

Spills are those in a loop, where there is one: what is put aside once, before it, costs nothing. Kernels are compiled
as they are launched, with numbers that 16 divides told apart, which takes a tenth off many of the kernels of pairs.

Kernels of pairs walk in nested loops, which the assembler may unroll; counted is the loop that does the work, for each
product of a pair and a column that it holds (mmd) or each exponent of a code, a posterior and a column (aggregate). On
gfx942 it is the whole text, divided by the share of one tile.

aot_budget.json may only go down. It belongs to the version of Triton that it names; others get SLACK.
`python -m tests.kernels.test_aot` prints the table and writes the budget anew.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from vaebench.kernels import backends

if backends.why_not("reparam_kl", "triton", torch.device("cpu")) is None:
    pytest.skip("the interpreter compiles nothing: run this without TRITON_INTERPRET", allow_module_level=True)
triton = pytest.importorskip("triton", reason="kernels are compiled only where triton is installed")
compiler = pytest.importorskip("triton.compiler")
gpus = pytest.importorskip("triton.backends.compiler")
launch = pytest.importorskip("vaebench.kernels.gpu.reparam_kl_launch")
noise = pytest.importorskip("vaebench.kernels.gpu.normal_noise")
shared = pytest.importorskip("vaebench.kernels.shared.reparam_kl")
mmd = pytest.importorskip("vaebench.kernels.gpu.mmd2")
aggregate = pytest.importorskip("vaebench.kernels.gpu.log_aggregate")

BUDGET = Path(__file__).with_name("aot_budget.json")
SLACK = 1.35  # of Triton 3.6, the oldest supported, on sm_100
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
TYPES = {dtype: f"*{name}" for name, dtype in DTYPES.items()} | {torch.int64: "*i64"}
CASES = [
    f"{target} {dtype} {kernel} K=64"
    for target in ("sm_80", "sm_90", "sm_100", "gfx942")
    for dtype in ("bf16", "fp32")
    for kernel in ("forward", "backward")
] + ["sm_90 bf16 forward K=512", "sm_90 fp32 forward K=512"]
OPTIONS = {"std": {"scale": "std"}, "var": {"scale": "var"}, "prior": {"prior": True}}
CASES += [
    f"sm_90 {dtype} {kernel} K=64 {options}"
    for dtype in ("bf16", "fp32")
    for kernel in ("forward", "backward")
    for options in ("std", "var", "prior", "var prior")
]
CASES += ["sm_90 bf16 normal K=64", "sm_90 fp32 normal K=64"]
PAIRS = ["mmd_value", "mmd_gradient", "aggregate_forward", "aggregate_dz", "aggregate_dmu"]
CASES += [f"{target} fp32 {kernel} K=64" for target in ("sm_80", "sm_90", "sm_100", "gfx942") for kernel in PAIRS]


class Code(NamedTuple):
    """A compiled kernel: what a thread needs for its share, and the widths in bits of its loads and stores."""

    share: float
    registers: int
    instructions: float
    spills: int
    shared_bytes: int
    loads: Counter
    stores: Counter


def plans(rows, columns, dtype, reduction="sample", halves=True, seeds=1, scale="logvar", prior=False):
    """The launches on uninitialised tensors of this shape, with one prior for all rows if at all, and of the noise."""
    mu, spread = torch.empty(rows, 2 * columns, dtype=dtype).chunk(2, -1)
    if not halves:
        mu, spread = mu.contiguous(), spread.contiguous()
    z, seed = torch.empty(rows, columns, dtype=dtype), torch.zeros(seeds, dtype=torch.int64)
    pair = [torch.empty(columns, dtype=dtype).expand(rows, columns) for _ in range(2)] if prior else []
    forward, kl = launch.plan_forward(mu, spread, pair, seed, z, scale, reduction)
    dkl = torch.empty(shared.kl_shape(mu.shape, reduction), dtype=kl.dtype)
    gradients = shared.new_gradients(mu, spread, pair[0] if prior else None)
    backward = launch.plan_backward(z, dkl, mu, spread, pair, seed, gradients, scale, reduction)
    return {"forward": forward, "backward": backward, "normal": noise.plan_normal(seed, z)}


def pair_plans(rows, columns, dtype, bandwidths=(1.0,), weighted=False):
    """The launches of both pairwise operations, between as many rows."""
    x, weights = torch.empty(rows, columns, dtype=dtype), torch.zeros(rows, rows) if weighted else None
    options, wide = ("imq" if len(bandwidths) == 1 else "rbf", bandwidths, "u"), x.double()
    of_codes, of_posteriors = aggregate.plan_backward(wide[:, 0], wide, wide[:, 0], wide, x, x, x, weights)
    return {
        "mmd_value": mmd.plan_value(x, x, *options),
        "mmd_gradient": mmd.plan_gradient(x, x, *options, True, True),
        "aggregate_forward": aggregate.plan_forward(x, x, x, weights),
        "aggregate_dz": of_codes,
        "aggregate_dmu": of_posteriors,
    }


def built(plan, target):
    """Compile a launch as it would be at its first run: pointers aligned, and numbers told apart as Triton does."""
    signature, constants, attributes = {}, dict(plan.constants), {}
    for i, parameter in enumerate(plan.kernel.params):
        name, value = parameter.name, plan.arguments.get(parameter.name)
        told_apart = not (parameter.is_constexpr or parameter.do_not_specialize)
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif value is None or (told_apart and value == 1):
            signature[name], aligned = "constexpr", False
            constants.setdefault(name, value)
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            aligned = told_apart and value % 16 == 0
        if aligned:
            attributes[i,] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(plan.kernel, signature, constants, attributes)
    gpu = gpus.GPUTarget("hip", target, 64) if target.startswith("gfx") else gpus.GPUTarget("cuda", int(target[3:]), 32)
    return triton.compile(source, target=gpu, options=plan.options)


def compiled(plan, target):
    binary, amd = built(plan, target), target.startswith("gfx")
    share = tile(plan.constants) / (plan.warps * (64 if amd else 32))
    return amd_code(binary, share) if amd else nvidia_code(binary, share, plan.constants)


def tile(constants):
    if "SIDE" in constants:
        return constants["SIDE"] * constants.get("STEP", constants["SIDE"])
    return constants["ROWS"] * constants["COLUMNS"]


def nvidia_code(binary, share, constants):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        tools = ([TOOLS / "nvdisasm", "-c"], [TOOLS / "cuobjdump", "-res-usage"])
        sass, usage = (
            subprocess.run([*t, file.name], capture_output=True, text=True, check=True).stdout for t in tools
        )
    lines = [
        re.sub(r"/\*.*?\*/", "", line).strip()
        for line in sass.splitlines()
        if re.search(r"^\.L|/\*[0-9a-f]{4,}\*/", line)
    ]
    lines = [line for line in lines if line and not line.startswith("NOP")]
    operations = [line for line in lines if not line.startswith(".L")]
    spills = lambda body: sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in body)  # noqa: E731
    return Code(
        share=share,
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),
        instructions=round(per_element(lines, share, constants), 2 if "SIDE" in constants else 1),
        spills=max(map(spills, loop_bodies(lines)), default=spills(operations)),
        shared_bytes=binary.metadata.shared,
        loads=widths(operations, r"\bLDG\.E(?:\.(\d+))? "),
        stores=widths(operations, r"\bSTG\.E(?:\.(\d+))? "),
    )


def per_element(lines, share, constants):
    """Instructions for each element, for each product of a pair and a column, or for each exponent of a marginal."""
    bodies = loop_bodies(lines)
    count = lambda body, name: sum(name in line for line in body)  # noqa: E731
    if "SIDE" in constants:
        products = lambda body: count(body, "FFMA") + count(body, "FFMA2")  # noqa: E731 - the latter are two in one
        body = max(bodies, key=products)
        return len(body) / (products(body) // (share * constants["DEPTH"]) * share * constants["DEPTH"])
    if "CHUNK" in constants:
        body = max((body for body in bodies if "SHFL" in str(body)), key=lambda body: count(body, "SHFL") / len(body))
        return len(body) / (count(body, "SHFL") // (5 * constants["ROWS"]) * share)
    straight = [line for line in lines if not line.startswith(".L")]
    return len(max(bodies, key=len, default=straight)) / share


def loop_bodies(lines):
    """The instructions of each loop, from its label to the branch back."""
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if line.startswith(".L")}
    bodies = []
    for i, line in enumerate(lines):
        branch = re.search(r"BRA.*`\((\.L\w+)\)", line)
        start = labels[branch.group(1)] if branch else i
        if start < i - 1:
            bodies.append([x for x in lines[start : i + 1] if not x.startswith(".L")])
    return bodies


def amd_code(binary, share):
    text = binary.asm["amdgcn"]
    counts = {name: int(n) for name, n in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    operations = re.findall(r"^\t((?:[sv]|global|buffer|ds)_\w+.*)$", text[: text.rindex("\ts_endpgm")], re.MULTILINE)
    width = r"(?:global|buffer)_{}_dword(?:x(\d))? "
    return Code(
        share=share,
        registers=counts["vgpr_count"],
        instructions=round(len(operations) / share, 1),
        spills=counts["vgpr_spill_count"] + counts["sgpr_spill_count"],
        shared_bytes=binary.metadata.shared,
        loads=widths(operations, width.format("load"), unit=32),
        stores=widths(operations, width.format("store"), unit=32),
    )


def widths(operations, pattern, unit=1):
    found = (re.search(pattern, line) for line in operations)
    return Counter(int(match.group(1) or 32 // unit) * unit for match in found if match)


@pytest.fixture(scope="module")
def table():
    return {case: measure(case) for case in CASES}


def measure(case):
    target, dtype, kernel, columns, *options = case.split()
    if kernel in PAIRS:
        return compiled(pair_plans(1024, int(columns[2:]), DTYPES[dtype])[kernel], target)
    chosen = {name: value for option in options for name, value in OPTIONS[option].items()}
    return compiled(plans(65536, int(columns[2:]), DTYPES[dtype], **chosen)[kernel], target)


def printed(table):
    """The table, with loads and stores as times x bits."""
    rows = [f"{'':36}{'registers':>10}{'instructions':>14}{'spills':>8}{'shared':>8}  {'loads':24}stores"]
    for case, code in table.items():
        loads, stores = (", ".join(f"{n}x{bits}" for bits, n in sorted(c.items())) for c in (code.loads, code.stores))
        numbers = f"{code.registers:10}{code.instructions:14.1f}{code.spills:8}{code.shared_bytes:8}"
        rows.append(f"{case:36}{numbers}  {loads:24}{stores}")
    return "\n".join(rows)


def test_everything_is_within_the_budget(table, capsys):
    budget = json.loads(BUDGET.read_text())
    slack = 1.0 if budget["triton"] == triton.__version__ else SLACK
    with capsys.disabled():
        print(f"\n{printed(table)}")
    assert set(table) == set(budget["kernels"])
    for case, code in table.items():
        allowed = budget["kernels"][case]
        assert code.spills == 0, case
        assert code.registers <= slack * allowed["registers"], case
        assert code.instructions <= slack * allowed["instructions"], case


def test_half_precision_noise_is_cheap_enough_for_85_percent_of_the_bandwidth(table):
    assert table["sm_90 bf16 forward K=64"].instructions <= 54
    assert table["sm_90 bf16 backward K=64"].instructions <= 62


def test_noise_stays_in_its_thread(table):
    """Shared memory holds row sums, at most 4 bytes for each row and warp, and no noise on its way to other threads."""
    assert all(code.shared_bytes <= 512 for case, code in table.items() if case.split()[2] not in PAIRS)


@pytest.mark.parametrize(
    ("dtype", "columns", "reduction", "halves", "bits"),
    [
        ("bf16", 24, "sample", True, 128),
        ("bf16", 40, "sample", True, 128),
        ("fp32", 20, "sample", True, 128),
        ("bf16", 512, "sample", True, 128),
        ("bf16", 20, "sample", True, 64),
        ("bf16", 20, "none", False, 128),
        ("fp32", 36, "batch", False, 128),
        ("bf16", 10, "dim", True, 32),
        ("fp32", 10, "sample", False, 64),
    ],
)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_loads_and_stores_are_as_wide_as_pitch_and_length_allow(dtype, columns, reduction, halves, bits, kernel):
    plan = plans(4096, columns, DTYPES[dtype], reduction, halves)[kernel]
    code = compiled(plan, "sm_90")
    vectors = code.share * DTYPES[dtype].itemsize * 8 // bits
    assert code.loads[bits] >= vectors * (2 if kernel == "forward" else 3)
    assert code.stores[bits] >= vectors * (1 if kernel == "forward" else 2)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(
    ("dtype", "shape", "reduction", "seeds"),
    [
        ("fp64", (40, 33), "dim", 2),
        ("fp64", (4096, 64), "sample", 1),
        ("fp16", (6, 31), "none", 3),
        ("bf16", (9, 7), "batch", 9),
        ("fp32", (2, 2**20), "sample", 2),
    ],
)
def test_what_the_interpreter_accepts_compiles(dtype, shape, reduction, seeds, target):
    for options in ({}, {"scale": "std", "prior": True}, {"scale": "var"}):
        for plan in plans(*shape, DTYPES[dtype], reduction, seeds=seeds, **options).values():
            assert compiled(plan, target).registers > 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("kernel", PAIRS)
def test_what_the_interpreter_accepts_of_pairs_compiles(kernel, target):
    """In float64, with weights for each pair, and with two bandwidths of the other kernel."""
    plan = pair_plans(100, 5, torch.float64, (1.0, 2.0), weighted=True)[kernel]
    assert built(plan, target).metadata.num_warps == plan.warps


@pytest.mark.parametrize("op", ["reparam_kl", "mmd2", "log_aggregate"])
def test_on_a_cpu_it_says_how_to_run(op):
    assert "TRITON_INTERPRET=1" in backends.why_not(op, "triton", torch.device("cpu"))


if __name__ == "__main__":
    measured = {case: measure(case) for case in CASES}
    print(printed(measured))
    kernels = {
        case: {"registers": code.registers, "instructions": code.instructions} for case, code in measured.items()
    }
    BUDGET.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=2) + "\n")
