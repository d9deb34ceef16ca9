"""Saves the tensors of a safetensors file in every format of torch.save.

    python torch_formats.py MODEL.safetensors OUT

Exit status 3 says that torch or safetensors are missing.
"""
import pathlib
import sys

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(error)
    sys.exit(3)

state = load_file(sys.argv[1])
out = pathlib.Path(sys.argv[2])


def cast(dtype, back=None):
    floats = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    return {k: v.float() if back and v.is_floating_point() else v for k, v in floats.items()}


torch.save(state, out / "fp32.pth")
torch.save(state, out / "fp32_legacy.pth", _use_new_zipfile_serialization=False)
torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, out / "fp32_backbone.pth")
torch.save({k: v for k, v in state.items() if k.startswith("head.")}, out / "fp32_head.pth")
save_file(state, out / "fp32.safetensors")
for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
    torch.save(cast(dtype), out / f"{name}.pth")
    save_file(cast(dtype, back=True), out / f"{name}.safetensors")
