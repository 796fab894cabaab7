"""Two handwritten digits side by side: "which number is written?" A small data set of your own, made from scikit-learn's UCI digits.

    python examples/digits.py OUT --count 2000
    fovea train --data OUT

Writes OUT/train.jsonl, OUT/heldout.jsonl and OUT/images/*.png (64 x 64 RGB). A digit's picture appears in one of the two splits only.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def draw(left, right, side=32):
    """Two (8, 8) pictures of ink 0..16 -> a square RGB image of 2·side pixels, black on white, the digits across its middle."""
    ink = np.concatenate([left, right], axis=1)
    grey = Image.fromarray((255 - ink * 255 / 16).astype("uint8")).resize((2 * side, side), Image.Resampling.BICUBIC)
    page = Image.new("RGB", (2 * side, 2 * side), "white")
    page.paste(grey.convert("RGB"), (0, side // 2))
    return page


def write(folder, name, pictures, labels, rng, count):
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as table:
        for i in range(count):
            a, b = rng.choice(len(labels), 2, replace=False)
            path = f"images/{name}-{i:05d}.png"
            draw(pictures[a], pictures[b]).save(folder / path)
            row = {"image": path, "question": "Which number is written?", "answer": f"{labels[a]}{labels[b]}"}
            table.write(json.dumps(row) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="rows in all; a fifth of them held out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    heldout, train = order[: len(order) // 5], order[len(order) // 5 :]
    kept = max(1, args.count // 5)
    write(args.out, "train", digits.images[train], digits.target[train], rng, args.count - kept)
    write(args.out, "heldout", digits.images[heldout], digits.target[heldout], rng, kept)
    print(f"{args.count - kept} training and {kept} held-out rows in {args.out}")


if __name__ == "__main__":
    main()
