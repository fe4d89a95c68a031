"""`python -m bench export`: what a run learned, as a folder that stands alone and tells nothing it should not."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_world import FAKE, call, only_run
from export_world import make_runs, tiny_parts
from tiny_engine import one_thread

from bench.card import command, hub_id
from bench.errors import UsageError
from bench.evidence import saved_files
from bench.export import export, public
from bench.plan import RunConfig
from bench.stats import paired_bootstrap
from bench.store import StoredRun, read_scores

__all__ = ["one_thread"]

DEP_FILES = {"README.md", "adapter.safetensors", "config.json"}
LORA_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_parts(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any]) -> Iterator[Path]:
    """Runs of dep, lora and nonperso."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEP_BENCH_CACHE", str(folder / "cache"))
        make_runs(folder / "runs", parts, ("dep", "lora", "nonperso"))
        yield folder / "runs"


def run_of(out: Path, method: str) -> StoredRun:
    return StoredRun.load(only_run(out, method))


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    """A copy of the runs to be spoiled."""
    return Path(shutil.copytree(out, tmp_path / "runs"))


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "files"), [("dep", DEP_FILES), ("lora", LORA_FILES)])
def test_an_export_is_a_function_of_its_run(out: Path, tmp_path: Path, method: str, files: set[str]) -> None:
    run = run_of(out, method)
    (tmp_path / "there").mkdir()
    names = export(run.path, tmp_path / "there")
    assert set(names) == files
    export(run.path, tmp_path / "deep" / "down")
    first = saved_files(tmp_path / "there")
    assert set(first) == files
    assert saved_files(tmp_path / "deep" / "down") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "there"]
    (fit,) = run.path.parent.glob("fit-*/")
    weights = next(name for name in files if name.endswith(".safetensors"))
    assert first[weights] == (fit / weights).read_bytes()


def test_the_config_holds_what_is_needed_to_write_again(out: Path, tmp_path: Path) -> None:
    run = run_of(out, "dep")
    export(run.path, tmp_path / "dep")
    config = json.loads((tmp_path / "dep" / "config.json").read_text())
    told = config["bench"]
    assert (config["embedding_size"], config["hidden_size"]) == (32, 32)
    for part in ("method", "engine", "encoder", "sampling", "prompt", "seed", "batching", "code"):
        assert told[part] == run.description[part], part
    assert told["data"]["fingerprint"] == run.description["dataset"]["fingerprint"]
    assert told["data"]["users"] == {"train": 3, "dev": 3, "test": 3}
    assert told["fit"]["rows"] == 3
    assert [field["name"] for field in told["task"]["fields"]] == ["item_title", "item_description", "rating", "title"]
    assert "dep-bench" in told["packages"]


def test_an_exported_lora_is_an_adapter_of_peft(out: Path, tmp_path: Path, parts: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export(run_of(out, "lora").path, tmp_path / "lora")
    base = AutoModelForCausalLM.from_pretrained(parts["model"])
    model = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) > 0


def test_nothing_of_people_or_of_this_machine_is_written(out: Path, tmp_path: Path) -> None:
    from bench.config import build
    from bench.plan import dataset_of

    run = run_of(out, "dep")
    dataset = dataset_of(build(RunConfig, run.plan["about"]["config"], "test"))
    people = {d.user_id for d in dataset.population.documents()} | {d.item_id for d in dataset.population.documents()}
    texts = {d.text for d in dataset.population.documents()} | set(dataset.test.references.values())
    titles = {str(d.fields["item_title"]) for d in dataset.population.documents()}
    for method in ("dep", "lora"):
        export(run_of(out, method).path, tmp_path / method)
        for name, data in saved_files(tmp_path / method).items():
            if name.endswith(".safetensors"):  # numbers may spell anything; names of tensors may not
                data = data[8 : 8 + int.from_bytes(data[:8], "little")]
            text = data.decode()
            for secret in (*texts, *titles, *(f'"{one}"' for one in people), str(tmp_path), str(Path.home()), "/tmp"):
                assert secret not in text, (name, secret)


# -- the card ---------------------------------------------------------------------------------------------------------


def card_of(run: StoredRun, folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """Heading and text of a run's card."""
    export(run.path, folder, **options)
    _, heading, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(heading), text


def test_the_heading_of_the_card_says_what_is_known(out: Path, tmp_path: Path) -> None:
    heading, text = card_of(run_of(out, "dep"), tmp_path / "dep")
    assert heading == {
        "library_name": "dep-bench",
        "pipeline_tag": "text-generation",
        "tags": ["personalization", "dep-bench", "dep"],
        "datasets": ["planted"],
        "language": ["en"],
    }
    heading, _ = card_of(run_of(out, "dep"), tmp_path / "again", license_="mit", language="de")
    assert (heading["license"], heading["language"]) == ("mit", ["de"])
    for part in ("What it was trained on", "What the weights hold", "Use", "Intended use and limits", "Results"):
        assert f"## {part}\n" in text
    assert "2507.20849" in text
    assert "methods.dep.load(" in text
    assert "synthetic: no person wrote them" in text


def test_the_hubs_card_reader_takes_it(out: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    export(run_of(out, "lora").path, tmp_path / "lora")
    card = ModelCard((tmp_path / "lora" / "README.md").read_text())
    assert card.data.library_name == "dep-bench"


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct@abc123", "Qwen/Qwen2.5-7B-Instruct"),
        ("my-folder", None),
    ],
)
def test_the_base_model_is_named_where_it_has_a_name(model: str, wanted: str | None) -> None:
    assert hub_id(model) == wanted


def test_results_are_the_runs_scores_with_their_intervals(out: Path, tmp_path: Path) -> None:
    run = run_of(out, "dep")
    scores = read_scores(run)
    assert scores is not None
    _, text = card_of(run, tmp_path / "dep")
    users = np.unique([record["user_id"] for record in run.records], return_inverse=True)[1]
    for name, values in scores.values.items():
        array = np.array([[values[record["example_id"]] for record in run.records]], dtype=float)
        score = paired_bootstrap({"it": array}, users, reducer=scores.metrics[name].reducer)["it"].score
        shown = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        assert f"| `{name}` | {shown} |" in text
        assert f"`{scores.metrics[name].signature}`" in text


def test_the_training_curve_is_that_of_the_fit(out: Path, tmp_path: Path) -> None:
    run = run_of(out, "dep")
    _, text = card_of(run, tmp_path / "dep")
    epochs = run.manifest["fit"]["log"]["epochs"]
    assert len(epochs) == 2
    for epoch in epochs:
        assert f"| {epoch['train_loss']:.4f} | {epoch['dev_loss']:.4f} |" in text
    assert text.count("(kept)") == 1


def test_a_run_without_scores_says_so(copied: Path, tmp_path: Path) -> None:
    run = run_of(copied, "dep")
    (run.path / "scores.json").unlink()
    assert "has not been scored" in card_of(run, tmp_path / "dep")[1]


def test_a_diagnosis_beside_the_run_is_told(copied: Path, tmp_path: Path) -> None:
    run = run_of(copied, "dep")
    figures = {"autoencoder": {"explained_variance": 0.5, "dead units": 3, "by": {"user": "u1", "l0": 2.25}}, "n": None}
    (run.path / "diagnosis.json").write_text(json.dumps(figures))
    _, text = card_of(run, tmp_path / "dep")
    assert "## Inside\n" in text
    for line in ("| autoencoder, explained variance | 0.5 |", "| autoencoder, dead units | 3 |", "by, l0 | 2.25 |"):
        assert line in text
    assert "u1" not in text


def test_the_command_of_the_card_makes_the_run(
    out: Path, tmp_path: Path, parts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = card_of(run_of(out, "dep"), tmp_path / "dep")
    line = text.partition("```sh\n")[2].partition("\n")[0]
    places = {Path(path).name: path for path in parts.values()}
    words = [places.get(word, word) for word in shlex.split(line)]
    assert words[:4] == ["python", "-m", "bench", "run"]
    code, _, err = call([*words[3:], "--out", str(out), "--existing", "only-cached"], capsys)
    assert code == 0, err
    assert str(run_of(out, "dep").path) in err


def test_a_command_leaves_defaults_out() -> None:
    config = RunConfig(methods=("dep", "rag"), seeds=(0, 1), overrides=("dep.k=4", "rag.retriever=a b"))
    told = command(config.model_dump(mode="json", exclude={"out", "existing", "dry_run"}))
    assert told == "python -m bench run --methods dep,rag --seeds 0,1 --set dep.k=4 --set 'rag.retriever=a b'"
    assert command({"methods": ["dep"], "later": True, "other": False, "none": None}).endswith("--methods dep --later")


# -- privacy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("/srv/me/models/mine", "mine"),
        ("~/mine", "mine"),
        ("../../me/mine", "mine"),
        (r"D:\data\me\mine", "mine"),
        (r"\\server\share\mine", "mine"),
        ("file:///srv/me/x.jsonl", "x.jsonl"),
        ("org/name", "org/name"),
        ("data/mine.toml", "data/mine.toml"),
        ("reviews.source.path=/srv/me/x.parquet", "reviews.source.path=x.parquet"),
        ('reviews.paths=["/srv/me/a", "b"]', 'reviews.paths=["a", "b"]'),
        ("openai.api_key=sk-12", "openai.api_key=***"),
        ("judge.token=12", "judge.token=***"),
        ("dep.batch_tokens=12", "dep.batch_tokens=12"),
        ("a.url=https://me:pass@host/x", "a.url=https://host/x"),
        ({"api_key": "sk", "k": 3, "deep": [{"secret": "x"}]}, {"api_key": "***", "k": 3, "deep": [{"secret": "***"}]}),
        ((1, 2.5, None, True), [1, 2.5, None, True]),
    ],
)
def test_paths_and_keys_are_left_out(value: Any, wanted: Any) -> None:
    assert public(value) == wanted


# -- refusals ---------------------------------------------------------------------------------------------------------


def refused(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command tells of a run that cannot be exported; nothing may have been written."""
    before = saved_files(folder.parent) if folder.parent.exists() else {}
    code, printed, err = call(["export", path, folder], capsys)
    assert (code, printed, err.count("\n")) == (2, "", 1), err
    assert (saved_files(folder.parent) if folder.parent.exists() else {}) == before
    return err


def test_what_is_no_run_of_a_method_that_trains(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made"
    assert "no run at" in refused(tmp_path / "nowhere", target, capsys)
    assert "holds none of a method that trains" in refused(tmp_path, target, capsys)
    told = refused(out, target, capsys)
    assert "holds 2 runs of methods that train" in told
    assert str(run_of(out, "dep").path) in told
    assert "nonperso learned nothing" in refused(run_of(out, "nonperso").path, target, capsys)


def test_a_run_that_is_not_whole(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(copied, "dep").path
    records = (run / "records.jsonl").read_bytes()
    (run / "records.jsonl").write_bytes(records[:-5])
    assert "SHA-256 differs" in refused(run, tmp_path / "x" / "made", capsys)
    (run / "records.jsonl").write_bytes(records)
    (run / "scores.jsonl").write_text("{}\n")
    assert "make them anew" in refused(run, tmp_path / "x" / "made", capsys)
    (run / "manifest.json").unlink()
    assert "is not complete" in refused(run, tmp_path / "x" / "made", capsys)


def test_a_fit_that_is_not_whole(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, target = run_of(copied, "dep").path, tmp_path / "x" / "made"
    (fit,) = run.parent.glob("fit-*/")
    weights = (fit / "adapter.safetensors").read_bytes()
    (fit / "adapter.safetensors").write_bytes(weights[:-4])
    assert "adapter.safetensors is damaged" in refused(run, target, capsys)
    (fit / "adapter.safetensors").unlink()
    assert "holds no *.safetensors" in refused(run, target, capsys)
    (fit / "adapter.safetensors").write_bytes(weights)
    (fit / "more.pt").write_bytes(b"\x80\x04N.")
    assert "only safetensors, JSON and text" in refused(run, target, capsys)
    (fit / "more.pt").unlink()
    (fit / "config.json").write_text("{")
    assert "not valid JSON" in refused(run, target, capsys)
    info = json.loads((fit / "fit.json").read_text())
    (fit / "fit.json").write_text(json.dumps({**info, "key": {"seed": 5}}))
    assert "belongs to another fit" in refused(run, target, capsys)
    shutil.rmtree(fit)
    assert "is gone" in refused(run, target, capsys)


def test_a_run_that_says_nothing_of_its_data(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(copied, "dep").path
    plan = json.loads((run / "plan.json").read_text())
    del plan["about"]["data"]
    (run / "plan.json").write_text(json.dumps(plan))
    assert "does not say what the data were" in refused(run, tmp_path / "x" / "made", capsys)


def test_a_folder_that_is_taken(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(out, "dep").path
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert "export into a new one" in refused(run, tmp_path / name, capsys)
    assert "choose another folder" in refused(run, tmp_path / "file" / "below", capsys)


def test_options_of_the_card_are_names(out: Path, tmp_path: Path) -> None:
    run = run_of(out, "dep").path
    with pytest.raises(UsageError, match="--license 'a b'"):
        export(run, tmp_path / "made", license_="a b")
    with pytest.raises(UsageError, match="--language"):
        export(run, tmp_path / "made", language="en\nlicense: x")


def test_the_command_lists_what_it_wrote(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = call(["export", run_of(out, "dep").path, tmp_path / "made", "--license", "mit"], capsys)
    assert code == 0
    assert [Path(line).name for line in printed.splitlines()] == sorted(DEP_FILES)


def test_runs_of_an_engine_without_weights_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call([*FAKE, "--methods", "rag", "--limit", "2", "--out", str(tmp_path / "runs")], capsys)[0] == 0
    assert "rag learned nothing" in refused(only_run(tmp_path / "runs", "rag"), tmp_path / "made", capsys)
