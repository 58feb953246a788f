"""Windows cover the picture; blending a local function gives the function of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_nodes.imagen_core.diffusion.tiles import Tiles, windows


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(4, 12), st.sampled_from([4, 16]))
def test_windows_cover_the_picture_on_the_grid(rows, columns, tile, multiple):
    height, width, side = rows * multiple, columns * multiple, tile * multiple
    covered = torch.zeros(height, width)
    for window in windows(height, width, side, multiple):
        assert window.top % multiple == 0 and window.left % multiple == 0
        assert window.height <= min(side, height) and window.width <= min(side, width)
        assert window.height % multiple == 0 and window.width % multiple == 0
        assert window.crop(covered).shape == (window.height, window.width)
        window.crop(covered).add_(1)
    assert covered.min() >= 1


def blend(tiles, values):
    """The weighted mean of what is computed under each window."""
    total = None
    for place, value in enumerate(values):
        total = tiles.add(total, place, value)
    return tiles.mean(total)


@pytest.mark.parametrize(
    ("tile", "shared"), [(128, 32), (256, 64), (384, 64), (512, 64), (1024, 128)]
)
def test_neighbours_share_an_eighth_and_at_least_64_pixels_or_a_quarter(tile, shared):
    found = windows(tile, 8 * tile, tile, 16)
    lefts = sorted(window.left for window in found)
    side = found[0].width
    assert side >= tile - 16
    assert max(b - a for a, b in zip(lefts, lefts[1:], strict=False)) <= side - shared + 16


def test_tiles_are_no_larger_than_their_number_needs():
    found = windows(1024, 1024, 512, 16)
    assert (len(found), found[0].height, found[0].width) == (9, 384, 384)


def test_what_tiles_compute_grows_with_the_picture_alone():
    """Of a picture of any size tiles of 512 compute as many times its pixels."""
    times = [
        sum(window.height * window.width for window in windows(length, length, 512, 16)) / length**2
        for length in (1024, 1536, 2048, 3072, 4096)
    ]
    assert max(times) < 1.35
    assert max(times) / min(times) < 1.05


@pytest.mark.parametrize("size", [(64, 96), (48, 64)])
def test_blend_of_a_pointwise_function_is_that_function(size):
    x = torch.randn(2, 3, *size)
    tiles = Tiles(windows(*size, 32, 8))
    result = blend(tiles, [window.crop(x) ** 2 for window in tiles.windows])
    assert torch.allclose(result, x**2, atol=1e-5)


def test_blend_hides_a_jump_between_windows():
    tiles = Tiles(windows(32, 128, 32, 8))
    result = blend(
        tiles, [torch.full((1, 1, w.height, w.width), float(w.left)) for w in tiles.windows]
    )
    assert result.diff(dim=-1).abs().max() < 24 / 2, "a hard edge would jump by a whole tile step"
