"""A crop tool: look at the whole picture, ask for a region or the surroundings of a point, see it enlarged, answer."""

from __future__ import annotations

import json
import re
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


class Zoom:
    """The task's first picture, with a tool that enlarges a part of it.

    Action: text; ``<zoom>x1,y1,x2,y2</zoom>`` asks for a region, in pixels of the picture as shown, x right, y down, (x2, y2) exclusive.
    Any other text is the answer and ends the episode, and so does every text once the looks are used up. The verifier judges it.

    With an `offset` a look is at a point, called in JSON: ``<tool_call>{"name": ..., "arguments": {"coordinate": [x, y]}}</tool_call>``, or
    ``[x, y]`` alone. The crop comes between ``<observation>`` tags, and after the last one the environment thinks `LAST` and opens the
    answer, so that the policy has nothing left but to give it. What the environment says is never trained on.

    Args:
      history: "append" adds the crop to the conversation; "trim" shows the crop alone with the question, so the second turn does not pay
        for the first picture.
      looks: zooms per episode.
      side: longest side in pixels to which pictures are scaled for the policy (0: as they are). Crops come from the full resolution.
      invalid_reward: reward of a zoom that names no region inside the picture; it uses up a look.
      offset: a look is at a point, and shows a square of twice this many pixels of the picture as shown around it, less what is outside
        (0: looks are at boxes).
      crop: side in pixels to which that square is resized, also where it was cut at an edge (0: the longest side of the picture as shown).
      dot: a red dot at the point.
      call, seen: the tags around calls and crops.
      tool: name of the tool in the prompt, which explains the form of a reply; "" says nothing, for a model that has learned the form.
    """

    def __init__(
        self,
        history: str = "append",
        looks: int = 1,
        side: int = 0,
        invalid_reward: float = 0.0,
        offset: int = 0,
        crop: int = 0,
        dot: bool = False,
        tool: str = "",
        call: str = CALLED,
        seen: str = SEEN,
    ):
        if history not in ("append", "trim"):
            raise ValueError(f"history = {history!r}; expected 'append' or 'trim'")
        if offset < 0 or crop < 0 or looks < 0:
            raise ValueError(f"offset = {offset}, crop = {crop}, looks = {looks}; expected 0 or more")
        if not offset and (crop or dot or tool):
            raise ValueError(f"crop = {crop}, dot = {dot}, tool = {tool!r}, but offset = 0: looks at boxes know none of them")
        if offset and history != "append":
            raise ValueError(
                f"history = {history!r} with offset = {offset}; expected 'append', as thoughts about points build on each other"
            )
        self.history, self.looks, self.side, self.invalid_reward = history, looks, side, invalid_reward
        self.offset, self.crop, self.dot, self.tool, self.call, self.seen = offset, crop, dot, tool, call, seen

    def reset(self, task: Task, seed: int) -> Observation:
        first = task.images[0] if task.images else None
        if first is None or isinstance(first, Video):
            found = "no image" if first is None else "a clip where its first image should be"
            raise ValueError(f"task {task.id!r} has {found}; the zoom environment needs at least one")
        self.task, self.left, self.crops, self.whole, self.turn, self.opened = task, self.looks, [], first, 0, ""
        self.shown = fit(first, self.side)
        return Observation(messages=with_text(task.prompt, self._how()), images=(self.shown, *task.images[1:]))

    def _how(self) -> str:
        size = {"width": self.shown.width, "height": self.shown.height}
        if not self.offset:
            return HOW.format(**size)
        return HOW_POINTS.format(looks=self.looks, call=point_call(("x", "y"), self.tool, self.call), **size) if self.tool else ""

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        corners = self._corners(str(action.value))
        self.turn += 1
        if corners is None or self.left == 0:
            return Observation(), 0.0, True, False, {}
        self.left -= 1
        box = self._box(corners)
        if box is None:
            said = user("This box is not inside the picture. Answer now.", images=0)
            return Observation(messages=said, append=True), self.invalid_reward, False, False, {"invalid": True}
        self.crops.append(box)
        if self.offset:
            return self._around(box, corners), 0.0, False, False, {"box": box}
        crop = fit(self.whole.crop(box), self.side or max(self.shown.size))
        if self.history == "trim":
            return Observation(messages=only_image(self.task.prompt), images=(crop,)), 0.0, False, False, {"box": box}
        return Observation(messages=user("Here is that part."), images=(crop,), append=True), 0.0, False, False, {"box": box}

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
        return said.partition("<answer>")[2] if self.opened else said

    def _corners(self, said: str) -> list[float] | None:
        """The box that a text asks for, in pixels of the picture as shown; None where it asks for none."""
        if not self.offset:
            call = CALL.search(said)
            return [number(x) for x in call.groups()] if call else None
        point = called_point(tagged(said, self.call) or "")
        return [point[0] - self.offset, point[1] - self.offset, point[0] + self.offset, point[1] + self.offset] if point else None

    def _around(self, box: tuple[int, int, int, int], corners: list[float]) -> Observation:
        """The crop, and behind the last one the answer that is begun."""
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
        self.opened = begun(messages)
        return Observation(messages=messages, images=(crop.resize((side, side), Image.Resampling.BICUBIC),), append=True)

    def _box(self, corners: list[float]) -> tuple[int, int, int, int] | None:
        """Corners in pixels of the shown picture -> whole pixels of the original, clipped to it; None when nothing is left."""
        original = self.whole
        scale = (original.width / self.shown.width, original.height / self.shown.height) * 2
        if not all(abs(c) < 1e6 for c in corners):
            return None
        x1, y1, x2, y2 = (round(c * s) for c, s in zip(corners, scale, strict=True))
        x1, y1, x2, y2 = max(0, x1), max(0, y1), min(original.width, x2), min(original.height, y2)
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


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
