"""Measures against their closed forms."""

import math

import pytest
import torch

from imagen_nodes.imagen_core.evaluation import measures


def test_frechet_distance_of_gaussians_is_the_closed_form():
    mean, other = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 2.0, 2.0])
    a, b = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 1.0, 4.0])
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    # Of commuting covariances: |m - m'|^2 + sum (sqrt a - sqrt b)^2 = 5 + 1 + 0 + 1.
    found = measures.frechet_distance(
        mean @ turn.T, turn @ a.diag() @ turn.T, other @ turn.T, turn @ b.diag() @ turn.T
    )
    assert found == pytest.approx(7, abs=1e-5)


def test_frechet_distance_takes_singular_covariances():
    flat = torch.zeros(2, 2)
    flat[0, 0] = 4
    assert measures.frechet_distance(torch.zeros(2), flat, torch.zeros(2), flat) == pytest.approx(0)
    assert measures.frechet_distance(
        torch.zeros(2), flat, torch.zeros(2), torch.eye(2)
    ) == pytest.approx(1 + 1)


def test_moments_are_those_of_the_rows():
    mean, covariance = measures.moments(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert mean.tolist() == [1, 3]
    assert covariance.tolist() == [[2, 4], [4, 8]]
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        measures.moments(torch.zeros(1, 2))


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 8, generator=generator), torch.randn(300, 8, generator=generator)
    same = [
        measures.kernel_distance(
            torch.randn(50, 8, generator=generator), torch.randn(60, 8, generator=generator)
        )
        for _ in range(50)
    ]
    assert abs(sum(same) / 50) < 0.02
    assert min(same) < 0 < max(same)
    # For x of mean 0 and y shifted by s along one axis the kernel's first moment alone gives 3 s^2 / d.
    assert measures.kernel_distance(x, y + 1) > 1.0


def test_kernel_distance_of_four_points():
    x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]])
    # k(x, x') = 1, k(y, y') = 8, k(x, y) = 1
    assert measures.kernel_distance(x, y) == pytest.approx(1 + 8 - 2)


def test_ranks_count_what_scores_higher():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]])
    assert measures.ranks(scores, torch.tensor([2, 0])).tolist() == [1, 0.5]


def test_nearest_finds_the_copy_in_any_chunk():
    generator = torch.Generator().manual_seed(0)
    reference = (torch.rand(10, 4, 4, 3, generator=generator) * 255).to(torch.uint8)
    pictures = reference[[7, 2]].float() / 255
    pictures[1] += 0.1
    distances, which = measures.nearest(pictures, reference, chunk=3)
    assert which.tolist() == [7, 2]
    assert distances.tolist() == pytest.approx([0, 0.1], abs=1e-3)


def test_spread_and_distinct():
    levels = torch.tensor([0.0, 0.0, 0.5, 1.0])
    pictures = levels[:, None, None, None].expand(-1, 2, 2, 3)
    # The pairs: 0, 0.5, 1, 0.5, 1, 0.5.
    assert measures.spread(pictures) == pytest.approx(3.5 / 6)
    assert measures.spread(pictures[:2]) == 0
    assert measures.distinct(pictures, 0.4) == 3
    assert measures.distinct(pictures, 0.6) == 2
    assert measures.distinct(pictures, 2.0) == 1
    assert math.isclose(measures.pairwise_rms(pictures)[0, 3], 1)
