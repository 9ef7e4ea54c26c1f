"""Writing the page: template, style, scripts, data and plotly.js in one file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ici.analysis.choices import telling_lr
from ici.analysis.digest import Digest
from ici.errors import InputError
from ici.report.page.content import content
from ici.store.places import Place, place, whole

SCRIPTS = ("data.js", "look.js", "runs.js", "layers.js", "app.js")


def write_page(
    path: str | Place, digests: Sequence[Digest], comparisons: Sequence[dict[str, Any]] = ()
) -> Place:
    """Writes the interactive report of one or several experiments to the file `path`.

    The file needs no other and no network. An older one gives way in one step.

    Args:
      path: such as ``runs/movies/report.html``.
      digests: an experiment each, the first shown first.
      comparisons: tables as ``{"title", "rows", "caption"}``; the first row is the head.

    Raises:
      InputError: no experiment, or the file cannot be written.
    """
    if not digests:
        raise InputError("a report of no experiment: wanted at least one record.")
    target = place(path)
    text = page([_first_view(digest) for digest in digests], comparisons)
    try:
        with whole(target) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write {target} ({error.strerror}): wanted a writable folder with free space."
        ) from error
    return target


def page(experiments: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]] = ()) -> str:
    """The page as text; `experiments` are of `content`."""
    names = ", ".join(each["name"] for each in experiments)
    data = {"experiments": list(experiments), "comparisons": list(comparisons)}
    # A name that holds "</script>" must not end the element it stands in.
    packed = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "__TITLE__": html.escape(names),
        "__STYLE__": _file("page.css"),
        "__PLOTLY__": _plotly(),
        "__SCRIPT__": "\n".join(_file(name) for name in SCRIPTS),
        "__DATA__": packed,
    }
    # Pieces between marks, so that nothing inside a part is taken for a mark.
    text = _file("page.html")
    for mark in ("__STYLE__", "__DATA__", "__PLOTLY__", "__SCRIPT__"):
        head, _, tail = text.partition(mark)
        text = head + f"\0{mark}\0" + tail
    text = text.replace("__TITLE__", parts["__TITLE__"])
    for mark, value in parts.items():
        text = text.replace(f"\0{mark}\0", value)
    return text


def _first_view(digest: Digest) -> dict[str, Any]:
    shown = content(digest)
    lr, _ = telling_lr(digest.runs)
    return shown | {"firstSetting": 0, "firstLr": shown["lrs"].index(lr)}


def _file(name: str) -> str:
    return (resources.files("ici.report.page") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(
            "the interactive report needs plotly: pip install plotly, or ici report --no-page."
        ) from error
    return get_plotlyjs().replace("</script", "<\\/script")
