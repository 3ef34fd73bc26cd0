"""The parts of a report: an HTML page that needs no other file, its tables and figures, and the files on disk."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from crmuons.storage.atomic import write_text

PAGE_FILE, FIGURES_DIRECTORY = "report.html", "figures"


def write(out: Path, images: Mapping[str, bytes], json_file: str, content: Mapping[str, object], page: str) -> None:
    """Write a report: its numbers as JSON, report.html, and figures/*.png.

    Raises:
        OSError: if a file cannot be written.
    """
    (out / FIGURES_DIRECTORY).mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (out / FIGURES_DIRECTORY / f"{name}.png").write_bytes(image)
    write_text(out / json_file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    write_text(out / PAGE_FILE, page)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def document(title: str, body: str) -> str:
    """Return a page with this body."""
    title = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def definitions(about: Mapping[str, object]) -> str:
    """Return names and values as a list."""
    texts = {key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in about.items()}
    entries = (
        f"<dt>{html.escape(key.replace('_', ' '))}</dt><dd>{html.escape(text)}</dd>" for key, text in texts.items()
    )
    return f"<dl>{''.join(entries)}</dl>"


def warning_list(warnings: Sequence[str]) -> str:
    """Return the section of the warnings; empty if there are none."""
    lines = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f"<h2>Warnings</h2><ul class='warnings'>{lines}</ul>" if warnings else ""


def figures(images: Mapping[str, bytes], captions: Mapping[str, str], *names: str) -> str:
    """Return some of the figures, each with its caption."""
    return "".join(
        f"<figure><img alt='{html.escape(captions[name])}' "
        f"src='data:image/png;base64,{base64.b64encode(images[name]).decode()}'>"
        f"<figcaption>{html.escape(captions[name])}</figcaption></figure>"
        for name in names
    )


def td(text: str, kind: str = "") -> str:
    """Return a cell of a table; `kind` is a class of the style."""
    return f"<td class='{kind}'>{text}</td>" if kind else f"<td>{text}</td>"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table of rows, which are cells that `td` made."""
    header = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
p { max-width: 60em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; } dt { color: #666; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th { border-bottom: 2px solid #999; }
th:first-child, td.name { text-align: left; white-space: normal; } td.name { min-width: 13em; }
td.absent { color: #999; text-decoration: underline dotted; cursor: help; } ul.absent { color: #666; font-size: .92em; }
.good { background: #d9f0d9; } .fair { background: #fdf3cd; } .bad { background: #f8d7d3; }
.warnings { background: #fdf3cd; padding: .7em 2em; }
summary { cursor: pointer; padding: .2em 0; } details[open] { margin-bottom: 1em; }
figure { margin: 1.6em 0; } img { max-width: 100%; } figcaption { color: #555; max-width: 60em; } small { color: #666; }
"""
