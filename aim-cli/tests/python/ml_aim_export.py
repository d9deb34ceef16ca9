"""Loads an exported directory with ml-aim and compares its logits with ours.

    python ml_aim_export.py DIR INPUTS LOGITS

DIR is what `aim-cli weights export` wrote, INPUTS holds normalised images [batch, 3, height, width] by name, LOGITS our
logits under the same names. Exit status 3 says that torch, safetensors, huggingface_hub or ml-aim are missing.
"""
import sys

try:
    import torch
    from aim.v1.torch.models import AIMForImageClassification
    from safetensors.torch import load_file
except ImportError as error:
    print(error)
    sys.exit(3)

directory, inputs, logits = sys.argv[1:]
model = AIMForImageClassification.from_pretrained(directory, strict=True)
inputs, logits = load_file(inputs), load_file(logits)
# bf16 files are loaded into fp32 modules.
tensors = model.state_dict()
print(f"loaded strictly: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} values")
worst = 0.0
with torch.inference_mode():
    for name, images in sorted(inputs.items()):
        expected = model(images)
        # The README's models return their features too.
        expected = expected[0] if isinstance(expected, tuple) else expected
        off = ((logits[name] - expected).abs().max() / expected.abs().max()).item()
        print(f"{name}: logits {tuple(expected.shape)}, largest difference {off:.2e} of the largest value")
        worst = max(worst, off)
sys.exit(0 if worst < 1e-4 else 1)
