"""How good is a checkpoint, per family and per way of answering? Held-out tasks only.

    python -m fovea.policies.tiny_vlm.evaluate FOLDER --items 100

Modes: ``blurt`` (the answer tag is forced), ``look`` (the think tag is forced), ``greedy`` (free), ``sampled`` (free, temperature 1, mean
of 8 samples), ``pass8`` (any of those 8). ``looks`` is the part of free samples that look first.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fovea.policies.tiny_vlm import pretrain
from fovea.tasks.worlds import FAMILIES, make
from fovea.types import Task


def final_answer(text: str) -> str:
    """What stands in the last complete answer tag, or nothing."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.S)
    return found[-1].strip() if found else ""


def is_right(task: Task, text: str) -> bool:
    """The rule of each verifier that the worlds use, in one line each."""
    answer = final_answer(text)
    if task.verifier == "exact":
        return answer == task.answer
    values = [int(v) for v in re.findall(r"-?\d+", answer)]
    if task.verifier == "number":
        return values == [task.answer]
    x1, y1, x2, y2 = task.answer
    if task.verifier == "point_in_box":
        return len(values) == 2 and x1 <= values[0] <= x2 and y1 <= values[1] <= y2
    if len(values) != 4 or values[0] >= values[2] or values[1] >= values[3]:
        return False
    wide, high = min(x2, values[2]) - max(x1, values[0]), min(y2, values[3]) - max(y1, values[1])
    shared = max(0, wide) * max(0, high)
    union = (x2 - x1) * (y2 - y1) + (values[2] - values[0]) * (values[3] - values[1]) - shared
    return shared / union >= task.params["threshold"]


class Sampler:
    """Plain batched decoding of one checkpoint: prompts are padded on the left and share a key-value cache."""

    def __init__(self, folder: Path):
        self.tokenizer = pretrain.load_tokenizer(folder)
        self.model = pretrain.load(folder).eval()
        self.codec = pretrain.Codec(self.tokenizer)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Any], prompts: Sequence[str], begun: str = "", temperature: float = 0.0, copies: int = 1, limit: int = 64
    ) -> list[list[str]]:
        """`copies` responses to each prompt, which all start with `begun`; temperature 0 is greedy."""
        rows = [self.codec.prompt(p, True, begun) for p in prompts]
        features = pretrain.encode(self.model, pretrain.patchify(np.stack([np.asarray(i) for i in images])))
        which = [i for i in range(len(rows)) for _ in range(copies)]
        longest = max(map(len, rows))
        ids = torch.tensor([[self.codec.pad] * (longest - len(r)) + r for r in rows])[which]
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])[which]
        position = torch.stack([F.pad(self.codec.positions(r), (longest - len(r), 0)) for r in rows], 1)[:, which]
        x = pretrain.embed(self.model, self.codec, ids, torch.tensor(which), features)
        text = self.model.model.language_model
        cache, made, done = None, [], torch.zeros(len(which), dtype=torch.bool)
        for _ in range(limit):
            state = text(inputs_embeds=x, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
            cache = state.past_key_values
            logits = self.model.lm_head(state.last_hidden_state[:, -1])
            new = torch.multinomial(F.softmax(logits / temperature, -1), 1)[:, 0] if temperature else logits.argmax(-1)
            made.append(torch.where(done, self.codec.pad, new))
            done |= new == self.codec.end
            if done.all():
                break
            x, position, mask = text.embed_tokens(new)[:, None], position[:, :, -1:] + 1, F.pad(mask, (0, 1), value=1)
        out: list[list[str]] = [[] for _ in rows]
        for i, tokens in zip(which, torch.stack(made, 1).tolist(), strict=True):
            out[i].append(begun + self.tokenizer.decode([t for t in tokens if t not in (self.codec.pad, self.codec.end)]))
        return out


def question(task: Task) -> str:
    return task.prompt[0]["content"][-1]["text"]


def rates(sampler: Sampler, tasks: Sequence[Task], copies: int = 8) -> dict[str, float]:
    """Accuracy of every mode on the given tasks, in [0, 1]."""
    images, prompts = [t.images[0] for t in tasks], [question(t) for t in tasks]
    scores = {}
    for name, begun in (("blurt", "<answer>"), ("look", "<think>"), ("greedy", "")):
        texts = sampler(images, prompts, begun)
        scores[name] = float(np.mean([is_right(t, r[0]) for t, r in zip(tasks, texts, strict=True)]))
    torch.manual_seed(0)
    for name, begun in (("sampled", ""), ("look_sampled", "<think>")):
        texts = sampler(images, prompts, begun, 1.0, copies if name == "sampled" else 2)
        right = np.array([[is_right(t, r) for r in rs] for t, rs in zip(tasks, texts, strict=True)])
        scores[name] = float(right.mean())
        if name == "sampled":
            scores["pass8"] = float(right.any(1).mean())
            scores["looks"] = float(np.mean([r.startswith("<think>") for rs in texts for r in rs]))
    return scores


def evaluate(folder: Path, items: int = 100, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, dict[str, float]]:
    """Rates per family on the first `items` held-out tasks of seed 0, and their mean."""
    sampler = Sampler(folder)
    table = {f: rates(sampler, [make(f, i, "heldout") for i in range(items)]) for f in families}
    table["mean"] = {k: float(np.mean([row[k] for row in table.values()])) for k in table[families[0]]}
    return {f: {k: round(v, 4) for k, v in row.items()} for f, row in table.items()}


def show(table: dict[str, dict[str, float]]) -> str:
    names = list(table["mean"])
    lines = [f"{'':10}" + "".join(f"{n:>13}" for n in names)]
    return "\n".join(lines + [f"{f:10}" + "".join(f"{row[n]:13.3f}" for n in names) for f, row in table.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = evaluate(args.folder, args.items)
    print(json.dumps(table) if args.json else show(table))


if __name__ == "__main__":
    main()
