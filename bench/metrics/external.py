"""Metrics by name: the registered ones, and any `evaluate` module given by path or hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import registry
from bench.config import Config as BaseConfig
from bench.config import build
from bench.errors import UnknownName, UsageError
from bench.metrics.base import Metric, ScoreInput, Vector, package_version, text_of

CANONICAL = frozenset(
    {
        "bleurt",
        "cer",
        "character",
        "charcut_mt",
        "chrf",
        "exact_match",
        "frugalscore",
        "google_bleu",
        "nist_mt",
        "rouge",
        "sacrebleu",
        "ter",
        "toxicity",
        "wer",
        "word_length",
    }
)
"""Modules for texts that `evaluate` knows by a bare name. Other bare names are taken for slips of the pen."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUFFIX = re.compile(r"(?P<target>.+):(?P<sign>[+-]?)(?P<key>[A-Za-z_][\w-]*)")
_HINT = "An evaluate module is taken by its path (folder/metric.py) or hub id (org/name)."


def resolve(name: str, overrides: Mapping[str, Any]) -> Metric:
    """The metric called `name`, with `overrides` as values of its config.

    `name` is a registered name; else the path of an `evaluate` module (`folder/metric.py`, or `folder/metric` that
    holds `metric.py`), or its hub id. `:key` after it picks one of the numbers that the module returns; `:+key` or
    `:-key` also says whether high or low is good, which modules do not tell. Such a module is a program: naming it
    runs it.

    Raises UnknownName with the nearest registered name; UsageError if a module cannot be loaded or its config is wrong.
    """
    if name in registry.names("metric"):
        found = registry.load("metric", name)
        if not (isinstance(found, type) and issubclass(found, Metric)):
            raise UsageError(f"metric {name!r} ({registry.origin('metric', name)}) is no bench.metrics.base.Metric")
        return found(build(found.Config, overrides, name))
    build(BaseConfig, overrides, name)
    target, sign, key = _split(name)
    script = _script(Path(target).expanduser())
    if script is not None:
        module = _load(str(script), target)
    elif target.endswith(".py") or target.startswith((".", "/", "~")):
        raise UsageError(f"there is no evaluate module at {target}; give a .py file, or a folder with one of its name")
    elif _HUB_ID.fullmatch(target) or target in CANONICAL:
        module = _load(target, target)
    else:
        raise UnknownName("metric", target, registry.names("metric"), _HINT)
    if isinstance(module, Metric):
        return module
    return ExternalMetric(module, script.stem if script else target, key, {"+": True, "-": False}.get(sign))


class ExternalMetric(Metric):
    """An `evaluate` module, asked about one text at a time."""

    name = "external"  # replaced for each module; shadows a read-only property of evaluate

    def __init__(self, module: Any, label: str, key: str | None = None, higher_is_better: bool | None = None) -> None:
        """`label` names the module in tables, `key` the number to take from what it returns (None: the only one)."""
        self.module = module
        self.key = key
        self.label = label
        self.name = f"{label}:{key}" if key else label
        if self.name in registry.names("metric"):  # a column of its own beside the built-in metric's
            self.name = f"{self.name}@{self._digest()}"
        self.higher_is_better = higher_is_better
        super().__init__()

    def preflight(self) -> None:
        """Judges one plain sentence. Raises UsageError if the module cannot do that."""
        self._columns(ScoreInput("", "", "", ""))
        sentence = "A plain sentence, as good as any other."
        try:
            self._vector(ScoreInput("", "", sentence, sentence))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"metric {self.label!r} fails on a plain sentence: {_first_line(error)}") from error

    def _signature_parts(self) -> Mapping[str, object]:
        return {
            "key": self.key or "only",
            "module": self._digest(),
            "evaluate": package_version("evaluate", self.label),
        }

    def _digest(self) -> str:
        """Hash that `evaluate` takes of the module's source and of the local files it imports."""
        return str(self.module._hash)[:12]

    def _vector(self, item: ScoreInput) -> Vector | None:
        try:
            result = self.module.compute(**self._columns(item))
        except Exception:
            # What one failed text left in the module's buffers must not be judged with the next.
            self.module.writer = self.module.buf_writer = self.module.data = None
            raise
        return [self._pick(result)]

    def _columns(self, item: ScoreInput) -> dict[str, list[Any]]:
        """One row in the form that the module asks for. Raises UsageError if it asks for more than two texts."""
        from datasets import Value

        forms = self.module.features if isinstance(self.module.features, list) else [self.module.features]
        given = {"predictions": text_of(item), "data": text_of(item), "references": item.reference}
        missing = sorted(set(forms[0]) - set(given))
        if missing:
            raise UsageError(f"metric {self.label!r} needs more than text and reference: {', '.join(missing)}")
        columns: dict[str, list[Any]] = {}
        for name in forms[0]:
            plain = any(isinstance(form[name], Value) and "string" in form[name].dtype for form in forms)
            if not plain and name != "references":
                raise UsageError(f"metric {self.label!r} does not judge texts: its {name} are {forms[0][name]}")
            columns[name] = [given[name]] if plain else [[given[name]]]
        return columns

    def _pick(self, result: Any) -> float:
        numbers = {key: number for key, value in dict(result or {}).items() if (number := _number(value)) is not None}
        if self.key is not None and self.key in numbers:
            return numbers[self.key]
        if self.key is None and self.label.rpartition("/")[2] in numbers:
            return numbers[self.label.rpartition("/")[2]]
        if self.key is None and len(numbers) == 1:
            return next(iter(numbers.values()))
        wrong = f"gives no {self.key!r}" if self.key else "gives more than one number"
        keys = ", ".join(sorted(numbers)) or "no number at all"
        raise UsageError(f"metric {self.label!r} {wrong}; pick one by adding :KEY to its path or id, out of: {keys}")


def _split(name: str) -> tuple[str, str, str | None]:
    """Target, sign and key of `target:+key`."""
    match = None if Path(name).exists() else _SUFFIX.fullmatch(name)
    return (match["target"], match["sign"], match["key"]) if match else (name, "", None)


def _script(path: Path) -> Path | None:
    """The file of a local module: the path itself, or the file in a folder that bears the folder's name."""
    candidates = [path] if path.suffix == ".py" else [path / f"{path.name}.py"]
    return next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)


def _load(location: str, name: str) -> Any:
    import evaluate

    try:
        # A fixed seed: `evaluate` seeds numpy before it asks the module, by default from wherever numpy stands.
        return evaluate.load(location, keep_in_memory=True, seed=0)
    except FileNotFoundError as error:
        raise UsageError(
            f"the hub has no evaluate module {name!r}, or cannot be reached; check the name and the network, "
            "or give a local file (folder/metric.py)"
        ) from error
    except Exception as error:  # a module is a program of somebody's and may raise anything
        raise UsageError(f"metric {name!r} cannot be loaded: {_first_line(error)}") from error


def _number(value: Any) -> float | None:
    """A number, or the only number of a list, as a float."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]
