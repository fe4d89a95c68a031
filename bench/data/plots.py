"""A dataset's distributions as pictures."""

from __future__ import annotations

from pathlib import Path

from bench.data.overview import Distribution, Overview
from bench.errors import MissingPackage, UsageError

_KINDS = ("png", "svg")


def save_plots(shown: Overview, folder: Path) -> list[Path]:
    """One histogram a distribution, as PNG and as SVG; returns the files. The same numbers give the same bytes.

    Raises:
        UsageError: matplotlib is not installed (MissingPackage), or the folder cannot be written.
    """
    need_matplotlib()
    import matplotlib as mpl

    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": str(shown.about["fingerprint"])}):
            for one in shown.distributions:
                if one.values:
                    made += _save(one, shown.name, folder)
    except OSError as error:
        raise UsageError(f"the plots cannot be written to {folder}: {error.strerror or error}") from error
    return made


def need_matplotlib() -> None:
    """Raises MissingPackage, with the command that installs it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage("matplotlib", "--plots", extra="plots") from error


def _save(one: Distribution, dataset: str, folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    bars = one.bars()
    figure = Figure(figsize=(6, 0.8 + 0.3 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh([name for name, _ in bars], [count for _, count in bars], color="#4477aa")
    axes.bar_label(drawn, [f"{count:,}" for _, count in bars], padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{dataset}: {one.label}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    made = []
    for kind in _KINDS:
        path = folder / f"{one.name}.{kind}"
        figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
        made.append(path)
    return made
