"""Author attribution by character n-grams.

Loaded by path through `evaluate.load`, this file gives the share of texts that are nearest to their own user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from bench.metrics.attribution import Attribution, AttributionConfig
from bench.metrics.base import package_version


class AuthorNgramConfig(AttributionConfig):
    """Knobs of author attribution by character n-grams."""

    shortest: int = Field(3, ge=1)
    """Characters of the shortest n-grams."""
    longest: int = Field(5, ge=1, validate_default=True)
    """Characters of the longest n-grams."""
    features: int = Field(5000, ge=1)
    """The n-grams that are most frequent in the users' texts, which are habits; rare ones are topics."""

    @field_validator("longest")
    @classmethod
    def _no_shorter(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("shortest", 1):
            raise ValueError("give at least as many characters as shortest has")
        return value


class AuthorNgram(Attribution):
    """Is the text nearest to its own user's earlier texts, among 20 users? By character n-grams, TF-IDF and cosine."""

    name = "author_ngram"
    Config = AuthorNgramConfig
    config: AuthorNgramConfig
    _fitted: tuple[Sequence[str], Any] | None = None
    """The users' past texts, and the vectorizer that learned from them: the same for all rows of a table."""

    def preflight(self) -> None:
        package_version("scikit-learn", self.name)

    def _space(self, texts: Sequence[str]) -> Any:
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfVectorizer

        if max((len(" ".join(text.split())) for text in self._known), default=0) < self.config.shortest:
            return csr_matrix((len(texts), 1))  # nobody wrote an n-gram: all are as near as nothing
        if self._fitted is None or self._fitted[0] != self._known:
            vectorizer = TfidfVectorizer(
                analyzer="char",
                ngram_range=(self.config.shortest, self.config.longest),
                max_features=self.config.features,
                lowercase=False,  # whether somebody writes capitals is a habit too
                sublinear_tf=True,
            )
            self._fitted = self._known, vectorizer.fit(self._known)
        return self._fitted[1].transform(texts)

    def _space_parts(self) -> Mapping[str, object]:
        return {"case": "mixed", "tf": "log", "scikit-learn": package_version("scikit-learn", self.name)}


class AuthorNgramRank(AuthorNgram):
    """Rank of the text's own user among 20, by nearness of character n-grams to their earlier texts; 1 is best."""

    name = "author_ngram_rank"
    higher_is_better = False
    rank = True
