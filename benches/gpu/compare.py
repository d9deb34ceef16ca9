#!/usr/bin/env python3
"""PyTorch on the work that `aim-cli gpu-check` has timed, on the same card and the same numbers.

    aim-cli gpu-check --out DIR                 # writes gpu_check.json and attention-*.npy
    compare.py --dir DIR --out compare.json     # times PyTorch beside it
    compare.py --join DIR/gpu_check.json compare.json > results.md
    compare.py --device cpu --tiny              # does everything run?

attention: scaled_dot_product_attention with a boolean prefix mask; the same without a mask and with its causal one, which
compute something else and are bounds; FlexAttention, compiled, with a prefix BlockMask, whose making is timed apart. Times
are medians, of the device (events), over two sets of tensors in turn. Errors are relative L2 against fp64.
step: one pre-training step of AIM, compiled: bf16 autocast over fp32 masters, fused AdamW, clipping; with the pixel head
on all rows, and on the predicting rows alone. The attention is the faster one of those above.
gelu: what the tanh form of the GELU, which a fused epilogue computes, changes in the loss of a small AIM.
"""

import argparse
import gc
import json
import math
import sys
import time

from attention import attention
from clock import Budget, Clock, guarded
from tables import joined, ours_of, read
from training import gelu, step


def freed(torch, device):
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def batches(ours, size):
    """The batches that ours ran: 64 at first."""
    steps = [
        r for r in (ours or {}).get("records", []) if r["kind"] == "step" and r["preset"] == size
    ]
    return [r["batch"] for r in steps] or [64]


def compare(args):
    import torch
    import torch._dynamo

    torch.set_float32_matmul_precision("high")
    # Blocks that are alike share what is compiled. Should a version not see that, none is left uncompiled.
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 128)
    clock, budget, results = Clock(torch, args.device, args.runs), Budget(args.budget_s), []
    from torch.nn.attention.flex_attention import flex_attention

    flex = torch.compile(flex_attention, dynamic=False) if args.compile else flex_attention
    sizes = ["tiny"] if args.tiny else args.sizes
    ours = ours_of(args.dir)
    if "attention" in args.only:
        for size in sizes:
            if not budget.allows(15):
                results.append(dict(what=f"attention {size}", error="skipped: no time left"))
                continue
            guarded(results, f"attention {size}", lambda: attention(torch, args, clock, size, flex))
            freed(torch, args.device)
    if "gelu" in args.only:
        guarded(results, "gelu", lambda: gelu(torch, args))
    if "step" in args.only:
        plans = []  # size, batch, all rows, compiled as a whole; what matters most comes first
        named = [size for size in sizes if size in ("aim-600M", "aim-1B", "tiny")]
        first = {size: 4 if args.tiny else batches(ours, size)[0] for size in named}
        plans += [(size, first[size], False, False) for size in named]
        plans += [(size, first[size], True, False) for size in named]
        plans += [(size, first[size], False, True) for size in named[:1]]
        plans += [
            (size, batches(ours, size)[-1], False, False)
            for size in named
            if not args.tiny and batches(ours, size)[-1] != first[size]
        ]
        for size, batch, all_rows, whole in plans:
            way = faster(results, size)
            what = (
                f"step {size}, batch {batch}, {'all' if all_rows else 'predicting'} rows, {way}"
                + (", whole" if whole else "")
            )
            if not budget.allows(90 if whole else 35):
                results.append(dict(what=what, error="skipped: no time left"))
                continue
            guarded(
                results, what, lambda: step(torch, args, clock, size, batch, all_rows, way, whole)
            )
            freed(torch, args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    return dict(
        format=1,
        torch=torch.__version__,
        device=name,
        time_unix_s=int(time.time()),
        results=results,
    )


def faster(results, size):
    """Which attention makes the faster step, the making of the mask included."""

    def cost(way):
        rows = [
            r
            for r in results
            if r.get("section") == "attention"
            and r["size"] == size
            and r["way"].startswith(way)
            and "bound" not in r["way"]
            and "both" in r
        ]
        return min((r["both"]["median_s"] for r in rows), default=math.inf)

    return "flex" if cost("flex") < cost("sdpa") else "sdpa"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", default=".", help="what aim-cli gpu-check --out wrote")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, two runs, nothing compiled"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="whatever --tiny says"
    )
    parser.add_argument("--only", default="attention,gelu,step", type=lambda text: text.split(","))
    parser.add_argument(
        "--sizes", default="aim-600M,aim-1B,aim-3B,aim-7B", type=lambda text: text.split(",")
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument(
        "--budget-s",
        type=float,
        default=200,
        help="nothing begins that may not end within this time",
    )
    parser.add_argument(
        "--join", nargs=2, metavar=("GPU_CHECK", "COMPARE"), help="print two results as Markdown"
    )
    args = parser.parse_args()
    if args.join:
        nothing = dict(torch="not run", device="unknown", time_unix_s=int(time.time()), results=[])
        print(joined(read(args.join[0]), read(args.join[1]) or nothing))
        return
    args.compile = not args.tiny if args.compile is None else args.compile
    args.runs = 2 if args.tiny else args.runs
    found = compare(args)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(found, file, indent=1)
    print(joined(ours_of(args.dir), found))
    if not args.out:
        print(json.dumps(found))
    # A batch that fits ours and not PyTorch is a result.
    fine = ("skipped", "OutOfMemoryError")
    sys.exit(
        1 if any("error" in r and not r["error"].startswith(fine) for r in found["results"]) else 0
    )


if __name__ == "__main__":
    main()
