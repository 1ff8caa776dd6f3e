"""Hooks of MkDocs: pages that are not in docs/ as Markdown.

Files of the repository that pages link to are pages of the site, too, and notebooks are executed.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Where files from outside docs/ are in the site.
ELSEWHERE = "repository/"
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml"}
LINK = re.compile(r"\]\((?!https?:)([\w./-]+)((?:#[\w-]*)?)\)")
IN_THE_MENU = ["benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def _source(uri: str) -> Path:
    """Return the file of the repository that a page of the site is made of."""
    return ROOT / uri.removeprefix(ELSEWHERE) if uri.startswith(ELSEWHERE) else DOCS / uri


def _uri(target: Path) -> str:
    """Return where a file of the repository is in the site."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    page = f"{ELSEWHERE}{target.relative_to(ROOT).as_posix()}"
    return page if target.suffix in ("", ".md") else f"{page}.md"


def _target(uri: str, link: str) -> Path:
    """Return the file that a link of a page leads to."""
    return (_source(uri).parent / link).resolve()


def _linked(uri: str, text: str) -> set[Path]:
    """Return what the links of a page lead to."""
    return {_target(uri, link) for link, _ in LINK.findall(text)}


def _text(path: Path) -> str:
    """Return a file as a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f'# {path.relative_to(ROOT)}\n````{LANGUAGES.get(path.suffix, "text")} linenums="1"\n{text}````\n'


def _notebook(path: Path, config: Any) -> Iterator[File]:
    """Execute a notebook, and yield its page and its pictures."""
    notebook = jupytext.read(path)
    with tempfile.TemporaryDirectory() as folder:
        ExecutePreprocessor(timeout=600, extra_arguments=["--log-level=ERROR"]).preprocess(
            notebook, {"metadata": {"path": folder}}
        )
    names = {"unique_key": path.stem, "output_files_dir": path.stem}
    # A cell with this tag prints a line for each round, which nobody wants to scroll past.
    hidden = {"enabled": True, "remove_all_outputs_tags": ["remove_output"]}
    exporter = MarkdownExporter(config=Config(TagRemovePreprocessor=hidden))
    text, found = exporter.from_notebook_node(notebook, names)
    yield File.generated(config, f"notebooks/{path.stem}.md", content=text)
    for name, content in found["outputs"].items():
        yield File.generated(config, f"notebooks/{name}", content=content)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the notebooks, and the files outside docs/ that are in the menu or that pages link to."""
    for path in sorted((DOCS / "notebooks").glob("*.py")):
        for file in _notebook(path, config):
            files.append(file)
    waiting = {ROOT / path for path in IN_THE_MENU}
    for file in files.documentation_pages():
        waiting |= _linked(file.src_uri, file.content_string)
    done = set()
    while waiting := {path for path in waiting - done if path.is_file() and not path.is_relative_to(DOCS)}:
        path = min(waiting)
        done.add(path)
        text = _text(path)
        files.append(File.generated(config, _uri(path), content=text))
        waiting |= _linked(_uri(path), text) if path.suffix == ".md" else set()
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead to where their files are in the site."""
    uri = page.file.src_uri

    def replace(link: re.Match[str]) -> str:
        target = _target(uri, link[1])
        # What does not exist stays as it is, so that the build reports it.
        return f"]({os.path.relpath(_uri(target), Path(uri).parent)}{link[2]})" if target.is_file() else link[0]

    return LINK.sub(replace, markdown)
