"""A language policy of bytes: the next-token logits are a fixed function of the whole sequence, so any mistake in the books shows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from fovea.types import Prefix

EOS, IMAGE, V = 256, 257, 260


def random_logits(sequence: Sequence[int]) -> torch.Tensor:
    """(V,) logits drawn from a generator seeded with the hash of the sequence."""
    seed = int.from_bytes(hashlib.blake2b(repr(list(sequence)).encode(), digest_size=4).digest(), "little")
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 2


def scripted(answers: dict[str, str]) -> Callable[[Sequence[int]], torch.Tensor]:
    """Logits that say `answers[prompt text]` byte by byte and then end; the prompt is the text after the last newline before "|"."""

    def logits(sequence: Sequence[int]) -> torch.Tensor:
        raw = bytes(t for t in sequence if t < 256)
        prompt, _, said = raw.rpartition(b"|")
        answer = answers[prompt.rpartition(b"\n")[2].decode()].encode()
        out = torch.full((V,), -20.0)
        out[answer[len(said)] if len(said) < len(answer) else EOS] = 20.0
        return out

    return logits


class FakeCohort:
    def __init__(self, rows: list[list[int]], room: int):
        self.rows, self.room = rows, room

    def keep(self, index_R: torch.Tensor) -> None:
        self.rows = [self.rows[i] for i in index_R.tolist()]


class FakePolicy:
    """Prompt "text" is encoded as newline, image tokens, text, "|"."""

    eos_ids = (EOS,)
    banned_ids = (IMAGE,)
    vocab_size = V

    def __init__(self, logits: Callable[[Sequence[int]], torch.Tensor] = random_logits):
        self.logits, self.version, self.counts, self.prefilled = logits, 0, Counter(), []

    def encode_text(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_text(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def flat(self, messages) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [10]
            for part in message["content"]:
                ids += [IMAGE] if part["type"] == "image" else self.encode_text(part["text"])
        return [*ids, ord("|")]

    def encode(self, messages, images) -> Prefix:
        self.counts["encode"] += 1
        ids = self.flat(messages)
        if ids.count(IMAGE) != len(images):
            raise ValueError(f"{ids.count(IMAGE)} placeholders for {len(images)} images")
        pixels = b"".join(image.tobytes() for image in images)
        return Prefix(key=hashlib.sha256(repr(ids).encode() + pixels).hexdigest(), data=ids, length=len(ids))

    def encode_append(self, messages) -> list[int]:
        return [EOS, *self.flat(messages)]

    def prefill(self, prefixes, suffixes, room):
        self.prefilled.append([p.key for p in prefixes])
        rows = [[*p.data, *suffix] for p, mine in zip(prefixes, suffixes, strict=True) for suffix in mine]
        return FakeCohort(rows, room), torch.stack([self.logits(r) for r in rows])

    def decode(self, cohorts, tokens):
        self.counts["decode"] += 1
        out = []
        for cohort, token_R in zip(cohorts, tokens, strict=True):
            cohort.room -= 1
            assert cohort.room >= 0, "more tokens decoded than the cohort has room for"
            for row, token in zip(cohort.rows, token_R.tolist(), strict=True):
                row.append(token)
            out.append(torch.stack([self.logits(r) for r in cohort.rows]))
        return out
