"""What a trained DEP looks like inside: autoencoder, soft tokens, their influence, and what can be read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.engines.base import LanguageModel
from bench.method import Context, Diagnosis, DiagnosisOptions, Section
from bench.training import Row, build_rows
from bench.types import LabeledSplit
from methods.dep import influence
from methods.dep.prompting import slot_lengths, slot_names
from methods.dep.traits import readable
from methods.dep.view import NAMES, View, bar

if TYPE_CHECKING:
    from methods.dep.method import Dep
    from methods.dep.modules import DepModule

_SHOWN = 3
"""Users whose first tokens are named by their nearest words."""
_NEAREST = 4
_SAMPLE = 4096
"""Embeddings of the vocabulary that norms are compared with."""
_CHUNK = 8192
"""Embeddings of the vocabulary held at once."""


def diagnose(method: Dep, split: LabeledSplit, ctx: Context, options: DiagnosisOptions) -> Diagnosis:
    """All sections, the cheap ones first. Raises UsageError if a metric that is needed cannot work."""
    metrics = _metrics() if options.generate else []
    lm = ctx.engine.language_model()
    view = View(method, split.examples, ctx)
    return [
        autoencoder(view),
        token_sizes(view, lm),
        nearest_words(view, lm),
        on_references(view, lm, split.references),
        on_texts(view, split.references, options.generate, metrics),
        *readable(method, ctx, options.probe_users),
    ]


# -- autoencoder ------------------------------------------------------------------------------------------------------


def autoencoder(view: View) -> Section:
    """What the code keeps of the vectors, and how sparse it is."""
    name, module = "autoencoder", view.module
    reading = (
        "What the code keeps of the vectors it is trained on. Explained variance: 1 would be a perfect copy, 0 no "
        "better than the mean vector. Cosine: between a vector and its copy. L0: latents in use a vector. Dead: share "
        "of latents in use for none of these vectors; few vectors leave many latents unused."
    )
    if module.autoencoder is None:
        return Section(name, reading, note="There is no autoencoder under this config.")
    sets = {f"{kind} vectors": module.centred(torch.cat(view.vectors(kind)), NAMES.index(kind)) for kind in view.kinds}
    if len(sets) > 1:
        sets["all"] = torch.cat(list(sets.values()))
    rows = [{"vectors": label, "count": len(v), **_kept(module, v)} for label, v in sets.items() if len(v)]
    return Section(name, reading, rows, "" if rows else "No example has a vector.")


@torch.no_grad()
def _kept(module: DepModule, vectors: torch.Tensor) -> dict[str, float | None]:
    report, coder = module.sparsity(vectors), module.autoencoder
    assert report is not None
    assert coder is not None
    copies = coder.decode(coder.encode(vectors))
    return {
        "explained variance": report.explained_variance if len(vectors) > 1 else None,
        "cosine": float(torch.nn.functional.cosine_similarity(vectors, copies).mean()),
        "L0": report.l0,
        "dead": report.dead_share,
    }


# -- soft tokens ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def token_sizes(view: View, lm: LanguageModel) -> Section:
    """Norms and directions of soft tokens beside the model's own embeddings and the vectors that went in."""
    reading = (
        "Norms: soft tokens far longer or shorter than the model's own embeddings are strangers to it. Cosine of "
        "pairs of different users (or words) and of one user: near 1 for different users means that all users "
        "get the same token, whatever the vectors that went in; only a gap between the two columns can be personal."
    )
    words = _embeddings(lm, torch.arange(0, _vocabulary(lm), max(1, _vocabulary(lm) // _SAMPLE))).cpu()
    groups = {f"{kind} tokens": view.of_kind(kind) for kind in view.kinds}
    groups["embeddings of the language model"] = list(words[:, None])
    groups |= {f"{kind} vectors, which go in": [v.cpu() for v in view.vectors(kind)] for kind in view.kinds}
    users = dict.fromkeys(groups, view.users)
    users["embeddings of the language model"] = [str(i) for i in range(len(words))]
    rows = [_sizes(name, tokens, users[name]) for name, tokens in groups.items() if sum(map(len, tokens))]
    if view.module.no_peers is not None:
        without = sum(int((~p.vectors.has_peers[: p.slots]).sum()) for p in view.prepared)
        alone = view.module.no_peers.detach().cpu().float()[None]
        rows.append({**_sizes('the "no peers" token', [alone], [""]), "count": without})
    return Section("soft tokens", reading, rows)


def _sizes(name: str, groups: Sequence[torch.Tensor], users: Sequence[str]) -> dict[str, Any]:
    vectors = torch.cat(list(groups)).float()
    owners = [user for user, group in zip(users, groups, strict=True) for _ in range(len(group))]
    norms = vectors.norm(dim=-1)
    low, middle, high = (float(q) for q in torch.quantile(norms, torch.tensor([0.05, 0.5, 0.95])))
    different, same = spread(vectors, owners)
    return {
        "what": name,
        "count": len(vectors),
        "norm": float(norms.mean()),
        "5 %": low,
        "50 %": middle,
        "95 %": high,
        "cosine, different users": different,
        "cosine, one user": same,
    }


def spread(vectors: torch.Tensor, owners: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean cosine over pairs of vectors (n, d) of different owners, and over pairs of one owner; None without pairs.

    From sums alone: the cosines of all pairs add up to the squared length of the sum of unit vectors.
    """
    units = torch.nn.functional.normalize(vectors.double(), dim=-1)
    owner = torch.as_tensor(np.unique(np.asarray(owners), return_inverse=True)[1])
    count = torch.bincount(owner)
    sums = units.new_zeros(len(count), units.shape[1]).index_add(0, owner, units)
    squares = units.pow(2).sum(-1)  # one each, but for a zero vector
    of_one, of_all = float(sums.pow(2).sum()), float(units.sum(0).pow(2).sum())
    pairs_one = int((count * (count - 1)).sum())
    pairs_other = len(vectors) * (len(vectors) - 1) - pairs_one
    different = (of_all - of_one) / pairs_other if pairs_other else None
    return different, (of_one - float(squares.sum())) / pairs_one if pairs_one else None


@torch.no_grad()
def nearest_words(view: View, lm: LanguageModel) -> Section:
    """The vocabulary's tokens that a few soft tokens are closest to."""
    reading = (
        "Tokens of the vocabulary closest in direction to a few soft tokens, with their cosine. A curiosity: a soft "
        "token need not mean anything that a word means."
    )
    shown = [(user, kind, t) for kind in view.kinds for user, t in zip(view.users, view.of_kind(kind), strict=True)]
    shown = [(user, kind, tokens[0]) for user, kind, tokens in shown if len(tokens)]
    shown = [one for kind in view.kinds for one in [s for s in shown if s[1] == kind][:_SHOWN]]
    if not shown:
        return Section("nearest words", reading, note="No example has a soft token.")
    near = _nearest(lm, torch.stack([token for _, _, token in shown]))
    rows = [
        {"token": f"{user}, {kind} 1", "nearest": ", ".join(f"{lm.tokenizer.decode([i])!r} {c:.2f}" for i, c in found)}
        for (user, kind, _), found in zip(shown, near, strict=True)
    ]
    return Section("nearest words", reading, rows)


def _nearest(lm: LanguageModel, tokens: torch.Tensor) -> list[list[tuple[int, float]]]:
    """(token id, cosine) of the closest embeddings of each soft token (n, hidden), best first."""
    size, units = _vocabulary(lm), torch.nn.functional.normalize(tokens.float(), dim=-1).to(lm.device)
    parts = [
        (units @ torch.nn.functional.normalize(_embeddings(lm, ids), dim=-1).T).cpu()
        for ids in (torch.arange(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))
    ]
    best = torch.cat(parts, dim=1).topk(_NEAREST, dim=1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(ids, cosines, strict=True)) for ids, cosines in pairs]


def _vocabulary(lm: LanguageModel) -> int:
    return min(int(lm.model.get_input_embeddings().weight.shape[0]), len(lm.tokenizer))


def _embeddings(lm: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """What the embedding layer gives out, scaling included: (ids, hidden), float32."""
    found: torch.Tensor = lm.model.get_input_embeddings()(ids.to(lm.device)).float()
    return found


# -- influence --------------------------------------------------------------------------------------------------------


def on_references(view: View, lm: LanguageModel, references: Mapping[str, str]) -> Section:
    """How far the next-token distributions on the real texts move when soft tokens are changed."""
    reading = (
        "The real text is read token by token, in full and with soft tokens changed. KL(full || changed), in nats: how "
        "far the prediction of a token moves. Change of log-likelihood: below 0, the change makes the real text "
        "less likely, so what was changed had helped. Means over examples, 95 % intervals over users. Another user's "
        "tokens that do as well as the user's own carry nothing personal. The last row is what rounding does."
    )
    if not any(len(tokens) for tokens in view.tokens):
        return Section("influence on the real texts", reading, note="No example has a soft token.")
    config = view.method.config
    changed = influence.changes(view.tokens, view.kinds, view.users, view.ctx.seed)
    rows = _rows(view, lm, references, [slot_lengths(config, p.slots) for p in view.prepared])
    without = _rows(view, lm, references, [dict.fromkeys(slot_lengths(config, p.slots), 0) for p in view.prepared])
    with bar("diagnose: real texts", len(rows)) as advance:
        effects = influence.reference_effects(lm, rows, without, view.tokens, changed, config, advance)
    note = "The words around a left-out slot stay in the prompt."
    return Section("influence on the real texts", reading, influence.effect_rows(effects, view.users), note)


def _rows(
    view: View, lm: LanguageModel, references: Mapping[str, str], lengths: Sequence[Mapping[str, int]]
) -> list[Row]:
    messages = [p.prompt.messages for p in view.prepared]
    return build_rows(lm, view.examples, messages, references, view.method.config.max_target_tokens, lengths)


def on_texts(view: View, references: Mapping[str, str], most: int, metrics: Sequence[Any]) -> Section:
    """What changed soft tokens do to the texts that are written."""
    name = "influence on what is written"
    reading = (
        "Texts written in full and with soft tokens changed, with the run's sampling and seeds. Differences are to "
        "the texts in full, with 95 % intervals over users. Under sampling one token that turns out otherwise changes "
        "all that follow, so many texts that differ need not mean a large influence: look at the metrics."
    )
    if not most:
        return Section(name, reading, note="Not asked for (--generate 0).")
    few = View(view.method, view.examples[:most], view.ctx)
    if not any(len(tokens) for tokens in few.tokens):
        return Section(name, reading, note="No example has a soft token.")
    config = view.method.config
    base = [view.method.request(e, p, view.ctx) for e, p in zip(few.examples, few.prepared, strict=True)]
    names = [[slot_names(config, index) for index in range(p.slots)] for p in few.prepared]
    changed = influence.changes(few.tokens, few.kinds, few.users, view.ctx.seed)
    requests = {
        change: [influence.with_tokens(r, n, t) for r, n, t in zip(base, names, tokens, strict=True)]
        for change, tokens in {influence.FULL: few.tokens, **_written_under(changed)}.items()
    }

    def write(asked: Sequence[Any]) -> list[str | None]:
        texts = influence.engine_texts(view.ctx, asked, advance)
        pairs = zip(few.examples, texts, strict=True)
        return [None if text is None else view.method.parse(example, text) for example, text in pairs]

    with bar("diagnose: writing", len(base) * len(requests)) as advance:
        rows = influence.generated_rows(write, requests, few.examples, references, metrics)
    return Section(name, reading, rows, f"{len(base)} examples.")


def _written_under(changed: Mapping[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    """All changes but the zeroing of history tokens alone: writing takes long."""
    return {name: tokens for name, tokens in changed.items() if len(changed) < 3 or name != "history tokens zeroed"}


def _metrics() -> list[Any]:
    from bench.metrics.meteor import Meteor
    from bench.metrics.rouge import Rouge1

    metrics = [Rouge1(), Meteor()]
    for metric in metrics:
        metric.preflight()
    return metrics
