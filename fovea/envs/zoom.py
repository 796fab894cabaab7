"""Crop tools: look at the whole picture, ask for a region (`Zoom`) or the surroundings of a point (`Look`), see it enlarged, answer."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Any

from PIL import Image, ImageDraw

from fovea.rollout.given import gold_text
from fovea.types import Action, Message, Observation, Task, begun, user
from fovea.verifiers.grounded import CALLED, SEEN
from fovea.verifiers.parse import called_point, tagged
from fovea.video import Video

CALL = re.compile(r"<zoom>\s*\[?\s*([-\d.]+)[,\s]+([-\d.]+)[,\s]+([-\d.]+)[,\s]+([-\d.]+)\s*\]?\s*</zoom>")
HOW = "You may look closer once with <zoom>x1,y1,x2,y2</zoom> (pixels of the picture as shown, {width} wide and {height} high)."
HOW_POINTS = (
    "Think in steps, each in <think></think> and about a place that it cites as (x, y), in pixels of the picture, {width} wide and "
    "{height} high. After a thought you may look closer at its place, at most {looks} times: {call}. Give the answer in <answer></answer>."
)
LAST = "the answer is"
"""What is thought in the policy's place when no look is left."""
DOT = (255, 0, 0), 7
"""Colour and radius, in pixels of the picture as shown."""


class CropTool(ABC):
    """The task's first picture, with a tool that enlarges a part of it; what the tools of this file share.

    A text that asks for no part is the answer and ends the episode, and so does every text once the looks are used up. The verifier
    judges it.

    Args:
      looks: parts that may be asked for.
      side: longest side in pixels to which pictures are scaled for the policy (0: as they are). Crops come from the full resolution.
      invalid_reward: reward of a look at nothing inside the picture; it uses up a look.
    """

    def __init__(self, looks: int, side: int, invalid_reward: float):
        if looks < 0:
            raise ValueError(f"looks = {looks}; expected 0 or more")
        self.looks, self.side, self.invalid_reward = looks, side, invalid_reward

    @abstractmethod
    def how(self) -> str:
        """What the prompt says about the tool."""

    @abstractmethod
    def corners(self, said: str) -> list[float] | None:
        """x1, y1, x2, y2 of the part that a text asks for, in pixels of the picture as shown; None where it asks for none."""

    @abstractmethod
    def enlarged(self, box: tuple[int, int, int, int], corners: list[float]) -> Observation:
        """The part, `box` in pixels of the original."""

    def reset(self, task: Task, seed: int) -> Observation:
        first = task.images[0] if task.images else None
        if first is None or isinstance(first, Video):
            found = "no image" if first is None else "a clip where its first image should be"
            raise ValueError(f"task {task.id!r} has {found}; a crop tool needs at least one")
        self.task, self.left, self.whole, self.turn, self.begun = task, self.looks, first, 0, ""
        self.shown = fit(first, self.side)
        return Observation(messages=with_text(task.prompt, self.how()), images=(self.shown, *task.images[1:]))

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        corners = self.corners(str(action.value))
        self.turn += 1
        if corners is None or self.left == 0:
            return Observation(), 0.0, True, False, {}
        self.left -= 1
        box = self._box(corners)
        if box is None:
            said = user("This box is not inside the picture. Answer now.", images=0)
            return Observation(messages=said, append=True), self.invalid_reward, False, False, {"invalid": True}
        seen = self.enlarged(box, corners)
        self.begun = begun(seen.messages)
        return seen, 0.0, False, False, {"box": box}

    def demonstrate(self) -> str:
        """What the task's `meta["turns"]` says in this turn, less what is begun already; without any, its gold answer.

        Raises:
          ValueError: there are fewer turns than the episode wants.
        """
        if "turns" not in self.task.meta:
            return gold_text(self.task)
        turns = self.task.meta["turns"]
        if self.turn >= len(turns):
            raise ValueError(f"task {self.task.id!r}: meta['turns'] has {len(turns)} turns, and turn {self.turn + 1} is asked for")
        said = turns[self.turn]
        return said.partition("<answer>")[2] if self.begun else said

    def _box(self, corners: list[float]) -> tuple[int, int, int, int] | None:
        """Corners in pixels of the shown picture -> whole pixels of the original, clipped to it; None when nothing is left."""
        original = self.whole
        scale = (original.width / self.shown.width, original.height / self.shown.height) * 2
        if not all(abs(c) < 1e6 for c in corners):
            return None
        x1, y1, x2, y2 = (round(c * s) for c, s in zip(corners, scale, strict=True))
        x1, y1, x2, y2 = max(0, x1), max(0, y1), min(original.width, x2), min(original.height, y2)
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


class Zoom(CropTool):
    """A tool that enlarges a region.

    Action: text; ``<zoom>x1,y1,x2,y2</zoom>`` asks for a region, in pixels of the picture as shown, x right, y down, (x2, y2) exclusive.

    Args:
      history: "append" adds the crop to the conversation; "trim" shows the crop alone with the question, so the second turn does not pay
        for the first picture.
      looks, side, invalid_reward: of `CropTool`.
    """

    def __init__(self, history: str = "append", looks: int = 1, side: int = 0, invalid_reward: float = 0.0):
        super().__init__(looks, side, invalid_reward)
        if history not in ("append", "trim"):
            raise ValueError(f"history = {history!r}; expected 'append' or 'trim'")
        self.history = history

    def how(self) -> str:
        return HOW.format(width=self.shown.width, height=self.shown.height)

    def corners(self, said: str) -> list[float] | None:
        call = CALL.search(said)
        return [number(x) for x in call.groups()] if call else None

    def enlarged(self, box: tuple[int, int, int, int], corners: list[float]) -> Observation:
        crop = fit(self.whole.crop(box), self.side or max(self.shown.size))
        if self.history == "trim":
            return Observation(messages=only_image(self.task.prompt), images=(crop,))
        return Observation(messages=user("Here is that part."), images=(crop,), append=True)


class Look(CropTool):
    """A tool that enlarges the surroundings of a point (ViGoRL, arXiv 2505.23678).

    Action: text; ``<tool_call>{"name": ..., "arguments": {"coordinate": [x, y]}}</tool_call>``, or ``[x, y]`` alone between the tags, asks
    for a point in pixels of the picture as shown. The crop comes between ``<observation>`` tags. After the last one the environment thinks
    `LAST` and opens the answer, so that the policy has nothing left but to give it. What the environment says is never trained on.

    Args:
      tool: its name in the prompt, which explains the form of a reply; "" says nothing, for a model that has learned the form.
      looks, side, invalid_reward: of `CropTool`.
      offset: a look shows a square of twice this many pixels of the picture as shown around the point, less what is outside.
      crop: side in pixels to which that square is resized, also where it was cut at an edge (0: the longest side of the picture as shown).
      dot: a red dot at the point.
      call, seen: the tags around calls and crops.
    """

    def __init__(
        self,
        tool: str = "",
        looks: int = 4,
        side: int = 0,
        invalid_reward: float = 0.0,
        offset: int = 182,
        crop: int = 0,
        dot: bool = False,
        call: str = CALLED,
        seen: str = SEEN,
    ):
        super().__init__(looks, side, invalid_reward)
        if offset < 1 or crop < 0:
            raise ValueError(f"offset = {offset}, crop = {crop}; expected at least 1, and 0 or more")
        self.tool, self.offset, self.crop, self.dot, self.call, self.seen = tool, offset, crop, dot, call, seen

    def how(self) -> str:
        if not self.tool:
            return ""
        call = point_call(("x", "y"), self.tool, self.call)
        return HOW_POINTS.format(width=self.shown.width, height=self.shown.height, looks=self.looks, call=call)

    def corners(self, said: str) -> list[float] | None:
        point = called_point(tagged(said, self.call) or "")
        return [point[0] - self.offset, point[1] - self.offset, point[0] + self.offset, point[1] + self.offset] if point else None

    def enlarged(self, box: tuple[int, int, int, int], corners: list[float]) -> Observation:
        crop = self.whole.crop(box)
        if self.dot:
            across, down = self.whole.width / self.shown.width, self.whole.height / self.shown.height
            x, y = (corners[0] + self.offset) * across - box[0], (corners[1] + self.offset) * down - box[1]
            colour, radius = DOT
            ImageDraw.Draw(crop).ellipse([x - radius * across, y - radius * down, x + radius * across, y + radius * down], fill=colour)
        side = self.crop or max(self.shown.size)
        shown = [{"type": "text", "text": f"<{self.seen}>"}, {"type": "image"}, {"type": "text", "text": f"</{self.seen}>"}]
        messages: tuple[Message, ...] = ({"role": "user", "content": shown},)
        if self.left == 0:
            messages += ({"role": "assistant", "content": [{"type": "text", "text": f"<think>{LAST}</think><answer>"}]},)
        return Observation(messages=messages, images=(crop.resize((side, side), Image.Resampling.BICUBIC),), append=True)


def point_call(point: tuple[object, object], tool: str = "", call: str = CALLED) -> str:
    """The call for a look at a point: of the tool by name, or the point alone.

    >>> point_call((10, 20), "search_coordinate")
    '<tool_call>{"name": "search_coordinate", "arguments": {"coordinate": [10, 20]}}</tool_call>'
    """
    at = f"[{point[0]}, {point[1]}]"
    named = f'{{"name": {json.dumps(tool)}, "arguments": {{"coordinate": {at}}}}}' if tool else at
    return f"<{call}>{named}</{call}>"


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
    """`text` as one more part of the last message; no part where it is empty."""
    if not text:
        return prompt
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
