"""Writes locales/en from what the nodes declare, and adds to locales/zh what is missing there, in English.

python tools/locales.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagen_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

OUT = Path(__file__).parent.parent / "locales"
COMMANDS = {"Imagen_NewCascade": {"label": "Imagen: new cascade"}}
MAIN = {
    "nodeCategories": {"imagen": "Imagen"},
    "dataTypes": {
        "IMAGEN_TEXT_ENCODER": "Imagen text encoder",
        "IMAGEN_TEXT": "Imagen text",
        "IMAGEN_STAGE": "Imagen stage",
        "IMAGEN_GUIDANCE": "Imagen guidance",
        "IMAGEN_LORA": "Imagen LoRA",
        "IMAGEN_CROP": "Imagen crop",
        "IMAGEN_DATASET": "Imagen dataset",
    },
    "menuLabels": {"Imagen": "Imagen"},
}


def node_texts() -> dict[str, Any]:
    """Every text of every node, in the shape that ComfyUI reads."""
    texts = {}
    for node_id, cls in NODE_CLASS_MAPPINGS.items():
        inputs = {}
        for group, entries in cls.INPUT_TYPES().items():
            if group == "hidden":
                continue
            for name, spec in entries.items():
                tooltip = spec[1].get("tooltip") if len(spec) > 1 else None
                inputs[name] = {"name": name} | ({"tooltip": tooltip} if tooltip else {})
        outputs = {
            str(i): {"name": name, "tooltip": tip}
            for i, (name, tip) in enumerate(zip(cls.RETURN_NAMES, cls.OUTPUT_TOOLTIPS, strict=True))
        }
        texts[node_id] = {
            "display_name": NODE_DISPLAY_NAME_MAPPINGS[node_id],
            "description": cls.DESCRIPTION,
            "inputs": inputs,
            **({"outputs": outputs} if outputs else {}),
        }
    return texts


def completed(known: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What is wanted, with the known texts in it.

    known    translated as far as it goes
    wanted   in English
    """
    return {
        key: completed(known.get(key, {}), value)
        if isinstance(value, dict)
        else known.get(key, value)
        for key, value in wanted.items()
    }


def main() -> None:
    for name, texts in (("nodeDefs", node_texts()), ("commands", COMMANDS), ("main", MAIN)):
        write(OUT / "en" / f"{name}.json", texts)
        path = OUT / "zh" / f"{name}.json"
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        write(path, completed(known, texts))


def write(path: Path, data: dict[str, Any]) -> None:
    """JSON, one space, newline at the end.

    data   texts
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
