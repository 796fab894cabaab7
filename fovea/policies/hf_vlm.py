"""A Hugging Face vision-language model as a policy: a checkpoint of one of the `FAMILIES`, from a folder or the hub.

It encodes prompts, samples (prefill, decode) and re-computes log-probabilities with gradient (evaluate), each unique image and each
unique prompt once. Two ways through the model give the same numbers: the family's own forward with our attention functions registered
in transformers' attention interface (`path="interface"`; gradient checkpointing uses it), and shorter loops over the same modules
(`path="direct"`). Remote code is never executed.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fovea.batch import Batch, Critic
from fovea.policies import damage, decoder, generation, offload, shared_prefix, vision
from fovea.policies import lora as adapters
from fovea.policies.families import FAMILIES, Family
from fovea.policies.generation import Cohort
from fovea.policies.head import capped, logp_and_entropy
from fovea.policies.lora import LoRA
from fovea.policies.ops import beside
from fovea.policies.processor import Cache, Picture, Processor, Prompt
from fovea.policies.shared_prefix import Layout
from fovea.policies.vision import Features
from fovea.types import Message, Prefix, user
from fovea.video import Video

VALUE_HEAD = "value_head.safetensors"
LINEAR = Critic()
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")


class Model(nn.Module):
    """One set of weights: the checkpoint's model and, where a method needs values, a head on its last hidden state.

    Attributes:
      in_step: the weights are shared out, so every backward pass must come through the same layers, pictures or not.
    """

    in_step = False

    def __init__(self, vlm: Any, critic: Critic | None = None, seed: int = 0):
        super().__init__()
        self.vlm, self.critic = vlm, critic
        self.value = None if critic is None else _value_head(vlm.config.text_config.hidden_size, critic.hidden, seed)
        self.features: Cache[Features] = Cache(512 << 20, lambda f: f.nbytes)
        self.features_of: Any = None
        self.list_parameters()

    def list_parameters(self) -> None:
        """Walking the modules costs as much as a layer of decoding, so the parameters that `_stamp` watches are listed once."""
        self.text_parameters = tuple(self.text.parameters())
        spoken = set(map(id, self.text_parameters))
        self.visual_parameters = tuple(p for p in self.vlm.model.parameters() if id(p) not in spoken)
        self.adapters = [layer for _, layer in adapters.adapted(self.vlm)]

    def without_adapters(self) -> Model:
        """The same modules, to be used under `switched_off`; what the bare tower makes of a picture is kept apart."""
        view = copy.copy(self)
        if adapters.adapted(self.visual):
            view.features, view.features_of = Cache(512 << 20, lambda f: f.nbytes), None
            view.visual_parameters = tuple(p for p in self.visual_parameters if not p.requires_grad)
        return view

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        """`work(*args)` as this module's forward, so that what hooks into forwards (sharding) surrounds it."""
        return work(*args)

    @property
    def family(self) -> Family:
        return FAMILIES[self.vlm.config.model_type]

    @property
    def text(self) -> Any:
        return self.vlm.model.get_decoder()

    @property
    def visual(self) -> Any:
        return self.vlm.model.get_encoder("image")

    @property
    def cap(self) -> float | None:
        """That of the logits."""
        return getattr(self.vlm.config.text_config, "final_logit_softcapping", None) if self.family.capped else None

    def axes(self, positions_3BT: Tensor) -> Tensor:
        """Positions as the text model takes them: (3, B, T) for M-RoPE, else (B, T)."""
        return positions_3BT if hasattr(self.vlm.model, "get_rope_index") else positions_3BT[0] + self.family.first


def converted(model: Model, dtype: str) -> Model:
    """The parameters as `dtype`; buffers stay, because rotary frequencies of 8 bits lose far positions."""
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.to(getattr(torch, dtype))
    return model


class HFVLM:
    """A language policy that sees. Make one with `HFVLM.load`.

    Attributes:
      temperature: the sampling temperature that `evaluate` divides logits by; set by the trainer.
      version: number of optimizer steps taken, bumped by the trainer.
      eos_ids, banned_ids: tokens that end an answer; those that stand for pictures or frame them, which have no probability.
      path: "direct" or "interface".
      offload_activations: keep what the backward pass needs in host memory meanwhile.
    """

    def __init__(self, model: Model, processor: Processor, path: str = "direct", gradient_checkpointing: bool = False):
        self.model, self.processor, self.path = model, processor, path
        self.gradient_checkpointing = gradient_checkpointing
        self.reference: Model | None = None
        self.temperature, self.version, self.offload_activations = 1.0, 0, False
        self.eos_ids, self.banned_ids = _eos_ids(model.vlm, processor), _banned_ids(model.vlm, processor)
        self.vocab_size = model.vlm.config.text_config.vocab_size
        self._counts = {"vision_encodings": 0, "prefix_tokens_update": 0}
        self._fused: tuple[Any, generation.Weights] | None = None
        self._ready, self._update_follows = vision.Ready(), False

    # -- loading and saving ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "float32",
        device: str = "cpu",
        freeze: Sequence[str] = (),
        gradient_checkpointing: bool = False,
        value_head: bool = False,
        critic: Critic = LINEAR,
        lora: LoRA | None = None,
        base: str | Path | None = None,
        seed: int = 0,
        weights: bool = True,
        nf4: bool = False,
    ) -> HFVLM:
        """Read a checkpoint folder, an adapter folder, a hub id (owner/name), or "tiny" for the model that ships with the package.

        Args:
          dtype: "float32", "bfloat16" or "float64" of the weights in memory.
          freeze: parts that are not trained: "tower" (the vision transformer), "projector" (its mergers), "text" (everything else).
          value_head: give the model one, built as `critic` says; that of the folder where it has one.
          lora: new adapters to train instead of the weights; None takes those that the folder holds, if any.
          base: where the weights under an adapter folder are, if not where it says.
          seed: addresses the random start of new adapters and of a value head with hidden layers.
          nf4: hold the decoder's matrices in 4 bits (see `LoRA`).
          weights: False reads none and leaves those that the model was built with; see `fovea.trace.without_data`.
        """
        given = _folder(path)
        folder = _base(given, base, lora)
        config = read_config(folder)
        made: Any = getattr(transformers, FAMILIES[config["model_type"]].model)
        with damage.named(folder):
            settings = made.config_class.from_pretrained(folder, local_files_only=True)
            if weights:
                damage.check_size(folder, lambda: made(settings))
                packed = {"quantization_config": adapters.packing(dtype)} if nf4 else {}
                safe = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
                vlm, report = made.from_pretrained(folder, dtype=getattr(torch, dtype), output_loading_info=True, **safe, **packed)
                if missing := sorted(report["missing_keys"]):
                    raise ValueError(f"{folder}: found no tensor {missing[0]!r} ({len(missing)} are missing); expected all of the model's")
            else:
                vlm = made._from_config(settings, dtype=getattr(torch, dtype))
        model = converted(Model(vlm, critic if value_head else None, seed).to(device=device if weights else None), dtype)
        if model.value is not None and (given / VALUE_HEAD).exists():
            with damage.named(given):
                model.value.load_state_dict(load_file(given / VALUE_HEAD))
        if model.family.encode is vision.packed:
            vision.install(model.visual)
        decoder.check(model.text)
        model.text.config._attn_implementation = shared_prefix.NAME
        if not nf4:
            _freeze(model, freeze)
        if given != folder:
            with damage.named(given):
                adapters.restore(model, given, _name(folder))
        elif lora is not None and lora.rank:
            adapters.attach(model, lora, _name(folder), seed)
        if gradient_checkpointing:
            vlm.activation_checkpointing_enable({"use_reentrant": False})
        with damage.named(folder):
            processor = Processor(folder, vlm.config.image_token_id, getattr(vlm.model, "get_rope_index", None))
        return cls(model.train(), processor, gradient_checkpointing=gradient_checkpointing)

    def save(self, folder: str | Path, merged: bool = False) -> None:
        """A checkpoint folder that transformers' `from_pretrained` loads at once; with adapters, a folder of these for peft.

        Args:
          merged: write whole weights with the adapters folded in.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.model.adapters:
            self.model.vlm.save_pretrained(folder)
        elif merged:
            adapters.save_merged(self.model, folder)
        else:
            adapters.save(self.model, folder)
        self.processor.save(folder)
        if self.model.value is not None:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.model.value.state_dict().items()}, folder / VALUE_HEAD)

    @torch.no_grad()
    def load_weights(self, folder: str | Path) -> None:
        """Take over the weights of another checkpoint of the same architecture, in place; tensors that are equal are not touched.

        Raises:
          ValueError: another architecture, with the first tensor that differs.
        """
        found = type(self).load(folder, dtype=str(self.model.vlm.dtype).removeprefix("torch.")).model.vlm.state_dict()
        mine = self.model.vlm.state_dict()
        for name in sorted(set(mine) | set(found)):
            shapes = [tuple(x[name].shape) if name in x else "no such tensor" for x in (found, mine)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{folder}: tensor {name!r} is {shapes[0]}; expected {shapes[1]} (a checkpoint of another architecture)")
        for name, x in mine.items():
            if not torch.equal(x, new := found[name].to(x.device)):
                x.copy_(new)

    def forget(self) -> None:
        """Drop what can be computed again: picture features, their graphs, and fused weights."""
        self.model.features.clear()
        self._ready.clear(None)
        self._fused = None

    def twin(self, dtype: str = "") -> HFVLM:
        """A policy with the same weights in memory of its own (as `dtype` where one is named), to answer in another thread."""
        self.forget()
        model = copy.deepcopy(self.model)
        made = type(self)(converted(model, dtype) if dtype else model, copy.deepcopy(self.processor), self.path)
        made.temperature, made.version = self.temperature, self.version
        return made

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for p in self.model.parameters() if p.requires_grad)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def set_reference(self) -> None:
        """`variant="reference"` from now on: a frozen copy of the present weights, or the weights under the adapters without a copy."""
        if self.model.adapters:
            self.reference = self.model.without_adapters()
            return
        self.model.features.clear()
        self.reference = copy.deepcopy(self.model).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.model.vlm.lm_head.weight.device

    @property
    def counts(self) -> dict[str, int]:
        """Work done so far: images through the tower, images preprocessed, prefix tokens through the text model with gradient."""
        return {**self._counts, "preprocessed": self.processor.preprocessed}

    @property
    def waiting_bytes(self) -> int:
        """What the graphs hold that a rollout left for its update."""
        return self._ready.nbytes

    # -- text -----------------------------------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image | Video] = ()) -> Prefix:
        """Chat template, generation prompt and placeholders of images and clips; cached, with a content hash as key."""
        return self.processor.encode(messages, images)

    def encode_append(self, messages: Sequence[Message]) -> list[int]:
        """Text-only tokens that follow an assistant answer, from the end of its turn (an eos id) to the next generation prompt.

        An answer that already ended with the eos id brings the first token itself.
        """
        return self.processor.encode_append(messages)

    def encode_ids(self, ids: Sequence[int], images: Sequence[Image.Image]) -> Prefix:
        """A prompt given as token ids with one placeholder per image."""
        return self.processor.encode_ids(ids, images)

    def redraw(self, prefix: Prefix, change: Callable[[int, Image.Image], Image.Image]) -> Prefix:
        """The same prompt with other pictures; see `Processor.redraw`."""
        return self.processor.redraw(prefix, change)

    def prompt_ids(self, prefix: Prefix) -> list[int]:
        """The token ids of an encoded prompt, image placeholders expanded."""
        return prefix.data.ids.tolist()

    def compact_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of `encode` with one placeholder per image, as generation servers take them."""
        return self.processor.compact_ids(messages)

    def encode_text(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode_text(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.processor.decode(ids, skip_special)

    # -- generation -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, prefixes: Sequence[Prefix], suffixes: Sequence[Sequence[Sequence[int]]], room: int) -> tuple[Cohort, Tensor]:
        """Compute each unique prompt once and attach its rows.

        Args:
          prefixes: N prompts from `encode`.
          suffixes: suffixes[n][g] are the tokens that row g of prompt n already holds after the prompt (usually none).
          room: how many more tokens each row may decode.
        Returns:
          A cohort of R rows, prefix-major, and the raw logits (R, V) of each row's next token in float32.
        """
        rows = [list(s) for group in suffixes for s in group]
        layout = self._layout(prefixes, [[len(s) for s in group] for group in suffixes])
        kept: list[tuple[Tensor, Tensor]] = []
        tokens = torch.tensor([t for s in rows for t in s], dtype=torch.long)
        hidden = self.model(lambda: self._hidden(self.model, prefixes, layout, tokens, keep=kept))
        owner_R = torch.tensor([n for n, group in enumerate(suffixes) for _ in group], dtype=torch.long)
        length_R = torch.tensor([len(s) for s in rows], dtype=torch.long)
        end_R = len(prefixes) + length_R.cumsum(0) - 1
        hidden_R = hidden[beside(torch.where(length_R > 0, end_R, owner_R), hidden)]
        cohort = self._cohort(prefixes, layout, kept, owner_R, length_R, room)
        return cohort, capped((hidden_R @ self.model.vlm.lm_head.weight.t()).float(), self.model.cap)

    @contextlib.contextmanager
    def update_follows(self) -> Iterator[None]:
        """Sampling within leaves the graphs of trained pictures to `evaluate` at the same weights, which then need not see them again."""
        self._ready.clear(None)
        self._update_follows = True
        try:
            yield
        finally:
            self._update_follows = False

    def decode(self, cohorts: Sequence[Cohort], tokens: Sequence[Tensor]) -> list[Tensor]:
        """One token for every row of every cohort -> the raw logits of the next one, (R, V) per cohort, in float32."""
        weights = self._weights()
        return generation.step(weights, cohorts, [beside(t, weights.head) for t in tokens])

    def predict(
        self, images: Image.Image | Sequence[Image.Image], text: str, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Answer one question about one or several images; greedy unless `temperature` is positive."""
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        draw = torch.Generator().manual_seed(seed)
        cohort, logits = self.prefill([self.encode(user(text, len(pictures)), pictures)], [[()]], max_new_tokens)
        ids: list[int] = []
        while True:
            logits = logits.cpu()  # where `draw` is
            logits[:, list(self.banned_ids)] = float("-inf")
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)[:, 0] if temperature else logits.argmax(-1)
            if int(chosen) in self.eos_ids:
                break
            ids.append(int(chosen))
            if len(ids) == max_new_tokens:
                break
            (logits,) = self.decode([cohort], [chosen])
        return self.decode_text(ids)

    # -- learning -------------------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Batch, want: frozenset[str] | set[str], variant: str = "policy") -> dict[str, Tensor]:
        """Streams of the batch's actions under `variant` weights ("policy" or "reference"), each prefix computed once.

        `logp` and `entropy` (B, T) are those of softmax(logits / temperature) without the banned ids, zero where `mask_BT` is zero: what
        the environment inserted is context only. `value` (B, T) reads the state before each unit, `next_value` (B,) that after the last.
        All lie where the batch lies, wherever the weights are.
        """
        if torch.is_grad_enabled() and self._fused is not None:
            self._fused = None  # weights fused for decoding are of no use to an update, and as large as the decoder
            if self.gradient_checkpointing:
                offload.return_freed_memory()
        with self._variant(variant) as model, self._saving():
            # adapters off is a view of the policy's own module, whose forward it then is
            root = self.model if model.vlm is self.model.vlm else model
            return root(self._evaluate, model, batch, want)

    def _saving(self) -> contextlib.AbstractContextManager[Any]:
        moves = self.offload_activations and torch.is_grad_enabled()
        return offload.activations(self.model.parameters()) if moves else contextlib.nullcontext()

    def _evaluate(self, model: Model, batch: Batch, want: frozenset[str] | set[str]) -> dict[str, Tensor]:
        if unknown := set(want) - {"logp", "entropy", "value", "next_value"}:
            raise ValueError(f"evaluate: found {sorted(unknown)}; expected names among logp, entropy, value, next_value")
        if int(batch.prefix_B.min()) < 0:
            raise ValueError(f"evaluate: row {int(batch.prefix_B.argmin())} has no prefix; a language policy reads its prompt from one")
        order = torch.argsort(batch.prefix_B, stable=True)
        table, owner_B = batch.prefix_B[order].unique_consecutive(return_inverse=True)
        prefixes = [batch.prefixes[i] for i in table.tolist()]
        length_B = batch.length_B[order]
        held_B = length_B if "next_value" in want else length_B - 1
        layout = self._layout(prefixes, [held_B[owner_B == n].tolist() for n in range(len(prefixes))])
        if torch.is_grad_enabled():
            self._counts["prefix_tokens_update"] += layout.prefix_tokens
        actions_BT, T = batch.actions_BT[order], batch.actions_BT.shape[1]
        cell_T = torch.arange(T)
        hidden = self._hidden(model, prefixes, layout, actions_BT[cell_T < held_B[:, None]])
        before_BT = _states_before(owner_B, held_B, T, len(prefixes))
        back = order.argsort()
        out: dict[str, Tensor] = {}
        chosen_BT = (batch.mask_BT[order] > 0) & (cell_T < length_B[:, None])
        if want & {"logp", "entropy"}:
            logp, entropy = logp_and_entropy(
                hidden,
                model.vlm.lm_head.weight,
                beside(before_BT[chosen_BT], hidden),
                beside(actions_BT[chosen_BT], hidden),
                beside(torch.tensor(self.banned_ids), hidden),
                self.temperature,
                "entropy" in want,
                model.cap,
            )
            for name, x in (("logp", beside(logp, actions_BT)), ("entropy", beside(entropy, actions_BT))):
                if name in want:
                    out[name] = x.new_zeros(chosen_BT.shape).masked_scatter(chosen_BT, x)[back]
        if want & {"value", "next_value"}:
            value = beside(self._value(model, hidden[beside(before_BT[chosen_BT], hidden)]), actions_BT)
            out["value"] = value.new_zeros(chosen_BT.shape).masked_scatter(chosen_BT, value)[back]
            if "next_value" in want:
                last_B = len(prefixes) + held_B.cumsum(0) - 1
                out["next_value"] = beside(self._value(model, hidden[beside(last_B, hidden)]), actions_BT)[back]
        return {name: x for name, x in out.items() if name in want}

    def shardable(self) -> list[tuple[Model, list[nn.Module]]]:
        """Each set of weights with its layers, which are then sharded one by one; their forwards must be the ones that run."""
        own = [self.model] if self.reference is None or self.reference.vlm is self.model.vlm else [self.model, self.reference]
        return [(m, list(m.text.layers)) for m in own]

    # -- the forward passes ---------------------------------------------------------------------------------------------------

    def _layout(self, prefixes: Sequence[Prefix], rows: Sequence[Sequence[int]]) -> Layout:
        return Layout(tuple(p.length for p in prefixes), tuple(map(tuple, rows)), self.model.family.prefix_lm)

    def _hidden(
        self, model: Model, prefixes: Sequence[Prefix], layout: Layout, row_tokens: Tensor, keep: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Hidden states of each prefix's last token and of all row tokens, (N + rows, C), for the packed row that `layout` describes."""
        prompts: list[Prompt] = [p.data for p in prefixes]
        weight = model.text.embed_tokens.weight
        ids = beside(torch.cat([*(p.ids for p in prompts), row_tokens]), weight)
        positions = model.axes(beside(_positions(prompts, layout)[:, None], weight))
        visual, at = self._visual(model, prompts), torch.cat([p.places + span[0] for p, span in zip(prompts, layout.spans)])
        at = beside(at, weight)
        # a family may keep its placeholder outside the vocabulary; what stands there is replaced anyway
        x = model.text.embed_tokens(ids.index_fill(0, at, 0))
        deep = None
        if visual is not None:
            x = x.index_copy(0, at, visual.tokens.to(x.dtype))
            deep = (at, visual.deep) if visual.deep else None
        if model.in_step and torch.is_grad_enabled() and any(p.requires_grad for p in model.visual_parameters):
            x = x if x.requires_grad else x.requires_grad_()  # as with pictures, whose gradients go on into the tower
        if keep is not None or self._direct():
            return decoder.run(model.text, x, positions, layout, deep, keep)
        extra: dict[str, Any] = {}
        if deep is not None:
            shown = torch.zeros_like(ids, dtype=torch.bool).index_fill_(0, at, True)
            extra = {"visual_pos_masks": shown[None], "deepstack_visual_embeds": list(deep[1])}
        # a mask of four axes is passed on as it is; without one the text model would make a dense mask of the restarting positions
        mask = torch.ones_like(ids[:1], dtype=torch.bool)[None, None, None]
        out = model.text(inputs_embeds=x[None], attention_mask=mask, position_ids=positions, use_cache=False, layout=layout, **extra)
        return out.last_hidden_state[0].index_select(0, beside(layout.needed, x))

    def _direct(self, trained: bool = True) -> bool:
        """Whether to take the direct loop; checkpointed layers recompute themselves only in the family's forward."""
        return self.path == "direct" and not (self.gradient_checkpointing and trained and torch.is_grad_enabled())

    def _visual(self, model: Model, prompts: Sequence[Prompt]) -> Features | None:
        """Features of all the prompts' images in order, each unique image encoded once and remembered while the tower's weights stand."""
        pictures = [picture for p in prompts for picture in p.pictures]
        if not pictures:
            return None
        unique: dict[str, Picture] = {p.key: p for p in pictures}
        trained = any(p.requires_grad for p in model.visual_parameters)
        found = self._ready_features(model, unique) if trained and model is self.model else {}
        trained = trained and torch.is_grad_enabled()
        if not trained:
            stamp = _stamp(model.visual_parameters)
            if stamp != model.features_of:
                model.features.clear()
                model.features_of = stamp
            found |= {k: f for k in unique.keys() - found.keys() if (f := model.features.get(k)) is not None}
        missing = [p for k, p in unique.items() if k not in found]
        if missing:
            features = self._encode(model, missing, trained)
            found |= {p.key: f for p, f in zip(missing, features)}
            if not trained:
                for p, f in zip(missing, features):
                    model.features.put(p.key, f)
        ordered = [found[p.key] for p in pictures]
        return Features(torch.cat([f.tokens for f in ordered]), tuple(map(torch.cat, zip(*(f.deep for f in ordered)))))

    def _ready_features(self, model: Model, unique: dict[str, Picture]) -> dict[str, Features]:
        """With gradient, what sampling left for it, each once; without, what was left or, when an update follows, is made to be left."""
        if (stamp := _stamp(model.visual_parameters)) != self._ready.stamp:
            self._ready.clear(stamp)
        if torch.is_grad_enabled():
            return {k: f for k in unique if (f := self._ready.take(k)) is not None}
        spared = self.gradient_checkpointing or self.offload_activations or decoder.sharded(model.text.layers[0])
        makes = self._update_follows and not spared
        found: dict[str, Features] = {}
        for key, picture in unique.items():
            if key in self._ready or (makes and not self._ready.full):
                found[key] = self._ready.make(key, lambda picture=picture: self._encode(model, [picture], trained=True)[0])
        return found

    def _encode(self, model: Model, pictures: Sequence[Picture], trained: bool) -> list[Features]:
        self._counts["vision_encodings"] += len(pictures)
        return model.family.encode(model.vlm, pictures, self._direct(trained))

    def _cohort(
        self,
        prefixes: Sequence[Prefix],
        layout: Layout,
        kept: Sequence[tuple[Tensor, Tensor]],
        owner_R: Tensor,
        length_R: Tensor,
        room: int,
    ) -> Cohort:
        """Cut the packed keys and values of a prefill into per-prompt and per-row caches."""
        P, R = max(layout.prefix), len(owner_R)
        K, _, D = kept[0][0].shape
        size = (int(length_R.max()) if R else 0) + room
        prefix_k, prefix_v = [], []
        for k, v in kept:
            padded_k, padded_v = k.new_zeros(len(prefixes), K, D, P), v.new_zeros(len(prefixes), K, P, D)
            for n, (a, b, _, _) in enumerate(layout.spans):
                padded_k[n, :, :, : b - a], padded_v[n, :, : b - a] = generation.pair(k[:, a:b]).transpose(1, 2), v[:, a:b]
            prefix_k.append(padded_k)
            prefix_v.append(padded_v)
        suffix = kept[0][0].new_zeros(2, len(kept), R, K, size, D)
        start_R = layout.prefix_tokens + length_R.cumsum(0) - length_R
        for r in length_R.nonzero()[:, 0].tolist():
            a, t = int(start_R[r]), int(length_R[r])
            for i, (k, v) in enumerate(kept):
                suffix[0, i, r, :, :t], suffix[1, i, r, :, :t] = generation.pair(k[:, a : a + t]), v[:, a : a + t]
        first_R = torch.tensor([p.data.next_position for p in prefixes])[owner_R]
        positions = beside((first_R[:, None] + torch.arange(size)).expand(3, -1, -1), suffix)
        precise = suffix.new_zeros((), dtype=torch.promote_types(suffix.dtype, torch.float32))
        cos, sin = (x[..., : D // 2].contiguous() for x in self.model.text.rotary_emb(precise, self.model.axes(positions)))
        return Cohort(prefix_k, prefix_v, torch.tensor(layout.prefix), owner_R, suffix, length_R, torch.complex(cos, sin))

    def _weights(self) -> generation.Weights:
        stamp = _stamp(self.model.text_parameters)
        if self._fused is None or self._fused[0] != stamp:
            self._fused = (stamp, generation.fuse(self.model.text, self.model.vlm.lm_head.weight, self.model.cap))
        return self._fused[1]

    @contextlib.contextmanager
    def _variant(self, variant: str) -> Iterator[Model]:
        if variant == "policy":
            yield self.model
        elif variant == "reference" and self.reference is not None:
            with adapters.switched_off(self.reference):
                yield self.reference
        elif variant == "reference":
            raise ValueError(
                'evaluate: variant "reference" was asked for but no reference was set; call policy.set_reference() before training'
            )
        else:
            raise ValueError(f'evaluate: found variant {variant!r}; expected "policy" or "reference"')

    def _value(self, model: Model, hidden: Tensor) -> Tensor:
        if model.value is None or model.critic is None:
            raise ValueError("evaluate: a value was asked for but the policy has no value head; load it with value_head=True")
        return model.value(hidden.detach() if model.critic.apart else hidden)[:, 0].to(torch.promote_types(hidden.dtype, torch.float32))


def _value_head(width: int, hidden: Sequence[int], seed: int) -> nn.Module:
    """Linear layers with ReLU between them; the last one starts at zero, the others as torch's do, drawn from `seed`."""
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise((width, *hidden, 1))]
    for layer in layers[:-1]:
        for p in (layer.weight, layer.bias):
            bound = layer.in_features**-0.5
            nn.init.uniform_(p, -bound, bound, generator=rng)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers[0] if not hidden else nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.ReLU(), layer)))


def _positions(prompts: Sequence[Prompt], layout: Layout) -> Tensor:
    """(3, L): each answer goes on where its prompt stopped."""
    rows = [p.next_position + torch.arange(t) for p, lengths in zip(prompts, layout.rows) for t in lengths]
    answers = torch.cat([*rows, torch.zeros(0, dtype=torch.long)])
    return torch.cat([*(p.positions for p in prompts), answers.expand(3, -1)], 1)


def _states_before(owner_B: Tensor, held_B: Tensor, T: int, N: int) -> Tensor:
    """(B, T) index of the hidden state that each unit was chosen in: its prompt's last token, then the row's own tokens."""
    first_B = N + held_B.cumsum(0) - held_B
    index_BT = first_B[:, None] + torch.arange(-1, T - 1)
    index_BT[:, 0] = owner_B
    return index_BT.clamp_max(N + int(held_B.sum()) - 1)


def _stamp(parameters: Sequence[nn.Parameter]) -> tuple[int, ...]:
    """Changes whenever a weight is written in place or its storage is replaced."""
    return tuple([x for p in parameters for x in (p._version, p.data_ptr())])


def _freeze(model: Model, freeze: Sequence[str]) -> None:
    """`requires_grad` by part of the model: encoder, decoder and head, and what lies between them (Qwen's mergers, inside the encoder)."""
    if unknown := set(freeze) - {"tower", "projector", "text"}:
        raise ValueError(f"freeze: found {sorted(unknown)}; expected names among tower, projector, text")
    tower = {id(p) for name, p in model.visual.named_parameters() if "merger" not in name}
    visual = set(map(id, model.visual_parameters))
    for p in model.vlm.parameters():
        part = "tower" if id(p) in tower else "projector" if id(p) in visual else "text"
        p.requires_grad_(part not in freeze)


def _folder(path: str | Path) -> Path:
    if str(path) == "tiny":
        from fovea.policies.tiny_vlm import BASE_DIR

        return BASE_DIR
    folder = Path(path)
    return _from_hub(str(path)) if not folder.exists() and HUB_ID.fullmatch(str(path)) else folder


def _from_hub(name: str) -> Path:
    """The files of a hub id in huggingface_hub's cache, fetched where they are missing; weights as safetensors only."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as e:  # its errors have no common class: offline, unknown id, gated, broken connection
        reason = str(e).strip().partition("\n")[0]
        raise FileNotFoundError(
            f'{name}: no such folder, and no such model could be had from the hub ({type(e).__name__}: {reason}); expected "tiny", a '
            "checkpoint folder, or a hub id owner/name that this machine can reach or has in its cache"
        ) from e


def _name(folder: Path) -> str:
    return "tiny" if folder == _folder("tiny") else str(folder.resolve())


def _base(folder: Path, base: str | Path | None, lora: LoRA | None) -> Path:
    """The folder with the weights: `folder` itself, or that which its adapters belong to."""
    named = adapters.base_of(folder)
    if named is None:
        return folder
    if lora is not None:
        raise ValueError(
            f"{folder}: found adapters, expected a whole checkpoint to start from; merge them first: fovea export {folder} --merged FOLDER"
        )
    found = _folder(base or named)
    if not (found / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: its adapters belong to {named!r}, but {found} holds no checkpoint; name its folder in "
            f"{adapters.CONFIG} or with base="
        )
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json, checked before anything heavy is loaded."""
    file = folder / "config.json"
    if not file.exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "an empty folder" if folder.is_dir() else "no such folder"
        beside = [str(p) for p in folder.parent.glob("*/") if p != folder] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(str(folder), ["tiny", *beside], 1)
        raise FileNotFoundError(
            f"{folder}: found {found}; expected a checkpoint folder with config.json, *.safetensors, tokenizer.json "
            'and preprocessor_config.json, a run folder, a hub id owner/name, or "tiny"' + (f"; did you mean {near[0]!r}?" if near else "")
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{file}: found no JSON ({e}); expected the configuration of a model") from e
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{file}: found model_type {kind!r:.60}; expected one of {', '.join(FAMILIES)}")
    return config


def _eos_ids(vlm: Any, processor: Processor) -> tuple[int, ...]:
    named = vlm.generation_config.eos_token_id
    ids = [named] if isinstance(named, int) else list(named or ())
    return tuple(sorted({i for i in (*ids, processor.tokenizer.eos_token_id) if i is not None}))


def _banned_ids(vlm: Any, processor: Processor) -> tuple[int, ...]:
    named = [getattr(vlm.config, f"{kind}_token_id", None) for kind in ("image", "video", "vision_start", "vision_end")]
    ids = {*processor.never_ids, *(i for i in named if i is not None)}
    return tuple(sorted(i for i in ids if i < vlm.config.text_config.vocab_size))
