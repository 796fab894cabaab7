"""Clips: what may be one, which frames are taken, and what is said of files that cannot be read."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from fovea import video
from fovea.policies import clips
from fovea.video import Stream, Video, probe, read_frames, still
from tests.policies.family_folders import CLIP_FILE, moving, picture


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"source": ()}, "found no frames"),
        ({"source": 3}, "source of type int; expected a path or a tuple"),
        ({"source": "a.mp4", "fps": 1.0, "frames": 2}, "found both fps=1.0 and frames=2"),
        ({"source": "a.mp4", "frames": 0}, "found frames=0"),
        ({"source": (Image.new("RGB", (4, 4)),), "frames": 1}, "expected a file"),
    ],
)
def test_what_is_no_clip_is_named(arguments, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Video(**arguments)


def test_the_first_frame_stands_for_a_clip():
    frames = tuple(moving(3, 40, 30))
    assert still(Video(frames)) is frames[0] and still(frames[1]) is frames[1]


STREAM = Stream(30, 10.0, (160, 120))
PAIRS = {"temporal_patch_size": 2, "min_frames": 4, "max_frames": 8}


@pytest.mark.parametrize(
    ("take", "settings", "frames", "fps", "expected"),
    [
        (clips.take_pairs, PAIRS, None, 2.0, [0, 5, 10, 15, 20, 25]),  # 6 of 30
        (clips.take_pairs, PAIRS, None, 0.1, [0, 7, 15, 22]),  # no fewer than 4
        (clips.take_pairs, PAIRS, None, 9.0, [0, 3, 7, 11, 15, 18, 22, 26]),  # no more than 8
        (clips.take_pairs, PAIRS, 5, None, [0, 7, 15, 22]),  # 5 / 2 rounds to 2 pairs
        (clips.take_ends, PAIRS, 4, None, [0, 10, 19, 29]),  # 0, 9.67, 19.33, 29
        (clips.take_ends, PAIRS, None, 1.0, [0, 10, 19, 29]),
        (clips.take_evenly, {}, 4, None, [0, 7, 15, 22]),
        (clips.take_evenly, {}, None, 0.1, [0]),
        (clips.take_middles, {}, 3, None, [5, 15, 25]),
        (clips.take_middles, {"initial_shift": 0}, 3, None, [0, 10, 20]),
        (clips.take_at_most, {"video_sampling": {"fps": 1, "max_frames": 64}}, None, None, [0, 14, 29]),
        (clips.take_at_most, {"video_sampling": {"fps": 0.2, "max_frames": 2}}, None, None, [10]),  # 1 s is more than the 0.4 covered
    ],
)
def test_frames_that_are_taken_by_hand(take, settings, frames, fps, expected):
    assert [int(i) for i in take(settings, STREAM, frames, fps)] == expected


@pytest.mark.parametrize("take", [clips.take_pairs, clips.take_ends, clips.take_evenly, clips.take_middles])
def test_more_frames_than_there_are_is_an_error(take):
    with pytest.raises(ValueError, match=r"found 30 frames \(3\.00 s\); expected at least the 40 to be shown"):
        take(PAIRS, STREAM, 40, None)


def test_numbers_in_words():
    assert [clips.in_words(n) for n in (0, 13, 20, 64, 100, 512)] == [
        "zero", "thirteen", "twenty", "sixty-four", "one hundred", "five hundred and twelve",
    ]  # fmt: skip


def test_frames_of_several_sizes_are_named():
    with pytest.raises(ValueError, match=r"Video: frame 1 is 30x40; expected 40x30 as frame 0"):
        clips.load(Video((picture(40, 30), picture(30, 40))), clips.take_evenly, {})


def test_the_volume_of_a_clip_is_brought_between_its_limits():
    assert clips.fit_volume((4, 3, 100, 200), 2, 32, 1, 10**9) == (96, 192)  # to the nearest multiples of 32
    assert clips.fit_volume((4, 3, 100, 200), 2, 32, 1, 4 * 64 * 128) == (64, 128)  # by sqrt(80000 / 32768) = 1.5625
    assert clips.fit_volume((4, 3, 100, 200), 2, 32, 1, 4 * 64 * 128 - 1) == (32, 96)  # a little less, rounded down
    assert clips.fit_volume((4, 3, 100, 200), 2, 32, 4 * 128 * 224, 10**9) == (128, 256)  # by sqrt(114688 / 80000) = 1.2, rounded up
    assert clips.fit_volume((4, 3, 10, 20), 2, 32, 1, 10**9) == (32, 64)  # grown until the shorter side is one patch pair
    with pytest.raises(ValueError, match="found a clip of 1 frames; expected at least 2"):
        clips.fit_volume((1, 3, 64, 64), 2, 32, 1, 10**9)


def test_a_last_frame_without_a_partner_is_repeated():
    v = {"temporal_patch_size": 2, "patch_size": 2, "merge_size": 1}
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 4)
    patches, grid, tokens = clips._patches(frames, (2, 4), v)
    assert grid == (2, 1, 2) and tokens == 4 and patches.shape == (4, 3, 8)
    assert patches[:, 0].tolist() == [[0] * 4 + [1] * 4] * 2 + [[2] * 8] * 2


def test_pyav_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'fovea-rl\[video\]'"):
        probe(CLIP_FILE)


class TestFiles:
    @pytest.fixture(autouse=True)
    def _av(self):
        pytest.importorskip("av", reason="reading video files needs the extra `video`")

    def test_a_header_is_read_and_frames_are_those_asked_for(self):
        assert probe(CLIP_FILE) == STREAM
        first, later = read_frames(CLIP_FILE, [0, 20])
        assert first.size == (160, 120) and first.tobytes() != later.tobytes()
        assert read_frames(CLIP_FILE, [20])[0].tobytes() == later.tobytes()

    def test_only_what_lies_behind_the_nearest_key_frame_is_decoded(self, tmp_path, monkeypatch):
        import av

        file = tmp_path / "long.mp4"
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.gop_size, stream.max_b_frames = 64, 48, 10, 2
            for shot in moving(100, 64, 48):
                container.mux(stream.encode(av.VideoFrame.from_image(shot)))
            container.mux(stream.encode())
        every = video._from_the_start(file, range(100))
        decoded = []

        class Counting:
            def __init__(self, container):
                self.container, self.streams, self.seek, self.demux = container, container.streams, container.seek, container.demux

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.container.close()

            def decode(self, *args, **kwargs):
                for frame in self.container.decode(*args, **kwargs):
                    decoded.append(frame)
                    yield frame

        monkeypatch.setattr(video, "_open", lambda path, whole=video._open: Counting(whole(path)))
        for indices in ([3], [0, 99], [12, 13, 57, 58, 91], list(range(0, 100, 7)), list(range(100))):
            decoded.clear()
            found = video._sought(file, indices)
            assert list(found) == indices and all(found[i].tobytes() == every[i].tobytes() for i in indices)
            assert len(decoded) <= min(100, 12 * len(indices)), "a key frame every ten, two frames out of order"
        decoded.clear()
        read_frames(file, [0, 99])
        assert len(decoded) <= 24

    def test_more_frames_than_fit_are_not_taken(self, monkeypatch):
        monkeypatch.setattr(video, "MOST_BYTES", 10 * 3 * 160 * 120)
        with pytest.raises(ValueError, match=r"found 30 frames to take of 30, 160x120 each, .* expected at most 10 .*fps="):
            clips.load(Video(CLIP_FILE), clips.take_evenly, {})
        assert len(clips.load(Video(CLIP_FILE, frames=10), clips.take_evenly, {}).frames) == 10

    def test_files_that_are_no_clips_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.mp4: found no file"):
            probe(tmp_path / "nothing.mp4")
        (tmp_path / "notes.mp4").write_text("no clip at all")
        with pytest.raises(ValueError, match=r"notes\.mp4: found no video that can be read"):
            probe(tmp_path / "notes.mp4")

    def test_a_file_that_was_cut_off_is_named_with_the_frame(self, tmp_path):
        import av

        whole = tmp_path / "whole.mkv"  # its index is at no single place, so a shorter copy still opens
        with av.open(str(whole), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 64, 48
            for shot in moving(20, 64, 48):
                container.mux(stream.encode(av.VideoFrame.from_image(shot)))
            container.mux(stream.encode())
        cut = tmp_path / "cut.mkv"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"cut\.mkv: frame \d+ (is missing, found \d+ of the 3|of 3 cannot be decoded)"):
            read_frames(cut, [0, 1, 19])

    def test_a_codec_that_nobody_knows_is_named(self, tmp_path):
        whole = CLIP_FILE.read_bytes()
        names = [n for n in (b"mp4v", b"avc1") if n in whole]
        (tmp_path / "odd.mp4").write_bytes(whole.replace(names[0], b"zzzz"))
        with pytest.raises(ValueError, match=r"odd\.mp4: found a video stream of a codec that cannot be read"):
            probe(tmp_path / "odd.mp4")

    def test_a_sound_file_is_named(self, tmp_path):
        import wave

        with wave.open(str(tmp_path / "beep.wav"), "wb") as f:
            f.setnchannels(1), f.setsampwidth(2), f.setframerate(8000), f.writeframes(b"\0" * 16000)
        with pytest.raises(ValueError, match=r"beep\.wav: found no video stream"):
            probe(tmp_path / "beep.wav")
