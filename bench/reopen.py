"""A stored run taken up again: what it was made of must still be there, and still be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.card import command
from bench.config import build
from bench.errors import UsageError
from bench.files import folder_name, read_object
from bench.fits import FIT_FILE
from bench.keys import digest
from bench.plan import RunConfig
from bench.shards import division, shown
from bench.store import MANIFEST, PLAN, StoredRun, find_runs, merged

if TYPE_CHECKING:
    from bench.data.split import Dataset


def complete_run(path: Path) -> StoredRun:
    """The run in a folder. Raises UsageError, with the folders that would do, for what is no complete run."""
    if not path.is_dir():
        raise UsageError(f"no run at {path}; give the folder of one, such as results/runs/planted/dep/KEY")
    if (run := merged(path)) is not None:
        return run
    if divided := division(path):
        raise UsageError(f"{path} is not whole: {divided.told()}; make what is missing with {shown(divided.missing)}")
    if (path / PLAN).is_file():
        raise UsageError(f"{path} is not complete; the command that made it goes on with it")
    fitted = [run.path for run in find_runs(path).runs if run.manifest.get("fit")]
    many = f"holds {len(fitted)} runs of methods that train; give one, such as {fitted[0]}" if fitted else ""
    raise UsageError(f"{path} {many or 'is no run and holds none of a method that trains'}")


def config_of(run: StoredRun) -> RunConfig:
    """What the command that made the run was told, checked. Raises UsageError if the run does not say."""
    return build(RunConfig, stored_config(run), str(run.path / PLAN))


def stored_config(run: StoredRun) -> dict[str, Any]:
    """The same as the run's plan holds it."""
    about = run.plan.get("about", {}).get("config")
    if not isinstance(about, dict):
        raise UsageError(f"{run.path} does not say which dataset it came from; run it again")
    return about


def check_dataset(run: StoredRun, dataset: Dataset) -> None:
    """Raises UsageError unless the dataset, prepared anew, is the very one the run was made on."""
    now = {"name": dataset.name, "fingerprint": dataset.fingerprint, "selection": dataset.selection}
    if now != run.description["dataset"]:
        raise UsageError(
            f"{run.path} was made on another state of dataset {dataset.name!r} (fingerprint "
            f"{run.description['dataset']['fingerprint'][:12]}, now {dataset.fingerprint[:12]}); run it again"
        )


def fit_folder(run: StoredRun) -> Path:
    """Where what the run's method learned lies. Raises UsageError if it learned nothing, or that is gone."""
    fit = run.manifest.get("fit")
    if not fit:
        raise UsageError(f"{run.path}: {run.method} learned nothing; dep and lora, for instance, train")
    out = run.path.parents[2]
    again = f"make it again with: {command(stored_config(run))} --out {out} --existing overwrite"
    if not isinstance(fit, dict) or not isinstance(fit.get("key"), dict):
        raise UsageError(f"{run.path / MANIFEST} does not say what was fitted; {again}")
    learner = str(fit["key"].get("method", {}).get("name", run.method))  # several methods may have the same fit
    folder = run.path.parents[1] / folder_name(learner) / f"fit-{digest(fit['key'])}"
    if not (folder / FIT_FILE).is_file():
        raise UsageError(f"what {run.path} learned is gone ({folder}); {again}")
    if read_object(folder / FIT_FILE).get("key") != fit["key"]:
        raise UsageError(f"{folder / FIT_FILE} belongs to another fit; {again}")
    return folder


def method_overrides(run: StoredRun) -> list[str]:
    """Every knob of the run's method as `--set` assignments: an ablation's variant has others than were asked for."""
    config = run.description["method"]["config"]
    return [f"{run.method}.{knob}={json.dumps(value)}" for knob, value in sorted(config.items())]
