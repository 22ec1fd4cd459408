"""The worked examples of a page: files that it shows whole, each below its path."""

import re
from pathlib import Path

EXAMPLE = re.compile(r"`((?:src|conf)/[\w/.]+)`:\n\n```\w+\n(.*?)```", flags=re.DOTALL)


def put_examples(page: Path, folder: Path) -> int:
    """Write the files where the page says, and count them."""
    found = EXAMPLE.findall(page.read_text(encoding="utf-8"))
    for path, content in found:
        (folder / path).write_text(content)
    return len(found)
