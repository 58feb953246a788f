"""Image analysis on pictures whose content is known."""

import pytest
import torch

from imagen_nodes.imagen_core.evaluation import scenes


def picture(ground, *things):
    """Squares of a colour on a ground: each (rgb, top, left, side)."""
    drawn = torch.tensor(ground).expand(64, 64, 3).clone()
    for colour, top, left, side in things:
        drawn[top : top + side, left : left + side] = torch.tensor(colour)
    return drawn


WHITE, BLUE, RED, GREY = (1.0, 1.0, 1.0), (0.2, 0.45, 0.9), (0.85, 0.15, 0.15), (0.6, 0.6, 0.6)
PURPLE = (0.55, 0.2, 0.7)


def test_oklab_of_known_colours():
    assert scenes.to_oklab(torch.tensor(WHITE)).tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    red = scenes.to_oklab(torch.tensor([1.0, 0.0, 0.0])).tolist()
    assert red == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


@pytest.mark.parametrize(
    ("rgb", "word"),
    [(WHITE, "white"), (BLUE, "blue"), (RED, "red"), (GREY, "gray"), ((0.02, 0.02, 0.02), "black")],
)
def test_the_ground_is_what_the_border_shows(rgb, word):
    assert scenes.ground_colour(picture(rgb, (PURPLE, 8, 8, 48))) == word


def test_the_colour_is_that_of_the_thing_not_of_the_ground():
    drawn = picture(BLUE, (PURPLE, 16, 16, 32), ((0.1, 0.1, 0.1), 20, 20, 6))
    assert scenes.thing_colour(drawn) == "purple"
    assert scenes.thing_colour(picture(WHITE, (GREY, 16, 16, 32))) is None
    assert scenes.thing_colour(picture(WHITE)) is None


def test_things_are_counted_where_they_do_not_touch():
    one, two = (RED, 4, 4, 20), (RED, 36, 4, 20)
    assert scenes.count_things(picture(WHITE)) == 0
    assert scenes.count_things(picture(WHITE, one)) == 1
    assert scenes.count_things(picture(BLUE, one, two)) == 2
    assert scenes.count_things(picture(WHITE, one, two, (RED, 20, 40, 18))) == 3
    assert scenes.count_things(picture(WHITE, one, (RED, 50, 50, 2))) == 1, "a speck is no thing"
    assert scenes.count_things(picture(WHITE, one, (RED, 24, 10, 12))) == 1, (
        "touching parts are one"
    )


def test_components_of_a_spiral():
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[0, :] = mask[:, 6] = mask[6, :] = True
    mask[2:7, 0] = mask[2, 0:5] = mask[2:5, 4] = True
    mask[4, 2] = True
    assert scenes.components(mask).tolist() == [int(mask.sum()) - 1, 1]
