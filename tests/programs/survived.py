"""The process that does the server's work is killed (SIGKILL) again and again; nobody may notice.

    program ---- works on ----> mount      no error, nothing lost, nothing done twice
                                  X        killed: another process takes over

PAGESTONE_KILLS=N: kills in all, instead of a few for each program.
"""

import os
import re
import statistics
import subprocess
import sys
import threading
import time

import everyday
import killed
from lab import end_session, need, need_from_registry, run
from workers import read_notes

# Between two kills.
INTERVAL = 0.5


class Killer(threading.Thread):
    """Kills the worker of a mount at an interval, until it is told to stop or has killed often enough."""

    def __init__(self, mount, chance, kills):
        super().__init__(daemon=True)
        self.mount, self.chance, self.left = mount, chance, kills
        self.done = 0
        self.enough, self.stopped = threading.Event(), threading.Event()
        self.start()

    def run(self):
        while self.left > 0 and not self.stopped.wait(INTERVAL * (0.75 + 0.5 * self.chance.random())):
            if self.mount.kill_worker():
                self.done += 1
                self.left -= 1
        self.enough.set()

    def stop(self):
        self.stopped.set()
        self.join()
        return self.done


def pauses(mount, said):
    """How long nobody served, in milliseconds, of a text of the server's."""
    return [int(n) for n in re.findall(r"served again after (\d+) ms", said)]


def looked_at(suite, mount, kills):
    """After the kills: the server has said so many times that it goes on, ends well, and the pool is clean."""
    said = mount.log.read_text()
    found = pauses(mount, said)
    times = said.count("another one takes over")
    assert times == kills, f"{kills} kills, taken over {times} times:\n{said[-3000:]}"
    mount.finish()
    suite.kills += kills
    if not found:
        return "no kill"
    suite.pauses += found
    return f"{kills} kills, pauses of {statistics.median(found):.0f} ms, {max(found)} at most"


def worker_program(suite, kind, media, kills):
    """A program that notes what was acknowledged."""
    if kind == "git":
        need("git")
    # A program that only appends writes some hundred MiB between two kills, if the pool is in memory.
    mount = suite.mount(media, f"survived-{kind}", f"{2 + kills // 6}G").start()
    notes = suite.scratch / f"survived.{kind}.{media}.notes"
    chance = suite.random(f"survived {kind} on {media}")
    state = killed.LOOKS[kind](mount.dir, *read_notes(notes))
    said = suite.scratch / "survived.log"
    with said.open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-B", killed.WORKERS, kind, mount.dir, notes, str(chance.random()), repr(state)],
            env=everyday.quiet_git(), stdout=log, stderr=log, start_new_session=True)
    killer = Killer(mount, chance, kills)
    try:
        while not killer.enough.wait(0.2):
            assert program.poll() is None, f"the program ended after {killer.done} kills: {said.read_text()[-2000:]}"
        # What happened after the last kill counts too.
        begun, deadline = len(read_notes(notes)[0]), time.monotonic() + 30
        while len(read_notes(notes)[0]) == begun:
            assert program.poll() is None and time.monotonic() < deadline, f"it hangs: {said.read_text()[-2000:]}"
            time.sleep(0.01)
    finally:
        done = killer.stop()
        end_session(program)
    killed.LOOKS[kind](mount.dir, *read_notes(notes))
    return looked_at(suite, mount, done)


def fsx_command(suite, mount):
    tool = need_from_registry("fsx")
    config = killed.WORKERS.parents[1] / "posix" / "fsx-small.toml"
    return [tool, "-N", "6000", "-f", config, mount.dir / "fsx"], lambda: None


def stress_command(suite, mount):
    need("stress-ng")
    stressors = ["--dir", "1", "--link", "1", "--rename", "1", "--symlink", "1", "--hdd", "1", "--fallocate", "1",
                 "--seek", "1", "--fstat", "1", "--filename", "1", "--xattr", "1"]
    command = ["stress-ng", *stressors, "--verify", "--timeout", "8s", "--temp-path", mount.dir, "--hdd-bytes", "16m",
               "--fallocate-bytes", "16m", "--seek-size", "16m", "--oomable"]
    return command, lambda: None


def what_is_there(text):
    """Of a block that fio found changed: what the kernel has of it, and whether the pool has the same."""
    found = re.search(r"at file (\S+) offset (\d+), length (\d+)", text)
    if not found:
        return ""
    name, offset, length = found[1], int(found[2]), int(found[3])
    said = []
    with open(name, "rb", buffering=0) as file:
        cached = os.pread(file.fileno(), length, offset)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        stored = os.pread(file.fileno(), length, offset)
    pages = [(at, cached[at:at + 4096], stored[at:at + 4096]) for at in range(-offset % 4096, length, 4096)]
    said.append(f"of {len(pages)} pages from {offset:#x} on, {sum(c != s for _, c, s in pages)} differ from the pool's: "
                f"{[hex(offset + at) for at, c, s in pages if c != s][:20]}")
    said.append(f"zeros: {[hex(offset + at) for at, _, s in pages if not any(s)][:20]}")
    said += [f"{offset + at:#x}: {s[:24].hex()}" for at, _, s in pages]
    return "\n".join(said)


def program(suite, name, command, media, kills):
    """A program that knows nothing of all this, again and again until there were kills enough."""
    mount = suite.mount(media, f"survived-{name}", "1G").start()
    killer = Killer(mount, suite.random(f"survived {name} on {media}"), kills)
    try:
        while True:
            line, look = command(suite, mount)
            try:
                run(*line, env=everyday.quiet_git())
            except AssertionError as e:
                raise AssertionError(f"{e}\n{what_is_there(str(e))}\n{mount.log.read_text()[-2000:]}") from e
            look()
            if killer.enough.is_set():
                break
    finally:
        done = killer.stop()
    return looked_at(suite, mount, done)


def upgrade(suite, media):
    """`pagestone restart` under load, by a program that was installed meanwhile: open files stay open, also one without a name,
    and locks stay held."""
    import fcntl
    mount = suite.mount(media, "restarted", "256M")
    mount.program = suite.scratch / "pagestone.installed"
    install(suite, mount.program)
    mount.start()
    load = Load(mount.dir / "load")
    named, unnamed = (mount.dir / "named").open("wb+", buffering=0), (mount.dir / "gone").open("wb+", buffering=0)
    unnamed.write(b"kept" * 10_000)
    (mount.dir / "gone").unlink()
    fcntl.flock(named, fcntl.LOCK_EX)
    for n in range(5):
        named.write(b"%d " % n)
        install(suite, mount.program)
        said = run(suite.program, "restart", mount.pool)
        worker = re.search(r"process (\d+)", said)[1]
        assert os.stat(f"/proc/{worker}/exe").st_ino == mount.program.stat().st_ino, f"it runs the old program: {said}"
        assert os.pread(unnamed.fileno(), 8, 4) == b"keptkept"
        assert subprocess.run(["flock", "-n", mount.dir / "named", "true"]).returncode == 1, "the lock is gone"
    assert (mount.dir / "named").read_bytes() == b"0 1 2 3 4 "
    assert os.fstat(unnamed.fileno()).st_nlink == 0
    full = run(suite.program, "info", "--json", mount.pool)
    unnamed.close()
    named.close()
    assert run(suite.program, "info", "--json", mount.pool) != full, "the file without a name keeps its space"
    found = pauses(mount, mount.log.read_text())
    steps = load.end()
    mount.program.unlink()
    mount.program = suite.program
    mount.finish()
    return f"pauses of {found} ms, {steps} steps of other work"


def install(suite, place):
    """The program under test in place of what is installed: another file, which is longer."""
    new = place.with_suffix(".new")
    new.write_bytes(suite.program.read_bytes() + os.urandom(100))
    new.chmod(0o755)
    new.rename(place)


class Load(threading.Thread):
    """Makes, reads, renames and removes files until it is told to stop."""

    def __init__(self, place):
        super().__init__(daemon=True)
        self.place, self.steps, self.failed = place, 0, None
        self.stopped = threading.Event()
        place.mkdir()
        self.start()

    def run(self):
        try:
            while not self.stopped.is_set():
                data = b"%d" % self.steps * 3000
                new, kept = self.place / "new", self.place / f"kept{self.steps % 50}"
                new.write_bytes(data)
                new.rename(kept)
                assert kept.read_bytes() == data
                os.link(kept, new)
                new.unlink()
                self.steps += 1
        except BaseException as e:  # noqa: BLE001
            self.failed = e

    def end(self):
        self.stopped.set()
        self.join()
        if self.failed:
            raise AssertionError(f"the other work: {self.failed!r}") from self.failed
        return self.steps


def replaced(suite, media):
    """A program that is gone, or does not work, is no reason to end: the server runs it still."""
    mount = suite.mount(media, "replaced", "64M")
    copy = suite.scratch / "pagestone"
    copy.write_bytes(suite.program.read_bytes())
    copy.chmod(0o755)
    mount.program = copy
    mount.start()
    wait_until_ready(mount)
    (mount.dir / "file").write_bytes(b"kept")
    copy.unlink()
    for script in (None, "#!/bin/sh\nkill -9 $$\n", "#!/bin/false\n"):
        if script:
            copy.unlink(missing_ok=True)
            copy.write_text(script)
            copy.chmod(0o755)
        time.sleep(0.3)
        assert mount.kill_worker()
        assert (mount.dir / "file").read_bytes() == b"kept"
        run(suite.program, "restart", mount.pool)
    copy.unlink()
    mount.program = suite.program
    mount.finish()


def dies_at_once(suite, media):
    """Workers that die one after the other end the mount, with a reason and not without end."""
    mount = suite.mount(media, "hopeless", "64M").start()
    wait_until_ready(mount)
    deadline = time.monotonic() + 20
    while mount.server.poll() is None and time.monotonic() < deadline:
        mount.kill_worker()
        time.sleep(0.001)
    assert mount.server.poll() == 1
    said = mount.log.read_text()
    assert "given up" in said and said.count("takes over") <= 5, said
    mount.gone()
    mount.check()
    mount.start()
    mount.stop()
    mount.remove()


def moved(suite, media):
    """The pool's file gets another name; or it lies below the directory that it is mounted on, which cannot survive."""
    mount = suite.mount(media, "moved", "64M").start()
    wait_until_ready(mount)
    (mount.dir / "file").write_bytes(b"kept")
    elsewhere = mount.pool.with_name("moved.elsewhere")
    mount.pool.rename(elsewhere)
    assert mount.kill_worker()
    assert (mount.dir / "file").read_bytes() == b"kept"
    assert "taken over 1 times" in run(suite.program, "status", elsewhere)
    run(suite.program, "restart", elsewhere)
    elsewhere.rename(mount.pool)
    mount.stop()
    mount.check()
    mount.pool = mount.dir / "below.pool"
    mount.start()
    wait_until_ready(mount)
    assert "the pool lies below" in mount.log.read_text()
    mount.kill_worker()
    assert mount.server.wait(20) == 1
    mount.gone()
    mount.check()
    mount.remove()


def wait_until_ready(mount):
    deadline = time.monotonic() + 10
    while mount.log.read_text().count("stop  ") <= mount.log.read_text().count("unmounted,"):
        assert time.monotonic() < deadline, mount.log.read_text()
        time.sleep(0.01)


PROGRAMS = {**killed.PROGRAMS, "fsx": (fsx_command, 0), "stress": (stress_command, 0)}


def tests(suite):
    suite.pauses = []
    items = 2 * (len(killed.KILLS) + len(PROGRAMS))
    each = -(-int(os.environ["PAGESTONE_KILLS"]) // items) if "PAGESTONE_KILLS" in os.environ else 4 if suite.quick else 8
    for media, _ in suite.media():
        for kind in killed.KILLS:
            suite.test(f"survived {kind} on {media}", lambda: worker_program(suite, kind, media, each))
        for name, (command, _) in PROGRAMS.items():
            suite.test(f"survived {name} on {media}", lambda: program(suite, name, command, media, each))
        suite.test(f"survived upgrade on {media}", lambda: upgrade(suite, media))
        suite.test(f"survived replaced on {media}", lambda: replaced(suite, media))
        suite.test(f"survived moved on {media}", lambda: moved(suite, media))
        suite.test(f"survived hopeless on {media}", lambda: dies_at_once(suite, media))
    if suite.pauses:
        at = sorted(suite.pauses)
        print(f"pauses in ms: median {at[len(at) // 2]}, 99 % {at[len(at) * 99 // 100]}, longest {at[-1]}, of {len(at)}")
