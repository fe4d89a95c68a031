"""Which methods a run is of: those that are named, and beside them the variants of an ablation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import registry
from bench.config import build
from bench.errors import UnknownName, UsageError
from bench.keys import digest
from bench.method import Method, Variant
from bench.stored import row_title

Overrides = Mapping[str, Mapping[str, Any]]
"""Part -> knobs that the user set."""


@dataclass(frozen=True)
class Planned:
    """A method as it is going to run."""

    method: Method
    variant: str | None = None
    """What the ablation calls it; None for a method as the user configured it."""

    @property
    def title(self) -> str:
        """As reports and tables call it."""
        return row_title(self.method.name, self.variant)

    @property
    def identity(self) -> str:
        """Equal for methods that would write the same."""
        method = self.method
        return digest([method.name, method.version, method.config.model_dump(mode="json")])

    @property
    def fit_identity(self) -> str | None:
        """Equal for methods that learn the same in a run; None for one that learns nothing."""
        method = self.method
        if type(method).fit is Method.fit:
            return None
        learner = method.learner()
        return digest([learner.name, learner.version, method.fit_config(), method.wants_encoder()])


def method_class(name: str) -> type[Method]:
    """The class of a registered method. Raises UsageError for what is none, or calls itself otherwise."""
    found = registry.load("method", name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"method {name!r} ({registry.origin('method', name)}) is no bench.method.Method")
    if found.name != name:  # one name in keys, folders, tables and --set
        raise UsageError(
            f"method {name!r} ({registry.origin('method', name)}) calls itself {found.name!r}; "
            "its entry point and its class must agree"
        )
    return found


def expand(names: Sequence[str], ablate: Sequence[str], overrides: Overrides) -> list[Planned]:
    """The named methods in their order, each followed by its variants of the wanted ablations.

    `ablate` holds names of ablations or of single variants. What would write the same comes once, at its first place;
    a method that was named keeps its plain name. Raises UnknownName for an ablation that no method has, UsageError if
    no method has any.
    """
    named = [_configured(name, overrides.get(name, {})) for name in names]
    _check(named, ablate)
    planned: list[Planned] = []
    for method in named:
        planned.append(Planned(method))
        planned += (Planned(_varied(method, v, overrides), v.name) for v in _wanted(method, ablate))
    plain = {Planned(method).identity for method in named}
    first: dict[str, Planned] = {}
    for one in planned:
        own = replace(one, variant=None) if one.identity in plain else one
        first.setdefault(one.identity, own)
    return list(first.values())


def ablated(methods: Sequence[Planned], ablate: Sequence[str]) -> str | None:
    """The first method that the run has variants of: what the others are compared with."""
    plain = (one.method for one in methods if one.variant is None)
    return next((method.name for method in plain if any(_wanted(method, ablate))), None)


def _configured(name: str, knobs: Mapping[str, Any]) -> Method:
    found = method_class(name)
    return found(build(found.Config, knobs, name))


def _varied(method: Method, variant: Variant, overrides: Overrides) -> Method:
    name = variant.method or method.name
    try:
        return _configured(name, {**overrides.get(name, {}), **variant.changes})
    except UsageError as error:
        raise UsageError(
            f"variant {variant.name!r} of {method.name} does not go with these settings: {error}"
        ) from error


def _wanted(method: Method, ablate: Sequence[str]) -> Iterator[Variant]:
    """A method's variants in the order asked for."""
    ablations = method.ablations()
    for name in ablate:
        if name in ablations:
            yield from ablations[name]
        else:
            yield from (v for variants in ablations.values() for v in variants if v.name == name)


def _check(methods: Sequence[Method], ablate: Sequence[str]) -> None:
    ablations = [method.ablations() for method in methods]
    known = {name for one in ablations for name in one}
    if ablate and not known:
        told = ", ".join(method.name for method in methods)
        raise UsageError(f"--ablate: no ablation is known of {told}; see: python -m bench list methods")
    known |= {variant.name for one in ablations for variants in one.values() for variant in variants}
    for name in ablate:
        if name not in known:
            raise UnknownName("ablation", name, known)
