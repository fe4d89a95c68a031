"""A run made in several pieces: which users each piece has, where it lies, and how far a divided run is.

`run --shard i/n` makes shard i of n of every run (method x seed) of a command. What is settled here and in
`bench.merging`:

- **Users.** Test users in the order of a seeded hash are dealt out in turn, so shards are disjoint, together the whole,
  of nearly equal size, and the same on every machine. More shards than users leave some empty; these are complete too.
- **One run.** The key of a run says nothing of shards: all shards lie in the folder that the undivided run would have,
  shard 2 of 4 in `<key>/shards/2-of-4/`, with a plan, records, timings, stages, scores, manifest and a lock of its own.
  So each is killed and resumed like any run, batch by batch. Whatever can change a record (versions, engine, data) is
  in the key, so that pieces that do not belong together never lie together.
- **Merging.** When the last shard is complete, whoever looks next (a shard that ends, `run`, `table`, `score`, ...)
  writes the whole run's own files beside `shards/`, the manifest last: from there on it is a run like any other. Its
  records stand by example id, whatever n was. Nothing is merged unless the examples are exactly those of the dataset.
- **Equal to an undivided run.** A shard's batches are a pure function of its own requests. Texts are those of the
  undivided run as far as an engine gives a request the same text in any company: the fake engine always, a real one in
  float32 up to rare ties, in bfloat16 for most texts, just as for another batch size.
- **Scores** are computed shard by shard and joined example by example. As every metric stores for each example the
  numbers that its reducer takes (for BLEU, counts), a score of the whole is computed from the whole. A metric that
  looks at all texts before it judges one is left to whoever finds the run whole and its shards scored: mostly the last.
- **Costs** are summed: seconds are those of all shards together, whatever ran side by side; peaks of memory are the
  largest of one shard. The manifest says what each shard took. A fit is told once, as it is made once.
- **Fits** are shared. One process makes a fit, under a lock that the system frees when its owner dies, even on another
  node (`flock`: NFS 4, Lustre mounted with flock, GPFS, local disks). A shard that finds a fit being made does all its
  other work first, then waits and says for what. Who gets the lock of a dead owner goes on from what that kept.
- **Mistakes.** A folder holds one n: another one is refused, as are an undivided run where shards are, and shards where
  an undivided run was begun; `--existing overwrite` clears up. With --shard it starts that shard over and leaves fits
  alone; `run --fit-only --existing overwrite` makes those anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.keys import rank_hash
from bench.stored import MANIFEST, PLAN

SHARDS = "shards"
"""Folder in a run's, with a folder for each shard."""
PART = "shard"
"""Of a shard's description: which one it is."""
_FOLDER = re.compile(r"([1-9]\d*)-of-([1-9]\d*)")
_SEED = 0
"""Users are dealt out by one hash, the same for every method and seed."""


@dataclass(frozen=True, order=True)
class Shard:
    """One of several pieces of a run."""

    index: int
    """From 1."""
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.of:
            raise UsageError(f"--shard {self}: there are shards 1/{self.of} to {self.of}/{self.of}")

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/4". Raises UsageError for anything else."""
        found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*([1-9]\d{0,5})\s*", text)
        if found is None:
            raise UsageError(f"--shard {text!r} is not of the form i/n, such as 2/4 for the second of four")
        return cls(int(found[1]), int(found[2]))

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.index}-of-{self.of}"

    def users(self, users: Iterable[str]) -> set[str]:
        """Those of the users that it has."""
        return set(sorted(set(users), key=lambda user: (rank_hash(_SEED, user), user))[self.index - 1 :: self.of])


@dataclass(frozen=True)
class Division:
    """How far a divided run is."""

    path: Path
    """The run's folder."""
    of: int
    complete: tuple[Shard, ...]
    begun: tuple[Shard, ...]
    """Started, not finished."""

    @property
    def missing(self) -> tuple[Shard, ...]:
        """All that are not complete."""
        return tuple(s for s in (Shard(i + 1, self.of) for i in range(self.of)) if s not in self.complete)

    def part(self, shard: Shard) -> Path:
        """A shard's folder."""
        return self.path / SHARDS / shard.folder

    def told(self) -> str:
        """Which shards are missing, for people."""
        missing = [str(shard.index) for shard in self.missing]
        named = ", ".join(missing[:-1]) + (" and " if len(missing) > 1 else "") + missing[-1] if missing else "none"
        begun = f" ({len(self.begun)} begun)" if self.begun else ""
        verb = "is" if len(missing) < 2 else "are"
        return f"of its {self.of} shards {named} {verb} missing{begun}"


def division(path: Path) -> Division | None:
    """The shards in a run's folder, or None if it is not divided. Raises UsageError for shards of several n."""
    found = parts(path)
    numbers = sorted({shard.of for shard in found})
    if not numbers:
        return None
    if len(numbers) > 1:
        raise UsageError(
            f"{path / SHARDS} holds shards of {' and of '.join(map(str, numbers))}; delete those that you do not want"
        )
    complete = tuple(shard for shard, folder in found.items() if (folder / MANIFEST).is_file())
    begun = tuple(shard for shard, folder in found.items() if shard not in complete and (folder / PLAN).is_file())
    return Division(path, numbers[0], complete, begun)


def parts(path: Path) -> Mapping[Shard, Path]:
    """Every shard that was begun in a run's folder, in order."""
    folder = path / SHARDS
    found: dict[Shard, Path] = {}
    for child in folder.iterdir() if folder.is_dir() else ():
        named = _FOLDER.fullmatch(child.name)
        if named and child.is_dir() and int(named[1]) <= int(named[2]):
            found[Shard(int(named[1]), int(named[2]))] = child
    return {shard: found[shard] for shard in sorted(found)}


def shown(shards: Sequence[Shard]) -> str:
    """Flags that make these shards, the first few."""
    return ", ".join(f"--shard {shard}" for shard in shards[:3]) + (", ..." if len(shards) > 3 else "")
