"""Brackets in prompts that belong together; one after a backslash is an ordinary character."""

import re


def pairs(prompt: str, kind: str) -> dict[int, int]:
    """Where each bracket that has a partner opens, and where it closes.

    kind   both characters, such as "()"
    """
    opened: list[int] = []
    found: dict[int, int] = {}
    for match in re.finditer(rf"\\[{re.escape(kind)}]|[{re.escape(kind)}]", prompt):
        if match[0] == kind[0]:
            opened.append(match.start())
        elif match[0] == kind[1] and opened:
            found[opened.pop()] = match.start()
    return found
