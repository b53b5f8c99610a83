"""The cache: an entry is complete or missing, and its folder belongs to this user only."""

import errno
import logging
import threading

import pytest

from embedding_api.engine.models import cache
from embedding_api.engine.models.checksums import Checksums
from embedding_api.errors import ModelLoadError


def fill(folder, lock):
    (folder / "a").write_text("some")
    (folder / "b").write_bytes(b"more")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "kind"


def fail(folder, lock):
    raise AssertionError("made again")


def test_an_entry_is_made_once_for_this_user_alone(folder):
    entry = cache.obtain(folder, "k", fill, Checksums())
    assert {path.name for path in entry.iterdir()} == {"a", "b", "manifest.json"}
    assert cache.obtain(folder, "k", fail, Checksums()) == entry
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder, entry)] == [0o700] * 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "a").write_text("some "),
        lambda entry: (entry / "a").write_text("sane"),
        lambda entry: (entry / "b").unlink(),
        lambda entry: (entry / "manifest.json").write_text('{"a"'),
        lambda entry: (entry / "manifest.json").write_text("[]"),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{}"),
        lambda entry: entry.chmod(0o777),
        lambda entry: entry.symlink_to(entry.rename(entry.with_name("elsewhere"))),
    ],
)
def test_a_damaged_entry_is_made_again_and_logged(folder, damage, caplog):
    entry = cache.obtain(folder, "k", fill, Checksums())
    damage(entry)
    assert cache.obtain(folder, "k", fill, Checksums()) == entry
    assert (entry / "a").read_text() == "some"
    assert "is damaged" in caplog.text
    assert cache.obtain(folder, "k", fail, Checksums()) == entry


def test_a_failure_leaves_no_entry(folder):
    def breaks(target, lock):
        fill(target, lock)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.obtain(folder, "k", breaks, Checksums())
    assert [path.name for path in folder.iterdir()] == ["k.lock"]


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_kept(folder):
    (folder / "k.unfinished").mkdir(parents=True)
    (folder / "dead.unfinished").mkdir()
    # The removal cannot delete this link, as if another process had removed the folder first.
    (folder / "finished.unfinished").symlink_to(folder / "finished")
    folder.chmod(0o700)

    def with_another_at_work(target, lock):
        assert not (folder / "dead.unfinished").exists()
        cache.obtain(folder, "other", fill, Checksums())
        assert target.exists()

    cache.obtain(folder, "k", with_another_at_work, Checksums())


def test_the_second_of_two_waits_and_uses_what_the_first_made(folder, caplog):
    caplog.set_level(logging.INFO)
    entered, proceed = threading.Event(), threading.Event()

    def slow(target, lock):
        entered.set()
        assert proceed.wait(30)
        fill(target, lock)

    first = threading.Thread(target=cache.obtain, args=(folder, "k", slow, Checksums()))
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=cache.obtain, args=(folder, "k", fail, Checksums()))
    second.start()
    while "waiting for it" not in caplog.text:
        second.join(0.01)
    proceed.set()
    first.join(30)
    second.join(30)
    assert (folder / "k" / "a").exists()


def test_a_full_disk_and_an_unusable_folder_are_reported_with_the_cure(folder, tmp_path):
    def full(target, lock):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelLoadError, match=r"CACHE_DIR=.*\(No space left on device\); free some, or set"):
        cache.obtain(folder, "k", full, Checksums())
    with pytest.raises(ModelLoadError, match=r"CACHE_DIR=.*\(\d+ MB are free, and at least \d+ needed\); free some"):
        cache.obtain(folder, "k", fail, Checksums(), n_bytes=2**60)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match=r"CACHE_DIR=.* cannot be used .*; set CACHE_DIR to a folder that this"):
        cache.obtain(tmp_path / "file" / "kind", "k", fill, Checksums())


@pytest.mark.parametrize(("above", "mode"), [(0o755, 0o777), (0o777, 0o700)])
def test_a_folder_that_others_can_write_to_or_replace_is_refused(folder, above, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    folder.parent.chmod(above)
    with pytest.raises(ModelLoadError, match="others can write to"):
        cache.obtain(folder, "k", fill, Checksums())


@pytest.mark.parametrize(("above", "mode"), [(0o1777, 0o700), (0o2775, 0o2775)])
def test_a_sticky_folder_and_one_of_a_group_are_accepted(folder, above, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    folder.parent.chmod(above)
    cache.obtain(folder, "k", fill, Checksums())
