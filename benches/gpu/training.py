"""Training steps of AIM by PyTorch."""

import math
import time

from attention import Prefixes, visible
from model import HEAD_DEPTH, HEAD_WIDTH, IMAGE, PATCH, SIZES, build, selection, step_flops


def step(torch, args, clock, size, batch, all_rows, way, whole):
    device = args.device
    if args.tiny:
        shape = dict(width=64, blocks=2, heads=2, head_width=32, head_depth=2, patch=4, image=32)
    else:
        width, blocks, heads = SIZES[size]
        shape = dict(
            width=width,
            blocks=blocks,
            heads=heads,
            head_width=HEAD_WIDTH,
            head_depth=HEAD_DEPTH,
            patch=PATCH,
            image=IMAGE,
        )
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
        prefix, rows, targets, weights = (
            x.to(device, non_blocking=True) for x in drawn[number % len(drawn)]
        )
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
    return dict(
        section="step",
        size=size,
        batch=batch,
        rows="all" if all_rows else "predicting",
        attention=way,
        compiled=("whole" if whole else "by block") if args.compile else "no",
        first_step_s=compiled_s,
        graphs=counters["stats"].get("unique_graphs", 0),
        flops=flops,
        peak_bytes=peak,
        parameters=sum(p.numel() for p in model.parameters()),
        loss=losses[-1],
        **times,
    )


def gelu(torch, args):
    """Losses of a small AIM over 50 steps: erf in bf16, tanh in bf16, erf in fp32."""
    steps = 5 if args.tiny else 50
    sdpa = torch.nn.functional.scaled_dot_product_attention
    attend = lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask)
    y, x, c, n = (
        torch.arange(size).view(shape)
        for size, shape in (
            (32, (1, 1, 32, 1)),
            (32, (1, 1, 1, 32)),
            (3, (1, 3, 1, 1)),
            (16, (16, 1, 1, 1)),
        )
    )
    images = (
        120
        + 90 * ((y * (n + 1) + x * (c + 2)) * 0.21).sin()
        + torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 9
    )
    images = images.to(torch.uint8).to(args.device)

    def train(approximate, bf16):
        with torch.device(args.device):
            model, tokens = build(torch, 128, 2, 2, 128, 2, 4, 32, attend, approximate)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
        )
        losses = []
        for number in range(steps):
            prefix, rows, targets, weights = (
                x.to(args.device) for x in selection(torch, 16, tokens, number, False)
            )
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
    return dict(
        section="gelu",
        steps=steps,
        loss_erf=erf[-1],
        loss_tanh=tanh[-1],
        loss_fp32=fp32[-1],
        first_loss=erf[0],
        tanh_from_erf_last=apart(tanh, erf)[-1],
        tanh_from_erf_most=max(apart(tanh, erf)),
        bf16_from_fp32_last=apart(erf, fp32)[-1],
        bf16_from_fp32_most=max(apart(erf, fp32)),
    )
