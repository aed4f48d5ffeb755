"""HTML pages that need no other file and no network: tables, pictures, sections."""

import base64
import html
from collections.abc import Sequence
from typing import Any


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """An HTML table of escaped cells; `headings` may be empty, `kind` is a CSS class or "".

    A cell that is a `Verdict` is coloured.
    """
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="table {kind}"><table>{top}<tbody>\n{body}</tbody></table></div>'


class Verdict(str):
    """A word that is green if `good` and red otherwise."""

    __slots__ = ("good",)
    good: bool

    def __new__(cls, word: str, good: bool) -> "Verdict":
        verdict = str.__new__(cls, word)
        verdict.good = good
        return verdict

    def html(self) -> str:
        """The word with its colour."""
        return f'<b class="{"good" if self.good else "bad"}">{html.escape(self)}</b>'


def _cell(value):
    if isinstance(value, Verdict):
        return f"<td>{value.html()}</td>"
    return f"<td>{html.escape(str(value))}</td>"


def picture(name: str, png: bytes, caption: str = "", narrow: bytes | None = None) -> str:
    """A PNG inside the page; `caption` is HTML.

    `narrow`: the same picture in another layout, shown in a narrow window. Without it, a narrow
    window scrolls the picture, so that its text stays readable.
    """
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    image = f'<img alt="{html.escape(name)}" src="{_as_source(png)}">'
    if narrow is not None:
        source = f'<source media="(max-width: 40rem)" srcset="{_as_source(narrow)}">'
        image = f"<picture>{source}{image}</picture>"
    return f"<figure>{image}{below}</figure>"


def _as_source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def page(title: str, body: str, navigation: Sequence[tuple[str, str]] = ()) -> str:
    """A whole page; `navigation`: links (anchor, words), in a wide window beside the text."""
    links = "".join(
        f'<li><a href="#{html.escape(anchor)}">{html.escape(words)}</a></li>'
        for anchor, words in navigation
    )
    nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if links else ""
    return _PAGE.format(title=html.escape(title), nav=nav, body=body)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; padding: 0 1rem;
       max-width: 58rem; background: #fff; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }}
h2 {{ font-size: 1.25rem; margin-top: 3rem; padding-top: .8rem; border-top: 2px solid #0072b2; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; }}
a {{ color: #005a8e; }} .good {{ color: #00694e; }} .bad {{ color: #b3261e; }}
.quiet {{ color: #666; }}
.table {{ overflow-x: auto; margin: .6rem 0; }}
table {{ border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }}
th {{ border-bottom-color: #888; font-weight: 600; white-space: nowrap; }}
.claims table {{ width: 100%; }} .claims td:nth-child(4) {{ white-space: nowrap; }}
.claims td {{ min-width: 6rem; }}
@media (max-width: 45rem) {{ .overview :is(td, th):nth-child(2) {{ display: none; }} }}
pre, code {{ background: #f6f6f4; font-size: .9em; }}
pre {{ padding: .7rem; overflow-x: auto; }} code {{ padding: .1rem .3rem; }}
figure {{ margin: 1.4rem 0; }} img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ font-size: .9em; color: #444; margin-top: .4rem; }}
summary {{ cursor: pointer; padding: .15rem 0; }}
nav ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }}
nav a {{ text-decoration: none; }} nav a:hover {{ text-decoration: underline; }}
@media (min-width: 80rem) {{
  body:has(nav) {{ padding-left: 16rem; max-width: 60rem; }}
  nav {{ position: fixed; top: 2rem; width: 13rem; margin-left: -15rem; }}
  nav ul {{ display: block; }} nav li {{ padding: .25rem 0; }}
}}
@media (max-width: 40rem) {{
  td, th {{ padding-right: .5rem; }} th {{ white-space: normal; }} .table {{ font-size: .9em; }}
  .claims :is(table, tbody, tr, td) {{ display: block; }} .claims thead {{ display: none; }}
  .claims tr {{ border-bottom: 1px solid #8888; padding: .4rem 0; }}
  .claims td {{ border: 0; padding: .1rem 0; }} .claims td:first-child {{ font-weight: 600; }}
  .claims td:nth-child(2)::before {{ content: "the paper: "; }}
  .claims td:nth-child(3)::before {{ content: "here: "; }}
  figure {{ overflow-x: auto; }} figure > img {{ max-width: none; width: 40rem; }}
}}
@media (prefers-color-scheme: dark) {{
  body {{ color: #ddd; background: #16181c; }} h2 {{ border-top-color: #4a9bd1; }}
  a {{ color: #7cc4f0; }} .good {{ color: #5fd3a8; }} .bad {{ color: #ff8a80; }}
  .quiet, figcaption {{ color: #aaa; }} td, th {{ border-bottom-color: #3a3d42; }}
  pre, code {{ background: #24272c; }}
  img {{ background: #fff; border-radius: 4px; filter: brightness(.9); }}
}}
@media print {{ nav {{ display: none; }} figure {{ break-inside: avoid; }} }}
</style></head><body>
<h1>{title}</h1>
{nav}
{body}
</body></html>
"""
