"""Measures of pictures and of their features: pure functions, float64 where sums cancel.

Frechet distance, arXiv:1706.08500; kernel distance, arXiv:1801.01401.
"""

from itertools import combinations

import torch
from torch import Tensor


# (Eq. 6)
def frechet_distance(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> float:
    """Squared Frechet distance of two Gaussians.

    mean, other_mean               d
    covariance, other_covariance   d d, symmetric; may be singular

    arXiv:1706.08500, Eq. 6.
    """
    root = symmetric_root(covariance.double())
    product = root @ other_covariance.double() @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    shift = (mean.double() - other_mean.double()).square().sum()
    return float(
        shift + covariance.double().trace() + other_covariance.double().trace() - 2 * cross
    )


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix.

    matrix   d d; small negative eigenvalues count as 0
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance, float64: d and d d.

    features   n d, n at least 2
    """
    if len(features) < 2:
        raise ValueError(f"features: expected at least 2 rows, got {len(features)}")
    return features.double().mean(0), torch.cov(features.double().T).reshape(
        features.shape[1], features.shape[1]
    )


def kernel_distance(features: Tensor, other: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x·y / d + 1)^3; about 0 for equal distributions.

    features, other   n d and m d, at least 2 rows each

    arXiv:1801.01401, section 4: unlike the Frechet distance it does not depend on how many rows there are.
    """
    x, y = features.double(), other.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / x.shape[1] + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
    return float(within - 2 * kernel(x, y).mean())


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """How many entries score higher than the right one, per row: 0 = it comes first; ties count half.

    scores   n m
    right    n, which of the m is right
    """
    own = scores.gather(1, right[:, None])
    higher = (scores > own).sum(1)
    return higher + ((scores == own).sum(1) - 1) / 2


def nearest(pictures: Tensor, reference: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Root mean square distance of each picture to the nearest reference picture, and which it is.

    pictures    n ..., 0..1
    reference   m ..., of the same shape; may be uint8 (0..255)
    chunk       reference pictures at a time
    """
    flat = pictures.flatten(1).float()
    best = torch.full((len(flat),), float("inf"))
    which = torch.zeros(len(flat), dtype=torch.long)
    for first in range(0, len(reference), chunk):
        part = reference[first : first + chunk].flatten(1)
        part = part.float() / 255 if part.dtype == torch.uint8 else part.float()
        squares = flat.square().sum(1)[:, None] + part.square().sum(1) - 2 * flat @ part.T
        found, index = squares.clamp(min=0).min(1)
        which = torch.where(found < best, index + first, which)
        best = torch.minimum(best, found)
    return (best / flat.shape[1]).sqrt(), which


def pairwise_rms(pictures: Tensor) -> Tensor:
    """Root mean square distance between every two pictures: n n.

    pictures   n ...
    """
    flat = pictures.flatten(1).double()
    return (
        torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    )


def spread(pictures: Tensor) -> float:
    """Mean root mean square distance between two of the pictures; 0 where all are the same.

    pictures   n ..., n at least 2
    """
    distances = pairwise_rms(pictures)
    return float(distances.sum() / (len(pictures) * (len(pictures) - 1)))


def distinct(pictures: Tensor, apart: float) -> int:
    """Size of the largest set of the pictures of which every two are more than `apart` apart.

    pictures   n ..., n at most about 16: every set is tried
    apart      root mean square distance
    """
    far = pairwise_rms(pictures) > apart
    for size in range(len(pictures), 1, -1):
        for chosen in combinations(range(len(pictures)), size):
            if all(far[i, j] for i, j in combinations(chosen, 2)):
                return size
    return min(1, len(pictures))
