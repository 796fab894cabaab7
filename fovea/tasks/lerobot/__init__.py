"""Sets of robot episodes in the format LeRobotDataset v3: numbers in Parquet, cameras in MP4, several episodes in a file.

    meta/info.json                                   features, rates, totals: what it does not count is not there
    meta/tasks.parquet, meta/stats.json              instructions by number; minimum, maximum, mean, deviation of each feature
    meta/episodes/chunk-000/file-000.parquet         one row per episode: which files, from which row, from which time
    data/chunk-000/file-000.parquet                  one row per frame
    videos/CAMERA/chunk-000/file-000.mp4

Reading takes an episode, or a window of one, from the middle of its files. Writing replaces whole files, info.json last, so an episode is
there as a whole or not at all, whenever the writer is killed; what it left behind is cut off when a set goes on.
Needs pyarrow and PyAV (`pip install 'fovea-rl[data,video]'`).
"""

from fovea.tasks.lerobot.reader import LeRobot, Recording
from fovea.tasks.lerobot.writer import Writer

__all__ = ["LeRobot", "Recording", "Writer"]
