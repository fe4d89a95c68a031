"""plan -> fit -> generate -> score, for each method and seed; whatever is complete is never done again.

With a shard, for its share of the test users (see `bench.shards`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import costs, distributed, energy
from bench.ablation import Planned
from bench.energy import Spent, Stopwatch
from bench.engines.base import BatchResult
from bench.errors import Held, UsageError
from bench.files import read_object
from bench.fits import FIT_FILE, Fit, Say, duration, fit_folder, fit_or_load, kept_folder
from bench.keys import digest, text_digest
from bench.merging import merged, missing_joined, run_folder, shard_of, strangers
from bench.meter import Meter, peak_rss, synchronize
from bench.method import HARNESS_VERSION, Context, Method
from bench.plan import LIMIT_SEED, WHO_WORKS, Plan, asks_model
from bench.prices import Prices, bill
from bench.provenance import provenance
from bench.scoring import separable
from bench.shards import Shard
from bench.stages import StageCache, request_key, stage_costs
from bench.store import BatchTiming, Existing, RunFolder, StoredRun
from bench.types import Capability, Example, Generation, Request

if TYPE_CHECKING:
    from bench.data.split import Dataset
    from bench.metrics.base import Metric

NO_ENGINE = {"name": "none"}
"""Identity of the engine of methods that ask no model."""
_SHARED_PACKAGES = ("peft", "rank-bm25")
"""Packages under several methods that change outputs, beside those that engine and encoder name themselves."""

_STAGES = "stages"
"""Folder in a run's, for the answers of stages before the last."""
_KEPT = "kept"
"""Folder in a run's, for what a method without a fit keeps (see `Context.kept`)."""
_LEAST_PROMPT = 16
"""Tokens below which no prompt can hold a task."""


def say(line: str) -> None:
    """Progress goes to stderr: stdout holds the table alone."""
    print(line, file=sys.stderr, flush=True)


def execute(plan: Plan, report: Say = say) -> list[StoredRun]:
    """Runs every method with every seed and scores it; returns the stored runs in that order.

    Of a shard, those runs that are whole with it are returned whole, the others as the shard's.
    """
    only_cached = plan.config.existing is Existing.ONLY_CACHED
    for name, why in plan.left_out.items():
        report(f"{name}: left out, {why}")
    if not only_cached:
        prepare(plan)
    runs = []
    for run in _finished(plan, report):
        if only_cached:
            _check_scored(run, plan.metrics)
        runs.append(run)
    distributed.from_main(None)  # sends the others home
    distributed.leave()
    plan.engine.close()
    if (line := plan.engine.told()) is not None:
        report(line)
    # Scoring comes last: metrics bring models of their own, which no method's peak of memory should hold.
    for run in runs:
        score_run(run, plan.dataset, plan.metrics)
    return [whole_of(run, plan) if shard_of(run) else run for run in runs]


def whole_of(run: StoredRun, plan: Plan) -> StoredRun:
    """The whole run that a scored shard is of, if the others are there and scored, too; else the shard."""
    whole = merged(run_folder(run))
    if whole is not None and not missing_joined(whole, [metric.name for metric in separable(plan.metrics)]):
        score_run(whole, plan.dataset, plan.metrics)
    return whole or run


def _finished(plan: Plan, report: Say) -> list[StoredRun]:
    """All runs, complete. A shard leaves those whose fit another process is making to the end, and then waits."""
    fitted: set[str] = set()
    shard = plan.shard
    left = [(planned, seed) for planned in plan.planned for seed in plan.config.seeds]
    order, done = list(left), {}
    for wait in (False, True):
        for planned, seed in left:
            try:
                run = MethodRun(plan, planned, seed, fitted, report, shard, wait).finish()
            except Held:
                if shard is None or wait:
                    raise
                report(f"{planned.title}: another process is making what it needs; other work comes first")
                continue
            done[planned, seed] = run
            report(summary(run, plan.prices))
        left = [one for one in left if one not in done]
    return [done[one] for one in order]


def fit_all(plan: Plan, report: Say = say) -> list[Path]:
    """Makes all fits that the runs of a plan need, and nothing else; returns where they lie."""
    prepare(plan)
    fitted: set[str] = set()
    runs = [MethodRun(plan, planned, seed, fitted, report) for planned in plan.planned for seed in plan.config.seeds]
    found = [fit.folder for run in runs if (fit := run.only_fit()) is not None]
    distributed.from_main(None)  # sends the others home
    distributed.leave()
    plan.engine.close()
    return list(dict.fromkeys(found))


def help_training(plan: Plan) -> None:
    """All that a process beside the main one does of a run: its share of each fit that the main process calls for."""
    while (called := distributed.from_main()) is not None:
        number, seed = called
        run = MethodRun(plan, plan.planned[number], seed, set(), lambda _: None)
        ctx = replace(run.context(plan.config.out), stage_runner=None)
        with plan.engine.training():
            run.method.fit(plan.dataset.train, plan.dataset.dev, ctx)
    distributed.leave()


def prepare(plan: Plan) -> None:
    """Brings everything that will be needed to this machine and finds out what cannot work, before long work."""
    if any(asks_model(m) for m in plan.methods):
        plan.engine.prepare()
        _check_room(plan)
        for method in filter(asks_model, plan.methods):
            method.preflight(plan.engine)
    if plan.encoder is not None:
        plan.encoder.identity()
    for metric in plan.metrics:
        metric.preflight()


def _check_room(plan: Plan) -> None:
    """A prompt needs at least as much room as its frame: told before weights load, not by the first example."""
    context, answer = plan.engine.context_length, plan.config.max_new_tokens
    if context - answer < _LEAST_PROMPT:
        raise UsageError(
            f"--max-new-tokens {answer} leaves no room for a prompt in the model's context of {context} tokens; "
            f"give at most {max(1, context - _LEAST_PROMPT)}"
        )


def _check_scored(run: StoredRun, metrics: Sequence[Metric]) -> None:
    from bench.scoring import missing_metrics

    if missing := missing_metrics(run, metrics):
        raise UsageError(
            f"--existing only-cached: {run.path} has no score of {', '.join(m.name for m in missing)}; "
            f"make it with: python -m bench score {run.path}"
        )


class MethodRun:
    """One method with one seed on one dataset."""

    def __init__(
        self,
        plan: Plan,
        planned: Planned,
        seed: int,
        fitted: set[str],
        report: Say,
        shard: Shard | None = None,
        wait: bool = False,
    ) -> None:
        """`fitted` holds the keys of the fits that the command has made or found, so that none is made twice. `wait`:
        for a fit that another process is making, in place of raising Held."""
        self.plan, self.planned, self.seed, self.fitted, self.report = plan, planned, seed, fitted, report
        self.method = type(planned.method)(planned.method.config)  # one object a run: nothing is carried over
        self.meter = Meter()
        self.shard, self.wait = shard, wait
        examples = plan.dataset.test.examples
        users = shard.users(example.user_id for example in examples) if shard else None
        self.examples = {e.id: e for e in examples if users is None or e.user_id in users}

    @property
    def title(self) -> str:
        """As reports call it."""
        return f"{self.planned.title} {self.shard}" if self.shard else self.planned.title

    # -- keys ---------------------------------------------------------------------------------------------------

    def _prompt_budget(self) -> int:
        config = self.plan.config
        if not asks_model(self.method):
            return config.max_prompt_tokens
        return min(config.max_prompt_tokens, self.plan.engine.context_length - config.max_new_tokens)

    def description(self) -> dict[str, Any]:
        """Everything that can change a record."""
        plan, dataset = self.plan, self.plan.dataset
        encoder = plan.encoder if self.method.wants_encoder() else None
        return {
            "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "selection": dataset.selection},
            "method": _method_key(self.method),
            "engine": plan.engine.identity() if asks_model(self.method) else NO_ENGINE,
            "batching": self._batching(),
            "encoder": encoder.identity() if encoder else None,
            "sampling": asdict(plan.config.sampling),
            "prompt": {"max_prompt_tokens": self._prompt_budget()},
            "code": {"harness": HARNESS_VERSION, **{name: version(name) for name in _SHARED_PACKAGES}},
            "seed": self.seed,
        }

    def _batching(self) -> dict[str, Any]:
        """The engine's other settings: they shape batches, and with them the last bits of every logit."""
        config = getattr(self.plan.engine, "config", None)
        if config is None or not asks_model(self.method):
            return {}
        apart = {*self.plan.engine.identity(), *self.plan.engine.unkeyed}
        return {key: value for key, value in config.model_dump(mode="json").items() if key not in apart}

    def _fit_key(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that can change a fit: test examples and sampling cannot, as nothing is generated in one."""
        dataset = self.plan.dataset
        trained = [[e.id for e in split.examples] for split in (dataset.train, dataset.dev)]
        parts = {k: description[k] for k in ("engine", "encoder", "prompt", "code", "seed")}
        if asks_model(self.method):
            parts["engine"] = self.plan.engine.training_identity()
        learner = self.method.learner()
        parts["method"] = {"name": learner.name, "version": learner.version, "config": self.method.fit_config()}
        data = {"name": dataset.name, "fingerprint": dataset.fingerprint, "selection": digest(trained)}
        # An epoch may be chosen by texts of the validation split, whose last bits hang on how they are written.
        path = getattr(getattr(self.plan.engine, "config", None), "path", "auto")
        return {**parts, "dataset": data, "path": path}

    def _about(self) -> dict[str, Any]:
        config = self.plan.config
        return {
            "config": config.model_dump(
                mode="json", exclude={"out", "existing", "dry_run", "tracker", "prices", *WHO_WORKS}
            ),
            "data": _data_told(self.plan.dataset),
            "limit_seed": LIMIT_SEED,
            "provenance": provenance(),
        }

    # -- work ---------------------------------------------------------------------------------------------------

    def finish(self) -> StoredRun:
        """The complete run: as stored, or made now."""
        description = self.description()
        with RunFolder(self.plan.config.out, description, self.shard) as folder:
            if folder.open(self.plan.config.existing, self._about()).reuse:
                self.report(f"{self.title}: complete at {folder.path}, taken as it is")
                return self._named(folder)
            for line in strangers(folder.path.parents[1]) if self.shard else ():
                self.report(f"{self.title}: {line}")
            if not self.examples:
                return self._nothing(folder)
            ctx = self.context(folder.path)
            self._settle(folder)
            fit = self._fit(description, ctx)
            ctx = replace(ctx, kept=self._kept(folder, fit))
            answers = self.method.answer(list(self.examples.values()), ctx)
            self._settle(folder)
            if answers is None:
                self._generate(folder, ctx)
            else:
                self._store_answers(folder, answers)
            totals: dict[str, Any] = {
                f"{phase}_seconds": self.meter.seconds.get(phase, 0.0) for phase in ("load", "embed")
            }
            totals["stages"] = stage_costs(folder.path / _STAGES)
            for phase in sorted({"adapt", "hidden"} & self.meter.seconds.keys()):
                totals[f"{phase}_seconds"] = self.meter.seconds[phase]
            paid = [*costs.run_costs(folder.path, folder.path / _STAGES), *self.meter.settle()]
            return folder.finish(
                provenance={**provenance(), "energy": energy.gauge().told()},
                fit=fit.info if fit else None,
                label=label(self.method),
                variant=self.planned.variant,
                truth=Capability.TRUTH in self.method.needs,
                totals={**totals, **costs.totals(costs.merged(paid))},
            )

    def _settle(self, folder: RunFolder) -> None:
        """Books what this process has paid, whatever becomes of it; users' adapters are told in full at the end."""
        costs.append_costs(folder.file(costs.LEDGER), self.meter.settle(keep="adapt"))

    def only_fit(self) -> Fit | None:
        """The fit alone; None for a method that learns nothing."""
        if type(self.method).fit is Method.fit:
            return None
        description, config = self.description(), self.plan.config
        folder = fit_folder(self.method, self.plan.dataset, self._fit_key(description), config.out)
        if config.existing is not Existing.OVERWRITE and (folder / FIT_FILE).exists():
            self.report(f"{self.title}: the fit is at {folder}")
            return Fit(folder, read_object(folder / FIT_FILE))
        fit = self._fit(description, self.context(config.out))
        if fit is not None:
            self.report(f"{self.title} (seed {self.seed}): trained {duration(fit.info['seconds'])}, at {fit.folder}")
        return fit

    def fit_digest(self) -> str | None:
        """Names the fit that the run needs; None for a method that learns nothing."""
        return None if type(self.method).fit is Method.fit else digest(self._fit_key(self.description()))

    def _kept(self, folder: RunFolder, fit: Fit | None) -> Path:
        """Shards work side by side, so each keeps what it computes with a fit in a place of its own."""
        if fit is None:
            return folder.path / _KEPT
        return kept_folder(fit.folder) / self.shard.folder if self.shard else kept_folder(fit.folder)

    def _nothing(self, folder: RunFolder) -> StoredRun:
        """A shard without users, as there are more shards than these: complete at once."""
        folder.resume([])
        truth = Capability.TRUTH in self.method.needs
        name = label(self.method)
        return folder.finish(provenance=provenance(), label=name, variant=self.planned.variant, truth=truth)

    def _named(self, folder: RunFolder) -> StoredRun:
        """A run that is there already, under the name that it has in this command."""
        variant = self.planned.variant
        if variant is not None and self.plan.config.existing is not Existing.ONLY_CACHED:
            folder.name_variant(variant)
        return StoredRun.load(folder.path).called(variant)

    def context(self, folder: Path) -> Context:
        """What the method may touch, engine loaded; intermediate stages are kept under `folder`."""
        plan = self.plan
        ctx = Context(
            task=plan.dataset.task,
            population=plan.dataset.population,
            engine=plan.engine,
            seed=self.seed,
            sampling=plan.config.sampling,
            max_prompt_tokens=self._prompt_budget(),
            meter=self.meter,
            tracker=plan.config.tracker.value,
            encoder_or_none=plan.encoder if self.method.wants_encoder() else None,
            truth=plan.dataset.truth if Capability.TRUTH in self.method.needs else None,
        )

        def stage(requests: Sequence[Request], name: str) -> list[Generation]:
            cache = StageCache(folder / _STAGES, name)
            distinct = {request_key(request) for request in requests}
            self._announce(cache.missing(requests), len(distinct), f"prompts of stage {name}")
            with self._bar(f"{self.title}: {name}", len(distinct), 0) as bar:
                return cache.run(plan.engine, requests, bar.update, self._waited)

        if asks_model(self.method):
            watch = Stopwatch(plan.engine.accelerators())
            plan.engine.load()
            synchronize()
            self._waited(watch.lap())
        return replace(ctx, stage_runner=stage)

    def _fit(self, description: Mapping[str, Any], ctx: Context) -> Fit | None:
        if type(self.method).fit is Method.fit:
            return None
        config = self.plan.config
        key = self._fit_key(description)
        quiet = replace(ctx, stage_runner=None)
        mark = digest(key)
        shared = mark in self.fitted or self.shard is not None  # overwritten once, then shared
        existing = Existing.RESUME if shared else config.existing

        def told(line: str) -> None:
            self.report(f"{self.title}: {line}")

        def call() -> None:
            number = next(i for i, one in enumerate(self.plan.planned) if one is self.planned)
            distributed.from_main([number, self.seed])

        fit = fit_or_load(self.method, self.plan.dataset, quiet, key, config.out, existing, told, call, self.wait)
        self.fitted.add(mark)
        self.meter.seconds.pop("embed", None)  # what the fit embedded is told by the fit
        return fit

    def _generate(self, folder: RunFolder, ctx: Context) -> None:
        examples = list(self.examples.values())
        requests = self.method.requests(examples, ctx)
        self._settle(folder)
        if [r.example_id for r in requests] != [e.id for e in examples]:
            raise ValueError(f"{self.method.name}.requests must give one request an example, in their order")
        batches = self.plan.engine.plan(requests)
        done = folder.resume([[requests[i].example_id for i in batch] for batch in batches])
        left = [i for batch in batches[done:] for i in batch]
        self._announce([requests[i] for i in left], len(requests), "examples")
        with self._bar(self.title, len(requests), len(requests) - len(left)) as bar:
            asked = [[requests[i] for i in batch] for batch in batches[done:]]
            self.meter.start_peak()
            watch = Stopwatch(self.plan.engine.accelerators())
            for number, result in enumerate(self.plan.engine.stream(asked, bar.update), done):
                waited, spent = watch.lap().split(result.load_seconds)
                if waited.seconds:
                    self._waited(waited)
                    self._settle(folder)
                self._store_batch(folder, number, asked[number - done], result, spent)
                self.meter.start_peak()

    def _peak(self) -> int | None:
        """Most memory of the accelerator, or of this process where the model is in it; None where it is elsewhere."""
        engine = self.plan.engine
        return engine.peak_memory() or (peak_rss() if engine.accelerators() is None else None)

    def _waited(self, spent: Spent) -> None:
        """Counts as loading what an engine needed to start."""
        self.meter.add("load", spent.seconds, [costs.Cost.of("load", spent)])

    @staticmethod
    def _bar(title: str, total: int, done: int) -> Any:
        from tqdm import tqdm

        often = 0.1 if sys.stderr.isatty() else 30.0  # a log wants a line now and then
        return tqdm(total=total, initial=done, desc=title, unit="ex", mininterval=often)

    def _announce(self, requests: Sequence[Request], planned: int, what: str) -> None:
        speed = self.plan.engine.speed()
        prompt = sum(self.plan.engine.count_tokens(r.messages) for r in requests)
        new = sum(request.sampling.max_new_tokens for request in requests)
        long = ""
        if speed:
            seconds = prompt / speed.prefill_tokens_per_second + new / speed.decode_tokens_per_second
            long = f", at most about {duration(seconds)} here"
        again = f" ({planned - len(requests)} are there already)" if len(requests) < planned else ""
        self.report(
            f"{self.title}: generating {len(requests)} of {planned} {what}{again}, {prompt:,} prompt tokens, "
            f"up to {new:,} new ones{long}. Smaller with --limit, --max-new-tokens, --max-prompt-tokens."
        )

    def _store_batch(
        self, folder: RunFolder, number: int, batch: Sequence[Request], result: BatchResult, spent: Spent
    ) -> None:
        pairs = list(zip(batch, result.generations, strict=True))
        timing = BatchTiming(
            index=number,
            examples=len(batch),
            prompt_tokens=sum(g.prompt_tokens for _, g in pairs),
            output_tokens=sum(g.output_tokens for _, g in pairs),
            prefill_seconds=result.prefill_seconds,
            decode_seconds=result.decode_seconds,
            wall_seconds=spent.seconds,
            peak_memory=self._peak(),
            energy_joules=spent.energy_joules,
            device=spent.device,
            accelerator_seconds=spent.accelerator_seconds,
            core_seconds=spent.core_seconds,
        )
        folder.append(number, [self._record(request, generation) for request, generation in pairs], timing)

    def _record(self, request: Request, generation: Generation) -> dict[str, Any]:
        example: Example = self.examples[request.example_id]
        return {
            "example_id": example.id,
            "user_id": example.user_id,
            "text": None if generation.error else self.method.parse(example, generation.text),
            "prompt_sha256": text_digest("\n".join(f"{m.role}: {m.content}" for m in request.messages)),
            "prompt_tokens": generation.prompt_tokens,
            "output_tokens": generation.output_tokens,
            "finish_reason": generation.finish_reason,
            "error": generation.error,
            **({"tokens_estimated": True} if generation.estimated else {}),
        }

    def _store_answers(self, folder: RunFolder, answers: Sequence[str]) -> None:
        """One batch of texts that no model wrote."""
        generations = [Generation(text, 0, 0, "none") for text in answers]
        requests = [Request(i, "generate", (), self.plan.config.sampling, 0) for i in self.examples]
        if folder.resume([[r.example_id for r in requests]]) == 0:
            records = [self._record(r, g) for r, g in zip(requests, generations, strict=True)]
            folder.append(0, records, BatchTiming(0, len(records), 0, 0, 0.0, 0.0, 0.0))


def label(method: Method) -> str:
    """The method's name, with the knobs that are not at their defaults."""
    told = ", ".join(f"{k}={v}" for k, v in sorted(method.config.changed().items()))
    return f"{method.name} ({told})" if told else method.name


def _data_told(dataset: Dataset) -> dict[str, Any]:
    """What an export tells of the data, and what it needs of them to write again."""
    splits = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    return {
        "task": asdict(dataset.task),
        "examples": {name: len(split) for name, split in splits.items()},
        "users": {name: len({example.user_id for example in split.examples}) for name, split in splits.items()},
        "synthetic": dataset.truth is not None,
    }


def _method_key(method: Method) -> dict[str, Any]:
    return {"name": method.name, "version": method.version, "config": method.config.model_dump(mode="json")}


def score_run(run: StoredRun, dataset: Dataset, metrics: Sequence[Metric], force: bool = False) -> list[str]:
    """Scores a stored run with the metrics that are not yet in its scores (with all of them if `force`).

    A shard only with those that the whole can take from it. Returns the names of the metrics that were computed.
    """
    from bench.scoring import join, missing_metrics, score, write_scores

    metrics = separable(metrics) if shard_of(run) else metrics
    wanted = list(metrics) if force else missing_metrics(run, metrics)
    if wanted:
        inputs = join(run.records, dataset.test, dataset.truth, dataset.population)
        write_scores(run, score(inputs, wanted, progress=sys.stderr.isatty()))
    return [metric.name for metric in wanted]


def summary(run: StoredRun, prices: Prices | None = None) -> str:
    """One line on a finished run."""
    totals = run.totals
    fit = run.manifest.get("fit") or {}
    which = f"{run.title} {shard}" if (shard := shard_of(run)) else run.title
    parts = [f"{which} (seed {run.description['seed']}): {totals['examples']} examples"]
    if totals["wall_seconds"]:
        parts[0] += f" in {duration(totals['wall_seconds'])} ({totals['examples'] / totals['wall_seconds']:.2f}/s)"
        parts.append(f"{totals['prompt_tokens']:,} prompt and {totals['output_tokens']:,} new tokens")
    if fit:
        parts.append(f"trained {duration(fit['seconds'])}")
    if totals.get("adapt_seconds"):
        parts.append(f"users' adapters {duration(totals['adapt_seconds'])}")
    if totals.get("hidden_seconds"):
        parts.append(f"hidden states read in {duration(totals['hidden_seconds'])}")
    parts += bill(run, prices)
    if totals["failed"]:
        parts.append(f"{totals['failed']} FAILED")
    return ", ".join(parts)
