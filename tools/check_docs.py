"""Checks the documentation: links lead somewhere, and examples are at least well formed.

In every Markdown file of the project: a relative link names a file that exists, and a heading of it if it has a
fragment; fenced `toml` and `json` parse; fenced `python` compiles, and runs as a doctest if it shows a prompt.
Links to other sites are not followed, so that a check needs no network.
"""

from __future__ import annotations

import doctest
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_file", "main"]

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`\n]*`")


class Example(NamedTuple):
    line: int
    language: str
    body: str


def documents() -> list[Path]:
    """Every Markdown file, those of the plugins included."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
    return sorted([*found, *ROOT.glob("benchmarks/*.md")])


def examples(text: str) -> Iterator[Example]:
    """The fenced blocks, without the indentation of their fence."""
    for match in FENCE.finditer(text):
        body = re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        yield Example(text.count("\n", 0, match.start()) + 2, match["language"], body)


def anchors(text: str) -> set[str]:
    """The fragments by which the headings are reached, made as the usual renderers make them."""
    names = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", text)))
    return {name.strip().replace(" ", "-") for name in names}


def link_faults(path: Path, text: str) -> Iterator[str]:
    """Relative links that lead nowhere."""
    for link in LINK.findall(CODE_SPAN.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            yield f"link to {link}: no such file"
        elif fragment and fragment not in anchors(target.read_text()):
            yield f"link to {link}: no such heading"


def example_fault(example: Example, name: str) -> str | None:
    """What is wrong with one example, or None."""
    try:
        if example.language == "toml":
            tomllib.loads(example.body)
        elif example.language == "json":
            json.loads(example.body)
        elif example.language == "python" and ">>>" in example.body:
            parsed = doctest.DocTestParser().get_doctest(example.body, {}, name, name, example.line)
            runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
            if runner.run(parsed).failed:
                return "the output is not as shown"
        elif example.language == "python":
            compile(example.body, name, "exec")
    except (ValueError, SyntaxError) as error:
        return f"{example.language}: {error}"
    return None


def check_file(path: Path) -> list[str]:
    """The faults of one document, each with where it is."""
    text = path.read_text()
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    faults = [f"{name}: {fault}" for fault in link_faults(path, text)]
    for example in examples(text):
        if fault := example_fault(example, name):
            faults.append(f"{name}:{example.line}: {fault}")
    return faults


def main() -> int:
    paths = documents()
    faults = [fault for path in paths for fault in check_file(path)]
    print("\n".join([*faults, f"{len(paths)} documents, {len(faults)} faults"]))
    return 1 if faults or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
