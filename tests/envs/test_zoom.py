import pytest
from PIL import Image

from fovea.envs.zoom import Zoom, fit
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.types import Action, Task, user
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
