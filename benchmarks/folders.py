"""Makes image folders to try limbeck on: ``python -m benchmarks.folders rgb OUT`` and ``python -m benchmarks.folders big OUT --gigabytes 2``.

`rgb` paints Fashion-MNIST's images (each with its own tint, on a background of its own) as RGB PNG files of 32x32, with train classes of 200 to 2,000 images
and a balanced test part. `big` writes noisy 512x512 PNG files (stored, not deflated) whose class is a colored square, as many as fill the size asked for.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.opening import open_source

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def paint_rgb(out: Path, seed: int = 0) -> None:
    """Train classes of 200, 400, ..., 2000 images; 200 test images of each class."""
    source, rng = open_source("fashion-mnist"), np.random.Generator(np.random.PCG64(seed))
    assert source.test is not None
    for part, table in (("train", source.train), ("test", source.test)):
        for number, name in enumerate(NAMES):
            folder = out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            wanted = 200 * (number + 1) if part == "train" else 200
            for i in np.flatnonzero(table.labels == number)[:wanted]:
                gray = np.pad(table.read([int(i)])[0, 0].numpy(), 2).astype(np.float64)[..., None] / 255
                tint, ground = rng.uniform(0.4, 1, 3), rng.uniform(0, 0.35, 3)
                picture = (255 * (ground * (1 - gray) + tint * gray)).round().astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{i:05d}.png")


def write_big(out: Path, gigabytes: float, classes: int = 8, side: int = 512, seed: int = 0) -> int:
    """Writes about `gigabytes` of PNG files; returns how many."""
    rng, written, count = np.random.Generator(np.random.PCG64(seed)), 0, 0
    while written < gigabytes * 1e9:
        number = count % classes
        picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        corner, color = rng.integers(0, side // 2, 2), [255 * (number >> bit & 1) for bit in range(3)]
        picture[corner[0] : corner[0] + side // 2, corner[1] : corner[1] + side // 2] = color
        path = out / f"class-{number}" / f"{count:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=0)
        written, count = written + path.stat().st_size, count + 1
    return count


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("rgb", "big"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    if options.kind == "rgb":
        paint_rgb(options.out)
    else:
        print(f"{write_big(options.out, options.gigabytes)} files")


if __name__ == "__main__":
    main()
