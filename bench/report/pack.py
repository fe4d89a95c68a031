"""The page's files: data as scripts, which a page opened from disk may load, and HTML with a strict policy."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

LIBRARIES = ("d3.min.js", "plot.min.js")
LICENSES = ("d3.LICENSE.txt", "plot.LICENSE.txt")
SCRIPTS = ("core.js", "leaderboard.js", "charts.js", "people.js", "diff.js", "examples.js", "origin.js", "main.js")
"""Our own, in the order they are joined."""
MARK = "dep-bench report"
"""Tells a page of ours, which may be written over."""

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def script_json(value: Any) -> str:
    """JSON that may stand in a script: ASCII, and no "<", ">" or "&", so that nothing in it ends the script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def data_script(name: str, value: Any) -> str:
    """A script that hands the page one piece of data."""
    return f"benchData({script_json(name)},{script_json(value)});\n"


def asset(name: str) -> str:
    return (files("bench.report") / "assets" / name).read_text(encoding="utf-8")


def library(name: str) -> str:
    return (files("bench.report") / "assets" / "vendor" / name).read_text(encoding="utf-8")


def own_script() -> str:
    """The page's code as one script with a scope of its own."""
    return "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();\n"


def page(title: str, nonce: str) -> str:
    """The HTML, in which only scripts with this nonce run."""
    text = asset("page.html")
    for name, value in (("style", asset("report.css")), ("title", html.escape(title)), ("nonce", nonce)):
        text = text.replace("{{" + name + "}}", value)
    return text
