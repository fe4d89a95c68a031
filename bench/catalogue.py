"""What there is: rows for `python -m bench list`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    from bench.method import Variant


def rows(what: str) -> list[dict[str, Any]]:
    """One object a thing, each with at least its `name`."""
    makers = {"methods": _methods, "datasets": _datasets, "models": _models, "metrics": _metrics, "engines": _engines}
    return makers[what]()


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _knobs(config: Any) -> dict[str, Any]:
    return {
        name: {"default": field.get_default(call_default_factory=True), "meaning": field.description or ""}
        for name, field in config.model_fields.items()
    }


def _registered(kind: str, more: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each registered thing; one that cannot be imported is told as broken, and hides no other."""
    found: list[dict[str, Any]] = []
    for name in registry.names(kind):
        origin = registry.origin(kind, name)
        try:
            thing = registry.load(kind, name)
            row = {"name": name, "summary": _first_line(thing), **more(thing), "from": origin}
            found.append({**row, "config": _knobs(thing.Config)})
        except Exception as error:  # somebody's plug-in may be anything at all
            told = (
                error if isinstance(error, UsageError) else f"no {kind} ({type(error).__name__}: {first_line(error)})"
            )
            found.append({"name": name, "summary": f"broken: {told}", "from": origin})
    return found


def _methods() -> list[dict[str, Any]]:
    def more(method: Any) -> dict[str, Any]:
        ablations = {name: [_variant(v) for v in variants] for name, variants in method().ablations().items()}
        about = method.about
        return {
            "paper": f"{about.paper} {about.year}" if about.year else about.paper,
            "needs": sorted(method.needs),
            "trains": about.trains,
            "LLM calls": [f"{stage.name} {stage.calls}" for stage in about.stages],
            "version": method.version,
            "url": about.url,
            "ablations": ablations,
        }

    return _registered("method", more)


def _variant(variant: Variant) -> dict[str, Any]:
    """A variant under the method's defaults, as `run --ablate` takes it."""
    return {"name": variant.name, "method": variant.method, "changes": dict(variant.changes)}


def _engines() -> list[dict[str, Any]]:
    return _registered("engine", lambda engine: {"gives": sorted(engine.capabilities)})


def _metrics() -> list[dict[str, Any]]:
    return _registered("metric", lambda metric: {"higher_is_better": metric.higher_is_better})


def _datasets() -> list[dict[str, Any]]:
    from bench.data.spec import spec_files, spec_summary

    found = []
    for name, path in spec_files().items():
        try:
            found.append(spec_summary(path))
        except UsageError as error:
            found.append({"name": name, "about": f"broken: {error}"})
    return found


def _models() -> list[dict[str, Any]]:
    from bench import weights

    return [
        {
            "name": asset.name,
            "kind": asset.kind,
            "summary": asset.description,
            "fetched": weights.is_fetched(asset.name),
            "megabytes": round(asset.size / 1e6),
            "license": asset.license,
            "upstream": asset.upstream,
            "revision": asset.revision,
        }
        for asset in weights.assets()
    ]


def as_text(what: str, found: list[dict[str, Any]]) -> str:
    """A table for people: the name, then what fits on a line."""
    from tabulate import tabulate

    hidden = ("config", "version", "file", "source", "filter", "split", "upstream", "revision", "url")
    shown = [{key: _cell(value) for key, value in row.items() if key not in hidden} for row in found]
    hints = {
        "models": "Any local folder or hub id (org/name) with safetensors is taken as well.",
        "metrics": "Any `evaluate` module is taken as well, by path or hub id.",
        "datasets": "The path of a spec file is taken as well.",
        "methods": "Knobs with their meaning, variants of ablations (run --ablate): add --json.",
        "engines": "Knobs with their meaning: add --json.",
    }
    text: str = tabulate(shown, headers="keys", tablefmt="simple", maxcolwidths=_WIDTHS.get(what, 60))
    return f"{text}\n\n{hints[what]}"


_WIDTHS: dict[str, list[int]] = {"methods": [14, 36, 20, 12, 20, 22, 16, 16]}


def _cell(value: Any) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
