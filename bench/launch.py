"""Who works through a run's plan: this process, for all of it or a share, or a cluster; and what is whole then."""

from __future__ import annotations

from collections.abc import Sequence

from bench.merging import run_folder, shard_of
from bench.plan import Executor, Plan
from bench.runner import execute, fit_all, say
from bench.shards import Shard, division, shown
from bench.store import StoredRun


def launch(plan: Plan) -> list[StoredRun]:
    """Does what a plan says and returns its runs that are whole, in its order; says what others lack."""
    if plan.config.fit_only:
        if not fit_all(plan):
            say("none of these methods learns anything: there is nothing to fit")
        return []
    if plan.config.executor is Executor.RAY:
        from bench.cluster import execute_on_cluster

        return execute_on_cluster(plan)
    runs = execute(plan)
    whole = [run for run in runs if shard_of(run) is None]
    for run in runs:
        divided = division(run_folder(run)) if shard_of(run) else None
        if divided is not None:
            say(f"{run.title} (seed {run.description['seed']}): {divided.told()}; {_how(divided.missing)}")
    return whole


def _how(missing: Sequence[Shard]) -> str:
    return f"python -m bench table shows it once they are made ({shown(missing)})"
