"""`new-method` writes packages that work as they stand, and `check` tells what a method does wrong in plain words."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import bad_methods
import pytest
from cli_world import FAKE, call, process
from hypothesis import given, settings
from hypothesis import strategies as st
from method_world import World, context, world
from tiny_engine import engine_of, lively_model, one_thread

import bench.evidence
import bench.testing
from bench import scaffold
from bench.check import MEANINGS
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.method import Method
from bench.scaffold import Kind, NewMethod, new_method
from bench.training import evaluate_loss

__all__ = ["one_thread"]

Capture = pytest.CaptureFixture[str]
QUICK = ("--set", "epochs=1")
HERE = Path(__file__).parent
TRAINED = (Kind.SOFT, Kind.ADAPTER)


def imported(new: NewMethod) -> ModuleType:
    """The module that was written, without a trace in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(new.module, new.folder / f"{new.module}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- what is written works -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.PROMPT, *(pytest.param(kind, marks=pytest.mark.slow) for kind in TRAINED)])
def test_a_new_package_passes_its_own_test_and_the_check(kind: Kind, tmp_path: Path, capsys: Capture) -> None:
    code, out, err = call(["new-method", "first-try", "--kind", kind.value, "--into", tmp_path / "mine"], capsys)
    assert (code, err) == (0, "")
    folder = tmp_path / "mine" / "first-try"
    assert {path.name for path in folder.iterdir()} == {
        "first_try.py",
        "test_first_try.py",
        "pyproject.toml",
        "README.md",
    }
    told = (folder / "README.md").read_text().splitlines()
    (line,) = (line for line in told if "bench check" in line)
    assert f"pip install --no-deps -e {folder}\n" in out
    done = process(line.split()[3:], cwd=folder)  # the very command that it tells
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first-try (first_try:FirstTry) holds to the contract" in done.stdout
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    own = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, capture_output=True, text=True)
    assert own.returncode == 0, own.stdout
    assert "1 passed" in own.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed one package of each kind into, without network."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = [str(new_method(f"my-{kind.value}", kind, folder).folder) for kind in Kind]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), *sources]
    subprocess.run(command, check=True, timeout=240)
    return folder / "site"


def test_installed_each_is_listed_with_what_it_needs(installed: Path) -> None:
    done = process(["list", "methods", "--json"], env={"PYTHONPATH": str(installed)})
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.stderr == ""
    needs = {name: rows[f"my-{name}"]["needs"] for name in map(str, Kind)}
    assert needs == {
        "prompt": ["text"],
        "soft": ["soft_prompt", "train"],
        "adapter": ["adapter", "text", "train"],
    }
    for name in ("my-prompt", "my-soft", "my-adapter"):
        assert rows[name]["from"] == f"dep-bench-{name} 0.1.0"
        assert len(rows[name]["summary"]) > 20
        assert not rows[name]["summary"].startswith("broken")
        assert all(knob["meaning"] for knob in rows[name]["config"].values())
    assert {path.name for path in installed.glob("*.py")} == {"my_prompt.py", "my_soft.py", "my_adapter.py"}


@pytest.mark.slow
def test_installed_each_runs_to_a_table(installed: Path, tmp_path: Path) -> None:
    model = lively_model(tmp_path / "model")
    names = [f"my-{kind.value}" for kind in Kind]
    few = ("my-prompt.k=1", "my-soft.k=1", "my-adapter.n_history=1", "my-soft.epochs=1", "my-adapter.epochs=1")
    knobs = [part for knob in few for part in ("--set", knob)]
    arguments = [*FAKE, "--engine", "hf", "--model", model, "--methods", ",".join(["nonperso", *names]), *knobs]
    small = ["--limit", "2", "--train-limit", "2", "--max-new-tokens", "8", "--max-prompt-tokens", "500"]
    done = process([*arguments, *small, "--out", tmp_path / "runs"], env={"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    records = {path.parent.parent.name: path for path in (tmp_path / "runs").rglob("records.jsonl")}
    assert records.keys() == {"nonperso", *names}
    for path in records.values():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 2
        assert not any(row["error"] for row in rows)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small() -> World:
    return world()


def test_the_soft_prompt_learns_and_is_what_the_requests_carry(tmp_path: Path, small: World, engine: HFEngine) -> None:
    import torch

    module = imported(new_method("my-soft", Kind.SOFT, tmp_path))
    ctx = context(small.population, engine)
    losses = []
    for rate in (1e-9, 0.05):  # as it starts, and as it is learned
        config = module.MySoftConfig(epochs=6, lr=rate, batch_size=2, k=2, max_dev=0, weight_decay=0)
        method = module.MySoft(config)
        method.fit(small.train, small.dev, ctx)
        learner = module.SoftPrompt(torch.nn.Parameter(method.vectors))
        losses.append(evaluate_loss(engine.language_model(), method._rows(small.train, None, ctx), learner, config))
    assert losses[1] < losses[0] - 0.05
    for request in method.requests(small.test.examples, ctx):
        given = torch.cat([torch.as_tensor(request.soft[f"soft {i}"]) for i in range(8)])
        assert torch.equal(given, method.vectors)
        # Slots are counted as one token each: the budget holds only if each takes one.
        assert len(engine.encode(request).ids) == engine.count_tokens(request.messages)


def test_the_adapter_shows_what_bm25_finds(tmp_path: Path, small: World) -> None:
    from bench.retrieval import retrieve

    module = imported(new_method("my-adapter", Kind.ADAPTER, tmp_path))
    ctx = context(small.population)
    method = module.MyAdapter(module.MyAdapterConfig(n_history=2))
    for example in small.test.examples:
        shown = [message.content for message in method.preview(example, ctx) if message.role == "assistant"]
        assert shown == [document.text for document in retrieve([example], 2, "bm25", ctx)[0]]


# -- names -----------------------------------------------------------------------------------------------------------

PARTS = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
NAMES = st.lists(st.tuples(PARTS, st.sampled_from("-_")), min_size=1, max_size=4).map(
    lambda parts: "".join(part + mark for part, mark in parts)[:-1]
)


def bound(tree: ast.Module) -> list[str]:
    """Every name that a module binds at its top, as often as it does."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
    return names


def assert_whole(new: NewMethod) -> None:
    """The names agree in all files, and nothing of the template's own is left."""
    project = tomllib.loads((new.folder / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["bench.methods"]
    assert points == {new.name: f"{new.module}:{new.class_name}"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == [f"{new.module}.py"]
    tree = ast.parse((new.folder / f"{new.module}.py").read_text())
    names = bound(tree)
    assert len(names) == len(set(names)), names
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == new.class_name)
    values = {
        target.id: node.value.value
        for node in cls.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert values == {"name": new.name, "version": "1"}
    test = (new.folder / f"test_{new.module}.py").read_text()
    assert f"from {new.module} import {new.class_name}\n" in test
    ast.parse(test)
    for path in new.folder.iterdir():
        left = path.read_text().replace(new.name, "").replace(new.module, "").replace(new.class_name, "")
        assert not re.search(r"my-method|my_method|MyMethod|KNOBS|COMMANDS", left), path


def made(name: str, kind: Kind, into: Path) -> NewMethod | None:
    """The package, or None for a name that is told to be taken."""
    try:
        return new_method(name, kind, into)
    except UsageError as error:
        if not re.search("already|a word of Python", str(error)):
            raise
        return None


@settings(deadline=None)
@given(name=NAMES, kind=st.sampled_from(Kind))
def test_any_free_name_gives_a_whole_package(name: str, kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    new = made(name, kind, tmp_path_factory.mktemp("into"))
    if new is not None:
        assert new.folder.name == name
        assert_whole(new)


def awkward() -> list[tuple[str, Kind]]:
    """Names whose classes would be called as something that the module uses already, or Python itself."""
    found = {(name, kind) for name in ("none", "true", "false") for kind in Kind}
    for kind in Kind:
        for word in re.findall(r"\b[A-Z][A-Za-z]+\b", scaffold._template(f"{kind.value}.py")):
            for plain in (word, word.removesuffix("Config")):
                found.add(("-".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*", plain)).lower(), kind))
    return sorted(pair for pair in found if pair[0])


@pytest.mark.parametrize(("name", "kind"), awkward())
def test_a_class_takes_no_name_that_the_module_uses(name: str, kind: Kind, tmp_path: Path) -> None:
    new = made(name, kind, tmp_path)
    if new is not None:
        assert_whole(new)
        found = getattr(imported(new), new.class_name)
        assert issubclass(found, Method)
        assert isinstance(found().config, found.Config)


def test_the_names_that_the_page_speaks_of_are_made_as_told(tmp_path: Path) -> None:
    new = new_method("my-method", Kind.PROMPT, tmp_path)
    assert (new.module, new.class_name) == ("my_method", "MyMethod")
    assert_whole(new)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rag", "'rag' is a registered method (dep-bench"),
        ("hf", "a registered engine"),
        ("bleu", "a registered metric"),
        ("copy-rate", "'copy_rate' is a registered metric"),
        ("planted", "is a registered source"),
        ("amazon-books", "is a dataset"),
        ("all", "a word for every method"),
        ("class", "a word of Python"),
        ("json", "a module 'json' exists already"),
        ("torch", "a module 'torch' exists already"),
        ("My-Method", "small letters"),
        ("2fast", "a letter first"),
        ("my--method", "single hyphens"),
        ("my-method-", "cannot name a method"),
        ("my method", "cannot name a method"),
        ("a/b", "cannot name a method"),
        ("../b", "cannot name a method"),
        ("a.b", "cannot name a method"),
        ("", "cannot name a method"),
        ("naïve", "cannot name a method"),
        ("x" * 41, "at most 40"),
    ],
)
def test_a_name_that_will_not_do_is_told_and_writes_nothing(
    name: str, words: str, tmp_path: Path, capsys: Capture
) -> None:
    code, out, err = call(["new-method", name, "--into", tmp_path], capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a folder", "a file"])
def test_what_is_there_is_left_alone(kind: str, tmp_path: Path, capsys: Capture) -> None:
    there = tmp_path / "my-method"
    if kind == "a folder":
        there.mkdir()
    else:
        there.write_text("mine")
    code, _, err = call(["new-method", "my-method", "--into", tmp_path], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already" in err
    assert list(tmp_path.iterdir()) == [there]
    assert there.is_dir() or there.read_text() == "mine"


def test_a_disk_that_is_full_leaves_nothing_half_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_text

    def write(self: Path, *arguments: Any, **more: Any) -> int:
        if self.name == "pyproject.toml":
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", write)
    code, _, err = call(["new-method", "my-method", "--into", tmp_path], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = call(["new-method", "my-method", "--into", tmp_path / "taken"], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "--into" in err


def test_an_unknown_kind_is_told_with_those_there_are(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = call(["new-method", "my-method", "--kind", "sfot", "--into", tmp_path], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert all(kind.value in err for kind in Kind)


def test_the_packages_are_tidy(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    rules = ["--isolated", "--line-length", "120"]
    for kind in Kind:
        folder = new_method(f"my-{kind.value}", kind, tmp_path).folder
        for command in (["check", *rules, "--select", "E,F,W,I,UP,B,SIM,RET,RUF,N"], ["format", *rules, "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "."]
            done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


# -- check -----------------------------------------------------------------------------------------------------------


GOOD = """
from bench.method import Method
from bench.prompts import conversation

class Plain(Method):
    "Asks for the target alone."
    name = "plain"
    def requests(self, examples, ctx):
        return [ctx.request(e, conversation(ctx.task, e, [])) for e in examples]

class Half(Method):
    "Asks for nothing."
    name = "half"

class Loose(Plain):
    "Has knobs of no known kind."
    Config = dict

number = 3
class Other: ...
"""


MODULES = {
    "plain_method": GOOD,
    "same_name": GOOD.replace('"plain"', '"rag"'),
    "broken_syntax": "def f(:\n",
    "broken_name": "import json\n\n\nx = json.nothing_there\n",
    "broken_import": "import bench\nimport no_such_thing_here\n",
    "broken_exit": "raise SystemExit('bye')\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a few modules; none of them stays imported."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_module_of_the_current_folder_is_found_however_the_command_was_started(folder: Path) -> None:
    """The console script does not have Python look into the current folder, and neither does this switch."""
    done = process(["check", "plain_method:Plain"], cwd=folder, env={"PYTHONSAFEPATH": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plain (plain_method:Plain) holds to the contract")
    assert "pip install" in done.stdout


@pytest.mark.parametrize("knobs", [[], ["--set", "k=2"], ["--set", "rag.k=2", "--set", "retriever=recency"]])
def test_a_registered_method_is_checked_by_its_name(knobs: Sequence[str], capsys: Capture) -> None:
    code, out, err = call(["check", "rag", *knobs], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("rag (methods.rag:Rag) holds to the contract")
    assert "run --methods nonperso,rag" in out


def test_knobs_reach_the_method(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def findings(cls: type[Method], **knobs: Any) -> list[bench.testing.Finding]:
        seen.update(knobs)
        return []

    monkeypatch.setattr("bench.check.findings", findings)
    assert call(["check", "rag", "--set", "k=3", "--set", "rag.retriever=random"], capsys)[0] == 0
    assert seen == {"k": 3, "retriever": "random"}


WRONG = [
    (bad_methods.UserLeak, "permuted users", "the prompt of user"),
    (bad_methods.Crashes, "no history", "raised IndexError"),
    (bad_methods.Undeclared, "declares", "soft_prompt"),
]


@pytest.mark.parametrize(("cls", "check", "detail"), WRONG, ids=[cls.__name__ for cls, *_ in WRONG])
def test_what_is_wrong_is_told_with_what_the_check_means(
    cls: type[Method], check: str, detail: str, capsys: Capture
) -> None:
    code, out, err = call(["check", f"bad_methods:{cls.__name__}"], capsys)
    assert (code, err) == (1, "")
    found = [finding.detail for finding in bench.testing.findings(cls)]
    head, *parts = out.strip().split("\n\n")
    assert head.startswith(f"plain (bad_methods:{cls.__name__}) breaks the contract: {len(found)} finding")
    (part,) = (part for part in parts if part.startswith(f"{check}: "))
    assert MEANINGS[check] in " ".join(part.split())
    assert re.search(f"^  - .*{detail}", part, re.M)
    assert sorted(re.findall(r"^  - (.*)$", out, re.M)) == sorted(found)


def test_where_it_is_not_deterministic_that_comes_first_and_explains_the_rest(capsys: Capture) -> None:
    _, out, _ = call(["check", "bad_methods:Restless"], capsys)
    assert out.index("deterministic fit:") < out.index("blind to references:")
    assert "Mend 'deterministic fit' first" in out


@pytest.mark.parametrize(("name", "code"), [("Plain", 0), ("Undeclared", 1)])
def test_for_machines_it_is_one_object(name: str, code: int, capsys: Capture) -> None:
    got, out, err = call(["check", f"bad_methods:{name}", "--json"], capsys)
    assert (got, err) == (code, "")
    report = json.loads(out)
    assert report["name"] == "plain"
    assert report["class"] == f"bad_methods:{name}"
    assert report["ok"] is (code == 0)
    assert len(report["findings"]) == code
    assert all(found["meaning"] == MEANINGS[found["check"]] for found in report["findings"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("rga", ("method 'rga'", "did you mean 'rag'", "module:Class")),
        ("plain_method", ("unknown method", "given as plain_method:Loose.")),
        ("plain-method", ("unknown method", "given as plain_method:Loose.")),
        ("plain_method.py", ("unknown method", "given as plain_method:Loose.")),
        ("plain_methd:Plain", ("no module 'plain_methd'", "did you mean 'plain_method'")),
        ("plain_method.inner:Plain", ("plain_method",)),
        ("plain_method.py:Plain", ("plain_method:Plain",)),
        ("./plain_method.py:Plain", ("is no module", "plain_method:Plain")),
        (":Plain", ("is no module",)),
        ("plain_method:Plane", ("class of plain_method 'Plane'", "did you mean 'Plain'")),
        ("plain_method:", ("class of plain_method ''", "Plain")),
        ("plain_method:number", ("(int)", "bench.method.Method")),
        ("plain_method:Other", ("(Other)", "bench.method.Method")),
        ("plain_method:Method", ("(Method)", "bench.method.Method")),
        ("plain_method:Loose", ("bench.config.Config",)),
        ("broken_syntax:X", ("SyntaxError", "broken_syntax.py, line 1")),
        ("broken_name:X", ("AttributeError", "broken_name.py, line 4")),
        ("broken_import:X", ("ModuleNotFoundError", "no_such_thing_here", "broken_import.py, line 2")),
        ("broken_exit:X", ("SystemExit", "bye")),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_one_line(target: str, words: Sequence[str], capsys: Capture) -> None:
    before = list(sys.path)
    code, out, err = call(["check", target], capsys)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert sys.path == before


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ("k", ("--set 'k'", "KEY=VALUE")),
        ("=3", ("KEY=VALUE",)),
        ("kk=3", ("key of rag 'kk'", "did you mean 'k'")),
        ("k=many", ("rag.k = 'many'", "integer")),
        ("k=-1", ("rag.k = -1",)),
        ("dep.k=3", ("'dep'", "Known: rag")),
    ],
)
def test_a_knob_that_will_not_do_is_one_line(knob: str, words: Sequence[str], capsys: Capture) -> None:
    code, out, err = call(["check", "rag", "--set", knob], capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.usefixtures("folder")
def test_a_class_that_lacks_its_method_is_a_finding(capsys: Capture) -> None:
    code, out, err = call(["check", "plain_method:Half"], capsys)
    assert (code, err) == (1, "")
    assert "abstract method" in out
    assert MEANINGS["construct"] in out


@pytest.mark.usefixtures("folder")
def test_another_methods_name_is_told(capsys: Capture) -> None:
    code, out, _ = call(["check", "same_name:Plain"], capsys)
    assert code == 0
    assert "Another method has the name 'rag' (dep-bench" in out


def test_a_broken_plug_in_is_told_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("def f(:\n")
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[bench.methods]\nbroken = broken_plugin:X\n")
    there = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    rows = {row["name"]: row for row in json.loads(process(["list", "methods", "--json"], env=there).stdout)}
    assert "SyntaxError" in rows["broken"]["summary"]
    assert "rag" in rows
    for command in (["check", "broken"], ["run", "--methods", "broken", "--dry-run"]):
        done = process(command, env=there)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "broken_plugin.py, line 1" in done.stderr


def said_by(module: ModuleType) -> set[str]:
    """The names of checks that a module's code speaks of."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "same"):
            given = node.args[:1]
        elif isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Attribute) and t.attr == "step" for t in node.targets
        ):
            given = [node.value]
        names |= {part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return names


def test_every_check_of_the_kit_says_what_it_means() -> None:
    assert said_by(bench.testing) | said_by(bench.evidence) == set(MEANINGS)
