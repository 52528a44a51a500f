"""The server is killed (SIGKILL) at random moments; then check, mount again, and look.

    worker ---- changes files ----> mount                 everything acknowledged is there, and
       \\------ notes, outside         X  killed           nothing else but the one step under way
    program --- tar, cargo, fio...> mount  X              the program succeeds when run again
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import everyday
from lab import Mount, end_session, ended, need, run
from workers import ACCOUNTS, BLOCK, BLOCKS, apply, block, read_notes, record

WORKERS = Path(__file__).with_name("workers.py")


def say(held, text):
    if not held:
        raise AssertionError(text)


# How the files of each worker are looked at: the directory, what was acknowledged, what was under
# way. Each answers the state from which the worker goes on.

def see_append(place, done, will):
    n = 0
    for path in sorted(place.glob("log*"), key=lambda p: int(p.name[3:])):
        data, at = path.read_bytes(), 0
        while at < len(data):
            want = record(n)
            # Through the page cache the kernel may send one write in parts, each of which ends with a page.
            in_parts = place in Mount.cached and will == str(n) and len(data) % 4096 == 0
            if in_parts and want.startswith(data[at:]) and len(data) - at < len(want):
                os.truncate(path, at)
                break
            say(data[at:at + len(want)] == want, f"record {n} is not whole in {path.name}, byte {at} of {len(data)}")
            at += len(want)
            n += 1
    least = len(done)
    say(least <= n <= least + (will is not None), f"{least} records were synced (under way: {will}), {n} are there")
    return n


def see_blocks(place, done, will):
    want = [0] * BLOCKS
    for line in done:
        n, version = map(int, line.split())
        want[n] = version
    under_way = int(will.split()[0]) if will else None
    path = place / "blocks"
    data = path.read_bytes() if path.exists() else b""
    for n in range(BLOCKS):
        is_block = data[n * BLOCK:(n + 1) * BLOCK]
        whole = [v for v in (want[n], want[n] + 1) if is_block == block(n, v)]
        if n == under_way:
            want[n] += 1  # it may be either, or half of each: it counts as tried
        else:
            say(whole == [want[n]] or (want[n] == 0 and not any(is_block)),
                f"page {n}: version {want[n]} was synced, there is {is_block[:40]}")
    return want


def see_names(place, done, will):
    names = {}
    for step in done:
        apply(names, step)
    there = {}
    for path in [p for d in ("a", "b") for p in (place / d).glob("*")]:
        data = path.read_bytes()
        version = data[:20].split()[0].decode()
        say(data and len(data) % BLOCK == 0 and data == block(int(version), int(version)) * (len(data) // BLOCK),
            f"{path.name} is not whole")
        there[f"{path.parent.name}/{path.name}"] = version
    then = dict(names)
    if will:
        apply(then, will)
        if there == then:
            names = then
    say(there in (names, then), f"under way: {will}; differs: {set(there.items()) ^ set(names.items())}")
    return there


def see_sqlite(place, done, will):
    path = place / "base.db"
    if not path.exists():
        say(not done, "the database is gone")
        return 1
    base = sqlite3.connect(path, timeout=30)
    say(base.execute("pragma integrity_check").fetchone()[0] == "ok", "integrity_check")
    tables = base.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
    if tables == 0:
        say(not done, "the tables are gone")
        return 1
    count, least, most = base.execute("select count(*), min(id), max(id) from done").fetchone()
    most = most or 0
    total = base.execute("select sum(sum) from account").fetchone()[0]
    base.close()
    acknowledged = int(done[-1]) if done else 0
    say(count == most and least in (None, 1), f"{count} transactions, the last is {most}")
    say(acknowledged <= most <= acknowledged + (will is not None),
        f"{acknowledged} was committed (under way: {will}), the last there is {most}")
    say(total == ACCOUNTS * 1000, f"the accounts have {total}")
    return most + 1


def see_git(place, done, will):
    repository = place / "repository"
    if not done:
        shutil.rmtree(repository, ignore_errors=True)
        return None
    # What a killed git leaves, its user removes.
    for lock in list((repository / ".git").rglob("*.lock")):
        lock.unlink()
    run("git", "fsck", "--full", "--strict", cwd=repository)
    commits = set(run("git", "rev-list", "HEAD", cwd=repository).split())
    missing = [c for c in done if c not in commits]
    say(not missing, f"{len(missing)} of {len(done)} commits are gone, the first: {missing[:1]}")
    return None


LOOKS = {
    "append": see_append,
    "overwrite": see_blocks,
    "mapped": see_blocks,
    "rename": see_names,
    "sqlite-wal": see_sqlite,
    "sqlite-delete": see_sqlite,
    "git": see_git,
}


def settle(kind, notes, state, will):
    """What was under way and is there now counts from here on."""
    if will is None:
        return
    happened = {
        "append": lambda: int(will) < state,
        "overwrite": lambda: True,
        "mapped": lambda: True,
        "rename": lambda: True,
        "sqlite-wal": lambda: int(will) < state,
        "sqlite-delete": lambda: int(will) < state,
        "git": lambda: False,
    }[kind]()
    lines = notes.read_text().splitlines()
    lines = [line for line in lines if line[0] == "<"]
    if kind == "rename":
        names = {}
        for line in lines:
            apply(names, line[2:])
        happened = names != state
    if happened:
        lines.append(f"< {will}")
    notes.write_text("".join(line + "\n" for line in lines))


def worker_killed(suite, kind, media, kills):
    if kind == "git":
        need("git")
    name = f"killed {kind} on {media}"
    chance = suite.random(name)
    mount = suite.mount(media, kind, "512M")
    notes = suite.scratch / f"{kind}.{media}.notes"
    env = everyday.quiet_git()
    acknowledged = 0
    for n in range(kills):
        mount.start()
        state = LOOKS[kind](mount.dir, *read_notes(notes))
        settle(kind, notes, state, read_notes(notes)[1])
        if kind in ("overwrite", "mapped") and n > 0:
            mend(mount.dir / "blocks", state)
        said = suite.scratch / "worker.log"
        with said.open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-B", WORKERS, kind, mount.dir, notes, str(chance.random()), repr(state)],
                env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            begun = len(read_notes(notes)[0])
            deadline = time.monotonic() + 60
            while len(read_notes(notes)[0]) == begun:
                say(worker.poll() is None and time.monotonic() < deadline, f"the worker: {said.read_text()[-2000:]}")
                time.sleep(0.01)
            time.sleep(chance.random() * 0.4)
            say(worker.poll() is None, f"kill {n}: the worker ended before: {said.read_text()[-2000:]}")
            mount.kill()
            suite.kills += 1
            worker.wait(30)
        finally:
            end_session(worker)
        mount.check()
        acknowledged = len(read_notes(notes)[0])
    mount.start()
    LOOKS[kind](mount.dir, *read_notes(notes))
    mount.finish()
    return f"{kills} kills, {acknowledged} acknowledged"


def mend(path, versions):
    """Writes the page that may have been torn again, so that each is what the notes say."""
    with path.open("r+b") as f:
        for n, version in enumerate(versions):
            if version:
                f.seek(n * BLOCK)
                f.write(block(n, version))
        f.flush()
        os.fsync(f.fileno())


# Programs that know nothing of all this: (how to prepare outside, what to run, how to look).

def packed_tree(suite):
    packed = suite.scratch / "small.tar"
    if not packed.exists():
        tree = suite.scratch / "small"
        everyday.with_everything(tree)
        run("tar", "cf", packed, "-C", tree, ".")
    return packed


def tar_command(suite, mount):
    packed = packed_tree(suite)
    (mount.dir / "out").mkdir(exist_ok=True)
    return ["tar", "xpf", packed, "-C", mount.dir / "out"], lambda: run("tar", "df", packed, "-C", mount.dir / "out")


def rsync_command(suite, mount):
    need("rsync")
    packed_tree(suite)
    command = ["rsync", "-aHAXS", "--fsync", f"{suite.scratch / 'small'}/", f"{mount.dir / 'copy'}/"]

    def look():
        left = run("rsync", "-aHAXSnci", *command[3:])
        say(left == "", f"rsync would change again:\n{left}")
    return command, look


def clone_command(suite, mount):
    need("git")
    made = suite.scratch / "history-killed"
    if not made.exists():
        everyday.history(made, 300)
    to = mount.dir / "clone"
    shutil.rmtree(to, ignore_errors=True)
    return ["git", "clone", "-q", "--no-local", f"file://{made}", to], lambda: run("git", "fsck", "--full", cwd=to)


def cargo_command(suite, mount):
    packed = everyday.registry_crate(["heck", "fnv"])
    crate = mount.dir / packed.name.removesuffix(".crate")
    shutil.rmtree(crate, ignore_errors=True)
    shutil.rmtree(mount.dir / "target", ignore_errors=True)
    run("tar", "xf", packed, "-C", mount.dir)
    manifest = crate / "Cargo.toml"
    command = ["env", f"CARGO_TARGET_DIR={mount.dir}/target", "cargo", "test", "--offline", "-q", "--manifest-path", manifest]
    return command, lambda: None


def fio_command(suite, mount):
    command = everyday.fio_command(suite, mount, "8m")
    return command, lambda: run(*command, "--verify_only")


def program_killed(suite, name, command, media, kills):
    chance = suite.random(f"killed {name} on {media}")
    mount = suite.mount(media, name, "1G").start()
    took = None
    for n in range(kills):
        line, _ = command(suite, mount)
        if took is None:
            # Once in peace, to know how long it takes.
            began = time.monotonic()
            run(*line)
            took = time.monotonic() - began
            line, _ = command(suite, mount)
        with (suite.scratch / "program.log").open("wb") as log:
            program = subprocess.Popen([str(part) for part in line], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True, env=everyday.quiet_git())
        try:
            time.sleep(chance.random() * took)
            mount.kill()
            suite.kills += 1
            ended(program)
        finally:
            end_session(program)
        mount.check()
        mount.start()
    line, look = command(suite, mount)
    run(*line)
    look()
    mount.checked_restart()
    look()
    mount.finish()
    return f"{kills} kills"


KILLS = {"append": 14, "overwrite": 12, "mapped": 10, "rename": 18, "sqlite-wal": 14, "sqlite-delete": 14, "git": 10}
PROGRAMS = {"tar": (tar_command, 6), "rsync": (rsync_command, 6), "clone": (clone_command, 5),
            "cargo": (cargo_command, 3), "fio": (fio_command, 4)}


def tests(suite):
    for media, _ in suite.media():
        for kind, kills in KILLS.items():
            kills = max(2, kills // 4) if suite.quick else kills
            suite.test(f"killed {kind} on {media}", lambda: worker_killed(suite, kind, media, kills))
        for name, (command, kills) in PROGRAMS.items():
            kills = max(1, kills // 4) if suite.quick else kills
            suite.test(f"killed {name} on {media}", lambda: program_killed(suite, name, command, media, kills))
