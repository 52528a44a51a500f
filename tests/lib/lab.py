"""What the suites share: finding and building pagestone, mounts that can be killed, and a tally.

    Suite   runs named tests, prints one line each and a closing summary
    Mount   one pool on one directory: start, stop, kill -9, check

Everything a suite starts is ended by its process number, and every mount is taken away, whatever
happens. A test that fails takes nothing else with it: what it has started is ended, and the next one runs.
"""

import argparse
import atexit
import ctypes
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A step that takes longer than this hangs.
PATIENCE = 600
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def ends_with_us():
    """In a process that was just forked: the kernel kills it when the suite is gone, however that came about."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Skip(Exception):
    """This machine lacks what the test needs; the text says what."""


def run(*command, cwd=None, env=None, ok=(0,), timeout=PATIENCE, stdin=None):
    """Runs a command; answers its standard output, or fails with all it said."""
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=env, input=stdin, timeout=timeout,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode not in ok:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{said}")
    return done.stdout


def has(program):
    return shutil.which(program) is not None


def need(program, package=None):
    """Makes sure a program is there, installing its Debian package if it has to and may."""
    if has(program):
        return
    if os.geteuid() == 0 and has("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", package or program],
                       env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE)
    if not has(program):
        raise Skip(f"{program} is not installed (package {package or program})")


def need_from_registry(crate):
    """A tool from the Rust registry, installed below the target directory if it is missing."""
    found = shutil.which(crate)
    if found:
        return Path(found)
    place = target_dir() / "tools"
    tool = place / "bin" / crate
    if not tool.exists():
        print(f"     installing {crate} from the Rust registry", flush=True)
        done = subprocess.run(["cargo", "install", "--quiet", "--locked", "--root", str(place), crate], timeout=PATIENCE)
        if done.returncode != 0:
            raise Skip(f"{crate} could not be installed from the Rust registry")
    return tool


@functools.cache
def target_dir():
    metadata = run("cargo", "metadata", "--no-deps", "--format-version", "1", "--offline", cwd=ROOT)
    return Path(json.loads(metadata)["target_directory"])


@functools.cache
def pagestone():
    """The program under test: $PAGESTONE, or what is built here."""
    named = os.environ.get("PAGESTONE")
    if named:
        return Path(named).absolute()
    subprocess.run(["cargo", "build", "--quiet", "--release", "-p", "pagestone-cli"], cwd=ROOT, check=True)
    return target_dir() / "release" / "pagestone"


def ended(program):
    """Waits for a program that leads a session and whose mount was killed: its calls must come back with errors.

    Its own processes may wait for each other (rsync's do, about once in a hundred kills): that is said, and the caller
    ends them. One that waits for the mount is a failure.
    """
    try:
        program.wait(60)
    except subprocess.TimeoutExpired:
        waiting = [what for what in map(waits_for, members(program.pid)) if what]
        assert not any("fuse" in what or what.startswith("D") for what in waiting), f"it waits for the mount: {waiting}"
        print(f"     {program.args[0]} does not end: its processes wait in {', '.join(waiting)}", flush=True)


def end_session(program):
    """Ends a program that leads a session, with all whom it has started; none of them does anything any more on return."""
    deadline = time.monotonic() + 20
    while alive := list(members(program.pid)):
        assert time.monotonic() < deadline, f"{alive} do not end"
        for member in alive:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                pass
        program.poll()
        time.sleep(0.005)
    program.wait(20)


def members(session):
    """The processes of a session that have not ended."""
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = place.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                yield int(place.parent.name)
        except OSError:
            pass


def waits_for(process):
    """The state of a process and the place in the kernel where it waits; None if it is gone."""
    try:
        stat, place = (Path(f"/proc/{process}/{what}").read_text() for what in ("stat", "wchan"))
    except OSError:
        return None
    return f"{stat.rpartition(')')[2].split()[0]} {place}"


class Mount:
    """A pool, the directory it is mounted on, and the process that serves it."""

    standing = []
    # The directories of those that the kernel keeps bytes of: pools in ordinary files, unless an option says otherwise.
    cached = set()

    def __init__(self, program, scratch, name, size="1G"):
        self.program, self.size = program, size
        self.in_memory = str(scratch).startswith("/dev/shm/")
        self.pool = Path(scratch) / f"{name}.pool"
        # The directory lies elsewhere than the pool may: mounting in /dev/shm would be odd.
        self.dir = Path(tempfile.mkdtemp(prefix=f"pagestone-{name}-"))
        self.log = Path(scratch) / f"{name}.log"
        self.server = None
        if not self.in_memory:
            Mount.cached.add(self.dir)
        # Of `pagestone mount`.
        self.options = []
        # The worker that was killed last.
        self.killed = None

    def start(self):
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                [self.program, "mount", "--allow-other", "--create", self.size, *self.options, self.pool, self.dir],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=ends_with_us)
        Mount.standing.append(self)
        deadline = time.monotonic() + 30
        while not os.path.ismount(self.dir):
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the mount does not come about:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def kill(self):
        """SIGKILL, in the middle of whatever it does."""
        assert self.server.poll() is None, f"the server ended by itself:\n{self.log.read_text()[-2000:]}"
        self.server.kill()
        self.gone()

    def kill_worker(self):
        """SIGKILL to the process that does the server's work; the server goes on. Answers whether there was one."""
        server = self.server.pid
        try:
            worker = int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])
            if worker == self.killed:
                return False  # It is still dying.
            os.kill(worker, signal.SIGKILL)
        except (OSError, IndexError):
            return False
        self.killed = worker
        return True

    def gone(self):
        subprocess.run(["umount", "-l", self.dir], stderr=subprocess.DEVNULL)
        self.server.wait(60)
        if self in Mount.standing:
            Mount.standing.remove(self)

    def stop(self):
        """Unmounts; the server must end well."""
        # A lookup by the desktop or an indexer may hold it for a moment.
        for _ in range(100):
            if subprocess.run(["umount", self.dir], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{self.dir} stays busy")
        code = self.server.wait(60)
        if self in Mount.standing:
            Mount.standing.remove(self)
        assert code == 0, f"the server ended with {code}:\n{self.log.read_text()[-2000:]}"

    def check(self):
        """`pagestone check` finds nothing."""
        run(self.program, "check", self.pool)

    def checked_restart(self):
        self.stop()
        self.check()
        return self.start()

    def remove(self):
        if self in Mount.standing:
            self.stop()
        self.pool.unlink(missing_ok=True)
        # A program whose mount was taken away may have left something in the directory below.
        shutil.rmtree(self.dir)

    def finish(self):
        """The end of a test: unmounted, checked, removed."""
        self.stop()
        self.check()
        self.remove()

    @classmethod
    def end_all(cls):
        for mount in list(cls.standing):
            if mount.server.poll() is None:
                mount.server.kill()
            mount.gone()
            shutil.rmtree(mount.dir, ignore_errors=True)


class Suite:
    """The tests of one run, their options, and how they ended."""

    def __init__(self, about):
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--quick", action="store_true", help="a few minutes less, for every day")
        parser.add_argument("--seed", type=int, default=None, help="repeat the run with this seed")
        parser.add_argument("only", nargs="*", help="run the tests whose names contain one of these")
        self.options = parser.parse_args()
        self.quick = self.options.quick
        self.seed = self.options.seed if self.options.seed is not None else random.SystemRandom().getrandbits(32)
        self.passed = self.failed = self.skipped = self.kills = 0
        # What ends all that a failed test has left running.
        self.enders = [Mount.end_all]
        # Signals end the run like an error does, so that the mounts go.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda n, _: sys.exit(128 + n))
        self.scratch = Path(tempfile.mkdtemp(prefix="pagestone-suite-", dir="/var/tmp"))
        self.memory = Path(tempfile.mkdtemp(prefix="pagestone-suite-", dir="/dev/shm"))
        atexit.register(self.tidy)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
            print("skipped: this suite needs /dev/fuse and root")
            print("0 passed, 0 failed")
            sys.exit(0)
        self.program = pagestone()
        print(f"seed {self.seed} (repeat with --seed {self.seed})", flush=True)

    def tidy(self):
        # Asked to end twice, it still takes its mounts away.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.end_all()
        for scratch in (self.scratch, self.memory):
            shutil.rmtree(scratch, ignore_errors=True)

    def end_all(self):
        for end in self.enders:
            try:
                end()
            except Exception:
                traceback.print_exc(file=sys.stdout)

    def random(self, name):
        """Chance for one test, the same whichever others run."""
        return random.Random(f"{self.seed} {name}")

    def media(self):
        """Where pools are put: name and directory."""
        return (("file", self.scratch), ("shm", self.memory))

    def mount(self, media, name, size="1G"):
        return Mount(self.program, dict(self.media())[media], name, size)

    def test(self, name, body):
        if self.options.only and not any(part in name for part in self.options.only):
            return
        began = time.monotonic()
        try:
            said = body()
        except Skip as why:
            self.skipped += 1
            print(f"skip {name}: {why}", flush=True)
            return
        except Exception as error:
            self.failed += 1
            print(f"FAIL {name}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc(file=sys.stdout)
            self.end_all()
            return
        self.passed += 1
        took = time.monotonic() - began
        print(f"ok   {name} ({took:.1f} s){': ' + said if said else ''}", flush=True)

    def end(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        if self.kills:
            print(f"{self.kills} kills, seed {self.seed}")
        print(f"{self.passed} passed, {self.failed} failed{skipped}")
        sys.exit(1 if self.failed else 0)
