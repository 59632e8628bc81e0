"""A self-contained HTML page: a title, a lead, and sections of text and figures."""

from collections.abc import Sequence
from dataclasses import dataclass

_CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; color: light-dark(#1b1f24, #e3e6ea);
       background: light-dark(#fff, #15181c); }
main { max-width: 1040px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p, ul { max-width: 46rem; } .lead { font-size: 1.08rem; } svg { width: 100%; height: auto; font-family: inherit; }
figure { margin: 1rem 0; } figcaption { font-size: .88rem; opacity: .8; max-width: 52rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid light-dark(#d9dde2, #353b43); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.note { border-left: 3px solid #3f90da; padding: .1rem 0 .1rem .9rem; max-width: 45rem; }
code { font-size: .92em; } .scroll { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Section:
    """Hold a heading, paragraphs of HTML, and figures with their captions."""

    heading: str
    paragraphs: Sequence[str]
    figures: Sequence[tuple[str, str]] = ()


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the page; nothing in it is loaded from elsewhere."""
    body = f"<h1>{title}</h1>" + "".join(f'<p class="lead">{paragraph}</p>' for paragraph in lead)
    for section in sections:
        body += f"<h2>{section.heading}</h2>" + "".join(_block(paragraph) for paragraph in section.paragraphs)
        body += "".join(map(_figure, section.figures))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} - paretrain</title><style>{_CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: tuple[str, str]) -> str:
    svg, words = figure
    return f"<figure>{svg}{words and f'<figcaption>{words}</figcaption>'}</figure>"


def _block(html: str) -> str:
    return html if html.startswith(("<div", "<ul", "<p")) else f"<p>{html}</p>"
