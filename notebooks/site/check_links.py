"""Every link of the built site that stays in it leads to a file, and to an anchor in it.

``python notebooks/site/check_links.py build/site``
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.addresses.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead(folder: Path) -> list[str]:
    """What is wrong, one line for each link."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.html")
        if "_static" not in path.parts
    }
    wrong = [] if pages else [f"no page in {folder}"]
    for path, page in pages.items():
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                wrong.append(f"{path.relative_to(folder.resolve())}: {address} is dead")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{path.relative_to(folder.resolve())}: {address} has no such anchor")
    return wrong


if __name__ == "__main__":
    wrong = dead(Path(sys.argv[1]))
    print("\n".join(wrong) or "every link within the site leads somewhere", file=sys.stderr if wrong else sys.stdout)
    sys.exit(bool(wrong))
