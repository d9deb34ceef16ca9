"""Images per second and core of `aim-cli bench data` beside what people use in Python.

    python make_shards.py /tmp/photos
    python peers.py /tmp/photos --aim-cli target/release/aim-cli [--json]

Every program decodes each image of the shards, takes a RandomResizedCrop (scale 0.4 to 1) to 224 x 224 with an
antialiased bicubic filter, flips it with probability 1/2, and normalises it to f32 [3, 224, 224]; OpenCV knows no
antialiased bicubic and is shown with INTER_AREA, as FFCV resizes. CPU time of one thread, files in memory, in rounds
that alternate between the programs; the best round counts. What is not installed is left out, and named. The last peer
decodes and does nothing else: no pipeline around that decoder can be faster.
"""

import argparse
import glob
import io
import json
import os
import subprocess
import tarfile
import time

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, SIZE = (0.4, 1.0), 224


def images(folder):
    out = []
    for path in sorted(glob.glob(os.path.join(folder, "*.tar"))):
        with tarfile.open(path) as tar:
            out += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    return out


def torchvision_pil():
    from PIL import Image
    from torchvision import transforms as t

    pipeline = t.Compose([
        t.RandomResizedCrop(SIZE, scale=SCALE, interpolation=t.InterpolationMode.BICUBIC),
        t.RandomHorizontalFlip(),
        t.ToTensor(),
        t.Normalize(MEAN, STD),
    ])
    return lambda data: pipeline(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision_tensor():
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2 as t

    pipeline = t.Compose([
        t.RandomResizedCrop(SIZE, scale=SCALE, interpolation=t.InterpolationMode.BICUBIC, antialias=True),
        t.RandomHorizontalFlip(),
        t.ToDtype(torch.float32, scale=True),
        t.Normalize(MEAN, STD),
    ])

    def run(data):
        array = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return pipeline(decode_jpeg(array, mode=ImageReadMode.RGB))

    return run


def turbo_alone():
    """What a C decoder leaves for everything else."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def opencv_area():
    import cv2
    from torchvision.transforms import RandomResizedCrop

    cv2.setNumThreads(0)
    scale = np.float32(1 / 255 / np.array(STD))
    shift = np.float32(-np.array(MEAN) / np.array(STD))

    class Sized:
        """What RandomResizedCrop.get_params asks of an image."""

        def __init__(self, shape):
            self.size = (shape[1], shape[0])

    from torchvision.transforms import functional

    def run(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        saved = functional.get_dimensions
        functional.get_dimensions = lambda sized: (3, sized.size[1], sized.size[0])
        top, left, height, width = RandomResizedCrop.get_params(Sized(image.shape), SCALE, (3 / 4, 4 / 3))
        functional.get_dimensions = saved
        image = cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        if np.random.rand() < 0.5:
            image = image[:, ::-1]
        return (image[:, :, ::-1] * scale + shift).transpose(2, 0, 1).copy()

    return run


PEERS = {
    "torchvision, PIL (ImageFolder's usual transform)": torchvision_pil,
    "torchvision v2 on tensors (decode_jpeg)": torchvision_tensor,
    "OpenCV, INTER_AREA": opencv_area,
    "libjpeg-turbo decoding alone (torchvision.io)": turbo_alone,
}


def one_round(run, data):
    start = time.thread_time()
    for image in data:
        run(image)
    return len(data) / (time.thread_time() - start)


def ours(binary, folder, seconds):
    command = [binary, "bench", "data", f"wds:{folder}/*.tar", "--workers", "1", "--normalise", "--json"]
    out = subprocess.run([*command, "--seconds", str(seconds)], check=True, capture_output=True)
    return json.loads(out.stdout)["images_per_s_per_core"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--aim-cli", action="append", default=[], help="NAME=PATH, or a path; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round of aim-cli")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = images(args.folder)
    runs, missing = {}, {}
    for entry in args.aim_cli:
        name, _, path = entry.rpartition("=")
        name = f"aim-cli{', ' + name if name else ''}"
        runs[name] = lambda path=path: ours(path, args.folder, args.seconds)
    for name, make in PEERS.items():
        try:
            import torch

            torch.set_num_threads(1)
            run = make()
            run(data[0])
            runs[name] = lambda run=run: one_round(run, data)
        except ImportError as error:
            missing[name] = str(error)
    rates = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            rates[name].append(run())
    best = {name: max(values) for name, values in rates.items()}
    if args.json:
        print(json.dumps({"images": len(data), "rates": rates, "best": best, "missing": missing}, indent=1))
        return
    mean = sum(map(len, data)) / len(data) / 1024
    print(f"{len(data)} images, {mean:.1f} KiB on average; images/s on one core, best and median of {args.rounds} rounds")
    references = [best[name] for name in list(PEERS)[:2] if name in best]
    for name, rate in sorted(best.items(), key=lambda item: -item[1]):
        shares = "  ".join(f"{rate / reference:5.2f} x" for reference in references)
        print(f"{name:50} {rate:7.0f} {np.median(rates[name]):7.0f}   {shares}")
    for name, why in missing.items():
        print(f"{name}: not installed ({why})")


main()
