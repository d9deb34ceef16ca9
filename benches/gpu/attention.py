"""Attention by PyTorch on the tensors that `aim-cli gpu-check` worked on."""

import math
import os

from clock import guarded
from model import SIZES


def load_attention(torch, folder, size, device, tiny):
    """qkv and dqkv [B, K, 3, H, D], prefix [B], dout and out [B, K, H, D]; ours are None where there are no files."""
    path = lambda name: os.path.join(folder, f"attention-{size}-{name}.npy")
    if tiny or not os.path.exists(path("qkv")):
        _, _, heads = SIZES[size]
        batch, tokens, dim = (2, 64, 32) if tiny else (64, 256, 128)
        random = torch.Generator(device=device).manual_seed(1)
        normal = lambda *shape: torch.randn(*shape, generator=random, device=device).bfloat16()
        prefix = torch.randint(1, tokens, (batch,), generator=random, device=device)
        return dict(
            qkv=normal(batch, tokens, 3, heads, dim),
            dout=normal(batch, tokens, heads, dim),
            prefix=prefix,
            out=None,
            dqkv=None,
        )
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
    return ((i[None, None, :] <= i[None, :, None]) | (i[None, None, :] < prefix[:, None, None]))[
        :, None
    ]


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
        gradients.append(
            torch.stack(
                [
                    x.transpose(1, 2)
                    for x in (ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ dy)
                ],
                2,
            )
        )
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
        self.make = lambda: create_block_mask(
            sees, batch, None, tokens, tokens, device=device, BLOCK_SIZE=block
        )

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
    base = dict(
        section="attention", size=size, batch=batch, tokens=tokens, heads=heads, head_dim=dim
    )
    prefixes = prefix.double()
    pairs = float((prefixes**2 + (tokens * (tokens + 1) - prefixes * (prefixes + 1)) / 2).sum())
    base.update(
        visible_flops_forward=4 * pairs * heads * dim,
        dense_flops_forward=4.0 * batch * tokens * tokens * heads * dim,
    )
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
                row.update(
                    error_forward=off(out.transpose(1, 2), expected[0]),
                    error_backward=off(packed, expected[1]),
                )
            row["forward"] = clock.measure(lambda n: way(*sets[n % 2]))
            row["both"] = clock.measure(both)
            if name.startswith("flex"):
                row["mask"] = clock.measure(lambda n: makes.mask(prefix))
            return row

        guarded(rows, f"attention {size}: {name}", one)
    return rows
