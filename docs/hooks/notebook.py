"""Execute a notebook that is a Python file with `# %%` cells, and write it with its output as a page.

    python docs/hooks/notebook.py docs/notebook.py OUT

Jupyter (with jupytext), VS Code and PyCharm open such a file as a notebook. Figures that a cell leaves open follow the cell.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main(source: Path, out: Path) -> None:
    """Execute a notebook in an empty directory and write its page and its figures."""
    cells = re.split(r"^# %%(.*)\n", source.read_text(), flags=re.MULTILINE)[1:]
    names: dict[str, Any] = {"__name__": "__main__"}
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for number, (kind, text) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
            if "markdown" in kind:
                parts.append(re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip())
            else:
                parts += _execute(text.strip(), f"{source.name}, cell {number}", names, out)
    (out / f"{source.stem}.md").write_text("\n\n".join(parts) + "\n")


def _execute(code: str, where: str, names: dict[str, Any], out: Path) -> Iterator[str]:
    """Give the code, what it prints, and its figures, as Markdown."""
    yield f"```python\n{code}\n```"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, where, "exec"), names)
    if printed.getvalue():
        yield f"```text\n{printed.getvalue().rstrip()}\n```"
    for number in plt.get_fignums():
        figure = out / f"notebook-{len(list(out.glob('*.png')))}.png"
        plt.figure(number).savefig(figure, dpi=90, bbox_inches="tight")
        plt.close(number)
        yield f"![Figure made by the code above]({figure.name})"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
