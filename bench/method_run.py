"""One method with one seed on one dataset: its keys, its fit, its texts, its folder."""

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
from bench.files import read_object
from bench.fits import FIT_FILE, Fit, Say, duration, fit_folder, fit_or_load, kept_folder
from bench.keys import digest, text_digest
from bench.merging import strangers
from bench.meter import Meter, peak_rss, synchronize
from bench.method import HARNESS_VERSION, Context, Method
from bench.plan import LIMIT_SEED, WHO_WORKS, Plan, asks_model
from bench.provenance import provenance
from bench.shards import Shard
from bench.stages import StageCache, request_key, stage_costs
from bench.store import BatchTiming, Existing, RunFolder, StoredRun
from bench.types import Capability, Example, Generation, Request

if TYPE_CHECKING:
    from bench.data.split import Dataset

NO_ENGINE = {"name": "none"}
"""Identity of the engine of methods that ask no model."""
_SHARED_PACKAGES = ("peft", "rank-bm25")
"""Packages under several methods that change outputs, beside those that engine and encoder name themselves."""
_STAGES = "stages"
"""Folder in a run's, for the answers of stages before the last."""
_KEPT = "kept"
"""Folder in a run's, for what a method without a fit keeps (see `Context.kept`)."""


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
            "method": method_key(self.method),
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
            long = f", about {duration(seconds)} here if all are as long"
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


def method_key(method: Method) -> dict[str, Any]:
    """What names a method in a run's key."""
    return {"name": method.name, "version": method.version, "config": method.config.model_dump(mode="json")}
