import dataclasses

import pytest
from PIL import Image

from fovea.envs.zoom import Look, Zoom, fit
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.types import Action, Task, begun, user
from tests.rollout.fake_policy import IMAGE, FakePolicy, scripted


def picture(width=40, height=20):
    image = Image.new("RGB", (width, height), "black")
    image.paste((255, 0, 0), (20, 10, 40, 20))
    return image


def task(image=None):
    return Task(id="z", source="toy", prompt=user("q"), images=(image or picture(),), answer="red")


def test_the_crop_is_the_region_asked_for_at_the_size_of_the_picture():
    env = Zoom()
    shown = env.reset(task(), 0)
    assert shown.images[0].size == (40, 20) and "40 wide and 20 high" in shown.messages[-1]["content"][-1]["text"]
    seen, reward, terminated, truncated, info = env.step(Action("look <zoom>20,10,40,20</zoom>"))
    assert (reward, terminated, truncated) == (0.0, False, False) and info["box"] == (20, 10, 40, 20)
    assert seen.append and seen.images[0].size == (40, 20) and seen.images[0].getcolors() == [(800, (255, 0, 0))]


def test_coordinates_are_of_the_picture_as_shown_and_crops_of_the_original():
    env = Zoom(side=20)
    assert env.reset(task(), 0).images[0].size == (20, 10)
    seen, *_, info = env.step(Action("<zoom>[10, 5, 20, 10]</zoom>"))
    assert info["box"] == (20, 10, 40, 20) and seen.images[0].getcolors() == [(200, (255, 0, 0))]


def test_corners_outside_are_clipped():
    env = Zoom()
    env.reset(task(), 0)
    assert env.step(Action("<zoom>-5,-5,400,9</zoom>"))[4]["box"] == (0, 0, 40, 9)


@pytest.mark.parametrize("box", ["30,0,20,10", "50,0,60,10", "5,5,5,9", "1.2.3,0,4,4", "1e9,0,2,2", "--1,0,4,4", "0,0,99999999999,5"])
def test_a_box_without_area_is_said_to_be_invalid(box):
    env = Zoom(invalid_reward=-0.5)
    env.reset(task(), 0)
    seen, reward, terminated, _, info = env.step(Action(f"<zoom>{box}</zoom>"))
    if "e" in box:  # not the form of a call at all
        assert terminated
    else:
        assert (reward, terminated, info.get("invalid"), seen.images) == (-0.5, False, True, ())


def test_the_looks_run_out():
    env = Zoom(looks=1)
    env.reset(task(), 0)
    call = Action("<zoom>0,0,9,9</zoom>")
    assert [env.step(call)[2] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("history", "images"), [("append", 2), ("trim", 1)])
def test_an_episode_through_the_engine_has_one_segment_per_view(history, images):
    def say(sequence):
        zoomed = b"Here is" in bytes(t for t in sequence if t < 256) or b"look closer" not in bytes(t for t in sequence if t < 256)
        start = len(sequence) - 1 - sequence[::-1].index(ord("|"))
        answer = b"red" if zoomed else b"<zoom>20,10,40,20</zoom>"
        return scripted({"": answer.decode()})([ord("|"), *sequence[start + 1 :]])

    (group,) = Engine(FakePolicy(say), environment=lambda: Zoom(history)).rollout([task()], 2, Sampling(temperature=0))
    for episode in group.episodes:
        assert [t.text for t in episode.turns] == ["<zoom>20,10,40,20</zoom>", "red"] and episode.text == "red"
        first, second = episode.segments
        assert first.prefix.data.count(IMAGE) == 1 and second.prefix.data.count(IMAGE) == images
        assert (second.prefix.length < first.prefix.length) == (history == "trim")
    assert group.episodes[0].segments[1].prefix.key == group.episodes[1].segments[1].prefix.key


def test_a_task_without_a_picture_is_named():
    with pytest.raises(ValueError, match="task 'z' has no image"):
        Zoom().reset(Task(id="z", source="toy", prompt=user("q", 0)), 0)


def test_fit_scales_the_longest_side():
    assert fit(picture(), 10).size == (10, 5) and fit(picture(), 0).size == (40, 20) and fit(picture(1000, 1), 10).size == (10, 1)


# -- looks at points ------------------------------------------------------------------------------------------------------------


def at(x, y):
    return Action(f"<think>there</think><tool_call>[{x}, {y}]</tool_call>")


def test_a_look_at_a_point_shows_its_surroundings_less_what_is_outside():
    env = Look(looks=3, offset=50, crop=96)
    env.reset(task(picture(1000, 800)), 0)
    seen, reward, terminated, _, info = env.step(at(20, 790))
    assert info["box"] == (0, 740, 70, 800) and seen.images[0].size == (96, 96) and (reward, terminated) == (0.0, False)
    assert env.step(Action('<tool_call>{"name": "crop", "arguments": {"coordinate": [500, 400]}}</tool_call>'))[4]["box"] == (
        450,
        350,
        550,
        450,
    )
    assert [p.get("text", "picture") for p in seen.messages[0]["content"]] == ["<observation>", "picture", "</observation>"]


def test_points_are_of_the_picture_as_shown_and_crops_of_the_first_one_at_its_own_size():
    env = Look(looks=2, side=20, offset=5)
    env.reset(task(), 0)
    seen, *_, info = env.step(at(15, 7))
    assert info["box"] == (20, 4, 40, 20) and seen.images[0].size == (20, 20)
    assert env.step(at(15, 7))[4]["box"] == info["box"]  # a crop of the picture, never of a crop


def test_a_dot_marks_the_point_in_the_crop_and_not_in_the_picture():
    env, image = Look(looks=2, offset=50, crop=100, dot=True), Image.new("RGB", (200, 200), "white")
    env.reset(task(image), 0)
    crop = env.step(at(100, 100))[0].images[0]
    assert crop.getpixel((50, 50)) == crop.getpixel((50, 45)) == (255, 0, 0) and crop.getpixel((50, 60)) == (255, 255, 255)
    assert env.step(at(10, 100))[0].images[0].getpixel((17, 50)) == (255, 0, 0)  # 60 pixels wide, resized to 100
    assert image.getcolors() == [(40000, (255, 255, 255))]


def test_after_the_last_look_the_answer_is_begun_and_ends_the_episode():
    env = Look(looks=2, offset=4)
    env.reset(task(), 0)
    first, last = (env.step(at(9, 9))[0] for _ in range(2))
    assert len(first.messages) == 1 and begun(first.messages) == ""
    assert begun(last.messages) == "<think>the answer is</think><answer>"
    assert env.step(at(9, 9))[2] is True


@pytest.mark.parametrize(
    "said", ["<tool_call>(1, 2)</tool_call>", "<tool_call>[1, 2.5]</tool_call>", "<answer>red</answer>", "<zoom>0,0,9,9</zoom>"]
)
def test_what_is_no_call_ends_the_episode(said):
    env = Look(looks=2, offset=4)
    env.reset(task(), 0)
    assert env.step(Action(said))[2] is True


def test_the_prompt_explains_the_tool_only_by_name():
    assert Look(offset=4).reset(task(), 0).messages == user("q")
    text = Look("crop", looks=3, offset=4).reset(task(), 0).messages[-1]["content"][-1]["text"]
    assert '{"name": "crop", "arguments": {"coordinate": [x, y]}}' in text and "at most 3 times" in text and "40 wide" in text


@pytest.mark.parametrize(
    ("tool", "options"),
    [(Zoom, {"history": "crop"}), (Zoom, {"looks": -1}), (Look, {"looks": -1}), (Look, {"offset": 0}), (Look, {"crop": -1})],
)
def test_options_that_do_not_fit_are_named(tool, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        tool(**options)


def test_gold_members_say_the_tasks_turns_less_what_is_begun():
    said = ("<think>a (9, 9).</think><tool_call>[9, 9]</tool_call>", "<think>b</think><answer>red</answer>")
    shown = dataclasses.replace(task(), meta={"turns": said})
    engine = Engine(FakePolicy(), environment=lambda: Look(looks=1, offset=4))
    (group,) = engine.rollout([shown], 0, Sampling(max_new_tokens=60), members=("gold",))
    (episode,) = group.episodes
    assert not episode.error and [t.text for t in episode.turns] == [said[0], "<think>the answer is</think><answer>red</answer>"]
    first, last = episode.segments
    assert bytes(first.actions[:-1].tolist()).decode() == said[0] and bytes(last.actions[:-1].tolist()).decode() == "red</answer>"
    (short,) = engine.rollout([dataclasses.replace(shown, meta={"turns": said[:1]})], 0, Sampling(max_new_tokens=60), members=("gold",))
    assert "has 1 turns, and turn 2 is asked for" in short.episodes[0].error
    (plain,) = engine.rollout([task()], 0, Sampling(max_new_tokens=60), members=("gold",))
    assert plain.episodes[0].text == "<answer>red</answer>"
