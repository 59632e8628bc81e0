"""The frame of a page: its head with the style sheet, and sections of drawings with their captions and legends."""

from collections.abc import Iterable
from pathlib import Path

from trainer.errors import UserError
from trainer.observe.report.panels import Legend, Panel
from trainer.observe.report.style import CSS
from trainer.observe.report.tables import text


def refuse_no_page(out: Path) -> None:
    """Refuse a path of another kind of file, such as a configuration, which the page would replace.

    Raises:
        UserError: it does not end in .html.
    """
    if out.suffix != ".html":
        raise UserError(f"--out {out}: expected a file name that ends in .html")


def document(title: str, body: str) -> str:
    """Return a page that needs no network and no script; `title` and `body` are HTML."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} - paretrain</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, explanation: str, panels: Iterable[Panel], legend: Legend = ()) -> str:
    """Return a heading, an explanation and drawings; nothing where there are no drawings."""
    drawn = "".join(
        f'<figure class="{panel.size}"><figcaption>{text(panel.caption)}</figcaption>'
        f'{_legend_list(panel.legend)}<div class="scroll">{panel.svg}</div></figure>'
        for panel in panels
    )
    if not drawn:
        return ""
    explained = f"<p>{explanation}</p>" if explanation else ""
    return f'<h2>{title}</h2>{explained}{_legend_list(legend)}<div class="panels">{drawn}</div>'


def _legend_list(legend: Legend) -> str:
    entries = "".join(f'<li><i style="background:{colour}"></i>{text(name)}</li>' for name, colour in legend)
    return f'<ul class="legend">{entries}</ul>' if entries else ""
