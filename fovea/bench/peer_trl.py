"""The peer: TRL's GRPOTrainer on the same checkpoint, pictures, reward and token counts, one optimizer step at a time.

Stock processors of the Qwen2-VL family need a video processor and with it torchvision; the subclass below leaves videos out, which is
all that TRL needs and changes nothing that is timed.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from fovea.bench.measure import Stopwatch, Time
from fovea.bench.workload import LEARNING_RATE, QUESTION, TASKS_PER_STEP, Cell, reward, rows

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class PeerMissing(RuntimeError):
    """TRL is not installed."""


def require() -> None:
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise PeerMissing(f'the comparison needs TRL ({error.name} is missing): pip install "fovea-rl[bench]"') from error


def load_processor(folder: Path) -> Any:
    from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class PictureProcessor(Qwen2_5_VLProcessor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            self.video_processor = None
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    AutoProcessor.register(Qwen2_5_VLConfig, PictureProcessor, exist_ok=True)
    return AutoProcessor.from_pretrained(folder)


def load_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def scored(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float | None]:
    """TRL's calling convention around the shared reward."""
    return [reward(c[0]["content"], a) for c, a in zip(completions, answer)]


def run(
    model: torch.nn.Module, processor: Any, cell: Cell, *, steps: int, micro_batch: int, after: Callable[[int], None] = lambda step: None
) -> list[Time]:
    """Train for `steps` optimizer steps and return the time of each, first (warm-up) included.

    Fetching and decoding the stored pictures lies outside the timed span, as it does for our side. `after(step)` runs between two steps.
    """
    from datasets import Dataset
    from datasets import Image as ImageColumn
    from transformers import TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    times: list[Time] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.watch = Stopwatch()

        def on_step_end(self, args, state, control, **kwargs):
            times.append(self.watch.stop())
            after(len(times) - 1)

    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    table = [{"prompt": prompt, "image": r.image, "answer": r.answer} for step in range(steps) for r in rows(step, cell.image_tokens)]
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=TASKS_PER_STEP * cell.group_size // micro_batch,
            num_generations=cell.group_size,
            max_completion_length=cell.new_tokens,
            generation_kwargs={"min_new_tokens": cell.new_tokens},
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            beta=0.0,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            report_to=[],
            logging_steps=10**6,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data = Dataset.from_list(table).cast_column("image", ImageColumn())
        trainer = GRPOTrainer(model=cast(Any, model), processing_class=processor, reward_funcs=scored, args=config, train_dataset=data)
        trainer.add_callback(Timer())
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its summary; standard output is reserved for the result
            trainer.train()
    return times
