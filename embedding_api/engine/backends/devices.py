"""Find out if torch can use a device on this machine, without using it in this process."""

from collections.abc import Mapping

from embedding_api.errors import DeviceNotFoundError
from embedding_api.machine import programs
from embedding_api.settings import Settings

# A Python expression for each device that is true if torch can use it.
TESTS: Mapping[str, str] = {"cuda": "torch.cuda.is_available()", "mps": "torch.backends.mps.is_available()"}


def require(device: str, tests: Mapping[str, str] = TESTS) -> None:
    """Check that torch finds a device.

    Another process asks torch, since asking initialises the device, and an initialised device does not survive a fork.

    Args:
        device: cpu, cuda or mps; each machine has cpu.
        tests: See TESTS.

    Raises:
        DeviceNotFoundError: torch does not find the device.
    """
    if device == "cpu":
        return
    program = f"import json, torch; print(json.dumps({{'is_there': bool({tests[device]})}}))"
    if not programs.ask(["-c", program], environment=programs.environment(Settings.secret_names())).get("is_there"):
        raise DeviceNotFoundError(
            f"DEVICE={device}: torch finds no such device on this machine; set DEVICE=cpu, or install the device's "
            "driver and the build of torch for it"
        )
