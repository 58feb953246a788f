"""Progress bars on standard error."""

import sys
from typing import Any

from ..graph import Node


class Bar:
    """The progress of one node.

    node     its title is the bar's
    stream   to write to; None = nothing is shown
    """

    def __init__(self, node: Node, stream: Any = sys.stderr):
        self.node, self.stream, self.bar = node, stream, None

    def on_step(self, step: int, num_steps: int, x0: Any = None) -> None:
        """Move the bar; it appears with the first step.

        step, num_steps   done, and to do in all
        x0                the picture so far; not shown
        """
        if self.stream is None:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=num_steps, desc=self.node.title, file=self.stream)
        self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
