"""The check of the documentation finds what a reader would stumble over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_docs import check_file

GOOD = """# A page

See [below](#the-2nd-part), [another](other.md#its-heading "title") and [elsewhere](https://example.com/x).
Code such as `a[0](b)` is no link.

## The 2nd part!

```python
>>> 1 + 1
2
```
- in a list:
  ```toml
  [storage]
  use = "lmdb"
  ```
```console
$ [no](link)
```
"""


def check(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "other.md").write_text("# Its heading\n")
    page = tmp_path / "page.md"
    page.write_text(text)
    return check_file(page)


def test_good_page_passes(tmp_path: Path) -> None:
    """Links, headings and examples that hold are no faults."""
    assert check(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[x](gone.md)", "page.md: link to gone.md: no such file"),
        ("[x](other.md#gone)", "page.md: link to other.md#gone: no such heading"),
        ("[x](#gone)", "page.md: link to #gone: no such heading"),
        ("\n```toml\n[a\n```\n", "page.md:3: toml: "),
        ("```json\n{'a': 1}\n```\n", "page.md:2: json: "),
        ("```python\ndef f(:\n```\n", "page.md:2: python: "),
        ("```python\n>>> 1 + 1\n3\n```\n", "page.md:2: the output is not as shown"),
    ],
)
def test_fault_is_named_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    """Each kind of fault is found, and the line of an example is told."""
    (found,) = check(tmp_path, text)
    assert found.startswith(fault)
