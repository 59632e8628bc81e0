"""The report's picture of predictions: test images, and below each the labels and predictions as colours.

Shapes: S samples, H rows, W columns, C channels; 4 is red, green, blue and opacity.
"""

import numpy as np

from trainer.observe.predictions import Maps, Predictions
from trainer.observe.report.svg import PAGE_WIDTH, canvas, label

GAP = 0.04
"""Space between tiles, relative to their height."""
TITLE_INCHES = 1.1
MAX_LETTERS = 20


def draw(shown: Predictions) -> str:
    """Draw one column per sample: the image, then label and prediction of each task, blank without a label."""
    rows = [("image", _opaque(shown.images_SHWC))]
    for maps in shown.maps:
        rows += zip((f"{label(maps.task, MAX_LETTERS)}\nlabel", "prediction"), coloured(maps), strict=True)
    num_samples, height, width = shown.images_SHWC.shape[:3]
    gap = max(round(GAP * height), 1)
    tile_inches = (PAGE_WIDTH - TITLE_INCHES) / num_samples * height / width
    mosaic = np.vstack([_row(tiles_SHW4, gap) for _, tiles_SHW4 in rows])
    with canvas(width=PAGE_WIDTH, height=len(rows) * tile_inches * (1 + GAP), grid=False) as (axes, svg):
        axes.imshow(mosaic, interpolation="none")
        axes.axis("off")
        for number, (title, _) in enumerate(rows):
            axes.text(-gap, (number + 0.5) * (height + gap), title, ha="right", va="center")
    return svg.getvalue()


def legend(maps: Maps) -> list[tuple[str, str]]:
    """Return the visible classes and their colours; nothing if the values are numbers."""
    if not maps.classes:
        return []
    seen = np.union1d(maps.labels[maps.known_SHW], maps.answers[maps.known_SHW])
    colours_C4 = _class_colours(len(maps.classes))
    return [(maps.classes[number], "#{:02x}{:02x}{:02x}".format(*colours_C4[number, :3])) for number in seen]


def _row(tiles_SHW4: np.ndarray, gap: int) -> np.ndarray:
    """Join tiles horizontally, with a blank gap to the right of and below each."""
    return np.hstack(list(np.pad(tiles_SHW4, ((0, 0), (0, gap), (0, gap), (0, 0)))))


def _opaque(colours: np.ndarray) -> np.ndarray:
    """Return grey or RGB pixels with full opacity."""
    rgb = np.broadcast_to(colours, (*colours.shape[:-1], 3))
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)


def coloured(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and predictions as colours, both on the scale of the labels."""
    if maps.classes:
        colours_C4 = _class_colours(len(maps.classes))
        both = [colours_C4[np.minimum(values, len(maps.classes) - 1)] for values in (maps.labels, maps.answers)]
    else:
        both = _numbers_coloured(maps)
    first, second = (np.where(maps.known_SHW[..., None], tiles_SHW4, np.uint8(0)) for tiles_SHW4 in both)
    return first, second


def _class_colours(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["tab20"](
        np.arange(count) / max(count - 1, 1), bytes=True
    )  # the colours of the data's contact sheet


def _numbers_coloured(maps: Maps) -> list[np.ndarray]:
    """Return the colours of numbers: one channel by its value, two as a vector, more by their length.

    The hue of a vector is its direction; short vectors are grey.
    """
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    labels, answers = (np.nan_to_num(values.astype(float)) for values in (maps.labels, maps.answers))
    if labels.shape[-1] == 1:
        sizes = [labels[..., 0], answers[..., 0]]
    else:
        sizes = [np.linalg.norm(values, axis=-1) for values in (labels, answers)]
    known = sizes[0][maps.known_SHW]
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    if labels.shape[-1] != 2:
        return [colormaps["viridis"]((size - low) / max(high - low, 1e-12), bytes=True) for size in sizes]
    tiles = []
    for values, size in zip((labels, answers), sizes, strict=True):
        hue = np.arctan2(values[..., 0], values[..., 1]) / (2 * np.pi) % 1
        length = np.clip(size / max(high, 1e-12), 0, 1)
        hsv = np.stack([hue, length, (1 + length) / 2], axis=-1)
        tiles.append(_opaque((255 * hsv_to_rgb(hsv)).astype(np.uint8)))
    return tiles
