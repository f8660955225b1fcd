"""A hook of MkDocs: pages of the site that lie outside docs/, and the links to and from them.

The files stay where a code host shows them, with links that work there. The site gets them under other names.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# In the repository: in the site.
OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "data/README.md": "data_folders.md"}
INSIDE = {page: file for file, page in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()([\w./-]+\.(?:md|png))(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for file, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(root / file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]  # its list of pages is in its text
    folder = posixpath.dirname(INSIDE.get(uri, f"docs/{uri}"))

    def moved(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, link[0]))
        target = OUTSIDE.get(file, file.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(moved, markdown)
