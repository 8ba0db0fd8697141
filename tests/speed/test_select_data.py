"""The selection benchmark plants what it says, and both sides are judged by it."""

from mindspore_impl.speed import select_data
from mindspore_impl.text.records import parse_record


def test_made_up_records_are_records():
    found = [parse_record(value, "here") for value in select_data.made_up_records(200)]
    assert len({record.id for record in found}) == 200
    assert list(select_data.made_up_records(200)) == list(select_data.made_up_records(200))


def test_planted_repeats_are_as_similar_as_said():
    texts, similar = select_data.planted(400)
    assert len(texts) == 400 and len(similar) == 20
    for number, similarity in similar.items():
        nearest = max(select_data.similarity_of(texts[number], texts[other]) for other in range(number))
        assert nearest == similarity
    assert sum(similarity >= select_data.THRESHOLD for similarity in similar.values()) == 10


def test_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def once(runs, rounds):
        for run in runs.values():
            run()
        return {name: [1.0] for name in runs}

    monkeypatch.setattr(select_data, "alternate", once)
    rows = select_data.rows(sizes=(200,), texts=400)
    assert [row.metric for row in rows] == [
        "throughput", "processor time", "peak of the process", "held of each text", "held of each text", "throughput",
        "recall", "precision",
    ]  # fmt: skip
    assert rows[6].ours == rows[7].ours == 1.0
    assert 50 < rows[3].ours < 500 < 2000 < rows[4].ours < 20_000
