"""AIM with its pixel head in plain PyTorch, and what one of its steps is made of."""

SIZES = {  # width, blocks, heads
    "aim-600M": (1536, 24, 12),
    "aim-1B": (2048, 24, 16),
    "aim-3B": (3072, 24, 24),
    "aim-7B": (4096, 32, 32),
    "tiny": (64, 2, 2),
}
HEAD_WIDTH, HEAD_DEPTH, PATCH, IMAGE = 2048, 12, 14, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(
    torch, width, blocks, heads, head_width, head_depth, patch, image, attend, approximate="none"
):
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
            self.fc1, self.fc2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(
                4 * dim, dim, bias=False
            )

        def forward(self, x):
            return x + self.fc2(F.gelu(self.fc1(self.norm(x)), approximate=approximate))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(
                width, width, bias=False
            )
            self.mlp = Mlp(width)

        def forward(self, x, mask):
            batch = x.shape[0]
            q, k, v = (
                self.qkv(self.norm(x))
                .view(batch, tokens, 3, heads, width // heads)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
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
            patches = (
                x.view(batch, 3, grid, patch, grid, patch)
                .permute(0, 2, 4, 3, 5, 1)
                .reshape(-1, pixels)
            )
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
            wanted = (wanted - wanted.mean(-1, keepdim=True)) / (
                wanted.var(-1, keepdim=True) + 1e-6
            ).sqrt()
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
