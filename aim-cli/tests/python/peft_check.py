"""Adapters that `aim-cli finetune` wrote, loaded by Hugging Face PEFT onto Apple's ml-aim, against this project's numbers.

Needs torch, peft, safetensors, and ml-aim's `aim` (its folder aim-v1) on PYTHONPATH. EXPECTED holds images, and block
outputs and logits of trunk, adapters and classifier; MERGED is what `aim-cli finetune merge` wrote.

    python peft_check.py BASE ADAPTER MERGED EXPECTED
"""
import json
import sys

import torch
from aim.v1.torch.models import AIMForImageClassification
from peft import PeftModel
from safetensors.torch import load_file

base, adapter, merged, expected = sys.argv[1:]
expected = load_file(expected)
images = expected["images"]
info = json.load(open(f"{adapter}/finetune.json"))


def outputs(model):
    """Every block's output, and the logits."""
    blocks = []
    trunk = dict(model.named_modules())
    names = [n for n in trunk if n.endswith(tuple(f"trunk.blocks.{i}" for i in range(100)))]
    hooks = [trunk[n].register_forward_hook(lambda _m, _i, out: blocks.append(out)) for n in names]
    model.eval()
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return blocks, logits


def compare(what, found, wanted, allowed):
    off = ((found - wanted).abs().max() / wanted.abs().max()).item()
    print(f"{what}: {off:.1e} of the largest value")
    assert off < allowed, what
    return off


def build():
    """ml-aim's model of the fixture with the adapter's classifier in the place of its own."""
    config = json.load(open(f"{base}/config.json"))
    config["probe_layers"] = tuple(info["layers"])
    config["num_classes"] = info["num_classes"]
    model = AIMForImageClassification(config)
    weights = {k: v for k, v in load_file(f"{base}/model.safetensors").items() if not k.startswith("head.")}
    weights.update(load_file(f"{adapter}/head.safetensors"))
    lacking = model.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys, lacking
    assert all(key.endswith("num_batches_tracked") for key in lacking.missing_keys), lacking
    return model


frozen, _ = outputs(build())
model = PeftModel.from_pretrained(build(), adapter)
count = sum(v.numel() for k, v in model.state_dict().items() if ".lora_" in k)
zero = sum((v == 0).sum().item() for k, v in model.state_dict().items() if ".lora_B." in k)
print(f"PEFT holds {count} values in adapters, {zero} of B are zero; {count - zero} train")
blocks, logits = outputs(model)
moved = max((a - b).abs().max().item() for a, b in zip(blocks, frozen))
assert moved > 1e-3, "the adapters do nothing"
seen = [i for i in range(len(blocks)) if f"block_{i}" in expected]
for i in seen:
    compare(f"PEFT block {i}", blocks[i], expected[f"block_{i}"], 1e-4)
compare("PEFT logits", logits, expected["logits"], 1e-4)

strict = AIMForImageClassification.from_pretrained(merged, strict=True)
blocks, logits = outputs(strict)
for i in seen:
    compare(f"merged block {i}", blocks[i], expected[f"block_{i}"], 1e-4)
compare("merged logits", logits, expected["logits"], 1e-4)
print("ok")
