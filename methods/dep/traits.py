"""Whether planted traits can be read from DEP's vectors, codes and soft tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.keys import rank_hash
from bench.method import Context, Section
from bench.probe import PERMUTATIONS, Probe, probe
from bench.types import Document, Example
from methods.dep.view import NAMES, View, bar

if TYPE_CHECKING:
    from methods.dep.method import Dep


def readable(method: Dep, ctx: Context, most: int | None, permutations: int = PERMUTATIONS) -> list[Section]:
    """Linear probes for planted traits, on each step from vector to soft token."""
    name = "traits that a linear probe can read"
    reading = (
        "Multinomial logistic regression from a user's mean vector to each planted trait, cross-validated over users. "
        "Balanced accuracy, averaged over traits; beside it the same with the vectors dealt to users at random, which "
        "is chance as it is here, and p, the share of deals that do as well. A trait that is read from vectors but not "
        "from tokens is lost on the way; what is not read may still be there in another form."
    )
    if ctx.truth is None:
        return [Section(name, reading, note="The dataset does not know its users' traits; planted does.")]
    if most == 0:
        return [Section(name, reading, note="Not asked for (--probe-users 0).")]
    examples = population_examples(ctx, most)
    view = View(method, examples, ctx)
    probes = _probed(view, {user: ctx.truth.traits(user) for user in view.users}, permutations)
    if not probes:
        return [Section(name, reading, note=f"{len(examples)} users are too few to probe.")]
    note = (
        f"{len(examples)} users, each with what they wrote before their latest public text; DEP may have been trained "
        "on that text. Values that fewer than five users share are left out; what stands behind a colon in a value is "
        "a user's own word and does not count."
    )
    rows = [
        {
            "read from": source,
            "balanced accuracy": found.balanced,
            "dealt at random": found.permuted,
            "95 % of deals below": found.permuted_high,
            "p": found.p,
        }
        for source, found in probes.items()
    ]
    by_trait = (
        "Balanced accuracy and p (not corrected for the number of cells). Chance: 1 / values, also for always saying "
        "the most frequent value, which is right for the share `majority` of users."
    )
    return [Section(name, reading, rows, note), Section("trait by trait", by_trait, _by_trait(probes))]


def population_examples(ctx: Context, most: int | None) -> list[Example]:
    """For each user of the population, at most `most`, an example with their latest public document as target."""
    users = sorted(ctx.population.users(), key=lambda user: rank_hash(0, user))[:most]
    found = []
    for user in sorted(users):
        documents = ctx.population.history(user, None)
        last = documents[-1]
        past: tuple[Document, ...] = tuple(ctx.population.history(user, last.timestamp) or documents[:-1])
        past = tuple(document for document in past if document.id != last.id)
        if past:
            found.append(Example(last.id, user, last.fields, past, last.item_id, last.timestamp))
    return found


def _codes(view: View, vectors: torch.Tensor, kind: str) -> torch.Tensor:
    return view.module.encode(view.module.centred(vectors, NAMES.index(kind)))


@torch.no_grad()
def _representations(view: View) -> dict[str, list[torch.Tensor]]:
    """What is probed: name -> rows (reviews, size) of each user."""
    found = {f"{kind} vectors": view.vectors(kind) for kind in NAMES}
    if view.module.autoencoder is not None:
        found |= {f"{kind} codes": [_codes(view, v, kind) for v in found[f"{kind} vectors"]] for kind in view.kinds}
    return found | {f"{kind} tokens": view.of_kind(kind) for kind in view.kinds}


def _probed(view: View, labels: Mapping[str, Mapping[str, str]], permutations: int) -> dict[str, Probe]:
    """Name of what is read from -> what is read."""
    found: dict[str, Probe] = {}
    everything = _representations(view)
    with bar("diagnose: probes", len(everything), "probe") as advance:
        for name, groups in everything.items():
            users = [user for user, rows in zip(view.users, groups, strict=True) if len(rows)]
            means = [rows.double().mean(0).cpu().numpy() for rows in groups if len(rows)]
            if users:
                traits = _traits([labels[user] for user in users])
                result = probe(np.stack(means), traits, permutations=permutations, seed=view.ctx.seed)
                if result is not None:
                    found[name] = result
            advance(1)
    return found


def _by_trait(probes: Mapping[str, Probe]) -> list[dict[str, Any]]:
    """One row a trait, with a cell for each kind of vector."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in probes.items():
        for one in found.traits:
            counts = {"trait": one.trait, "users": one.users, "values": one.classes}
            row = rows.setdefault(one.trait, {**counts, "majority": one.majority, "chance": one.chance})
            row[name] = {"value": one.balanced, "p": one.p, "accuracy": one.accuracy, "permuted": one.permuted}
    return [rows[trait] for trait in sorted(rows)]


def _traits(labels: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Trait -> each user's value. What stands behind a colon is a user's very own word, no value that users share."""
    names = sorted(set.intersection(*(set(traits) for traits in labels))) if labels else []
    return {name: [traits[name].partition(": ")[0] for traits in labels] for name in names}
