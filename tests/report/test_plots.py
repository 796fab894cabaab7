import pytest
from PIL import Image

from fovea.report.plots import aligned, curve_png
from fovea.report.run import RunFolder


@pytest.fixture
def seeds(tmp_path):
    folders = []
    for seed in range(3):
        run = RunFolder(tmp_path / f"seed{seed}", tensorboard=False)
        for step in range(0, 11 + seed, 5):
            run.log(step, {"eval/accuracy": 0.3 + 0.05 * step + 0.01 * seed})
        folders.append(run.path)
    return folders


def test_points_are_those_that_every_seed_has():
    a = {0: (0.0, 0.1), 5: (50.0, 0.2), 10: (100.0, 0.3)}
    b = {0: (2.0, 0.3), 10: (110.0, 0.5), 15: (160.0, 0.6)}
    assert aligned([a, b]) == ([1.0, 105.0], [[0.1, 0.3], [0.3, 0.5]])
    assert aligned([]) == ([], [])


@pytest.mark.parametrize("x", ["step", "time/wall_s"])
def test_a_figure_of_several_seeds_and_arms(seeds, tmp_path, x):
    pytest.importorskip("matplotlib")
    file = curve_png({"all": seeds, "one": seeds[0]}, tmp_path / "figures" / "curve.png", x=x, title="t")
    with Image.open(file) as picture:
        assert picture.size == (1440, 760) and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_what_is_missing_is_named(seeds, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no step has 'eval/other'"):
        curve_png(seeds, tmp_path / "c.png", metric="eval/other")
    with pytest.raises(FileNotFoundError, match="expected a run folder"):
        curve_png(tmp_path / "nowhere", tmp_path / "c.png")
