"""The embedded default policy: a real Qwen2.5-VL architecture of a few million parameters, pretrained to see and shipped with the package.

`BASE_DIR` is an ordinary Transformers checkpoint folder (bf16 safetensors, tokenizer, chat template, image processor). It was made by

    python -m fovea.policies.tiny_vlm.pretrain --out DIR --seed 0 --compile

`base/card.json` holds the stages, and where the shipped weights departed from a single run of them. Importing this file costs nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

BASE_DIR = Path(__file__).parent / "base"
BASE_SHA256 = "ce62c266a54863f63fcbb3430a69696050aad5ee4123c3138e146c19f1c1c223"


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the files that decide what the model does: weights, configurations and tokenizer, by sorted name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.name != "card.json" and p.suffix in {".safetensors", ".json", ".jinja"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
