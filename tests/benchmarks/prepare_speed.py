"""`prepare amazon2023` on made-up files of the shape of Books: 29.5 million reviews, 10.3 million users, 4.4 million
items.

    python tests/benchmarks/prepare_speed.py make DIR [REVIEWS]      # 17 GB of reviews, 3 GB of items in full size
    python tests/benchmarks/prepare_speed.py measure DIR [option...] # time, processor time and peak memory

Users and items have long tails: most users wrote one or two reviews, some hundreds; the papers' thresholds leave about
as few users as in the papers. Texts are slices of one long row of common words, exponential in length with a mean
of 350 characters; a fifth holds line breaks, a fiftieth is one of a hundred texts, so that there are duplicates to be
found. Nothing is drawn but by hashes of the line's number: the same command makes the same lines.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

BOOKS = 29_500_000
WORDS = """the story and of a to book that was read in it is I this for with but not her his characters as on have so be
are you very more one all like about they from great would author good really love time first what up who just out well
when she he there series some which can will if into by me had get my then than do them how"""

CORPUS = f"""CREATE TEMP TABLE corpus AS SELECT string_agg(word, ' ' ORDER BY i) AS c FROM (
  SELECT i, list_extract(words, CAST(1 + hash(i) % len(words) AS INTEGER)) AS word
  FROM range(200000) t(i), (SELECT string_split('{" ".join(WORDS.split())}', ' ') AS words))"""


def uniform(salt: int) -> str:
    """SQL for a number in [0, 1) out of the line's number."""
    return f"(hash(i + CAST({salt} AS BIGINT) * 1000000007) / 18446744073709551616.0)"


def review_sql(reviews: int) -> str:
    """Lines of a review file."""
    users, items = max(1, round(reviews / 2.86)), max(1, round(reviews / 6.7))
    tail = f"CASE WHEN {uniform(8)} < 0.5 THEN 6 ELSE 2.2 END"  # what everybody reads, and what hardly anybody does
    item = f"'B' || lpad(CAST(CAST(floor({items} * pow({uniform(1)}, {tail})) AS BIGINT) AS VARCHAR), 9, '0')"
    slice_ = (
        f"CAST(1 + floor({uniform(2)} * 500000) AS INTEGER), CAST(20 - floor(330 * ln(1 - {uniform(3)})) AS INTEGER)"
    )
    return f"""
      SELECT CAST(1 + floor(5 * sqrt({uniform(4)})) AS DOUBLE) AS rating, 'Title ' || (hash(i) % 9973) AS title,
        CASE WHEN i % 50 = 0 THEN substr(c, CAST(1 + hash(i) % 100 AS INTEGER), 250)
          WHEN i % 5 = 0 THEN replace(substr(c, {slice_}), ' and ', chr(10) || chr(10))
          ELSE substr(c, {slice_}) END AS text,
        []::VARCHAR[] AS images, {item} AS asin, {item} AS parent_asin,
        'AE' || upper(substr(md5(CAST(floor({users} * pow({uniform(5)}, 3.2)) AS VARCHAR)), 1, 26)) AS user_id,
        1000000000000 + CAST(hash(i + 5) % 680000000 AS BIGINT) * 1000 AS timestamp,
        CAST(hash(i) % 7 AS INTEGER) AS helpful_vote, hash(i) % 2 = 0 AS verified_purchase
      FROM range({reviews}) t(i), corpus"""


def meta_sql(reviews: int) -> str:
    """Lines of a meta file: two items in three have a description, one in fifty of these a very long one."""
    length = f"CASE WHEN i % 50 = 0 THEN 3000 ELSE CAST(60 - floor(500 * ln(1 - {uniform(7)})) AS INTEGER) END"
    text = f"substr(c, CAST(1 + floor({uniform(6)} * 500000) AS INTEGER), {length})"
    return f"""
      SELECT 'Books' AS main_category, 'Item ' || i AS title, 4.5 AS average_rating,
        CAST(1 + hash(i) % 900 AS INTEGER) AS rating_number,
        CASE WHEN i % 3 = 0 THEN []::VARCHAR[] ELSE ['Product Description', {text}] END AS description,
        NULL AS price, ['Books', 'Literature'] AS categories, 'B' || lpad(CAST(i AS VARCHAR), 9, '0') AS parent_asin
      FROM range({max(1, round(reviews / 6.7))}) t(i), corpus"""


def make(folder: Path, reviews: int) -> None:
    """Writes both files."""
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(config={"preserve_insertion_order": False, "threads": 2})
    connection.execute(CORPUS)
    for name, sql in (("reviews", review_sql(reviews)), ("meta", meta_sql(reviews))):
        target = folder / f"{name}.jsonl"
        connection.execute(f"COPY ({sql}) TO '{target}' (FORMAT json)")
        print(f"{target}: {target.stat().st_size / 1e9:.2f} GB")


def measure(folder: Path, options: list[str]) -> None:
    """Prepares them anew, in a process of its own, and tells what it took."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    ending = ".jsonl.gz" if (folder / "reviews.jsonl.gz").exists() else ".jsonl"
    files = ["--reviews", str(folder / f"reviews{ending}"), "--meta", str(folder / f"meta{ending}")]
    command = [sys.executable, "-m", "bench", "prepare", "amazon2023", *files, "--out", str(folder / "out"), *options]
    start = time.monotonic()
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time, "
        f"at most {used.ru_maxrss / 1e6:.2f} GB of memory"
    )


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "make":
        make(Path(place), int(rest[0]) if rest else BOOKS)
    else:
        measure(Path(place), rest)
