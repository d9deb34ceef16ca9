"""Cuts real photographs into shards as img2dataset writes them.

    apt-get install mate-backgrounds plasma-workspace-wallpapers opencv-doc
    python make_shards.py /tmp/photos            # about 512 images, 20 MB

Writes OUT/00000.tar ... (KEY.jpg, KEY.json, KEY.txt, the sizes of images from the web: shorter side 256 to 512
pixels, quality 90 to 95, 4:2:0), and the same images as OUT/folder/CLASS/KEY.jpg for programs that read folders.
Everything follows from --seed, so that two machines with the same packages measure the same files.
"""

import argparse
import glob
import io
import json
import os
import tarfile

import numpy as np
from PIL import Image

PLACES = [
    "/usr/share/backgrounds/mate/nature/*.jpg",
    "/usr/share/wallpapers/*/contents/images/*.jpg",
    "/usr/share/doc/opencv-doc/examples/data/*.jpg",
]


def photographs():
    """The largest version of each photograph; drawings have few colours and compress too well."""
    best = {}
    for path in sorted(path for place in PLACES for path in glob.glob(place)):
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < 400 or image.mode != "RGB":
                continue
            name = path.split("/contents/")[0]
            if name not in best or width * height > best[name][0]:
                best[name] = (width * height, path)
    chosen = []
    for _, path in best.values():
        image = Image.open(path).convert("RGB")
        small = image.resize((256, 256))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=90)
        if buffer.tell() > 12_000:
            chosen.append((path, image))
    return chosen


def cut(image, rng):
    """A random part, brought to a shorter side of 256 to 512 pixels."""
    width, height = image.size
    short = int(rng.integers(256, 513))
    ratio = float(np.exp(rng.uniform(np.log(2 / 3), np.log(3 / 2))))
    out = (short, round(short / ratio)) if ratio < 1 else (round(short * ratio), short)
    # The part is 1 to 3 times as large as what it becomes, as far as the photograph reaches.
    factor = min(float(rng.uniform(1.0, 3.0)), width / out[0], height / out[1])
    part = (int(out[0] * factor), int(out[1] * factor))
    left = int(rng.integers(0, width - part[0] + 1))
    top = int(rng.integers(0, height - part[1] + 1))
    box = (left, top, left + part[0], top + part[1])
    return image.crop(box).resize(out, Image.Resampling.LANCZOS)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o444
    tar.addfile(info, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--per-shard", type=int, default=128)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    sources = photographs()
    if not sources:
        raise SystemExit("no photograph found: install the packages named at the top of this file")
    total = 0
    for shard in range(-(-args.images // args.per_shard)):
        os.makedirs(args.out, exist_ok=True)
        with tarfile.open(os.path.join(args.out, f"{shard:05}.tar"), "w") as tar:
            for at in range(min(args.per_shard, args.images - shard * args.per_shard)):
                number = shard * args.per_shard + at
                path, image = sources[number % len(sources)]
                buffer = io.BytesIO()
                part = cut(image, rng)
                part.save(buffer, "JPEG", quality=int(rng.integers(90, 96)), subsampling=2)
                data, key = buffer.getvalue(), f"{shard:05}{at:04}"
                total += len(data)
                facts = {"key": key, "url": f"file://{path}", "width": part.width, "height": part.height}
                add(tar, f"{key}.jpg", data)
                add(tar, f"{key}.json", json.dumps(facts, indent=4).encode())
                add(tar, f"{key}.txt", os.path.basename(path).encode())
                folder = os.path.join(args.out, "folder", f"c{number % len(sources):03}")
                os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, f"{key}.jpg"), "wb") as file:
                    file.write(data)
    print(f"{args.images} images from {len(sources)} photographs, {total / args.images / 1024:.1f} KiB each")


main()
