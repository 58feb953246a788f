"""mkdocs' hook: pages that lie outside docs/, and links between all of them as the website has them.

`make docs` runs it. GitHub and the website show the same files, so links are written as paths of the
repository; a link to something that is no page leads to the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "imagen_core/pretrained/emoji/MODEL_CARD.md": "bundled.md",
    "recipes/emoji/README.md": "training.md",
}
LINK = re.compile(r"(?<=\]\()([^)#\s]*)(#[^)]*)?(?=\))")


def places() -> dict[str, str]:
    """Where each file of the repository that is shown lies on the website."""
    help_pages = sorted([*ROOT.glob("web/docs/*.md"), *ROOT.glob("web/docs/*.png")])
    own = [path for path in sorted((ROOT / "docs").iterdir()) if path.is_file()]
    return {
        **{f"docs/{path.name}": path.name for path in own},
        **{f"web/docs/{path.name}": f"nodes/{path.name}" for path in help_pages},
        **PAGES,
    }


def by_title(folder: str, prefix: str) -> list[dict[str, str]]:
    """Menu entries for the pages of a folder, in the order of their titles, which are their first lines."""
    pages = sorted(ROOT.glob(f"{folder}/*.md"))
    titles = [page.read_text("utf-8").split("\n")[0].lstrip("# ") for page in pages]
    entries = [{title: prefix + page.name} for title, page in zip(titles, pages, strict=True)]
    return sorted(entries, key=lambda entry: next(iter(entry)))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the menu: pages of docs/ that it does not name, and the nodes' pages."""
    nav = config.nav or []
    named = {page for entry in nav for page in entry.values() if isinstance(page, str)}
    others = [entry for entry in by_title("docs", "") if not named & set(entry.values())]
    nodes = next(entry for entry in nav if "Nodes" in entry)
    nodes["Nodes"] = by_title("web/docs", "nodes/")
    place = nav.index(nodes)
    nav[place:place] = others
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    for source, page in places().items():
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the website has them."""
    known = places()
    here = next(source for source, place in known.items() if place == page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path in known:
            folder = posixpath.dirname(page.file.src_uri) or "."
            return posixpath.relpath(known[path], folder) + anchor
        if not (ROOT / path).exists():
            return match[0]  # mkdocs says that it leads nowhere
        return f"{config.repo_url}/blob/main/{path}{anchor}"

    return LINK.sub(moved, markdown)
