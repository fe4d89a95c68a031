"""`python -m bench judge`: stored texts judged by a language model; verdicts stand beside the other scores."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.comparison import WIN_COLUMN, judged
from bench.config import build, parse_overrides
from bench.errors import UsageError
from bench.files import folder_name
from bench.keys import canonical_json
from bench.plan import check_parts
from bench.rescore import dataset_behind, left_out
from bench.scoring import join, missing_metrics, score, write_scores
from bench.store import StoredRun, find_runs, read_scores

if TYPE_CHECKING:
    from bench.data.split import Dataset
    from bench.engines.base import Engine
    from bench.judge.metric import Asker, JudgeScore, JudgeWin
    from bench.metrics.base import ScoreInput

Baselines = Mapping[tuple[str, str], StoredRun]
"""(dataset with its selection, seed), both as canonical JSON -> the baseline's run."""


@dataclass(frozen=True)
class Options:
    """How to judge."""

    engine: str
    model: str
    overrides: Sequence[str] = ()
    pairwise: Path | None = None
    temperature: float = 0.0
    reply_tokens: int = 8
    force: bool = False
    dry_run: bool = False


def judge(root: Path, options: Options) -> str:
    """Judges the complete runs under `root` that lack these verdicts, and tells what came out.

    Raises UsageError where there is nothing to judge, and where the engine's server, key or budget gives out: what was
    judged is kept, and the same command goes on.
    """
    runs = _runs(root)
    engine = _engine(options)
    from bench.judge.metric import Asker

    folder = _folder(root, runs[0])
    asker = Asker(engine, folder, options.temperature, options.reply_tokens)
    engine.prepare()
    datasets: dict[str, Dataset] = {}
    baselines = _baselines(options.pairwise) if options.pairwise else None
    work: list[tuple[StoredRun, Any, list[ScoreInput]]] = []
    for run in runs:
        metric = _metric(asker, options, run, baselines)
        if metric is not None and (inputs := _to_judge(run, metric, options.force, datasets)) is not None:
            work.append((run, metric, inputs))
    print(_estimate(asker, [(metric, inputs) for _, metric, inputs in work]), file=sys.stderr)
    if options.dry_run:
        return "nothing was asked"
    for place in (folder, *(run.path for run, _, _ in work)) if work else ():
        _check_writable(place)
    try:
        if work:
            engine.load()
        for run, metric, inputs in work:
            write_scores(run, score(inputs, [metric], progress=sys.stderr.isatty()))
    finally:
        engine.close()
    spent = asker.spent
    print(
        f"judged with {spent.prompt_tokens:,} prompt and {spent.output_tokens:,} new tokens in {spent.replies:,} "
        f"replies, {spent.unreadable:,} of all replies no verdict, {spent.failed:,} requests without one",
        file=sys.stderr,
    )
    if spent.failed:
        print("requests without a reply are asked again by the same command, those alone", file=sys.stderr)
    if (line := engine.told()) is not None:
        print(line, file=sys.stderr)
    used = {run.path: metric for run, metric, _ in work}
    told = []
    for run in runs:
        metric = used[run.path] if run.path in used else _metric(asker, options, run, baselines)
        if metric is not None:
            told.append(_told(run, metric))
    return "\n".join(told)


def _runs(root: Path) -> tuple[StoredRun, ...]:
    listing = find_runs(root)
    for note in left_out(listing):
        print(note, file=sys.stderr)
    if not listing.runs:
        raise UsageError(f"no complete run under {root}; make one with: python -m bench run --methods nonperso,rag")
    return listing.runs


def _folder(root: Path, run: StoredRun) -> Path:
    """Where answers are kept: the folder of runs that a run lies in; for one that was moved, what is judged."""
    path = run.path.resolve()
    layout = (folder_name(run.dataset), folder_name(run.method), run.key)
    return path.parents[2] if path.parts[-3:] == layout else root.resolve()


def _check_writable(folder: Path) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write under {folder}: {error.strerror}; copy the runs to a folder of your own and judge them there"
        ) from error


def _to_judge(
    run: StoredRun, metric: JudgeScore | JudgeWin, force: bool, datasets: dict[str, Dataset]
) -> list[ScoreInput] | None:
    """A run's texts; None where it has all the verdicts that can be had."""
    anew = force or bool(missing_metrics(run, [metric]))
    gaps = set() if anew else _gaps(run, metric.name)
    if not anew and not gaps:
        return None
    dataset = dataset_behind(run, datasets)
    inputs = join(run.records, dataset.test, dataset.truth)
    left = metric.prompts([item for item in inputs if item.example_id in gaps])
    return inputs if anew or not metric.asker.settled(left, metric.read) else None


def _gaps(run: StoredRun, column: str) -> set[str]:
    """Examples with a text and without a verdict."""
    stored = read_scores(run)
    found = stored.values[column] if stored else {}
    texts = {r["example_id"] for r in run.records if r.get("error") is None and r.get("text") is not None}
    return {example for example in texts if found.get(example) is None}


def _engine(options: Options) -> Engine:
    from bench import weights

    overrides = parse_overrides(options.overrides)
    kind = registry.load("engine", options.engine)
    check_parts(overrides, [options.engine])
    settings = build(kind.Config, overrides.get(options.engine, {}), options.engine)
    source: Any = weights.resolve(options.model, "llm") if kind.local else options.model
    engine: Engine = kind(source, settings)
    return engine


def _label(model: str) -> str:
    """A model's name in a column's: `org--x` for org/x; of a folder, its own name.

    Colons divide a column's name and commas those of --metrics, so neither stands in it.
    """
    local = model.startswith(("/", ".", "~")) or Path(model).is_dir()
    name = Path(model).expanduser().resolve().name if local else model.strip("/").replace("/", "--")
    return re.sub(r"[:,\s]", "-", name) or "model"


def _metric(
    asker: Asker, options: Options, run: StoredRun, baselines: Baselines | None
) -> JudgeScore | JudgeWin | None:
    """The metric for a run; None for one that would be compared with itself."""
    from bench.judge.metric import JudgeScore, JudgeWin, baseline_key

    if baselines is None:
        return JudgeScore(asker, _label(options.model))
    if run.path.resolve() in {one.path.resolve() for one in baselines.values()}:
        return None
    dataset, seed = _place(run)
    seeds = {key[1]: one for key, one in sorted(baselines.items()) if key[0] == dataset}
    if not seeds:
        named = [one for one in baselines.values() if one.dataset == run.dataset]
        if named:
            raise UsageError(f"{run.path} and {named[0].path} are of other examples; judge runs of one split")
        raise UsageError(f"--pairwise {options.pairwise} holds no run on dataset {run.dataset!r}")
    other = seeds.get(seed) or next(iter(seeds.values()))
    # All seeds stand in the key, so that rows with other sets of seeds have one signature and share a table.
    key = baseline_key((one, *text) for one, beside in seeds.items() for text in _texts(beside).items())
    return JudgeWin(asker, _label(options.model), other.title, _texts(other), key)


def _texts(run: StoredRun) -> dict[str, str | None]:
    return {r["example_id"]: None if r.get("error") is not None else r.get("text") for r in run.records}


def _place(run: StoredRun) -> tuple[str, str]:
    return canonical_json(run.description["dataset"]), canonical_json(run.description.get("seed", 0))


def _baselines(path: Path) -> Baselines:
    """The runs to compare with. Raises UsageError where several methods, or two runs of one seed, leave a choice."""
    runs = _runs(path)
    if len({run.title for run in runs}) > 1:
        raise UsageError(f"--pairwise {path} holds several methods; give the folder of one, or of one run")
    found: dict[tuple[str, str], StoredRun] = {}
    for run in runs:
        first = found.setdefault(_place(run), run)
        if first is not run:
            raise UsageError(
                f"--pairwise {path} holds two runs of {run.title} on the same examples with the same seed, "
                f"{first.path} and {run.path}; give one of them"
            )
    return found


def _estimate(asker: Asker, work: Sequence[tuple[Any, Sequence[ScoreInput]]]) -> str:
    """What judging will take, told before it starts; answers that are on disk make it less."""
    prompts = [prompt for metric, inputs in work for prompt in metric.prompts(inputs)]
    requests = asker.requests(prompts)
    tokens = sum(asker.engine.count_tokens(request.messages) for request in requests)
    new = sum(request.sampling.max_new_tokens for request in requests)
    config = getattr(asker.engine, "config", None)
    prices = getattr(config, "price_in", None), getattr(config, "price_out", None)
    cost = ""
    if prices[0] is not None and prices[1] is not None:
        cost = f", cost about {(tokens * prices[0] + new * prices[1]) / 1e6:.6g} if every reply can be read"
    return f"judging {len(work)} runs: {len(prompts):,} prompts, about {tokens:,} tokens, up to {new:,} new ones{cost}"


def _told(run: StoredRun, metric: JudgeScore | JudgeWin) -> str:
    """One line on a judged run, with the interval over users."""
    import numpy as np

    from bench.judge.metric import JudgeWin
    from bench.stats import paired_bootstrap

    stored = read_scores(run)
    found = stored.values[metric.name] if stored else {}
    users = sorted({record["user_id"] for record in run.records})
    values = [found.get(record["example_id"]) for record in run.records]
    array = np.array([[[np.nan] if value is None else [value[0]] for value in values]], dtype=float)
    owner = np.array([users.index(record["user_id"]) for record in run.records], dtype=np.intp)
    scored = paired_bootstrap({"x": array}, owner)["x"].score
    shown = "no verdict" if scored.value is None else f"{scored.value:.3f}"
    if scored.low is not None and scored.high is not None:
        shown += f" [{scored.low:.3f}, {scored.high:.3f}]"
    line = f"{run.title} (seed {run.description['seed']}): {metric.name} {shown}"
    if missing := sum(value is None for value in values):
        line += f", {missing} of {len(values)} None"
    if isinstance(metric, JudgeWin) and metric.both:
        line += f", {metric.consistent} of {metric.both} the same in both positions"
    return line


def agreements(root: Path) -> str:
    """How far judges agree whose verdicts are stored under `root`: a line for each two. Raises UsageError for fewer."""
    from bench.judge.agreement import agreement

    columns: dict[str, dict[tuple[str, str], float | None]] = {}
    for run in _runs(root):
        stored = read_scores(run)
        for name, values in stored.values.items() if stored else ():
            if judged(name):
                column = columns.setdefault(name, {})
                column.update({(str(run.path), key): v[0] if v else None for key, v in values.items()})
    lines = []
    for first, second in _pairs(sorted(columns)):
        shared = sorted(columns[first].keys() & columns[second].keys())
        step = 0.5 if first.startswith(WIN_COLUMN) else 1.0
        found = agreement([columns[first][k] for k in shared], [columns[second][k] for k in shared], step)
        numbers = ["none" if n is None else f"{n:.3f}" for n in (found.spearman, found.kappa)]
        lines.append(f"{first}, {second}: {found.texts} texts, Spearman {numbers[0]}, weighted kappa {numbers[1]}")
    if not lines:
        raise UsageError(f"no two judges have judged the runs under {root}; judge them with two models first")
    return "\n".join(lines)


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Judges of the same question: both by the rubric, or both against the same baseline."""
    for first, second in combinations(names, 2):
        kinds = [name.split(":") for name in (first, second)]
        if kinds[0][0] == kinds[1][0] and kinds[0][2:] == kinds[1][2:]:
            yield first, second
