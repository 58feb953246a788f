"""Writes what ComfyUI's real frontend queues for each example workflow and the blueprint: goldens of a test.

    COMFYUI_DIR=… COMFYUI_FRONTEND=… python tools/frontend_goldens.py [NAME ...]

Of all, or of those that are named. See tools/browser.py for what it needs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import browser

OUT = browser.ROOT / "tests" / "headless" / "golden" / "examples"
FILES = sorted((browser.ROOT / "example_workflows").glob("*.json"))
FILES += sorted((browser.ROOT / "subgraphs").glob("*.json"))


def queued(page: Any) -> dict[str, Any]:
    """The open graph in the API format, as the frontend would queue it, without titles.

    page   from `browser`
    """
    made = page.evaluate("() => window.app.graphToPrompt().then(made => made.output)")
    return {
        key: {name: node[name] for name in ("class_type", "inputs")} for key, node in made.items()
    }


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with browser.running() as server, browser.browser(server) as page:
        for path in FILES:
            if sys.argv[1:] and path.stem not in sys.argv[1:]:
                continue
            browser.load(page, json.loads(path.read_text("utf-8")))
            text = json.dumps(queued(page), indent=1, ensure_ascii=False)
            (OUT / path.name).write_text(text + "\n", "utf-8")
            print(OUT / path.name)


if __name__ == "__main__":
    main()
