"""METEOR: words of the reference found again, as they are, by stem or by synonym, in an order not too broken up."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.errors import UsageError
from bench.metrics.base import Metric, ScoreInput, Vector, package_version, text_of
from bench.weights import fetch

_REMEMBERED_WORDS = 2**17


class MeteorConfig(BaseConfig):
    """Knobs of METEOR; the defaults are those of Lavie and Agarwal (2007) as NLTK has them."""

    alpha: float = Field(0.9, ge=0, le=1)
    """Weight of recall against precision."""
    beta: float = Field(3.0, ge=0)
    """How steeply the penalty grows with fragmentation."""
    gamma: float = Field(0.5, ge=0, le=1)
    """The largest penalty."""


class Meteor(Metric):
    """METEOR: words matched exactly, by Porter stem or WordNet synonym, with a penalty for broken order (NLTK).

    Texts are split by `NLTKWordTokenizer`. An empty text scores 0, as in NLTK.
    """

    name = "meteor"
    Config = MeteorConfig
    config: MeteorConfig

    @cached_property
    def _folder(self) -> Path:
        return fetch("wordnet")

    def preflight(self) -> None:
        package_version("nltk", self.name)
        wordnet_version(self._folder)

    def _signature_parts(self) -> Mapping[str, object]:
        return {
            **self.config.model_dump(),
            "tok": "nltk-word",
            "wordnet": wordnet_version(self._folder),
            "nltk": package_version("nltk", self.name),
        }

    def _vector(self, item: ScoreInput) -> Vector | None:
        from nltk.translate.meteor_score import single_meteor_score

        words = _resources(self._folder)
        score = single_meteor_score(
            words.tokenize(item.reference),
            words.tokenize(text_of(item)),
            stemmer=words,
            wordnet=words,
            **self.config.model_dump(),
        )
        return [float(score)]


class _Resources:
    """Tokenizer, stemmer and WordNet as NLTK's METEOR calls them, each word looked up once.

    Reviews repeat their words, and stems and synonyms depend on the word alone: remembering them gives the same scores
    several times faster, without a pool of processes each of which would load its own WordNet.
    """

    def __init__(self, folder: Path) -> None:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
        from nltk.stem.porter import PorterStemmer
        from nltk.tokenize import NLTKWordTokenizer

        if str(folder) not in nltk.data.path:  # NLTK reads nothing outside its data path
            nltk.data.path.append(str(folder))
        # A reader of our own: `nltk.corpus.wordnet` may already be bound to another version on this machine.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions")
            self._wordnet: Any = WordNetCorpusReader(str(folder / "corpora" / "wordnet"), None)
        self.tokenize = NLTKWordTokenizer().tokenize
        self.stem = lru_cache(_REMEMBERED_WORDS)(PorterStemmer().stem)
        self.synsets = lru_cache(_REMEMBERED_WORDS)(self._synsets)

    def _synsets(self, word: str) -> tuple[_Synset, ...]:
        """The synonyms of a word as one synset, each once; METEOR joins synsets and leaves out compounds anyway."""
        lemmas = [lemma for synset in self._wordnet.synsets(word) for lemma in synset.lemmas()]
        names = dict.fromkeys(lemma.name() for lemma in lemmas if "_" not in lemma.name())
        return (_Synset(tuple(map(_Lemma, names))),) if names else ()


@dataclass(frozen=True, slots=True)
class _Lemma:
    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class _Synset:
    members: tuple[_Lemma, ...]

    def lemmas(self) -> tuple[_Lemma, ...]:
        return self.members


@lru_cache(1)
def _resources(folder: Path) -> _Resources:
    return _Resources(folder)  # WordNet takes seconds to load: once a process


def wordnet_version(folder: Path) -> str:
    """The version that WordNet's own licence header names. Raises UsageError for a folder without WordNet."""
    data = folder / "corpora" / "wordnet" / "data.adj"
    try:
        with data.open(encoding="utf-8") as file:
            header = file.read(4000)
    except OSError as error:
        raise UsageError(
            f"cannot read WordNet at {data}: {error.strerror}; run: python -m bench fetch wordnet"
        ) from error
    _, found, rest = header.partition("WordNet ")
    if not found:
        raise UsageError(f"{data} is not a file of WordNet; delete {folder} and run: python -m bench fetch wordnet")
    return rest.split(maxsplit=1)[0]
