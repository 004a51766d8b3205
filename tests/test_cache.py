from pathlib import Path

import pytest

from limbeck.cache import Cache, default_root


def test_the_root_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", "~/elsewhere")
    assert default_root() == tmp_path / "elsewhere" == Cache().root
    monkeypatch.setenv("LIMBECK_CACHE", "")
    assert default_root() == tmp_path / ".cache" / "limbeck"


def test_keys_follow_content_room_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(Path("anywhere"))
    key = cache.key("experts", {"a": 1, "b": [2]})
    assert key == cache.key("experts", {"b": [2], "a": 1}) == Cache(Path("elsewhere")).key("experts", {"a": 1, "b": [2]})
    assert len(key) == 32
    assert key != cache.key("experts", {"a": 1, "b": [3]})
    assert key != cache.key("students", {"a": 1, "b": [2]})
    monkeypatch.setattr("limbeck.cache.VERSION", 0)
    assert key != cache.key("experts", {"a": 1, "b": [2]})


def test_a_path_lies_in_its_room() -> None:
    assert Cache(Path("root")).path("trials", "k", ".json") == Path("root/trials/k.json")
