"""Checksums: right after any change to a file, and computed only once for a large file that does not change."""

import hashlib
import json
import os
import time

import pytest

from embedding_api.engine.models.checksums import Checksums

LARGE = bytes(2**20)


def later() -> int:
    """Return a time at which the files of this test have not changed for a while."""
    return time.time_ns() + 10_000_000_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(LARGE)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "checksums"


def actual(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remember(folder, *paths, clock_ns=later) -> list[str]:
    """Save checksums, then set each to zeros in the record, so that a caller that gets zeros did not read the file."""
    checksums = Checksums(folder, clock_ns)
    for path in paths:
        assert checksums.sha256(path) == actual(path)
    checksums.save()
    record = folder / "checksums.json"
    if not record.exists():
        return []
    content = json.loads(record.read_bytes())
    record.write_text(json.dumps({name: [identity, "0" * 64] for name, (identity, _) in content.items()}))
    return list(content)


def test_the_next_start_reads_no_large_file_that_is_unchanged(folder, file):
    assert remember(folder, file) == [str(file)]
    assert Checksums(folder).sha256(file) == "0" * 64
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder, folder / "checksums.json")] == [
        0o700,
        0o700,
        0o600,
    ]
    assert [path.name for path in folder.iterdir()] == ["checksums.json"]


def test_a_file_behind_a_link_is_the_same_file(folder, file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    remember(folder, tmp_path / "link")
    assert Checksums(folder).sha256(file) == "0" * 64


def test_a_checksum_is_computed_anew_where_that_is_asked_for(folder, file):
    remember(folder, file)
    checksums = Checksums(folder, later)
    assert checksums.sha256(file, anew=True) == actual(file)
    assert checksums.sha256(file) == actual(file)


def rewritten_with_its_old_mtime(file):
    before = file.stat()
    file.write_bytes(b"1" + LARGE[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_with_its_old_mtime(file):
    other = file.with_name("other")
    other.write_bytes(b"1" + LARGE[1:])
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b"1" + LARGE[1:]),
        lambda file: file.write_bytes(LARGE + b"1"),
        rewritten_with_its_old_mtime,
        replaced_with_its_old_mtime,
    ],
)
def test_a_file_that_changed_is_read_again(folder, file, change):
    remember(folder, file)
    change(file)
    assert Checksums(folder).sha256(file) == actual(file)


def test_a_file_that_has_just_changed_is_not_remembered(folder, file):
    """Given a file that has just changed, then it is not recorded: another change could leave its times the same."""
    assert remember(folder, file, clock_ns=time.time_ns) == []
    assert remember(folder, file, clock_ns=lambda: file.stat().st_ctime_ns + 1_999_999_999) == []
    assert remember(folder, file, clock_ns=lambda: file.stat().st_ctime_ns + 2_000_000_001) == [str(file)]


def test_small_files_are_read_each_time(folder, file):
    file.write_bytes(LARGE[1:])
    assert remember(folder, file) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.write_text('{"a"'),
        lambda record: record.write_text("[]"),
        lambda record: record.write_text(record.read_text().replace("0" * 64, "0")),
        lambda record: record.write_text(record.read_text().replace("0" * 64, "x" * 64)),
        lambda record: record.write_text('{"a": 1}'),
        lambda record: record.write_bytes(b"\xff"),
        lambda record: record.chmod(0o666),
        lambda record: record.symlink_to(record.rename(record.with_name("elsewhere"))),
        lambda record: record.parent.chmod(0o777),
        lambda record: record.parent.parent.chmod(0o777),
    ],
)
def test_a_record_that_is_damaged_or_that_others_could_have_written_is_ignored(folder, file, damage):
    remember(folder, file)
    damage(folder / "checksums.json")
    assert Checksums(folder).sha256(file) == actual(file)


def test_two_services_keep_what_the_other_one_wrote_and_files_that_are_gone_are_forgotten(folder, file):
    one, other, gone = (file.with_name(name) for name in ("one", "other", "gone"))
    for path in (one, other, gone):
        path.write_bytes(LARGE)
    first, second = Checksums(folder, later), Checksums(folder, later)
    first.sha256(one)
    first.sha256(gone)
    second.sha256(other)
    first.save()
    gone.unlink()
    second.save()
    assert json.loads((folder / "checksums.json").read_bytes()).keys() == {str(one), str(other)}


def test_a_folder_that_cannot_be_made_costs_the_memory_alone(file, tmp_path):
    (tmp_path / "file").write_text("")
    checksums = Checksums(tmp_path / "file" / "checksums", later)
    assert checksums.sha256(file) == checksums.sha256(file) == actual(file)
    checksums.save()
