"""The results of `aim-cli gpu-check` and of compare.py as one page of Markdown."""

import json
import os
import time


def read(path):
    """A JSON file, or nothing where there is none."""
    try:
        with open(path) as file:
            return json.load(file)
    except OSError:
        return None


def ours_of(folder):
    return read(os.path.join(folder, "gpu_check.json"))


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def attention_rows(ours, theirs):
    """A row for each way, ours among them, by size."""
    timings = {
        (r["size"], r["name"]): r for r in (ours or {}).get("records", []) if r["kind"] == "timing"
    }
    rows = []
    for r in theirs["results"]:
        if r.get("section") != "attention":
            continue
        forward, both = r.get("forward"), r.get("both")
        if r["way"] == "ours":
            f, b = (
                timings.get((r["size"], f"prefix_attention/{name}"))
                for name in ("forward", "backward")
            )
            if f and b:
                forward, both = f, dict(median_s=f["median_s"] + b["median_s"])
        us = lambda t: f"{t['median_s'] * 1e6:.0f}" if t else ""
        rate = lambda t, flops: f"{flops / t['median_s'] * 1e-12:.0f}" if t else ""
        error = lambda name: f"{r[name]:.1e}" if name in r else ""
        # Three and a half times the forward work: five products backward, of which two are forward's.
        work, dense = r["visible_flops_forward"], r["dense_flops_forward"]
        rows.append(
            [
                r["size"],
                r["way"],
                us(forward),
                rate(forward, work),
                rate(forward, dense),
                us(both),
                rate(both, 3.5 * work),
                rate(both, 3.5 * dense),
                us(r.get("mask")),
                error("error_forward"),
                error("error_backward"),
            ]
        )
    return rows


def step_rows(ours, theirs):
    rows = []
    cube = cube_rate(ours)
    share = lambda rate: f"{100 * rate / cube:.0f} %" if cube else ""
    gib = lambda n: f"{n / 2**30:.1f}" if n else ""
    for r in (ours or {}).get("records", []):
        if r["kind"] == "step":
            rate = r["flops"] / r["median_s"] * 1e-12
            memory = r["parameter_bytes"] + r["moment_bytes"] + r["step_bytes"]
            rows.append(
                [
                    r["preset"],
                    r["batch"],
                    "ours",
                    "predicting",
                    f"{r['median_s'] * 1e3:.1f}",
                    f"{r['batch'] / r['median_s']:.1f}",
                    f"{rate:.0f}",
                    share(rate),
                    gib(memory),
                ]
            )
    for r in theirs["results"]:
        if r.get("section") == "step":
            rate = (r["flops"] or 0) / r["median_s"] * 1e-12
            way = f"PyTorch, {r['attention']}, compiled {r['compiled']}"
            rows.append(
                [
                    r["size"],
                    r["batch"],
                    way,
                    r["rows"],
                    f"{r['median_s'] * 1e3:.1f}",
                    f"{r['batch'] / r['median_s']:.1f}",
                    f"{rate:.0f}",
                    share(rate),
                    gib(r["peak_bytes"]),
                ]
            )
    return sorted(rows, key=lambda row: (row[0], row[1]))


def cube_rate(ours):
    for r in (ours or {}).get("records", []):
        if r["kind"] == "timing" and r["group"] == "rates" and r["name"].startswith("cube"):
            return r["flops"] / r["median_s"] * 1e-12
    return None


def joined(ours, theirs):
    """Both results as one page of Markdown tables."""
    machine = (ours or {}).get("machine", {})
    version = lambda name: (machine.get(name) or {}).get("version", "unknown")
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(theirs["time_unix_s"]))
    device = machine.get("device", theirs["device"])
    driver = f"driver {machine.get('driver_release')} (CUDA {version('driver')})"
    libraries = (
        f"cuBLASLt {version('cublaslt')}, NVRTC {version('nvrtc')}, PyTorch {theirs['torch']}"
    )
    text = f"{device}, {driver}, {libraries}, {date}, seed {machine.get('seed')}\n\n"
    if ours:
        checks = [r for r in ours["records"] if r["kind"] == "check"]
        text += (
            f"{len(checks)} checks, {len(ours['failures'])} failures"
            + "".join(f"\n- {failure}" for failure in ours["failures"])
            + "\n\n"
        )
        for r in ours["records"]:
            if r["kind"] == "timing" and r["group"] == "rates":
                rate = (
                    f"{r['flops'] / r['median_s'] * 1e-12:.0f} TFLOP/s"
                    if r["flops"]
                    else f"{r['bytes'] / r['median_s'] * 1e-9:.0f} GB/s"
                )
                text += f"{r['name']} {r['shape']}: {rate}\n"
        text += "\n"
    columns = [
        "size",
        "attention",
        "forward us",
        "TFLOP/s",
        "dense",
        "both us",
        "TFLOP/s",
        "dense",
        "mask us",
        "error",
        "of gradients",
    ]
    text += table(columns, attention_rows(ours, theirs)) + "\n"
    columns = ["size", "batch", "step", "rows", "ms", "images/s", "TFLOP/s", "of cube", "GiB"]
    text += table(columns, step_rows(ours, theirs)) + "\n"
    for r in theirs["results"]:
        if r.get("section") == "gelu":
            tanh, bf16 = 100 * r["tanh_from_erf_last"], 100 * r["bf16_from_fp32_last"]
            text += f"GELU by tanh instead of erf: losses after {r['steps']} steps are {tanh:.3f} % apart "
            text += f"({r['loss_tanh']:.5f}, {r['loss_erf']:.5f}); bf16 and fp32 are {bf16:.3f} % apart\n"
        if "error" in r:
            text += f"{r['what']}: {r['error']}\n"
    return text
