"""LaMP and LongLaMP from files in their published layouts: what a row becomes, and what is wrong with a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lamp_world as world
import pytest
from cli_world import call

from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.errors import DataError, UnknownName, UsageError
from bench.types import Example

LAMP = ("LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7")
LONG = ("abstract_generation", "topic_writing", "product_review")


def prepared(spec: Path) -> Dataset:
    return prepare(load_spec(str(spec)))


def by_id(dataset: Dataset) -> dict[str, Example]:
    return {e.id: e for split in (dataset.train, dataset.dev, dataset.test) for e in split.examples}


@pytest.mark.parametrize("task", LAMP)
def test_a_question_of_lamp_is_an_example_with_its_profile_as_history(tmp_path: Path, task: str) -> None:
    dataset = prepared(world.write_lamp(tmp_path, task))
    assert sorted(e.user_id for e in dataset.test.examples) == ["dev-20", "dev-21", "dev-22"]
    assert len(dataset.train) == 5  # a tenth of six users, but one at least, is validation
    assert len(dataset.dev) == 1
    row = world.question(task, 20)
    example = by_id(dataset)["dev-20/dev-20"]
    (field,) = dataset.task.fields
    assert example.fields == {field.name: row["input"].removeprefix(world.PREFIXES[task])}
    assert dataset.test.references[example.id] == world.answer(20)["output"]
    assert (example.timestamp, example.item_id) == (None, None)
    assert [past.text for past in example.history] == [
        item["text" if task == "LaMP-7" else "title"] for item in row["profile"]
    ]
    body = {"LaMP-5": "abstract", "LaMP-7": None}.get(task, "text")
    for past, item in zip(example.history, row["profile"], strict=True):
        assert dict(past.fields) == ({field.name: item[body]} if body else {})
        assert (past.timestamp, past.item_id) == (None, None)


def test_every_user_of_the_profiles_is_in_the_population_and_no_target_is(tmp_path: Path) -> None:
    dataset = prepared(world.write_lamp(tmp_path))
    texts = {document.text for document in dataset.population.documents()}
    assert texts == {
        item["title"] for user in (*range(6), 20, 21, 22) for item in world.question("LaMP-4", user)["profile"]
    }
    assert not texts & {world.answer(user)["output"] for user in (*range(6), 20, 21, 22)}


def test_validation_users_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [world.question("LaMP-4", user) for user in range(30)]
    one = prepared(world.write_lamp(tmp_path / "a", train=rows))
    other = prepared(world.write_lamp(tmp_path / "b", train=rows[::-1]))
    assert len(one.dev) == 3
    assert one.fingerprint == other.fingerprint


def test_dates_order_a_history_and_place_the_target_after_it(tmp_path: Path) -> None:
    row = world.question("LaMP-5", 20, dated=True)
    row["profile"][0]["date"], row["profile"][1]["date"], row["profile"][2]["date"] = "2015-12-31", 2003, "1969-07-20"
    dataset = prepared(world.write_lamp(tmp_path, "LaMP-5", dev=[row], dated=True))
    (example,) = dataset.test.examples
    titles = [item["title"] for item in row["profile"]]
    assert [past.text for past in example.history] == [titles[2], titles[1], titles[3], titles[0]]
    day = 86_400_000
    assert [past.timestamp for past in example.history][1:] == [12053 * day, 16535 * day, 16800 * day]
    assert (example.history[0].timestamp or 0) < 0
    assert example.timestamp == 16800 * day + 1
    # What others wrote on the very day of the latest item is open, what they wrote later is not.
    others = dataset.population.history("train-0", example.timestamp)
    assert all((d.timestamp or 0) < (example.timestamp or 0) for d in others)


def test_users_that_the_files_name_are_those_users(tmp_path: Path) -> None:
    train = [{**world.question("LaMP-4", user), "user_id": user % 3} for user in range(6)]
    dataset = prepared(world.write_lamp(tmp_path, train=train))
    assert {e.user_id for e in (*dataset.train.examples, *dataset.dev.examples)} == {"0", "1", "2"}
    assert len(dataset.dev) == 2  # all questions of one user


def test_what_cannot_be_history_is_left_out_and_counted(tmp_path: Path) -> None:
    row = world.question("LaMP-4", 20)
    asked = row["input"].removeprefix(world.PREFIXES["LaMP-4"])
    row["profile"] += [
        {"id": "x", "text": asked, "title": world.answer(20)["output"]},
        {**row["profile"][0], "id": "y"},
        {"id": "z", "text": "an article without a headline", "title": " "},
    ]
    dataset = prepared(world.write_lamp(tmp_path, dev=[row]))
    assert len(dataset.test.examples[0].history) == 4
    assert dataset.counts["left_out_of_profiles"] == {
        "without_text": 1,
        "twice": 1,
        "target_itself": 1,
        "later_target": 0,
    }


def damaged(**changes: Any) -> list[dict[str, Any]]:
    return [{**world.question("LaMP-4", 20), **changes}]


@pytest.mark.parametrize(
    ("rows", "golds", "parts"),
    [
        (damaged(profile=[]), None, ["dev_questions.json, question '20'", "empty profile"]),
        (damaged(profile=None), None, ["question '20'", "no list 'profile'"]),
        (
            damaged(profile=[{"id": "1", "text": "t"}]),
            None,
            ["question '20', profile item 0", "no 'title'", "id, text"],
        ),
        (damaged(profile=[{"id": "1", "text": 3, "title": "t"}]), None, ["profile item 0: text = 3 is not text"]),
        (damaged(input="Paraphrase this"), None, ["question '20'", "Generate a headline", "is it of LaMP-4?"]),
        (damaged(id=None), None, ["question 0: id = None is not an id"]),
        (damaged() * 2, None, ["question '20' stands twice"]),
        (["text"], [], ["question 0 is not an object"]),
        (damaged(), [], ["question '20' has no output in", "dev_outputs.json"]),
        (damaged(), [{"id": "99", "output": "x"}], ["question '20' has no output"]),
        (damaged(), [world.answer(20), world.answer(21)], ["outputs of 1 questions that are not in", "'21'"]),
        (damaged(), [world.answer(20)] * 2, ["dev_outputs.json, gold 1", "'20' stands twice"]),
        (damaged(), [{"id": "20", "output": ""}], ["gold 0", "is empty"]),
        (damaged(), [{"id": "20"}], ["gold 0 has no 'output'"]),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, rows: Any, golds: Any, parts: list[str]) -> None:
    spec = world.write_lamp(tmp_path, dev=[], golds={"dev": golds or []})
    (tmp_path / "dev_questions.json").write_text(json.dumps(rows))
    if golds is None:
        outputs = {"task": "LaMP_4", "golds": [world.answer(20)]}
        (tmp_path / "dev_outputs.json").write_text(json.dumps(outputs))
    with pytest.raises(DataError) as caught:
        prepared(spec)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    spec = world.write_lamp(tmp_path)
    for text, said in (("[1", "not valid JSON"), ("{}", "not a list of questions")):
        (tmp_path / "train_questions.json").write_text(text)
        with pytest.raises(DataError, match=rf"train_questions\.json.*{said}"):
            prepared(spec)
    (tmp_path / "train_questions.json").unlink()
    with pytest.raises(DataError, match=r"train_questions\.json does not exist; get the files of LaMP-4"):
        prepared(spec)


def test_dates_that_are_none_are_named(tmp_path: Path) -> None:
    for date, said in (("soon", "neither YYYY-MM-DD nor a year"), ("2015-13-01", "neither"), (None, "no 'date'")):
        row = world.question("LaMP-4", 20, dated=True)
        row["profile"][1] = {k: v for k, v in {**row["profile"][1], "date": date}.items() if v is not None}
        with pytest.raises(DataError, match=rf"question '20', profile item 1.*{said}"):
            prepared(world.write_lamp(tmp_path, dev=[row], dated=True))


def test_lamp_6_as_published_says_how_to_get_the_emails(tmp_path: Path) -> None:
    row = {"id": "1", "input": "001-000077-EM.txt", "profile": [{"id": "2", "text": "001-000078-EM.txt"}]}
    with pytest.raises(DataError, match="publishes ids in place of emails: its create_avocado_dataset"):
        prepared(world.write_lamp(tmp_path, "LaMP-6", train=[row]))


FIELDS = {
    "abstract_generation": lambda n: {"title": f"title {world.words(20, n, 30)}", "items": "1. a 2. b"},
    "topic_writing": lambda n: {"summary": f"summary {world.words(20, n, 30)}"},
    "product_review": lambda n: {
        "description": f"what {world.words(20, n, 30)} is",
        "rating": 4.0,
        "summary": 'the "very" best',
    },
}
KEYS = {
    "abstract_generation": ("abstract", {"title": "title"}),
    "topic_writing": ("content", {"summary": "summary"}),
    "product_review": ("reviewText", {"description": "description", "summary": "summary"}),
}


@pytest.mark.parametrize("task", LONG)
def test_a_row_of_longlamp_is_an_example_with_its_profile_as_history(tmp_path: Path, task: str) -> None:
    dataset = prepared(world.write_longlamp(tmp_path, task))
    assert (len(dataset.train), len(dataset.dev), len(dataset.test)) == (4, 2, 3)
    example = dataset.test.examples[0]
    row = world.longlamp_row(task, 20, 9, 4)
    assert dict(example.fields) == FIELDS[task](9)
    assert dataset.test.references[example.id] == row["output"]
    written, fields = KEYS[task]
    assert [past.text for past in example.history] == [item[written] for item in row["profile"]]
    for past, item in zip(example.history, row["profile"], strict=True):
        known = {ours: item[theirs] for ours, theirs in fields.items()}
        assert dict(past.fields) == ({**known, "rating": 5.0} if task == "product_review" else known)


def test_in_the_temporal_setting_an_earlier_target_is_a_later_rows_history(tmp_path: Path) -> None:
    first, second, third = (world.longlamp_row("topic_writing", 1, n, 3) for n in (7, 8, 9))

    def item(row: dict[str, Any], name: str) -> dict[str, Any]:
        summary = row["input"].removeprefix("Generate the content for a reddit post ")
        return {"author": "u1", "content": row["output"], "id": name, "summary": summary}

    second["profile"] = [*first["profile"], item(first, "a")]
    third["profile"] = [*second["profile"], item(second, "b")]
    first["profile"] = [*first["profile"], item(third, "c")]  # the test target, where nobody can have it yet
    rows = {"train": [first], "val": [second], "test": [third]}
    dataset = prepared(world.write_longlamp(tmp_path, "topic_writing", rows, "temporal"))
    train, dev, test = dataset.train.examples[0], dataset.dev.examples[0], dataset.test.examples[0]
    assert [past.id for past in dev.history][-1] == train.id
    assert [past.id for past in test.history][-2:] == [train.id, dev.id]
    assert len(train.history) == 3
    assert dataset.counts["left_out_of_profiles"]["later_target"] == 1
    assert {d.id for d in dataset.population.documents()} == {past.id for past in train.history}


@pytest.mark.parametrize(
    ("task", "change", "parts"),
    [
        ("topic_writing", {"profile": []}, ["(topic_writing_user, val), row 0", "empty profile"]),
        ("topic_writing", {"output": " "}, ["row 0", "output is empty"]),
        ("topic_writing", {"author": ""}, ["row 0", "author = '' is not an id"]),
        ("topic_writing", {"input": "Write"}, ["row 0", "'Write'", "is source.task the right one?"]),
        ("abstract_generation", {"input": "Write"}, ["row 0", "does not ask for an abstract"]),
        ("product_review", {"input": "Write"}, ["row 0", "does not ask for a review"]),
    ],
)
def test_a_broken_row_of_a_table_is_named(tmp_path: Path, task: str, change: Any, parts: list[str]) -> None:
    good = world.longlamp_row(task, 10, 9, 2)
    spec = world.write_longlamp(tmp_path, task, {"val": [{**good, **change}, good]})
    with pytest.raises(DataError) as caught:
        prepared(spec)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_tables_that_are_not_there_or_of_another_task(tmp_path: Path) -> None:
    spec = world.write_longlamp(tmp_path, "topic_writing")
    text = spec.read_text()
    spec.write_text(text.replace('path = "."', 'path = "elsewhere"'))
    with pytest.raises(DataError, match=r"elsewhere holds no split 'train'"):
        prepared(spec)
    spec.write_text(text.replace("topic_writing", "product_review").replace('"."', '"topic_writing_user"'))
    with pytest.raises(DataError, match="no column 'reviewerId'; it has: author, input, output, profile"):
        prepared(spec)


ASKED = {
    "LaMP-4": ("Write my headline for this article", "Article: target"),
    "LaMP-5": ("Write my title for the paper with this abstract", "Abstract: target"),
    "LaMP-6": ("Write my subject for this email", "Email: target"),
    "LaMP-7": ("Paraphrase this tweet", "Tweet: target"),
    "abstract_generation": ("Write my abstract of this paper", "To be covered: 1. a"),
    "topic_writing": ("Write my Reddit post", "Summary: summary"),
    "product_review": ("Write my review of this product", "Rating: 4"),
}


@pytest.mark.parametrize("task", ASKED)
def test_prompts_ask_in_the_tasks_own_words(tmp_path: Path, task: str) -> None:
    from bench.prompts import conversation, one_message

    spec = world.write_lamp(tmp_path, task) if task in LAMP else world.write_longlamp(tmp_path, task)
    dataset = prepared(spec)
    example = dataset.test.examples[0]
    messages = conversation(dataset.task, example, example.history[:1])
    assert all(words in messages[-1].content for words in ASKED[task])
    assert messages[1].content == example.history[0].text
    first = "Write one of my tweets." if task == "LaMP-7" else ASKED[task][0]
    assert messages[0].content.startswith(first)
    whole = " ".join(m.content for m in (*messages, *one_message(dataset.task, example, example.history[:1])))
    assert "item" not in whole.replace("items", "")
    assert ("review" in whole) == (task == "product_review")


def test_a_spec_may_rename_what_the_task_brings(tmp_path: Path) -> None:
    spec = world.write_lamp(tmp_path)
    text = spec.read_text()
    spec.write_text(text + '[task]\nnoun = "caption"\nrequest = "Caption it."\n[task.labels]\narticle = "Story"\n')
    task = load_spec(str(spec)).task
    assert (task.name, task.noun, task.ask, task.target_label) == ("lamp-4", "caption", "Caption it.", "Headline")
    assert [(field.name, field.label, field.shortenable) for field in task.fields] == [("article", "Story", True)]
    spec.write_text(text + '[task.labels]\nrating = "Stars"\n')
    with pytest.raises(UnknownName, match=r"task\.labels 'rating'\. Known: article"):
        load_spec(str(spec))
    spec.write_text(text + "[filter]\nmin_text_chars = 1\n")
    with pytest.raises(
        UsageError, match=r"filter\.min_text_chars has no effect, as source 'lamp' brings its own split"
    ):
        load_spec(str(spec))


RUN = ("run", "--engine", "fake", "--metrics", "rouge1")


@pytest.mark.parametrize("task", ["LaMP-4", "LaMP-7", "topic_writing"])
def test_a_run_from_files_to_the_leaderboard(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = world.write_lamp(tmp_path, task) if task in LAMP else world.write_longlamp(tmp_path, task)
    methods = "nonperso,rag,pag,intsum,llm-trsr,cicl,copy-last"
    code, out, err = call([*RUN, "--dataset", spec, "--methods", methods, "--out", tmp_path / "runs"], capsys)
    assert code == 0, err
    assert all(name in out for name in methods.split(","))
