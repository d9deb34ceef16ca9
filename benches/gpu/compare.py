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
import json
import math
import os
import statistics
import sys
import time

SIZES = {  # width, blocks, heads
    "aim-600M": (1536, 24, 12),
    "aim-1B": (2048, 24, 16),
    "aim-3B": (3072, 24, 24),
    "aim-7B": (4096, 32, 32),
    "tiny": (64, 2, 2),
}
HEAD_WIDTH, HEAD_DEPTH, PATCH, IMAGE = 2048, 12, 14, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clock:
    """Times of a device: events on a GPU, the host's clock on a CPU."""

    def __init__(self, torch, device, runs):
        self.torch, self.cuda, self.runs = torch, device == "cuda", runs

    def sync(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def measure(self, work, runs=None, warm_s=0.02):
        """Median, 10th and 90th percentile of the seconds that `work(number)` takes."""
        runs, number = runs or self.runs, 0
        for _ in range(2):
            work(number)
            number += 1
        self.sync()
        start = time.perf_counter()
        while self.cuda and time.perf_counter() - start < warm_s:
            work(number)
            number += 1
            self.sync()
        if self.cuda:
            events = [self.torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
            work(number)  # not waited for: the host gets a lead
            events[0].record()
            for event in events[1:]:
                number += 1
                work(number)
                event.record()
            self.sync()
            times = [a.elapsed_time(b) * 1e-3 for a, b in zip(events, events[1:])]
        else:
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                work(number)
                number += 1
                times.append(time.perf_counter() - start)
        times.sort()
        pick = lambda share: times[min(int(len(times) * share), len(times) - 1)]
        return dict(median_s=statistics.median(times), p10_s=pick(0.1), p90_s=pick(0.9), samples=runs)


class Budget:
    """Seconds that are left for what is not yet begun."""

    def __init__(self, seconds):
        self.end = time.perf_counter() + seconds

    def allows(self, seconds):
        return time.perf_counter() + seconds <= self.end


def say(text):
    print(text, file=sys.stderr, flush=True)


def guarded(results, what, work):
    """Runs a part; what goes wrong is a result, too, and does not stop the parts behind it."""
    start = time.perf_counter()
    try:
        found = work()
        found = found if isinstance(found, list) else [found]
    except Exception as error:  # out of memory, a kernel that does not compile, ...
        found = [dict(what=what, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])]
    results.extend(found)
    say(f"{what}  {time.perf_counter() - start:.1f} s" + (f"  {found[0]['error']}" if "error" in found[0] else ""))


# ---- attention ------------------------------------------------------------------------------------------------------


def load_attention(torch, folder, size, device, tiny):
    """qkv and dqkv [B, K, 3, H, D], prefix [B], dout and out [B, K, H, D]; ours are None where there are no files."""
    path = lambda name: os.path.join(folder, f"attention-{size}-{name}.npy")
    if tiny or not os.path.exists(path("qkv")):
        _, _, heads = SIZES[size]
        batch, tokens, dim = (2, 64, 32) if tiny else (64, 256, 128)
        random = torch.Generator(device=device).manual_seed(1)
        normal = lambda *shape: torch.randn(*shape, generator=random, device=device).bfloat16()
        prefix = torch.randint(1, tokens, (batch,), generator=random, device=device)
        return dict(qkv=normal(batch, tokens, 3, heads, dim), dout=normal(batch, tokens, heads, dim), prefix=prefix, out=None, dqkv=None)
    import numpy

    def bf16(name):
        words = numpy.load(path(name))
        assert words.dtype == numpy.uint16, words.dtype
        return torch.from_numpy(words.view(numpy.int16)).view(torch.bfloat16).to(device)

    tensors = {name: bf16(name) for name in ("qkv", "dout", "out", "dqkv")}
    tensors["prefix"] = torch.from_numpy(numpy.load(path("prefix"))).to(device)
    return tensors


def visible(torch, prefix, tokens):
    """bool [B, 1, K, K]: query q sees key k when k <= q or k < prefix."""
    i = torch.arange(tokens, device=prefix.device)
    return ((i[None, None, :] <= i[None, :, None]) | (i[None, None, :] < prefix[:, None, None]))[:, None]


def exact(torch, qkv, dout, prefix, chunk=4):
    """Attention and its gradients in fp64, packed as they came, a few images at a time on the host's side."""
    tokens, dim = qkv.shape[1], qkv.shape[4]
    outs, gradients = [], []
    for at in range(0, len(qkv), chunk):
        part = slice(at, at + chunk)
        q, k, v = (x.transpose(1, 2) for x in qkv[part].double().unbind(2))
        dy = dout[part].double().transpose(1, 2)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(dim)
        p = scores.masked_fill(~visible(torch, prefix[part], tokens), -math.inf).softmax(-1)
        out = p @ v
        dp = dy @ v.transpose(-1, -2)
        ds = p * (dp - (dy * out).sum(-1, keepdim=True)) / math.sqrt(dim)
        gradients.append(torch.stack([x.transpose(1, 2) for x in (ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ dy)], 2))
        outs.append(out.transpose(1, 2))
    return torch.cat(outs), torch.cat(gradients)


def off(found, expected):
    """Relative L2 error."""
    total = expected.pow(2).sum()
    return float(((found.detach().double() - expected).pow(2).sum() / total).sqrt())


class Prefixes:
    """A BlockMask of prefixes that change, over one function and one tensor: nothing is compiled again."""

    def __init__(self, torch, batch, tokens, device):
        from torch.nn.attention.flex_attention import create_block_mask

        self.prefix = torch.zeros(batch, dtype=torch.int32, device=device)
        held = self.prefix

        def sees(b, h, q, k):
            return (k <= q) | (k < held[b])

        block = min(128, tokens)
        self.make = lambda: create_block_mask(sees, batch, None, tokens, tokens, device=device, BLOCK_SIZE=block)

    def mask(self, prefix):
        self.prefix.copy_(prefix)
        return self.make()


def attention(torch, args, clock, size, flex):
    tensors = load_attention(torch, args.dir, size, args.device, args.tiny)
    qkv, dout, prefix = tensors["qkv"], tensors["dout"], tensors["prefix"]
    batch, tokens, _, heads, dim = qkv.shape
    sdpa = torch.nn.functional.scaled_dot_product_attention
    mask = visible(torch, prefix, tokens)
    makes = Prefixes(torch, batch, tokens, args.device)
    block_mask = makes.mask(prefix)
    ways = {
        "sdpa, prefix mask": lambda q, k, v: sdpa(q, k, v, attn_mask=mask),
        "flex, prefix BlockMask": lambda q, k, v: flex(q, k, v, block_mask=block_mask),
        "sdpa, no mask (bound)": lambda q, k, v: sdpa(q, k, v),
        "sdpa, causal (bound)": lambda q, k, v: sdpa(q, k, v, is_causal=True),
    }
    # Leaves that share the packed memory, two sets in turn; gradients come apart, which costs PyTorch nothing.
    leaves = lambda packed: [x.transpose(1, 2).detach().requires_grad_() for x in packed.unbind(2)]
    sets = [leaves(qkv), leaves(qkv.clone())]
    dy = [dout.transpose(1, 2), dout.clone().transpose(1, 2)]
    expected = exact(torch, qkv, dout, prefix)
    base = dict(section="attention", size=size, batch=batch, tokens=tokens, heads=heads, head_dim=dim)
    prefixes = prefix.double()
    pairs = float((prefixes**2 + (tokens * (tokens + 1) - prefixes * (prefixes + 1)) / 2).sum())
    base.update(visible_flops_forward=4 * pairs * heads * dim, dense_flops_forward=4.0 * batch * tokens * tokens * heads * dim)
    rows = []
    if tensors["out"] is not None:
        found = off(tensors["out"], expected[0]), off(tensors["dqkv"], expected[1])
        rows.append(dict(base, way="ours", error_forward=found[0], error_backward=found[1]))
    for name, way in ways.items():
        def one(name=name, way=way):
            def both(n):
                q, k, v = sets[n % 2]
                out = way(q, k, v)
                return out, torch.autograd.grad(out, (q, k, v), dy[n % 2])

            row = dict(base, way=name)
            if args.device == "cpu" and name.startswith("flex"):  # it has no gradient there
                with torch.no_grad():
                    out = way(*(x.detach() for x in sets[0]))
                    row["error_forward"] = off(out.transpose(1, 2), expected[0])
                return row
            out, gradients = both(0)
            if "bound" not in name:
                packed = torch.stack([g.transpose(1, 2) for g in gradients], 2)
                row.update(error_forward=off(out.transpose(1, 2), expected[0]), error_backward=off(packed, expected[1]))
            row["forward"] = clock.measure(lambda n: way(*sets[n % 2]))
            row["both"] = clock.measure(both)
            if name.startswith("flex"):
                row["mask"] = clock.measure(lambda n: makes.mask(prefix))
            return row

        guarded(rows, f"attention {size}: {name}", one)
    return rows


# ---- training -------------------------------------------------------------------------------------------------------


def build(torch, width, blocks, heads, head_width, head_depth, patch, image, attend, approximate="none"):
    """AIM with its pixel head. Parameters as in ml-aim: no biases in blocks, norms with weight and bias."""
    from torch import nn
    from torch.nn import functional as F

    grid = image // patch
    tokens, pixels = grid * grid, 3 * patch * patch

    def norm(dim):
        return nn.LayerNorm(dim, eps=1e-6)

    def sin_cos(dim):
        omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1).float()

    class Mlp(nn.Module):
        """x + fc2(gelu(fc1(norm(x))))"""

        def __init__(self, dim):
            super().__init__()
            self.norm = norm(dim)
            self.fc1, self.fc2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

        def forward(self, x):
            return x + self.fc2(F.gelu(self.fc1(self.norm(x)), approximate=approximate))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.mlp = Mlp(width)

        def forward(self, x, mask):
            batch = x.shape[0]
            q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.proj(attend(q, k, v, mask).transpose(1, 2).reshape(batch, tokens, width))
            return self.mlp(x)

    class Enter(nn.Module):
        """u8 images to tokens, and the patches that are the targets."""

        def __init__(self):
            super().__init__()
            self.proj, self.norm = nn.Conv2d(3, width, patch, stride=patch), norm(width)
            self.register_buffer("positions", sin_cos(width))
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

        def forward(self, images):
            x = (images.float() / 255 - self.mean) / self.std
            batch = x.shape[0]
            patches = x.view(batch, 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1).reshape(-1, pixels)
            return self.norm(self.proj(x).flatten(2).transpose(1, 2)) + self.positions, patches

    class Leave(nn.Module):
        """The norm after the trunk and the head's projection."""

        def __init__(self):
            super().__init__()
            self.norm, self.proj = norm(width), nn.Linear(width, head_width)
            self.register_buffer("positions", sin_cos(head_width))

        def forward(self, x, rows):
            return self.proj(self.norm(x.reshape(-1, width)[rows])) + self.positions[rows % tokens]

    class Score(nn.Module):
        """Predictions against patches normalised by their own mean and unbiased variance."""

        def __init__(self):
            super().__init__()
            self.norm, self.pred = norm(head_width), nn.Linear(head_width, pixels)

        def forward(self, h, patches, targets, weights):
            wanted = patches[targets]
            wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
            losses = (self.pred(self.norm(h)).float() - wanted).square().mean(-1)
            return (losses * weights).sum() / weights.sum()

    class Aim(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.leave, self.score = Enter(), Leave(), Score()
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))
            self.head = nn.ModuleList(Mlp(head_width) for _ in range(head_depth))

        def forward(self, images, mask, rows, targets, weights):
            x, patches = self.enter(images)
            for block in self.blocks:
                x = block(x, mask)
            h = self.leave(x, rows)
            for block in self.head:
                h = block(h)
            return self.score(h, patches, targets, weights)

    torch.manual_seed(0)
    model = Aim()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model, tokens


def selection(torch, batch, tokens, number, all_rows):
    """Prefixes in pairs (S, K - S), so that half the rows predict; with all rows, those behind the prefix weigh 1."""
    random = torch.Generator().manual_seed(number)
    half = torch.randint(1, tokens, (batch // 2,), generator=random)
    prefix = torch.stack([half, tokens - half], 1).reshape(-1)
    i = torch.arange(tokens)
    predicts = (i[None] >= prefix[:, None] - 1) & (i[None] < tokens - 1)
    if all_rows:
        rows = torch.arange(batch * tokens)
        targets = (rows + 1).clamp(max=batch * tokens - 1)
        return prefix, rows, targets, predicts.reshape(-1).float()
    rows = predicts.reshape(-1).nonzero().squeeze(1)
    return prefix, rows, rows + 1, torch.ones(len(rows))


def step_flops(size, batch, all_rows):
    """As aim-cli counts them: products and attention, the masked part included; no recomputation."""
    width, blocks, _ = SIZES[size]
    tokens, pixels = (IMAGE // PATCH) ** 2, 3 * PATCH**2
    rows = tokens if all_rows else tokens // 2
    embed = 2 * tokens * pixels * width
    trunk = blocks * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    head = 2 * rows * (width * HEAD_WIDTH + HEAD_DEPTH * 8 * HEAD_WIDTH**2 + HEAD_WIDTH * pixels)
    return batch * (2 * embed + 3 * (trunk + head))


def step(torch, args, clock, size, batch, all_rows, way, whole):
    device = args.device
    if args.tiny:
        shape = dict(width=64, blocks=2, heads=2, head_width=32, head_depth=2, patch=4, image=32)
    else:
        width, blocks, heads = SIZES[size]
        shape = dict(width=width, blocks=blocks, heads=heads, head_width=HEAD_WIDTH, head_depth=HEAD_DEPTH, patch=PATCH, image=IMAGE)
    if way == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        # Inside a compiled module it is compiled with it.
        attend = lambda q, k, v, mask: flex_attention(q, k, v, block_mask=mask)
    else:
        sdpa = torch.nn.functional.scaled_dot_product_attention
        attend = lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.device(device):
        model, tokens = build(torch, attend=attend, **shape)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    run = model
    if args.compile and whole:
        run = torch.compile(model, dynamic=False)
    elif args.compile:
        for part in [model.enter, model.leave, model.score, *model.blocks, *model.head]:
            part.compile(dynamic=False)
    makes = Prefixes(torch, batch, tokens, device) if way == "flex" else None
    images = torch.randint(0, 256, (batch, 3, shape["image"], shape["image"]), dtype=torch.uint8)
    images = images.pin_memory() if device == "cuda" else images
    drawn = [selection(torch, batch, tokens, number, all_rows) for number in range(8)]
    losses = []

    def one(number):
        prefix, rows, targets, weights = (x.to(device, non_blocking=True) for x in drawn[number % len(drawn)])
        mask = makes.mask(prefix) if makes else visible(torch, prefix, tokens)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = run(images.to(device, non_blocking=True), mask, rows, targets, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        losses.append(loss.item())

    from torch._dynamo.utils import counters

    counters.clear()
    start = time.perf_counter()
    one(0)
    clock.sync()
    compiled_s = time.perf_counter() - start
    times = clock.measure(one, runs=min(args.runs, 10))
    flops = None if args.tiny else step_flops(size, batch, all_rows)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    assert all(map(math.isfinite, losses)), losses
    return dict(section="step", size=size, batch=batch, rows="all" if all_rows else "predicting", attention=way,
                compiled=("whole" if whole else "by block") if args.compile else "no", first_step_s=compiled_s, graphs=counters["stats"].get("unique_graphs", 0),
                flops=flops, peak_bytes=peak, parameters=sum(p.numel() for p in model.parameters()), loss=losses[-1], **times)


def freed(torch, device):
    import gc

    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def gelu(torch, args):
    """Losses of a small AIM over 50 steps with the erf form in bf16, the tanh form in bf16, and the erf form in fp32."""
    steps = 5 if args.tiny else 50
    sdpa = torch.nn.functional.scaled_dot_product_attention
    attend = lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask)
    y, x, c, n = (torch.arange(size).view(shape) for size, shape in ((32, (1, 1, 32, 1)), (32, (1, 1, 1, 32)), (3, (1, 3, 1, 1)), (16, (16, 1, 1, 1))))
    images = (120 + 90 * ((y * (n + 1) + x * (c + 2)) * 0.21).sin() + torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 9)
    images = images.to(torch.uint8).to(args.device)

    def train(approximate, bf16):
        with torch.device(args.device):
            model, tokens = build(torch, 128, 2, 2, 128, 2, 4, 32, attend, approximate)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
        losses = []
        for number in range(steps):
            prefix, rows, targets, weights = (x.to(args.device) for x in selection(torch, 16, tokens, number, False))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=bf16):
                loss = model(images, visible(torch, prefix, tokens), rows, targets, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    erf, tanh, fp32 = train("none", True), train("tanh", True), train("none", False)
    apart = lambda a, b: [abs(x - y) / y for x, y in zip(a, b)]
    return dict(section="gelu", steps=steps, loss_erf=erf[-1], loss_tanh=tanh[-1], loss_fp32=fp32[-1], first_loss=erf[0],
                tanh_from_erf_last=apart(tanh, erf)[-1], tanh_from_erf_most=max(apart(tanh, erf)),
                bf16_from_fp32_last=apart(erf, fp32)[-1], bf16_from_fp32_most=max(apart(erf, fp32)))


def read(path):
    """A JSON file, or nothing where there is none."""
    try:
        with open(path) as file:
            return json.load(file)
    except OSError:
        return None


def ours_of(folder):
    return read(os.path.join(folder, "gpu_check.json"))


def batches(ours, size):
    """The batches that ours ran: 64 at first."""
    steps = [r for r in (ours or {}).get("records", []) if r["kind"] == "step" and r["preset"] == size]
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
        plans += [(size, batches(ours, size)[-1], False, False) for size in named if not args.tiny and batches(ours, size)[-1] != first[size]]
        for size, batch, all_rows, whole in plans:
            way = faster(results, size)
            what = f"step {size}, batch {batch}, {'all' if all_rows else 'predicting'} rows, {way}" + (", whole" if whole else "")
            if not budget.allows(90 if whole else 35):
                results.append(dict(what=what, error="skipped: no time left"))
                continue
            guarded(results, what, lambda: step(torch, args, clock, size, batch, all_rows, way, whole))
            freed(torch, args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    return dict(format=1, torch=torch.__version__, device=name, time_unix_s=int(time.time()), results=results)


def faster(results, size):
    """Which attention makes the faster step, the making of the mask included."""
    def cost(way):
        rows = [r for r in results if r.get("section") == "attention" and r["size"] == size and r["way"].startswith(way) and "bound" not in r["way"] and "both" in r]
        return min((r["both"]["median_s"] for r in rows), default=math.inf)

    return "flex" if cost("flex") < cost("sdpa") else "sdpa"


# ---- tables ---------------------------------------------------------------------------------------------------------


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def attention_rows(ours, theirs):
    """A row for each way, ours among them, by size."""
    timings = {(r["size"], r["name"]): r for r in (ours or {}).get("records", []) if r["kind"] == "timing"}
    rows = []
    for r in theirs["results"]:
        if r.get("section") != "attention":
            continue
        forward, both = r.get("forward"), r.get("both")
        if r["way"] == "ours":
            f, b = (timings.get((r["size"], f"prefix_attention/{name}")) for name in ("forward", "backward"))
            if f and b:
                forward, both = f, dict(median_s=f["median_s"] + b["median_s"])
        us = lambda t: f"{t['median_s'] * 1e6:.0f}" if t else ""
        rate = lambda t, flops: f"{flops / t['median_s'] * 1e-12:.0f}" if t else ""
        error = lambda name: f"{r[name]:.1e}" if name in r else ""
        # Three and a half times the forward work: five products backward, of which two are forward's.
        work, dense = r["visible_flops_forward"], r["dense_flops_forward"]
        rows.append([r["size"], r["way"], us(forward), rate(forward, work), rate(forward, dense), us(both), rate(both, 3.5 * work),
                     rate(both, 3.5 * dense), us(r.get("mask")), error("error_forward"), error("error_backward")])
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
            rows.append([r["preset"], r["batch"], "ours", "predicting", f"{r['median_s'] * 1e3:.1f}", f"{r['batch'] / r['median_s']:.1f}", f"{rate:.0f}", share(rate), gib(memory)])
    for r in theirs["results"]:
        if r.get("section") == "step":
            rate = (r["flops"] or 0) / r["median_s"] * 1e-12
            way = f"PyTorch, {r['attention']}, compiled {r['compiled']}"
            rows.append([r["size"], r["batch"], way, r["rows"], f"{r['median_s'] * 1e3:.1f}", f"{r['batch'] / r['median_s']:.1f}", f"{rate:.0f}", share(rate), gib(r["peak_bytes"])])
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
    text = f"{machine.get('device', theirs['device'])}, driver {machine.get('driver_release')} (CUDA {version('driver')}), cuBLASLt {version('cublaslt')}, "
    text += f"NVRTC {version('nvrtc')}, PyTorch {theirs['torch']}, {date}, seed {machine.get('seed')}\n\n"
    if ours:
        checks = [r for r in ours["records"] if r["kind"] == "check"]
        text += f"{len(checks)} checks, {len(ours['failures'])} failures" + "".join(f"\n- {failure}" for failure in ours["failures"]) + "\n\n"
        for r in ours["records"]:
            if r["kind"] == "timing" and r["group"] == "rates":
                rate = f"{r['flops'] / r['median_s'] * 1e-12:.0f} TFLOP/s" if r["flops"] else f"{r['bytes'] / r['median_s'] * 1e-9:.0f} GB/s"
                text += f"{r['name']} {r['shape']}: {rate}\n"
        text += "\n"
    columns = ["size", "attention", "forward us", "TFLOP/s", "dense", "both us", "TFLOP/s", "dense", "mask us", "error", "of gradients"]
    text += table(columns, attention_rows(ours, theirs)) + "\n"
    columns = ["size", "batch", "step", "rows", "ms", "images/s", "TFLOP/s", "of cube", "GiB"]
    text += table(columns, step_rows(ours, theirs)) + "\n"
    for r in theirs["results"]:
        if r.get("section") == "gelu":
            text += (f"GELU by tanh instead of erf, loss after {r['steps']} steps: {r['loss_tanh']:.5f} and {r['loss_erf']:.5f}, "
                     f"{100 * r['tanh_from_erf_last']:.3f} % apart; bf16 and fp32 are {100 * r['bf16_from_fp32_last']:.3f} % apart\n")
        if "error" in r:
            text += f"{r['what']}: {r['error']}\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="what aim-cli gpu-check --out wrote")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes, two runs, nothing compiled")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="whatever --tiny says")
    parser.add_argument("--only", default="attention,gelu,step", type=lambda text: text.split(","))
    parser.add_argument("--sizes", default="aim-600M,aim-1B,aim-3B,aim-7B", type=lambda text: text.split(","))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--budget-s", type=float, default=200, help="nothing begins that may not end within this time")
    parser.add_argument("--join", nargs=2, metavar=("GPU_CHECK", "COMPARE"), help="print two results as Markdown")
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
    sys.exit(1 if any("error" in r and not r["error"].startswith(fine) for r in found["results"]) else 0)


if __name__ == "__main__":
    main()
