"""What the suite promises of its guests: a boot that fails is tried again, and no guest outlives the suite."""

import os
import signal
import sys
import time
from pathlib import Path

from qemu import BOOTS, Guest, kit_of


class Dying(Guest):
    """Its kernel finds no program to start, and panics, as often as it is told."""

    deaths = 0

    def boot(self, command, patience, saved):
        Dying.deaths -= 1
        if Dying.deaths >= 0:
            command = [part + " rdinit=/none init=/none" if part.startswith("console=") else part for part in command]
        return super().boot(command, patience, saved)


def tried_again(suite):
    kit = kit_of(suite)
    Dying.deaths = BOOTS - 1
    guest = Dying(kit, kit.initrd(), ram="512M")
    assert guest.sh("echo here").strip() == "here"
    guest.kill()
    Dying.deaths = BOOTS
    try:
        Dying(kit, kit.initrd(), ram="512M")
    except AssertionError as why:
        assert "Kernel panic" in str(why), why
        assert not Guest.running, "a guest that did not boot is running"
        return f"a boot that fails {BOOTS - 1} times is none that failed; {BOOTS} times is"
    raise AssertionError("a kernel without a program to start has booted")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def killed(suite):
    """A process of ours boots a guest and is killed."""
    kit = kit_of(suite)
    initrd = kit.initrd()
    here, there = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(here)
        try:
            guest = Guest(kit, initrd, ram="512M")
            os.write(there, str(guest.qemu.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(there)
    qemu = int(os.read(here, 20) or b"0")
    os.close(here)
    assert qemu and alive(qemu), "no guest came up"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 20
    while alive(qemu):
        assert time.monotonic() < deadline, f"QEMU, process {qemu}, runs on without its suite"
        time.sleep(0.02)
    return "its guest ended with it"


def tests(suite):
    suite.test("a guest that does not boot is tried again", lambda: tried_again(suite))
    suite.test("a guest ends with a suite that is killed", lambda: killed(suite))
