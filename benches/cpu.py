#!/usr/bin/env python3
"""Our kernels and steps beside PyTorch's on this machine's processor, as tables in Markdown.

    benches/cpu.py --torch FOLDER/torch_cpu.py [--python PYTHON] [--parts kernels steps memory] [--kinds f32 bf16]

torch_cpu.py is PyTorch's side of the comparison: called with `kernels` or `steps`, it prints a line of JSON a row, with
`name`, `shape` and `ms`; it is stopped when the rows wanted are there. PYTHON has torch and transformers (this one, if
none is named). PyTorch runs with its default allocator and with tcmalloc, where that is installed (Debian:
libtcmalloc-minimal4).

Programs run one at a time, ours before and after PyTorch's two: other load shows in how far our two runs are apart. The
ratio is the better of PyTorch's times to each of ours. The limit is the time at the probed rate of this machine that
binds: multiply-adds for products, attention and steps, memory for the rest. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Our row, and PyTorch's name and shape for the same work.
KERNELS = [
    (f"product forward {rows} x {inputs} -> {outputs}{width}", f"gemm_nt_{kind}", f"{rows}x{outputs}x{inputs}")
    for width, kind in [("", "float32"), (", bf16", "bfloat16")]
    for rows, outputs, inputs in [
        (1024, 768, 768),
        (1024, 3072, 768),
        (1024, 768, 3072),
        (1024, 384, 384),
        (1024, 1536, 384),
    ]
] + [
    ("attention base 16 x 128", "sdpa_fwd", "b16h12s128d64"),
    ("attention gradient base 16 x 128", "sdpa_bwd", "b16h12s128d64"),
    ("add and norm 4096 x 768", "layernorm_fwd", "4096x768"),
    ("add and norm gradient 4096 x 768", "layernorm_bwd", "4096x768"),
    ("gelu 4096 x 3072", "gelu_fwd", "4096x3072"),
    ("Adamax of 22 M parameters, clipped", "adamax_foreach_fp32", "22000000"),
]
STEPS = [
    (f"{work}, {ours}, {shape}, {kind}", f"{name}_{theirs}_{torch_kind}", torch_shape)
    for ours, theirs in [("minilm", "minilm6"), ("base", "base")]
    for kind, torch_kind in [("f32", "fp32"), ("bf16", "bf16")]
    for work, name, shape, torch_shape in [
        ("training step", "train_step", "32 x 128", "b32s128"),
        ("training step", "train_step", "32 GLUE-like", "b32s128mean40"),
        ("inference", "infer", "32 x 128", "b32s128"),
    ]
]

# One kind of step by itself, for its memory: as torch_cpu.py makes it.
TORCH_STEP = """
import os, sys, torch
from transformers import BertConfig, BertForSequenceClassification
torch.set_num_threads(len(os.sched_getaffinity(0)))
model = BertForSequenceClassification(BertConfig(num_labels=3, attn_implementation="sdpa")).train()
parameters = list(model.parameters())
optimizer = torch.optim.Adamax(parameters, lr=5e-5, foreach=True)
batch = dict(input_ids=torch.randint(1000, 30000, (32, 128)), labels=torch.randint(0, 3, (32,)))
for step in range(2):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=sys.argv[1] == "bf16"):
        loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", type=Path, required=True, metavar="FILE", help="the path of torch_cpu.py")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch and transformers")
    parser.add_argument(
        "--parts", nargs="+", choices=["kernels", "steps", "memory"], default=["kernels", "steps", "memory"]
    )
    parser.add_argument("--kinds", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    arguments = parser.parse_args()
    if not arguments.torch.is_file():
        parser.error(f"--torch {arguments.torch}: there is no such file")
    print(f"{processor()}, {os.cpu_count()} cores\n")
    for part, pairs in [("kernels", KERNELS), ("steps", STEPS)]:
        if part in arguments.parts:
            pairs = [pair for pair in pairs if (pair[0].endswith(", bf16") and "bf16" or "f32") in arguments.kinds]
            compare(arguments, part, pairs)
    if "memory" in arguments.parts:
        compare_memory(arguments)


def processor():
    """The processor's name and what it multiplies bf16 with."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    has = [flag for flag in ["avx2", "avx512f", "avx512_bf16", "amx_bf16"] if flag in flags]
    return f"{fields.get('model name', 'unknown processor')} ({', '.join(has)})"


def say(what):
    print(what, file=sys.stderr, flush=True)


def bench(name):
    """Builds one of our benches and returns its program."""
    say(f"building {name}")
    command = ["cargo", "bench", "--bench", name, "--no-run", "--message-format=json"]
    said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    programs = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name]
    return programs[-1]


def rows(command, wanted, key, environment=None):
    """The rows that a program prints as lines of JSON, by `key`, until it has printed all that are wanted."""
    found = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                found[key(row)] = row
                if found.keys() >= wanted:
                    process.kill()
                    return found
    sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}, without {wanted - found.keys()}")


def ours(program, names, *words):
    """The rows of one of our benches, by name."""
    return rows([program, "--json", *words], set(names), lambda row: row["name"])


def tcmalloc():
    found = sorted(glob("/usr/lib/*/libtcmalloc_minimal.so.4") + glob("/usr/lib*/libtcmalloc_minimal.so.4"))
    return found[0] if found else None


def torch_environment(allocator):
    # Set on some machines for older OpenBLAS; it has nothing to do with oneDNN, and slows other libraries.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    if allocator:
        environment["LD_PRELOAD"] = allocator
    return environment


def theirs(arguments, part, keys, allocator):
    """PyTorch's rows, by name and shape."""
    command = [arguments.python, "-u", str(arguments.torch), part]
    return rows(command, set(keys), lambda row: (row["name"], row["shape"]), torch_environment(allocator))


def compare(arguments, part, pairs):
    program = bench(part)
    names, keys = [pair[0] for pair in pairs], [pair[1:] for pair in pairs]
    words = arguments.kinds if part == "steps" and len(arguments.kinds) == 1 else []
    say(f"{part}: ours")
    runs = [ours(program, names, *words)]
    say(f"{part}: PyTorch")
    torch = [theirs(arguments, part, keys, None)]
    if tcmalloc():
        say(f"{part}: PyTorch with tcmalloc")
        torch.append(theirs(arguments, part, keys, tcmalloc()))
    else:
        say("warning: libtcmalloc_minimal.so.4 is not installed: PyTorch runs with its default allocator alone")
    say(f"{part}: ours again")
    runs.append(ours(program, names, *words))
    print(f"| {part} | ours, ms | PyTorch, ms | with tcmalloc, ms | limit, ms | ratio | share of the limit |")
    print("|---|---|---|---|---|---|---|")
    for name, torch_name, shape in pairs:
        times = [run[name]["ms"] for run in runs]
        of_torch = [rows[torch_name, shape]["ms"] for rows in torch]
        ratios = sorted(min(of_torch) / ms for ms in times)
        share = max(run[name]["share"] for run in runs)
        limit = min(run[name]["ms"] * run[name]["share"] for run in runs)
        cells = [
            name,
            ", ".join(figure(ms) for ms in times),
            figure(of_torch[0]),
            figure(of_torch[1]) if len(of_torch) > 1 else "-",
            figure(limit),
            " to ".join(f"{ratio:.2f}" for ratio in ratios),
            f"{100 * share:.0f} %",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def figure(ms):
    """Milliseconds to three digits or the whole number."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def compare_memory(arguments):
    program = bench("steps")
    print("| memory of a step, BERT-base, 32 x 128 | plan, GB | ours at most, GB | PyTorch at most, GB | with tcmalloc, GB | ratio |")
    print("|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        say(f"memory: {kind}")
        name = f"training step, base, 32 x 128, {kind}"
        row = ours(program, [name], name)[name]
        torch = [torch_memory(arguments, kind, allocator) for allocator in [None, *filter(None, [tcmalloc()])]]
        cells = [kind, *(f"{b / 1e9:.2f}" for b in [row["plan_bytes"], row["peak_bytes"], *torch])]
        cells += ["-"] * (2 - len(torch)) + [f"{row['peak_bytes'] / min(torch):.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def torch_memory(arguments, kind, allocator):
    """The largest memory of a process that makes two steps, in bytes."""
    process = subprocess.Popen([arguments.python, "-c", TORCH_STEP, kind], env=torch_environment(allocator))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"PyTorch's step ended with {process.returncode}")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
