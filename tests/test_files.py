from pathlib import Path

import pytest

from llama_jax.files import at_home, whole_file, whole_folder


def test_a_path_begins_at_home_and_one_of_an_unknown_user_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert at_home("~/a") == Path("/somewhere/a") and at_home("a~") == Path("a~")
    assert at_home("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")


def test_a_file_is_there_when_all_of_it_is_written(tmp_path):
    place = tmp_path / "a.json"
    place.write_text("old")
    with whole_file(place) as draft:
        draft.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new" and list(tmp_path.iterdir()) == [place]


def test_a_file_whose_writer_fails_is_as_it_was(tmp_path):
    place = tmp_path / "a.json"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(place) as draft:
        draft.write_text("half")
        _ = 1 / 0
    assert place.read_text() == "old" and list(tmp_path.iterdir()) == [place]


def test_a_folder_takes_its_name_at_the_end_or_leaves_nothing(tmp_path):
    place = tmp_path / "deep" / "folder"
    with whole_folder(place) as draft:
        (draft / "x").write_text("x")
        assert not place.exists()
    assert [p.name for p in place.iterdir()] == ["x"]
    with pytest.raises(OSError), whole_folder(place) as draft:
        (draft / "y").write_text("y")
    assert [p.name for p in place.iterdir()] == ["x"]
    assert [p.name for p in place.parent.iterdir()] == ["folder"]
