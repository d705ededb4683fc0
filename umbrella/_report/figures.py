"""The artifacts of a run as figures for the template, from artifacts/index.json and the files that it names."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from umbrella._report import charts
from umbrella._report.files import load
from umbrella._report.text import as_float, cell, num

WIDE = 30  # letters: a table with a longer cell takes the whole width


def figures(directory: Path) -> list[dict[str, Any]]:
    """The artifacts in the order of their saving; one that cannot be read says so in its place."""
    index = load(directory / "index.json")
    out = []
    for entry in index if isinstance(index, list) else []:
        if not isinstance(entry, dict):
            continue
        figure = {
            "name": str(entry.get("name", "")),
            "caption": str(entry.get("caption") or ""),
            "kind": "missing",
            "wide": False,
        }
        try:
            figure |= _figure(directory, entry)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            figure["why"] = f"{entry.get('file')} could not be shown ({type(error).__name__})."
        out.append(figure)
    return out


def _figure(directory: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    path = (directory / str(entry["file"])).resolve()
    if path.parent != directory.resolve():
        raise ValueError("outside artifacts/")
    kind, raw = entry["kind"], path.read_bytes()
    name = str(entry.get("name", ""))
    if kind == "images":
        if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError("no PNG")
        rows = [str(r) for r in entry.get("rows") or ()]
        uri = "data:image/png;base64," + base64.b64encode(raw).decode()
        size = {k: int(entry[k]) for k in ("width", "height")}
        return (
            {"kind": "images", "uri": uri, "rows": rows, "not_finite": entry.get("not_finite", 0)}
            | size
            | {"wide": size["width"] > 1.6 * size["height"]}
        )
    if kind == "text":
        return {"kind": "text", "wide": True, "text": raw.decode("utf-8", "replace")}
    value = json.loads(raw)
    if kind == "scatter":
        points = np.array([[as_float(a), as_float(b)] for a, b in value["points"]]).reshape(-1, 2)
        names = [str(n) for n in value.get("names", ())]
        alt = f"{name}: {len(points)} points in the plane, by class"
        return {"kind": "chart", "html": charts.scatter(points, np.array(value["labels"], int), names, alt)}
    if kind == "curves":
        bands = {k: (_floats(low), _floats(high)) for k, (low, high) in value.get("bands", {}).items()}
        series = [
            charts.Series(str(k), _floats(x), _floats(y), low, high, slot=i, dashed=k in value.get("dashed", ()))
            for i, (k, (x, y)) in enumerate(value["series"].items())
            for low, high in (bands.get(k, (None, None)),)
        ]
        labels = {"x_label": str(value["x_label"]), "y_label": str(value["y_label"])}
        alt = f"{name}: {value['y_label']} against {value['x_label']} of " + ", ".join(s.name for s in series)
        return {"kind": "chart", "html": charts.lines(series, alt=alt, **labels)}
    if kind == "matrix":
        names = value["column_names"]
        return {"kind": "matrix", "wide": len(names) > 10, "columns": names, "lines": _heat(value)}
    if kind == "table":
        cells = [[cell(c) for c in row] for row in value["rows"]]
        wide = len(value["columns"]) > 4 or any(len(c) > WIDE for line in cells for c in line)
        return {"kind": "table", "wide": wide, "columns": value["columns"], "lines": cells}
    raise ValueError("unknown kind")


def _floats(values: list[Any]) -> np.ndarray:
    return np.array([as_float(v) for v in values], float)


def _heat(value: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(row name, [(text, heat 0 to 1)]). Counts are shaded by their share of the row, signed numbers by their size."""
    x = np.array([[as_float(v) for v in row] for row in value["values"]], float).reshape(len(value["row_names"]), -1)
    size = np.abs(np.where(np.isfinite(x), x, 0.0))
    scale = size.sum(axis=1, keepdims=True) if (x >= 0).all() else np.broadcast_to(size.max(initial=0.0), (len(x), 1))
    heat = size / np.where(scale > 0, scale, 1.0)
    return [
        (str(n), [(num(v, 3), f"{h:.3f}") for v, h in zip(row, shade, strict=True)])
        for n, row, shade in zip(value["row_names"], x, heat, strict=True)
    ]
