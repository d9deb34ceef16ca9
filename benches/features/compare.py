"""Features of images from a frozen AIM trunk on the CPU: `aim-cli features` beside PyTorch eager, in alternating runs.

    cargo build --release -p aim-cli
    python benches/features/compare.py --aim-cli target/release/aim-cli [--size 600M] [--images 64] [--rounds 2] [--dir DIR]

Both read the same weights (random, Xavier uniform) from one safetensors file and the same normalised 224 x 224 images
from another, run all blocks in fp32 on the same number of threads in batches of 8, and write the mean over tokens of
the last block's output. PyTorch's side is the usual way to do it: weights mapped by `safetensors` and assigned,
`inference_mode`, `scaled_dot_product_attention`.

Every run is a process of its own. A run over one image takes everything that is not the images' own (starting,
importing, loading), and is subtracted from the run over all of them: the rest is divided by the images between. Wall
time, CPU time (user and system) and the peak of resident memory come from the system (`wait4`). The rows of the table
are medians over the rounds; the last line is how far the two outputs differ.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {  # width, blocks, heads
    "600M": (1536, 24, 12),
    "1B": (2048, 24, 16),
    "tiny": (256, 4, 4),
}
PATCH, SIDE, BATCH, EPS = 14, 224, 8, 1e-6


def make(folder, size, images):
    """Weights and images, unless they are there."""
    import torch
    from safetensors.torch import save_file

    dim, blocks, heads = SIZES[size]
    weights = os.path.join(folder, "model")
    if not os.path.exists(os.path.join(weights, "model.safetensors")):
        os.makedirs(weights, exist_ok=True)
        torch.manual_seed(0)

        def xavier(*shape):
            return torch.nn.init.xavier_uniform_(torch.empty(*shape))

        state = {
            "preprocessor.patchifier.proj.weight": xavier(dim, 3 * PATCH * PATCH).reshape(dim, 3, PATCH, PATCH),
            "preprocessor.patchifier.proj.bias": torch.zeros(dim),
        }
        norms = ["preprocessor.patchifier.norm", "trunk.post_trunk_norm"]
        for i in range(blocks):
            block = f"trunk.blocks.{i}"
            norms += [f"{block}.norm_1", f"{block}.norm_2"]
            state[f"{block}.attn.qkv.weight"] = torch.cat([xavier(dim, dim) for _ in range(3)])
            state[f"{block}.attn.proj.weight"] = xavier(dim, dim)
            state[f"{block}.mlp.fc1.weight"] = xavier(4 * dim, dim)
            state[f"{block}.mlp.fc2.weight"] = xavier(dim, 4 * dim)
        for norm in norms:
            state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones(dim), torch.zeros(dim)
        save_file(state, os.path.join(weights, "model.safetensors"))
        config = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": dim, "num_blocks": blocks, "num_heads": heads}
        with open(os.path.join(weights, "config.json"), "w") as out:
            json.dump(config, out)
    for count in {1, images}:
        path = os.path.join(folder, f"images-{count}.safetensors")
        if not os.path.exists(path):
            torch.manual_seed(1)
            save_file({"images": torch.randn(count, 3, SIDE, SIDE)}, path)
    return weights


def torch_run(weights, images, out, threads):
    """PyTorch's side, in a process of its own."""
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional as f

    torch.set_num_threads(threads)

    class Block(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads = heads
            self.norm_1, self.norm_2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
            self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim, bias=False), "proj": nn.Linear(dim, dim, bias=False)})
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim, bias=False), "fc2": nn.Linear(4 * dim, dim, bias=False)})

        def forward(self, x):
            b, n, d = x.shape
            qkv = self.attn["qkv"](self.norm_1(x)).reshape(b, n, 3, self.heads, d // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            a = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
            x = x + self.attn["proj"](a)
            return x + self.mlp["fc2"](f.gelu(self.mlp["fc1"](self.norm_2(x))))

    with open(os.path.join(weights, "config.json")) as text:
        config = json.load(text)
    dim, heads = config["embed_dim"], config["num_heads"]
    with torch.device("meta"):
        model = nn.ModuleDict({
            "preprocessor": nn.ModuleDict({"patchifier": nn.ModuleDict({
                "proj": nn.Conv2d(3, dim, PATCH, PATCH), "norm": nn.LayerNorm(dim, eps=EPS)})}),
            "trunk": nn.ModuleDict({
                "blocks": nn.ModuleList(Block(dim, heads) for _ in range(config["num_blocks"])),
                "post_trunk_norm": nn.LayerNorm(dim, eps=EPS)}),
        })
    model.load_state_dict(load_file(os.path.join(weights, "model.safetensors")), assign=True)
    model.eval()
    side, quarter = SIDE // PATCH, dim // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [c.reshape(-1, 1) * omega for c in (x, y)]
    positions = torch.cat([g(a) for a in angles for g in (torch.sin, torch.cos)], 1).float()

    pixels, rows = load_file(images)["images"], []
    with torch.inference_mode():
        for batch in pixels.split(BATCH):
            h = model["preprocessor"]["patchifier"]["proj"](batch).flatten(2).transpose(1, 2)
            h = model["preprocessor"]["patchifier"]["norm"](h) + positions
            for block in model["trunk"]["blocks"]:
                h = block(h)
            rows.append(h.mean(1))
    np.save(out, torch.cat(rows).numpy())


def measured(command):
    """Wall seconds, CPU seconds and peak resident bytes of a command."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aim-cli", default="target/release/aim-cli")
    parser.add_argument("--size", choices=SIZES, default="600M")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's; aim-cli takes one per core")
    parser.add_argument("--dir", help="where weights (2.7 GB at 600M) and images are kept; a temporary folder otherwise")
    parser.add_argument("--torch-run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch_run:
        return torch_run(*args.torch_run, args.threads)
    if args.images < 2:
        sys.exit("--images: expected at least 2, since a run over one is subtracted")
    temporary = None if args.dir else tempfile.TemporaryDirectory()
    folder = args.dir or temporary.name
    os.makedirs(folder, exist_ok=True)
    # Made by a process of its own: a parent's memory would count as its children's at the start.
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); "
                    f"import compare; compare.make({folder!r}, {args.size!r}, {args.images})"], check=True)
    weights = os.path.join(folder, "model")
    outs = {name: os.path.join(folder, f"{name}.npy") for name in ("aim-cli", "PyTorch")}

    def command(name, count):
        images = os.path.join(folder, f"images-{count}.safetensors")
        if name == "aim-cli":
            return [args.aim_cli, "--quiet", "features", "--device", "cpu", "--checkpoint", weights, "--data",
                    f"tensors:{images}", "--batch-size", str(BATCH), "--out", outs[name]]
        return [sys.executable, os.path.abspath(__file__), "--threads", str(args.threads), "--torch-run", weights,
                images, outs[name]]

    found = {name: [] for name in outs}
    for round_ in range(args.rounds):
        for name in sorted(outs, reverse=round_ % 2 == 1):
            one, many = measured(command(name, 1)), measured(command(name, args.images))
            left = args.images - 1
            per = [(many[i] - one[i]) / left for i in (0, 1)]
            found[name].append((per[0], per[1], one[0], many[2]))
            print(f"round {round_ + 1}  {name:8} {per[0]:7.3f} s wall, {per[1]:7.3f} s CPU an image; "
                  f"{one[0]:5.1f} s for one image; peak {many[2] / 2**20:.0f} MiB", flush=True)

    dim, blocks, _ = SIZES[args.size]
    tokens = (SIDE // PATCH) ** 2
    flops = blocks * (24 * dim**2 * tokens + 4 * tokens**2 * dim) + 2 * 3 * PATCH**2 * dim * tokens
    size = os.path.getsize(os.path.join(weights, "model.safetensors"))
    print(f"\nAIM-{args.size}, {args.images} images, {flops / 1e9:.0f} GFLOP an image, weights {size / 2**20:.0f} MiB")
    middle = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in found.items()}
    for name, (wall, cpu, one, peak) in middle.items():
        print(f"{name:8} {1 / wall:6.3f} images/s, {cpu:6.2f} CPU s an image ({flops / cpu / 1e9:.0f} GFLOP/s a core), "
              f"first after {one:.1f} s, peak {peak / 2**20:.0f} MiB = weights x {peak / size:.2f}")
    ours, theirs = middle["aim-cli"], middle["PyTorch"]
    print(f"aim-cli over PyTorch: {theirs[0] / ours[0]:.2f} x in wall time, {theirs[1] / ours[1]:.2f} x in CPU time, "
          f"{ours[3] / theirs[3]:.2f} x the memory")
    import numpy as np
    a, b = (np.load(outs[name]) for name in ("aim-cli", "PyTorch"))
    print(f"largest difference {np.abs(a - b).max() / np.abs(b).max():.1e} of the largest value")


if __name__ == "__main__":
    main()
