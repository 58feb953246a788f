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

from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import load_recipe


@dataclass(frozen=True)
class Whole:
    """Makes whole scenes at one side."""

    scenes: Scenes
    side: int

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        scene = self.scenes.draw(rng)
        return self.scenes.drawings.render(scene, self.side), scene.caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    scenes = Scenes(Drawings(args.sprites))
    print(train(recipe, Whole(scenes, recipe.stage.resolution)))


if __name__ == "__main__":
    main()
