"""Videos: which frames are taken, and what is said of files that have none."""

import sys

import numpy as np
import pytest

from tokenprune.core.clip import Clip
from tokenprune.core.errors import ConfigError, DataError


def video(path, frames, rate=10):
    """A file whose frame n is grey 10 + 8 n."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(frames):
            pixels = np.full((16, 32, 3), 10 + 8 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames):
    """Which frames of ``video`` these are."""
    return [round((float(frame.mean()) - 10) / 8) for frame in frames]


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, list(range(20))),
        ({"num_frames": 4}, [0, 6, 12, 19]),
        ({"num_frames": 64}, list(range(20))),
        ({"fps": 2}, [0, 6, 12, 19]),
        ({"fps": 2, "num_frames": 2}, [0, 19]),
        ({"start": 0.5, "end": 1.0, "num_frames": 3}, [5, 7, 10]),
    ],
)
def test_which_frames_are_taken(tmp_path, options, taken):
    frames, about = Clip(video(tmp_path / "a.mp4", 20), **options).frames()
    assert frames.shape == (len(taken), 16, 32, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == taken == about.frames_indices
    assert (about.total_num_frames, about.fps, about.width, about.height, about.duration) == (20, 10, 32, 16, 2)


def test_size_and_digest_open_no_frame(tmp_path):
    first, second = (Clip(video(tmp_path / f"{n}.mp4", n)) for n in (4, 6))
    assert first.size == (32, 16)
    assert first.digest != second.digest
    assert first.digest == Clip(first.path).digest != Clip(first.path, num_frames=2).digest


def test_what_cannot_be_a_video(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4' cannot be decoded"):
        Clip(tmp_path / "text.mp4").frames()
    with pytest.raises(DataError, match=r"text\.mp4' cannot be decoded"):
        _ = Clip(tmp_path / "text.mp4").size
    with pytest.raises(DataError, match=r"none\.mp4' does not exist"):
        Clip(tmp_path / "none.mp4").frames()
    with pytest.raises(DataError, match=r"one\.mp4' has a single frame; a video has at least two"):
        Clip(video(tmp_path / "one.mp4", 1)).frames()
    with pytest.raises(DataError, match="has no frame in the part that is asked about"):
        Clip(video(tmp_path / "ten.mp4", 10), start=5).frames()


def test_a_file_that_is_cut_off(tmp_path):
    whole = video(tmp_path / "a.avi", 30)
    (tmp_path / "half.avi").write_bytes(whole.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"half\.avi' (cannot be decoded|is damaged|has)"):
        Clip(tmp_path / "half.avi").frames()


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"a\.mp4' needs the package av \(PyAV\); pip install av"):
        Clip(tmp_path / "a.mp4").frames()


def test_options_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="num_frames of a video must be at least 2, got 1"):
        Clip(tmp_path, num_frames=1)
    with pytest.raises(ConfigError, match="fps of a video must be above 0, got 0"):
        Clip(tmp_path, fps=0)
