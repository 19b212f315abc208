"""The guides of docs/, shown by the daemon itself with its own address in the samples.

As much of Markdown as they are written in: headings, paragraphs, lists, tables, fenced code,
`code`, **bold**, *emphasis* and links. They are ours, so nothing in them is hostile.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

from vellumd import errors

HERE = Path(__file__).parent
FOLDERS = (HERE / "guides", HERE.parents[1] / "docs")
"""Where they are: in the wheel, in a checkout."""
GUIDES = {
    "http": "curl, Python, JavaScript, Node-RED",
    "webhooks": "Webhooks",
    "mqtt": "MQTT and Node-RED",
    "hotfolder": "Hot folders",
    "queue": "Queue servers",
    "errors": "Errors",
}
"""Those that are shown, and what a link to each says."""
WRITTEN = "http://127.0.0.1:8200"
"""The address as the guides write it."""

_BLOCK = re.compile(
    r"^ *```(?P<language>\w*)\n(?P<code>(?s:.*?))^ *```$|^(?P<level>#{1,3}) (?P<heading>.+)$"
    r"|^(?P<table>\|.+(?:\n\|.+)*)|^(?P<list>- .+(?:\n(?:- |  ).+)*)|^(?P<comment><!--(?s:.*?)-->)$"
    r"|^ {0,3}(?P<text>\S.*(?:\n(?! *```|#|\||- |\d+\. ) {0,3}\S.*)*)",
    re.MULTILINE,
)
"""A block of a numbered list is indented; its number stays as it is written."""
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<emphasis>[^*\s][^*]*)\*"
    r"|!?\[(?P<shown>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)]+)\)"
)


def read(name: str) -> str:
    """The text of a guide; raises `NotFound` for one that is not shown. Blocks."""
    if name not in GUIDES:
        raise errors.NotFound("There is no such guide.")
    files = (folder / f"{name}.md" for folder in FOLDERS)
    return next(file for file in files if file.is_file()).read_text("utf-8")


def page(text: str, address: str) -> str:
    """A guide as HTML, with `address` in its samples."""
    title = text.partition("\n")[0].removeprefix("# ")
    body = "\n".join(_blocks(text.replace(WRITTEN, address)))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>vellumd: {escape(title)}</title>\n"
        '<link rel="stylesheet" href="/static/guide.css">\n'
        f"{menu()}\n<main>\n{body}\n</main>\n</html>\n"
    )


def menu() -> str:
    """Links to all guides."""
    links = [f'<a href="/docs/{name}">{escape(shown)}</a>' for name, shown in GUIDES.items()]
    return f'<nav><a href="/">vellumd</a> <a href="/docs">All routes</a> {" ".join(links)}</nav>'


def _blocks(text: str) -> Iterator[str]:
    for found in _BLOCK.finditer(text):
        if found["code"] is not None:
            code = textwrap.dedent(found["code"]) if found[0][0] == " " else found["code"]
            yield f"<pre><code>{escape(code, quote=False)}</code></pre>"
        elif found["heading"]:
            level, id = (
                len(found["level"]),
                re.sub(r"\W+", "-", found["heading"].lower()).strip("-"),
            )
            yield f'<h{level} id="{id}">{_inline(found["heading"])}</h{level}>'
        elif found["table"]:
            yield _table(found["table"].splitlines())
        elif found["list"]:
            items = re.split(r"^- ", found["list"], flags=re.MULTILINE)[1:]
            yield f"<ul>{''.join(f'<li>{_inline(item)}' for item in items)}</ul>"
        elif found["text"]:
            yield f"<p>{_inline(found['text'])}</p>"


def _table(lines: list[str]) -> str:
    """The first line names the columns, the second only draws."""
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]

    def row(cells: list[str], kind: str) -> str:
        shown = (_inline(cell.strip().replace("\\|", "|")) for cell in cells)
        return f"<tr>{''.join(f'<{kind}>{one}' for one in shown)}"

    return f"<table>{row(rows[0], 'th')}{''.join(row(one, 'td') for one in rows[2:])}</table>"


def _inline(text: str) -> str:
    shown, at = [], 0
    for found in _INLINE.finditer(text):
        shown += [escape(text[at : found.start()], quote=False), _span(found)]
        at = found.end()
    return "".join([*shown, escape(text[at:], quote=False)])


def _span(found: re.Match[str]) -> str:
    if found["code"]:
        return f"<code>{escape(found['code'], quote=False)}</code>"
    if found["bold"]:
        return f"<strong>{_inline(found['bold'])}</strong>"
    if found["emphasis"]:
        return f"<em>{_inline(found['emphasis'])}</em>"
    return _link(found["shown"], found["target"])


def _link(shown: str, target: str) -> str:
    """A link to what the daemon has or what is elsewhere; of other files only the words."""
    name, _, fragment = target.partition("#")
    guide = name.removesuffix(".md")
    if guide in GUIDES:
        target = f"/docs/{guide}" + (f"#{fragment}" if fragment else "")
        shown = GUIDES[guide] if shown == name else shown
    elif "://" not in target:
        return _inline(shown)
    return f'<a href="{escape(target)}">{_inline(shown)}</a>'
