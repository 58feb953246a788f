"""Train one stage of the emoji cascade on scenes composed as it trains.

    python recipes/emoji/train.py RECIPE.toml SPRITES_DIR

Goes on from the recipe's last checkpoint. SPRITES_DIR is what sprites.py wrote.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compose import Drawings, Scenes

from imagen_nodes.imagen_core.training.data import MakePicture
from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Whole:
    """Makes whole scenes at one side."""

    scenes: Scenes
    side: int

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        scene = self.scenes.draw(rng)
        return self.scenes.drawings.render(scene, self.side), scene.caption


@dataclass(frozen=True)
class Crops:
    """Makes square windows of scenes, at multiples of an SR stage's scale; nine in ten show something."""

    scenes: Scenes
    side: int
    crop: int
    scale: int

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        scene = self.scenes.draw(rng)
        for _ in range(4):
            left, top = (
                int(rng.integers(0, (self.side - self.crop) // self.scale + 1)) * self.scale
                for _ in range(2)
            )
            window = (left, top, self.crop, self.crop)
            picture = self.scenes.drawings.render(scene, self.side, window)
            if picture.min() != picture.max() or rng.random() < 0.1:
                break
        return picture, scene.caption


def maker(recipe: Recipe, drawings: Drawings) -> MakePicture:
    """What makes the pictures of a recipe's stage."""
    side, crop = recipe.stage.resolution, recipe.data.crop
    scenes = Scenes(drawings, large=side > 256)
    return Crops(scenes, side, crop, recipe.stage.scale) if crop else Whole(scenes, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    print(train(recipe, maker(recipe, Drawings(args.sprites))))


if __name__ == "__main__":
    main()
