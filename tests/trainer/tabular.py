"""A policy small enough to check by hand: one logit vector for each step of a two-token answer, whatever the prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fovea.batch import Batch
from fovea.types import Prefix

V, EOS = 6, 5


class Cohort:
    def __init__(self, at_R: Tensor):
        self.at_R = at_R

    def keep(self, index_R: Tensor) -> None:
        self.at_R = self.at_R[index_R]


class Tabular(torch.nn.Module):
    """`logits_TV[t]` are the logits of the t-th token. Text is the digits of the tokens."""

    eos_ids, banned_ids, vocab_size = (EOS,), (), V

    def __init__(self, T: int = 3, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits_TV = torch.nn.Parameter(0.1 * torch.randn(T, V, generator=generator, dtype=dtype))
        self.version, self.temperature = 0, 1.0

    # generation

    def encode(self, messages: Sequence, images: Sequence) -> Prefix:
        text = messages[0]["content"][-1]["text"]
        return Prefix(hashlib.sha256(text.encode()).hexdigest(), data=text, length=1)

    def encode_append(self, messages: Sequence) -> list[int]:
        return []

    def encode_text(self, text: str) -> list[int]:
        return [int(c) for c in text if c.isdigit()]

    def decode_text(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(str(int(i)) for i in ids if i != EOS)

    def prefill(self, prefixes, suffixes, room):
        rows = sum(len(s) for s in suffixes)
        return Cohort(torch.zeros(rows, dtype=torch.long)), self.logits_TV.detach()[0].expand(rows, V).float().clone()

    def decode(self, cohorts, tokens):
        out = []
        for cohort in cohorts:
            cohort.at_R = cohort.at_R + 1
            out.append(self.logits_TV.detach()[cohort.at_R.clamp(max=len(self.logits_TV) - 1)].float())
        return out

    # learning

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        T = batch.mask_BT.shape[1]
        at = torch.arange(T).clamp(max=len(self.logits_TV) - 1)
        logp_TV = torch.log_softmax(self.logits_TV[at], -1)
        out = {"logp": logp_TV.expand(batch.B, T, V).gather(-1, batch.actions_BT[..., None])[..., 0] * batch.mask_BT}
        if "entropy" in want:
            out["entropy"] = -(logp_TV.exp() * logp_TV).sum(-1).expand(batch.B, T)
        return {k: v for k, v in out.items() if k in want}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file({"logits": self.logits_TV.detach().clone()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"T": len(self.logits_TV)}))

    def load(self, folder: Path) -> None:
        with torch.no_grad():
            self.logits_TV.copy_(load_file(folder / "model.safetensors")["logits"])


class Numbers:
    """Task i asks for the digit i mod 5."""

    def __init__(self, n: int = 40):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        from fovea.types import Task, user

        return Task(id=f"n/{i}", source="numbers", prompt=user(f"say {i}", images=0), answer="1", verifier="exact")

    def __iter__(self) -> Iterator:
        return (self[i] for i in range(self.n))
