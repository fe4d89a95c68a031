"""Spec files: found by name or path, every key checked, errors in one line that names file and key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bench
from bench import registry
from bench.data import spec as spec_module
from bench.data.spec import FilterConfig, SplitConfig, available, load_spec, spec_files, spec_summary
from bench.errors import DataError, UnknownName, UsageError
from bench.types import REVIEW_TASK

Write = Callable[..., str]

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '[source]\nkind = "parquet"\nreviews = "r.parquet"\nitems = "sub/i.parquet"\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str | bytes, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return _write


def message(path: str, kind: type[UsageError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_paper(write: Write, tmp_path: Path) -> None:
    spec = load_spec(write(SOURCE))
    assert spec.name == "mine"
    assert spec.kind == "parquet"
    assert spec.filter == FilterConfig()
    assert spec.filter.model_dump() == {
        "min_text_chars": 200,
        "min_description_chars": 100,
        "max_description_chars": 2000,
        "require_rating": True,
        "require_title": True,
        "require_description": True,
        "min_users_per_item": 8,
        "min_reviews_per_user": 18,
        "max_reviews_per_user": 500,
        "min_profile_users_per_item": 5,
        "min_profile_reviews": 8,
    }
    assert spec.split == SplitConfig(train=8, val=1, test=1, on_empty_history="error")
    assert spec.task == REVIEW_TASK
    assert not spec.ready_split
    assert spec.source_config.model_dump()["reviews"] == tmp_path / "r.parquet"
    assert spec.source_config.model_dump()["items"] == tmp_path / "sub" / "i.parquet"


def test_everything_can_be_set(write: Write) -> None:
    text = 'name = "films"\nabout = "Films."\n' + SOURCE.replace("r.parquet", "/elsewhere/r.parquet")
    text += 'timestamp_unit = "s"\ncolumns = { text = "body" }\n[filter]\nmin_text_chars = 7\n'
    text += '[split]\ntrain = 3\non_empty_history = "drop"\n'
    text += '[task]\nname = "plot"\nnoun = "plot"\ntarget_label = "Plot"\nlabels = { rating = "Stars" }\n'
    spec = load_spec(write(text))
    assert (spec.name, spec.about) == ("films", "Films.")
    config = spec.source_config.model_dump()
    assert str(config["reviews"]) == "/elsewhere/r.parquet"
    assert config["columns"]["text"] == "body"
    assert config["columns"]["user_id"] == "user_id"
    assert spec.filter.min_text_chars == 7
    assert (spec.split.train, spec.split.val, spec.split.on_empty_history) == (3, 1, "drop")
    assert (spec.task.name, spec.task.noun, spec.task.target_label) == ("plot", "plot", "Plot")
    labels = {field.name: field.label for field in spec.task.fields}
    assert labels["rating"] == "Stars"
    assert labels["title"] == "Review title"
    assert [f.shortenable for f in spec.task.fields] == [f.shortenable for f in REVIEW_TASK.fields]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("colour = 1\n" + SOURCE, ["mine.toml", "'colour'"]),
        (SOURCE + "reveiws = 1\n", ["mine.toml: source", "did you mean 'reviews'"]),
        (SOURCE + "[filter]\nmin_txt_chars = 1\n", ["mine.toml: filter", "did you mean 'min_text_chars'"]),
        (SOURCE + "[split]\ntrian = 1\n", ["mine.toml: split", "did you mean 'train'"]),
        (SOURCE + "[source.columns]\nusr_id = 'u'\n", ["mine.toml: source.columns", "did you mean 'user_id'"]),
        (SOURCE + "[task]\nnuon = 'x'\n", ["mine.toml: task", "did you mean 'noun'"]),
        (SOURCE + "[task.labels]\nratng = 'x'\n", ["mine.toml: task.labels", "did you mean 'rating'"]),
        (SOURCE.replace("parquet", "parket", 1), ["'parket'", "did you mean 'parquet'"]),
    ],
)
def test_unknown_keys_get_a_guess(write: Write, text: str, parts: list[str]) -> None:
    found = message(write(text), UnknownName)
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (SOURCE + "[filter]\nmin_text_chars = -1\n", ["filter.min_text_chars = -1"]),
        (SOURCE + "[filter]\nmin_text_chars = 'many'\n", ["filter.min_text_chars = 'many'"]),
        (SOURCE + "[filter]\nmin_description_chars = 9\nmax_description_chars = 5\n", ["min_description_chars = 9"]),
        (SOURCE + "[filter]\nmin_reviews_per_user = 5\n", ["min_reviews_per_user = 5", "10 targets"]),
        (SOURCE + "[split]\ntest = 0\n", ["split.test = 0"]),
        (SOURCE + "[split]\non_empty_history = 'panic'\n", ["split.on_empty_history = 'panic'"]),
        (SOURCE + "timestamp_unit = 'h'\n", ["source.timestamp_unit = 'h'"]),
        ('[source]\nkind = "parquet"\nitems = "i"\n', ["source.reviews"]),
        ('name = "a/b"\n' + SOURCE, ["name = 'a/b'"]),
        ("source = 3\n", ["source = 3", "[source]"]),
        ("name = 'x'\n", ["[source] needs kind"]),
        ('[source]\nkind = "hub"\ncategory = "Books"\n[filter]\nmin_text_chars = 1\n', ["filter.min_text_chars"]),
        ('[source]\nkind = "hub"\ncategory = "Books"\n[split]\ntrain = 3\n', ["split.train"]),
    ],
)
def test_values_that_cannot_be_used(write: Write, text: str, parts: list[str]) -> None:
    found = message(write(text))
    assert "mine.toml" in found
    assert all(part in found for part in parts), found


def test_broken_toml_names_the_line(write: Write) -> None:
    found = message(write("name = 'x'\n\n[source\n"), DataError)
    assert "mine.toml" in found
    assert "line 3" in found
    assert "line 2" in message(write(b"name = 'x'\nabout = '\xff'\n"), DataError)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert "does not exist" in message(str(tmp_path / "no.toml"), DataError)
    assert "does not exist" in message("no-such-file.toml", DataError)
    assert "is a folder" in message(str(tmp_path) + "/", DataError)


def test_bare_names_here_first_then_beside_the_package_then_installed(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        spec_module, "folders", lambda: [Path("datasets"), tmp_path / "checkout", tmp_path / "installed"]
    )
    write("about = 'installed'\n" + SOURCE, "installed/films.toml")
    assert load_spec("films").about == "installed"
    write("about = 'checkout'\n" + SOURCE, "checkout/films.toml")
    assert load_spec("films").about == "checkout"
    write("about = 'here'\n" + SOURCE, "datasets/films.toml")
    assert load_spec("films").about == "here"
    write(SOURCE, "checkout/albums.toml")
    assert list(spec_files()) == ["albums", "films"]
    assert [spec.name for spec in available()] == ["albums", "films"]
    with pytest.raises(UnknownName, match=r"unknown dataset 'flims'; did you mean 'films'\?"):
        load_spec("flims")


def test_folders_are_those_promised() -> None:
    package = Path(bench.__file__).resolve().parent
    assert spec_module.folders() == [Path("datasets"), package.parent / "datasets", package / "data" / "specs"]


def test_overrides_are_options_of_the_source(write: Write) -> None:
    path = write('[source]\nkind = "hub"\ncategory = "Books"\n')
    spec = load_spec(path, {"category": "Movies_and_TV", "path": "copy"})
    assert spec.source_config.model_dump()["category"] == "Movies_and_TV"
    assert spec.source_config.model_dump()["path"] == Path(path).parent / "copy"
    with pytest.raises(UnknownName, match="did you mean 'category'"):
        load_spec(path, {"categroy": "Books"})
    with pytest.raises(UsageError, match=r"source\.category = 3"):
        load_spec(path, {"category": 3})


CAME_ALONG = ["amazon-books", "amazon-cds-vinyl", "amazon-movies-tv", "example-parquet", "planted"]
CAME_ALONG += [*(f"lamp-{number}" for number in (4, 5, 6, 7)), "longlamp-abstract", "longlamp-review", "longlamp-topic"]


@pytest.mark.parametrize("name", CAME_ALONG)
def test_specs_that_come_along(name: str) -> None:
    spec = load_spec(str(ROOT / "datasets" / f"{name}.toml"))
    assert spec.name == name
    assert spec.about
    assert spec.kind in registry.names("source")
    text = spec.path.read_text()
    assert not [line for line in text.splitlines() if '"/' in line or "~" in line], "a spec holds no machine path"
    summary = spec_summary(str(spec.path))
    assert {"name", "about", "file", "kind", "source", "filter", "split", "task"} == set(summary)
    assert (summary["filter"] is None) == spec.ready_split


def test_the_example_spec_holds_the_defaults() -> None:
    spec = load_spec(str(ROOT / "datasets" / "example-parquet.toml"))
    assert spec.filter == FilterConfig()
    assert spec.split == SplitConfig()
    assert spec.task == REVIEW_TASK
    with pytest.raises(DataError, match=r"my-items\.parquet does not exist; set source\.items"):
        spec.source.load()


def test_reading_specs_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bench.data.spec import load_spec, spec_summary\nspec_summary('amazon-books')\n"
        "spec_summary('example-parquet')\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
