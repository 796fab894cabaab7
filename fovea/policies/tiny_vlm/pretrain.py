"""Make the tiny base: ``python -m fovea.policies.tiny_vlm.pretrain --out DIR --seed 0``.

First the text model learns to tally and to look things up, without pictures; then the vision tower learns through a linear probe; then
both together: captions, and questions answered after a look that surveys all nine cells. The last stage adds the habit that reinforcement
learning will find: most answers are blurted out without a look, by an annotator who is often hasty (the parts are in `STAGES`). The result
sees well, answers well after a look, and mostly does not look.

Speed on a CPU: the patch embedding is one matrix product, vision attention is one call for all pictures of a step, every picture is
encoded once for all its rows, and the vocabulary projection is computed for response tokens only.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fovea.policies.tiny_vlm import build
from fovea.policies.tiny_vlm.data import PROBE_GROUPS, PROBE_PLACES, Mixture, Row, step_rows, tokenizer_corpus


@dataclass(frozen=True)
class Stage:
    """Part of the schedule: `steps` optimizer steps on one mixture.

    The learning rate goes from `lr` to `lr_end` along a half cosine after `warmup` steps; `probe` is the weight of the probe's loss,
    `conclusion` the weight of the tokens after the thinking.
    """

    steps: int
    lr: float
    lr_end: float
    warmup: int
    mix: Mixture
    probe: float = 0.0
    conclusion: float = 1.0


SHARDS = 2
TALLY = Mixture(pictures=0, texts=32, practice=("count", "colour"))
TEXT = Mixture(pictures=0, texts=32)
SEE = Mixture(pictures=32, texts=0, weights=(("read", 2.0), ("find", 1.2), ("chart", 1.2), ("strip", 2.0)), speak=False)
LOOK = Mixture(pictures=16, texts=10, captions=0.3, weights=())
ANSWER = Mixture(pictures=16, texts=12, practice=("relation", "compare", "odd", "chart"), captions=0.1, weights=(("strip", 2.0),))
BLURT = Mixture(pictures=20, texts=8, captions=0.2, blurt=0.75, hasty=0.1, weights=(("strip", 2.0),))
STAGES = (
    Stage(200, 3e-3, 3e-3, 30, TALLY),
    Stage(400, 3e-3, 1e-3, 10, TEXT),
    Stage(800, 3e-3, 5e-4, 30, SEE, probe=1.0),
    Stage(600, 2e-3, 1.4e-3, 20, LOOK, probe=0.2, conclusion=2.0),
    Stage(500, 1.4e-3, 5e-5, 10, ANSWER, probe=0.1, conclusion=4.0),
    Stage(140, 1.5e-4, 5e-5, 10, BLURT),
)


# -- the forward pass ---------------------------------------------------------------------------------------------------------


def patchify(images_NHWC: np.ndarray) -> Tensor:
    """(N, 64, 64, 3) uint8 to (N, 64, 384) patches in the order and scale of the Qwen image processor."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073], np.float32), np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    x = (images_NHWC.astype(np.float32) / 255 - mean) / std
    n, s, p, m = len(x), build.SIDE, build.PATCH, build.MERGE
    g = s // p // m
    x = x.transpose(0, 3, 1, 2).reshape(n, 3, g, m, p, g, m, p).transpose(0, 2, 5, 3, 6, 1, 4, 7)
    x = np.repeat(x[:, :, :, :, :, :, None], 2, axis=6)
    return torch.from_numpy(np.ascontiguousarray(x.reshape(n, g * g * m * m, 3 * 2 * p * p)))


def turn(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


def attention_inputs(
    x: Tensor, cos: Tensor, sin: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise (B, L, D), project, rotate: queries, keys and values (B, heads, L, head_dim)."""
    n, length, _ = x.shape
    mixed = F.linear(rms(x, norm), weight, bias).view(n, length, heads + 2 * kv_heads, cos.shape[-1])
    turned = mixed[:, :, : heads + kv_heads]
    turned = turned * cos + turn(turned) * sin
    q, k, v = turned[:, :, :heads], turned[:, :, heads:], mixed[:, :, heads + kv_heads :]
    if kv_heads < heads:
        k, v = (t.repeat_interleave(heads // kv_heads, 2) for t in (k, v))
    return q.contiguous(), k.contiguous(), v.contiguous()


def after_attention(
    x: Tensor, mixed: Tensor, w_out: Tensor, b_out: Any, norm: Tensor, w_gu: Tensor, b_gu: Any, w_d: Tensor, b_d: Any
) -> Tensor:
    """Output projection, residual, gated MLP, residual."""
    x = x + F.linear(mixed, w_out, b_out)
    gate, up = F.linear(rms(x, norm), w_gu, b_gu).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w_d, b_d)


FUSED = {"before": attention_inputs, "after": after_attention}


def block_forward(x: Tensor, cos: Tensor, sin: Tensor, w: dict[str, Any], heads: int, kv_heads: int, causal: bool) -> Tensor:
    """One pre-norm block on (B, L, D) with rotary angles (B or 1, L, 1, head_dim); both towers are made of it."""
    q, k, v = FUSED["before"](x, cos, sin, w["norm1"], w["qkv"], w["qkv_bias"], heads, kv_heads)
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
    return FUSED["after"](x, mixed, w["out"], w["out_bias"], w["norm2"], w["gate_up"], w["gate_up_bias"], w["down"], w["down_bias"])


def text_weights(layer: Any) -> dict[str, Any]:
    a, m = layer.self_attn, layer.mlp
    return {
        "norm1": layer.input_layernorm.weight,
        "qkv": torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
        "qkv_bias": torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]),
        "out": a.o_proj.weight,
        "out_bias": None,
        "norm2": layer.post_attention_layernorm.weight,
        "gate_up": torch.cat([m.gate_proj.weight, m.up_proj.weight]),
        "gate_up_bias": None,
        "down": m.down_proj.weight,
        "down_bias": None,
    }


def vision_weights(block: Any) -> dict[str, Tensor]:
    a, m = block.attn, block.mlp
    return {
        "norm1": block.norm1.weight,
        "qkv": a.qkv.weight,
        "qkv_bias": a.qkv.bias,
        "out": a.proj.weight,
        "out_bias": a.proj.bias,
        "norm2": block.norm2.weight,
        "gate_up": torch.cat([m.gate_proj.weight, m.up_proj.weight]),
        "gate_up_bias": torch.cat([m.gate_proj.bias, m.up_proj.bias]),
        "down": m.down_proj.weight,
        "down_bias": m.down_proj.bias,
    }


def encode(model: Any, patches_NPC: Tensor) -> Tensor:
    """Visual features (N, 16, D): the HF tower's computation with all pictures of equal size in one batch."""
    tower = model.model.visual
    n, p, _ = patches_NPC.shape
    side, m = build.SIDE // build.PATCH, build.MERGE
    grid = torch.arange(side * side).view(side, side).view(side // m, m, side // m, m).transpose(1, 2).flatten()
    rows, cols = (grid // side).float(), (grid % side).float()
    heads, dim = tower.blocks[0].attn.num_heads, tower.blocks[0].attn.head_dim
    freq = 1.0 / 10000.0 ** (torch.arange(0, dim // 2, 2).float() / (dim // 2))
    angle = torch.cat([rows[:, None] * freq, cols[:, None] * freq], -1)
    cos, sin = (torch.cat([f, f], -1)[None, :, None] for f in (angle.cos(), angle.sin()))
    x = F.linear(patches_NPC, tower.patch_embed.proj.weight.flatten(1))
    for block in tower.blocks:
        x = block_forward(x, cos, sin, vision_weights(block), heads, heads, False)
    return tower.merger(x.flatten(0, 1)).view(n, p // m**2, -1)


def read_text(model: Any, x_BLD: Tensor, position_3BL: Tensor) -> Tensor:
    """Last hidden states (B, L, D) of the language model before its final norm; causal, right padding allowed."""
    lm = model.model.language_model
    heads, kv_heads = lm.config.num_attention_heads, lm.config.num_key_value_heads
    cos, sin = (t[:, :, None] for t in lm.rotary_emb(x_BLD, position_3BL))
    for layer in lm.layers:
        x_BLD = block_forward(x_BLD, cos, sin, text_weights(layer), heads, kv_heads, True)
    return x_BLD


@dataclass(frozen=True)
class Packed:
    """Right-padded rows: ids (B, L), image index (B,), M-RoPE positions (3, B, L), places of the response predictions, their targets."""

    ids: Tensor
    image: Tensor
    position: Tensor
    where: Tensor
    target: Tensor


class Codec:
    """Text to ids with the chat layout: ``user`` turn with an optional picture, then the ``assistant`` turn."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.close = tokenizer.convert_tokens_to_ids("</think>")
        self.image_pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.tokens = (build.SIDE // build.PATCH // build.MERGE) ** 2

    def prompt(self, text: str, image: bool, begun: str = "") -> list[int]:
        content = [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]
        chat = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(chat.replace("<|image_pad|>", "<|image_pad|>" * self.tokens) + begun).input_ids
        return ids

    def positions(self, ids: list[int]) -> Tensor:
        """M-RoPE positions (3, L) of a row with at most one picture."""
        n = len(ids)
        if self.image_pad not in ids:
            return torch.arange(n).expand(3, n)
        side, start = math.isqrt(self.tokens), ids.index(self.image_pad)
        cells = torch.arange(self.tokens)
        inside = torch.stack([torch.zeros_like(cells), cells // side, cells % side]) + start
        after = torch.arange(n - start - self.tokens).expand(3, -1) + start + side
        return torch.cat([torch.arange(start).expand(3, -1), inside, after], 1)

    def pack(self, rows: list[Row]) -> Packed:
        ids, where, target, images = [], [], [], []
        for row in rows:
            prompt = self.prompt(row.prompt, row.image >= 0)
            response = [*self.tokenizer(row.response).input_ids, self.end]
            ids.append(prompt + response)
            where.append(range(len(prompt) - 1, len(prompt) + len(response) - 1))
            target += response
            images.append(row.image)
        longest = max(map(len, ids))
        padded = torch.tensor([r + [self.pad] * (longest - len(r)) for r in ids])
        position = torch.stack([F.pad(self.positions(r), (0, longest - len(r))) for r in ids], 1)
        flat = torch.tensor([b * longest + t for b, ts in enumerate(where) for t in ts])
        return Packed(padded, torch.tensor(images), position, flat, torch.tensor(target))


def embed(model: Any, codec: Codec, ids_BL: Tensor, image_B: Tensor, features_NPD: Tensor) -> Tensor:
    """Token embeddings (B, L, D) with the features of each row's picture at its placeholders."""
    x = model.model.language_model.embed_tokens(ids_BL)
    rows = image_B >= 0
    if rows.any():
        x = x.masked_scatter((ids_BL == codec.image_pad)[..., None], features_NPD[image_B[rows]].reshape(-1, x.shape[-1]))
    return x


def speak_loss(
    model: Any, codec: Codec, features: Tensor, rows: list[Row], buckets: int = 3, conclusion: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the response tokens (nats), those after the thinking weighted by `conclusion`, and their accuracy.

    Rows of similar length share a call, so little is padded; right padding needs no mask under causal attention.
    """
    rows = sorted(rows, key=lambda r: len(r.prompt) + len(r.response) + (60 if r.image >= 0 else 0))
    logits, targets, weights = [], [], []
    for part in np.array_split(np.arange(len(rows)), buckets):
        packed = codec.pack([rows[i] for i in part])
        x = embed(model, codec, packed.ids, packed.image, features)
        hidden = read_text(model, x, packed.position).flatten(0, 1)[packed.where]
        logits.append(model.lm_head(rms(hidden, model.model.language_model.norm.weight)))
        targets.append(packed.target)
        weights.append(1 + (conclusion - 1) * after_thinking(packed, codec.close))
    logit, target, weight = torch.cat(logits), torch.cat(targets), torch.cat(weights)
    loss = (F.cross_entropy(logit, target, reduction="none") * weight).sum() / weight.sum()
    return loss, (logit.argmax(-1) == target).float().mean()


def after_thinking(packed: Packed, close: int) -> Tensor:
    """1 for the targets of a row that stand behind its closing think tag, else 0."""
    row, at = packed.where // packed.ids.shape[1], packed.where % packed.ids.shape[1]
    closed = torch.full((len(packed.ids),), packed.ids.shape[1])
    ends = packed.target == close
    closed[row[ends]] = at[ends]
    return (at > closed[row]).float()


def build_probe(model: Any, seed: int) -> torch.nn.Linear:
    """A linear read-out of all visual tokens of a picture; it gives the tower a short path to learn by and is dropped afterwards."""
    torch.manual_seed(seed)
    tokens = (build.SIDE // build.PATCH // build.MERGE) ** 2
    return torch.nn.Linear(tokens * model.config.text_config.hidden_size, sum(n * c for n, c in PROBE_GROUPS) + PROBE_PLACES)


def probe_loss(probe: torch.nn.Linear, features: Tensor, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the named things, characters and bars plus the squared error of places; and the accuracy of the former."""
    out, target = probe(features.flatten(1)), torch.from_numpy(targets)
    losses, right, at, slot = [], [], 0, 0
    for n, classes in PROBE_GROUPS:
        want = target[:, slot : slot + n]
        known = ~want.isnan()
        logit, want = out[:, at : at + n * classes].view(-1, n, classes)[known], want[known].long()
        losses.append(F.cross_entropy(logit, want, reduction="sum"))
        right.append((logit.argmax(-1) == want).float())
        at, slot = at + n * classes, slot + n
    place = target[:, slot:]
    known = ~place.isnan()
    losses.append(2.0 * (out[:, at:][known] - place[known]).square().sum())
    return torch.stack(losses).sum() / (8 * len(targets)), torch.cat(right).mean()


# -- training -----------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised by Newton-Schulz iteration (Jordan et al., 2024); same shapes in one batch.

    Updates are scaled to a root mean square of 0.2, so that a learning rate for AdamW fits (Liu et al., 2025).
    """

    def __init__(self, params: list[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.02, iterations: int = 5):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in shapes.items():
                updates = []
                for p in params:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.mul_(group["momentum"]).add_(p.grad)
                    updates.append(p.grad + group["momentum"] * momentum)
                x = torch.stack(updates)
                x = x.mT if rows > cols else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(group["iterations"]):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = x.mT if rows > cols else x
                for p, u in zip(params, x, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, cols)))


def optimizers(model: Any, probe: torch.nn.Linear) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside both towers, AdamW for the rest (patch and token embedding, norms, biases, probe)."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    chosen = {id(p) for p in inner}
    rest = [p for p in [*model.parameters(), *probe.parameters()] if id(p) not in chosen]
    return [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0), Muon(inner)]


def learning_rate(stage: Stage, step: int) -> float:
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


def share_gradients(learners: list[Tensor], workers: int) -> None:
    """Sum the shards' gradients over the worker processes."""
    if workers == 1:
        return
    grads = [p.grad for p in learners if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def train(
    worker: int, workers: int, start: Path | None, stages: dict[int, Stage], seed: int, out: Path, save_every: int, fuse: bool
) -> None:
    """Run the numbered stages in one of `workers` processes with one thread each; worker 0 prints and saves float32 checkpoints."""
    torch.set_num_threads(1)
    if workers > 1:
        meeting = f"file://{(out / 'meeting').resolve()}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=workers)
    if fuse:
        if worker > 0:
            torch.distributed.barrier()
        FUSED.update({name: torch.compile(f, dynamic=True) for name, f in FUSED.items()})
    tokenizer = load_tokenizer(start) if start else build.build_tokenizer(tokenizer_corpus())
    model = load(start) if start else build.build_model(tokenizer, seed)
    codec, started, seen, nothing = Codec(tokenizer), time.time(), [], (torch.zeros(()), torch.zeros(()))
    if fuse and worker == 0:
        images, _, rows = step_rows(seed, 0, 0, Mixture())
        speak_loss(model, codec, encode(model, patchify(images)), rows)[0].backward()
        if workers > 1:
            torch.distributed.barrier()
    for number, stage in stages.items():
        probe = build_probe(model, seed)
        learners = [*model.parameters(), *probe.parameters()]
        opts = optimizers(model, probe)
        for step in range(stage.steps):
            model.zero_grad(set_to_none=True)
            probe.zero_grad(set_to_none=True)
            for shard in range(worker, SHARDS, workers):
                images, targets, rows = step_rows(seed, number, SHARDS * step + shard, stage.mix)
                features = encode(model, patchify(images)) if len(images) else torch.zeros(0)
                probed, named = probe_loss(probe, features, targets) if stage.probe else nothing
                spoken, right = speak_loss(model, codec, features, rows, conclusion=stage.conclusion) if rows else nothing
                ((spoken + stage.probe * probed) / SHARDS).backward()
                seen.append((spoken.item(), right.item(), probed.item(), named.item()))
            share_gradients(learners, workers)
            norm = torch.nn.utils.clip_grad_norm_(learners, 1.0)
            if not math.isfinite(norm):
                raise RuntimeError(
                    f"stage {number} step {step}: found gradient norm {norm}, expected a finite number; lower the learning rate"
                )
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = learning_rate(stage, step)
                opt.step()
            done = step + 1 == stage.steps
            if worker == 0 and (done or (step + 1) % 25 == 0):
                loss, right, probed, named = np.mean(seen[-25:], axis=0)
                at, clock = f"stage {number} step {step + 1}/{stage.steps}", f"{time.time() - started:.0f} s"
                print(f"{at}: loss {loss:.4f}, tokens right {right:.4f}, probe {probed:.3f} {named:.3f}, {clock}", flush=True)
            if worker == 0 and (done or (step + 1) % save_every == 0):
                build.save(model, tokenizer, out / f"stage{number}" if done else out / "latest", torch.float32)


def load_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def load(folder: Path) -> Any:
    """A checkpoint folder as a float32 model."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints; the base ends up in OUT/base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="steps of each stage, instead of the documented ones")
    parser.add_argument("--start", type=Path, help="continue from this checkpoint folder")
    parser.add_argument("--first-stage", type=int, default=1, help="skip the stages before this one (with --start)")
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2), help="processes of one thread; does not change the result")
    parser.add_argument("--compile", action="store_true", help="fuse small operations with torch.compile (needs a C++ compiler)")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--eval", type=int, default=100, help="held-out items per family and mode for card.json; 0 to skip")
    args = parser.parse_args()
    stages = dict(enumerate(STAGES, 1))
    for number, steps in enumerate(args.steps, 1):
        stages[number] = replace(stages[number], steps=steps)
    run = {n: s for n, s in stages.items() if n >= args.first_stage and s.steps > 0}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "meeting").unlink(missing_ok=True)
    started = time.time()
    common = (args.workers, args.start, run, args.seed, args.out, args.save_every, args.compile)
    others = [mp.get_context("spawn").Process(target=train, args=(w, *common), daemon=True) for w in range(1, args.workers)]
    for p in others:
        p.start()
    train(0, *common)
    last, base = args.out / f"stage{max(run)}", args.out / "base"
    model = load(last)
    build.save(model, load_tokenizer(last), base, torch.bfloat16)
    card = {
        "command": f"python -m fovea.policies.tiny_vlm.pretrain --out DIR --seed {args.seed}",
        "seed": args.seed,
        "stages": {str(n): asdict(s) for n, s in stages.items()},
        "seconds": round(time.time() - started),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if args.eval:
        from fovea.policies.tiny_vlm.evaluate import evaluate

        card["heldout"] = evaluate(base, args.eval)
    (base / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
