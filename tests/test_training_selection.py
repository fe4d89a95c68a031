"""Which epoch is kept, and when training stops early: by loss, by a score, by METEOR of what the model writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_world import context, world
from nltk.stem.porter import PorterStemmer
from test_training_loop import Table, rows_of
from tiny_engine import ask, engine_of, lively_model, one_thread

from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.metrics.meteor import Meteor
from bench.training import TrainingConfig, dev_meteor, evaluate_loss, train
from bench.training.log import JOURNAL
from bench.types import LabeledSplit, Request, Sampling
from methods.lora import Lora, LoraConfig

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


class Scores:
    """Gives out what it is told to, and looks at the vectors of the moment."""

    def __init__(self, table: Table, values: Sequence[float]) -> None:
        self.table, self.values = table, list(values)
        self.seen: list[torch.Tensor] = []

    def __call__(self) -> float:
        self.seen.append(self.table.table.detach().clone())
        return self.values[len(self.seen) - 1]


def config(epochs: int, **changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"epochs": epochs, "lr": 0.3, "batch_size": 2, "select": "meteor", "warmup": 0, **changes}
    )


@pytest.mark.parametrize(
    ("values", "best"), [([0.1, 0.3, 0.2], 2), ([0.3, 0.3, 0.1], 1), ([0.0, 0.0, 0.1], 3), ([0.0, 0.0, 0.0], 1)]
)
def test_the_epoch_with_the_highest_score_is_kept(engine: HFEngine, values: list[float], best: int) -> None:
    lm = engine.language_model()
    table = Table(2)
    scores = Scores(table, values)
    log = train(lm, rows_of(lm, [2, 1]), rows_of(lm, [1], seed=4), table, config(3), 0, dev_score=scores)
    assert log.best_epoch == best
    assert [epoch.dev_score for epoch in log.epochs] == values
    assert torch.equal(table.table, scores.seen[best - 1])
    assert not torch.equal(scores.seen[0], scores.seen[1])
    assert all(map(math.isfinite, (epoch.dev_loss for epoch in log.epochs)))


def test_with_the_loss_no_score_is_asked_for(engine: HFEngine) -> None:
    lm = engine.language_model()
    table = Table(2)
    scores = Scores(table, [])
    rows, dev = rows_of(lm, [2, 1]), rows_of(lm, [1], seed=4)
    log = train(lm, rows, dev, table, config(2, select="loss"), 0, dev_score=scores)
    assert scores.seen == []
    assert all(math.isnan(epoch.dev_score) for epoch in log.epochs)
    assert log.to_json()["epochs"][0]["dev_score"] is None


def test_without_dev_rows_there_is_nothing_to_score(engine: HFEngine) -> None:
    lm = engine.language_model()
    table = Table(2)
    log = train(lm, rows_of(lm, [2, 1]), [], table, config(2), 0, dev_score=Scores(table, []))
    assert log.best_epoch == 2
    assert train(lm, rows_of(lm, [2, 1]), [], Table(2), config(2), 0).best_epoch == 2


def test_a_method_without_a_score_says_so_before_it_trains(engine: HFEngine) -> None:
    lm = engine.language_model()
    with pytest.raises(UsageError, match="fit: this method offers no score of validation texts; use select=loss"):
        train(lm, rows_of(lm, [2, 1]), rows_of(lm, [1]), Table(2), config(2), 0)


# -- stopping early -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.1, 0.4], 2, 4),
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.1], 2, 6),
        ([0.3, 0.2, 0.1], 1, 2),
        ([0.1, 0.1, 0.1, 0.1], 3, 4),
        ([0.3, 0.2, 0.1, 0.0], 0, 4),
    ],
)
def test_training_stops_after_patience_epochs_that_are_no_better(
    engine: HFEngine, values: list[float], patience: int, epochs: int, tmp_path: Path
) -> None:
    lm = engine.language_model()
    table = Table(2)
    scores = Scores(table, values)
    given = (lm, rows_of(lm, [2, 1]), rows_of(lm, [1], seed=4))
    settings = config(len(values), patience=patience, checkpoint_seconds=0)
    log = train(*given, table, settings, 0, dev_score=scores, work=tmp_path)
    assert len(log.epochs) == epochs
    assert log.best_epoch == 1 + values.index(max(values[:epochs]))
    assert torch.equal(table.table, scores.seen[log.best_epoch - 1])
    # A process that comes after the end stops at once, too, and ends with the same.
    again = Table(2)
    later = train(*given, again, settings, 0, dev_score=Scores(again, []), work=tmp_path)
    assert (later.epochs, later.steps, later.best_epoch) == (log.epochs, log.steps, log.best_epoch)
    assert torch.equal(again.table, table.table)


def test_the_schedule_of_the_learning_rate_does_not_depend_on_patience(engine: HFEngine, tmp_path: Path) -> None:
    lm = engine.language_model()
    rates = []
    for patience in (0, 1):
        table, folder = Table(2), tmp_path / str(patience)
        scores = Scores(table, [0.3, 0.2, 0.1, 0.1])
        train(lm, rows_of(lm, [2, 1, 1, 1]), rows_of(lm, [1]), table, config(4, patience=patience), 0,
              dev_score=scores, work=folder)  # fmt: skip
        lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
        rates.append([line["lr"] for line in lines if "step" in line])
    assert rates[1] == rates[0][:4]
    assert len(rates[0]) == 8


# -- METEOR ---------------------------------------------------------------------------------------------------------


def meteor_by_nltk(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean over (text, reference), straight from the library."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    from bench.metrics.meteor import _resources

    words, split = _resources(Meteor()._folder), NLTKWordTokenizer().tokenize
    scores = [
        single_meteor_score(split(reference), split(text), stemmer=PorterStemmer(), wordnet=words)
        for text, reference in pairs
    ]
    return float(sum(scores) / len(scores))


def test_the_helper_gives_the_mean_meteor_of_the_moments_answers() -> None:
    engine = FakeEngine()
    requests = [ask(f"tell me about thing {i}", sampling=Sampling(0.0, 1.0, 12)) for i in range(40)]
    texts = [answer.text.strip() for answer in engine.run(requests).generations]
    references = {r.example_id: (t if i % 2 else "another thing") for i, (r, t) in enumerate(zip(requests, texts))}  # noqa: B905
    asked: list[int] = []

    def now() -> list[Request]:
        asked.append(len(requests) - 5 * len(asked))
        return requests[: asked[-1]]

    score = dev_meteor(engine, now, references)
    assert asked == []
    for count in (40, 35):
        pairs = [(t, references[r.example_id]) for r, t in zip(requests[:count], texts[:count], strict=True)]
        assert score() == pytest.approx(meteor_by_nltk(pairs))
    assert asked == [40, 35]


def test_if_no_answer_comes_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.engines.base import BatchResult
    from bench.types import Generation

    failed = Generation("", 0, 0, "error", error="out of memory on a prompt of 9 tokens")
    monkeypatch.setattr(FakeEngine, "run", lambda self, batch: BatchResult([failed] * len(batch)))
    score = dev_meteor(FakeEngine(), lambda: [ask("a")], {"a": "b"})
    with pytest.raises(UsageError, match="no dev row could be scored: out of memory"):
        score()


def test_lora_writes_with_the_weights_of_the_moment(engine: HFEngine, tmp_path: Path) -> None:
    """The score of the epoch that was kept is that of the saved adapter's greedy texts."""
    of = world(4)
    ctx = context(of.population, engine)
    settings = LoraConfig(
        epochs=2, batch_size=2, r=4, lr=0.05, n_history=1, select="meteor", max_dev_new_tokens=24, dropout=0.0
    )
    sampling = Sampling(0.0, 1.0, 24)

    def texts(method: Lora) -> list[str]:
        asked = [replace(r, sampling=sampling) for r in method.requests(of.dev.examples, ctx)]
        return [answer.text.strip() for answer in engine.run(asked).generations]

    def fitted(dev: LabeledSplit, folder: Path) -> Lora:
        learner, method = Lora(settings), Lora(settings)
        learner.fit(of.train, dev, ctx)
        folder.mkdir()
        learner.save(folder)
        method.load(folder, ctx)
        method.log = learner.log
        return method

    # What a first fit writes serves as references of a second one, which then finds much of it again.
    first = fitted(of.dev, tmp_path / "first")
    references = {e.id: t for e, t in zip(of.dev.examples, texts(first), strict=True)}
    second = fitted(LabeledSplit(of.dev.examples, references), tmp_path / "second")
    assert second.log is not None
    kept = second.log.epochs[second.log.best_epoch - 1]
    pairs = [(t, references[e.id]) for e, t in zip(of.dev.examples, texts(second), strict=True)]
    assert kept.dev_score == pytest.approx(meteor_by_nltk(pairs))
    assert kept.dev_score == max(epoch.dev_score for epoch in second.log.epochs)
    assert kept.dev_score > 0.05
    assert len({epoch.dev_score for epoch in second.log.epochs}) == 2


def test_the_dev_loss_is_that_of_the_epoch_that_is_kept_for_its_score(engine: HFEngine) -> None:
    lm = engine.language_model()
    table, dev = Table(2), rows_of(lm, [1, 2], seed=4)
    scores = Scores(table, [0.1, 0.5, 0.2])
    log = train(lm, rows_of(lm, [2, 1]), dev, table, config(3), 0, dev_score=scores)
    assert evaluate_loss(lm, dev, table, config(3)) == pytest.approx(log.epochs[1].dev_loss, rel=1e-6)
