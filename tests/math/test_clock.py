import torch

from fovea.math.clock import EpisodeClock


def test_rows_of_one_episode_follow_one_another_without_gaps():
    mask = torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    clock = EpisodeClock.of(mask, torch.tensor([4, 9, 4, 7]))
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]])
    assert clock.episode_N.tolist() == [4, 7, 9] and clock.last_row_N.tolist() == [2, 3, 1]
    packed = clock.pack(x)
    assert packed.tolist() == [[1, 3, 8], [0, 0, 0], [4, 5, 0]]
    assert clock.mask_NL.tolist() == [[True, True, True], [False, False, False], [True, True, False]]
    assert torch.equal(clock.unpack(packed), x * mask)
    assert clock.at_end(torch.tensor([5.0, 6, 7])).tolist() == [[0, 0, 5], [0, 0, 0], [0, 7, 0]]
