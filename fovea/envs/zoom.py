"""A crop tool: look at the whole picture, ask for a region, see it enlarged, answer."""

from __future__ import annotations

import re
from typing import Any

from PIL import Image

from fovea.types import Action, Message, Observation, Task, user
from fovea.video import Video

CALL = re.compile(r"<zoom>\s*\[?\s*([-\d.]+)[,\s]+([-\d.]+)[,\s]+([-\d.]+)[,\s]+([-\d.]+)\s*\]?\s*</zoom>")
HOW = "You may look closer once with <zoom>x1,y1,x2,y2</zoom> (pixels of the picture as shown, {width} wide and {height} high)."


class Zoom:
    """The task's first picture, with a tool that enlarges a part of it.

    Action: text; ``<zoom>x1,y1,x2,y2</zoom>`` asks for a region, in pixels of the picture as shown, x right, y down, (x2, y2) exclusive.
    Any other text is the answer and ends the episode, and so does every text once the looks are used up. The verifier judges it.

    Args:
      history: "append" adds the crop to the conversation; "trim" shows the crop alone with the question, so the second turn does not pay
        for the first picture.
      looks: zooms per episode.
      side: longest side in pixels to which pictures are scaled for the policy (0: as they are). Crops come from the full resolution.
      invalid_reward: reward of a zoom that names no region inside the picture; it uses up a look.
    """

    def __init__(self, history: str = "append", looks: int = 1, side: int = 0, invalid_reward: float = 0.0):
        if history not in ("append", "trim"):
            raise ValueError(f"history = {history!r}; expected 'append' or 'trim'")
        self.history, self.looks, self.side, self.invalid_reward = history, looks, side, invalid_reward

    def reset(self, task: Task, seed: int) -> Observation:
        first = task.images[0] if task.images else None
        if first is None or isinstance(first, Video):
            found = "no image" if first is None else "a clip where its first image should be"
            raise ValueError(f"task {task.id!r} has {found}; the zoom environment needs at least one")
        self.task, self.left, self.crops, self.whole = task, self.looks, [], first
        self.shown = fit(first, self.side)
        how = HOW.format(width=self.shown.width, height=self.shown.height)
        return Observation(messages=with_text(task.prompt, how), images=(self.shown, *task.images[1:]))

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        call = CALL.search(str(action.value))
        if call is None or self.left == 0:
            return Observation(), 0.0, True, False, {}
        self.left -= 1
        box = self._box([number(x) for x in call.groups()])
        if box is None:
            said = user("This box is not inside the picture. Answer now.", images=0)
            return Observation(messages=said, append=True), self.invalid_reward, False, False, {"invalid": True}
        crop = fit(self.whole.crop(box), self.side or max(self.shown.size))
        self.crops.append(box)
        if self.history == "trim":
            return Observation(messages=only_image(self.task.prompt), images=(crop,)), 0.0, False, False, {"box": box}
        return Observation(messages=user("Here is that part."), images=(crop,), append=True), 0.0, False, False, {"box": box}

    def _box(self, corners: list[float]) -> tuple[int, int, int, int] | None:
        """Corners in pixels of the shown picture -> whole pixels of the original, clipped to it; None when nothing is left."""
        original = self.whole
        scale = (original.width / self.shown.width, original.height / self.shown.height) * 2
        if not all(abs(c) < 1e6 for c in corners):
            return None
        x1, y1, x2, y2 = (round(c * s) for c, s in zip(corners, scale, strict=True))
        x1, y1, x2, y2 = max(0, x1), max(0, y1), min(original.width, x2), min(original.height, y2)
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def number(text: str) -> float:
    """The number in `text`, or NaN."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scaled so that the longest side has `side` pixels; unchanged for 0."""
    if not side or max(image.size) == side:
        return image
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)


def with_text(prompt: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """`text` as one more part of the last message."""
    last = prompt[-1]
    return (*prompt[:-1], {**last, "content": [*last["content"], {"type": "text", "text": text}]})


def only_image(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with a single image placeholder, the first."""
    seen, out = 0, []
    for message in prompt:
        content = []
        for part in message["content"]:
            seen += part["type"] == "image"
            if part["type"] != "image" or seen == 1:
                content.append(part)
        out.append({**message, "content": content})
    return tuple(out)
