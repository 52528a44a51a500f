"""Programs that change files and say, outside the mount, what was acknowledged. They run until the
filesystem goes away under them.

    workers.py KIND DIR NOTES SEED

Notes are lines. `> ...` says what is about to be done, `< ...` that it was done and is durable. So
whoever looks afterwards knows what must be there, and the one thing that may or may not be.
"""

import hashlib
import mmap
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

BLOCK = 4096
BLOCKS = 200
ACCOUNTS = 100
NAMES = 40


class Notes:
    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def will(self, text):
        os.write(self.file, f"> {text}\n".encode())

    def done(self, text):
        os.write(self.file, f"< {text}\n".encode())


def record(n):
    """The nth record of a log: its bytes follow from its number."""
    chance = random.Random(n)
    return f"{n:010}".encode() + chance.randbytes(chance.choice([5, 90, 1000, 4086, 9000, 70_000])) + b"\n"


def block(n, version):
    """A page that says which it is, and shows whether it is whole."""
    head = f"{n} {version} ".encode()
    return (head + hashlib.sha256(head).hexdigest().encode() * 64)[:BLOCK]


def sync_dir(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def append(place, notes, chance, start):
    """Appends records to logs, each synced in one of the ways there are."""
    n = start
    while True:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | chance.choice([0, 0, os.O_SYNC, os.O_DSYNC])
        fd = os.open(place / f"log{n // 100}", flags, 0o644)
        for n in range(n, (n // 100 + 1) * 100):
            notes.will(str(n))
            os.write(fd, record(n))
            chance.choice([os.fsync, os.fdatasync])(fd)
            notes.done(str(n))
        n += 1
        os.close(fd)


def overwrite(place, notes, chance, versions):
    """Overwrites pages of a file in place."""
    fd = os.open(place / "blocks", os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        n = chance.randrange(BLOCKS)
        versions[n] += 1
        notes.will(f"{n} {versions[n]}")
        os.pwrite(fd, block(n, versions[n]), n * BLOCK)
        os.fdatasync(fd)
        notes.done(f"{n} {versions[n]}")


def mapped(place, notes, chance, versions):
    """The same through a shared mapping and msync."""
    fd = os.open(place / "blocks", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, BLOCKS * BLOCK)
    pages = mmap.mmap(fd, BLOCKS * BLOCK)
    while True:
        n = chance.randrange(BLOCKS)
        versions[n] += 1
        notes.will(f"{n} {versions[n]}")
        pages[n * BLOCK:(n + 1) * BLOCK] = block(n, versions[n])
        pages.flush(n * BLOCK, BLOCK)
        notes.done(f"{n} {versions[n]}")


def apply(names, step):
    """What a step of `rename` makes of the names."""
    what, name, *rest = step.split()
    if what == "put":
        names[name] = rest[0]
    elif what == "drop":
        del names[name]
    elif what == "move":
        names[rest[0]] = names.pop(name)
    elif what == "link":
        names[rest[0]] = names[name]


def rename(place, notes, chance, names):
    """Replaces files by renaming new ones over them, moves, links and removes them."""
    for d in ("a", "b"):
        (place / d).mkdir(exist_ok=True)
    version = max([int(v) for v in names.values()], default=0)
    every = [f"{d}/name{n}" for d in ("a", "b") for n in range(NAMES // 2)]
    while True:
        there = sorted(names)
        free = [n for n in every if n not in names]
        what = chance.choice(["put", "put", "move", "link" if free else "drop", "drop"]) if there else "put"
        if what == "put":
            version += 1
            step = f"put {chance.choice(every)} {version}"
        else:
            step = f"{what} {chance.choice(there)}"
            if what == "move":
                step += f" {chance.choice([n for n in every if n != step.split()[1]])}"
            elif what == "link":
                step += f" {chance.choice(free)}"
        _, name, *rest = step.split()
        notes.will(step)
        if what == "put":
            new = place / "new"
            with new.open("wb") as f:
                f.write(block(version, version) * chance.choice([1, 1, 3, 50]))
                f.flush()
                os.fsync(f.fileno())
            os.rename(new, place / name)
        elif what == "move":
            # A file that is moved onto another name of itself stays where it is.
            if os.path.exists(place / rest[0]) and os.path.samefile(place / name, place / rest[0]):
                os.unlink(place / name)
            else:
                os.rename(place / name, place / rest[0])
        elif what == "link":
            os.link(place / name, place / rest[0])
        else:
            os.unlink(place / name)
        for d in ("a", "b"):
            sync_dir(place / d)
        notes.done(step)
        apply(names, step)


def sqlite(mode, synchronous):
    def work(place, notes, chance, start):
        base = sqlite3.connect(place / "base.db", isolation_level=None, timeout=30)
        base.execute(f"pragma journal_mode={mode}")
        base.execute(f"pragma synchronous={synchronous}")
        base.execute("pragma wal_autocheckpoint=40")
        base.execute("begin immediate")
        base.execute("create table if not exists done(id integer primary key, v text)")
        base.execute("create table if not exists account(id integer primary key, sum integer)")
        base.executemany("insert or ignore into account values(?, 1000)", ((n,) for n in range(ACCOUNTS)))
        base.execute("commit")
        n = start
        while True:
            notes.will(str(n))
            base.execute("begin immediate")
            base.execute("insert into done values(?, ?)", (n, "x" * chance.choice([10, 500, 9000])))
            one, other = chance.sample(range(ACCOUNTS), 2)
            base.execute("update account set sum = sum - 7 where id = ?", (one,))
            base.execute("update account set sum = sum + 7 where id = ?", (other,))
            base.execute("commit")
            notes.done(str(n))
            n += 1
    return work


def git(place, notes, chance, _):
    """Commits, and packs now and then. A directory is synced by us: git does not."""
    repository = place / "repository"

    def git(*command):
        safe = ["-c", "core.fsync=all", "-c", "gc.auto=0", "-c", "maintenance.auto=false"]
        subprocess.run(["git", *safe, *command], cwd=repository, check=True, stdout=subprocess.DEVNULL)

    if not (repository / ".git" / "refs" / "heads").exists():
        subprocess.run(["git", "init", "-q", "-b", "main", repository], check=True)
    while True:
        name = f"file{chance.randrange(20)}"
        (repository / name).write_text(f"{chance.random()}\n" * chance.randrange(1, 400))
        notes.will(name)
        git("add", name)
        git("commit", "-q", "--allow-empty", "-m", name)
        if chance.random() < 0.1:
            git("repack", "-adq")
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True)
        sync_dir(repository / ".git" / "refs" / "heads")
        notes.done(head.stdout.strip())


KINDS = {
    "append": append,
    "overwrite": overwrite,
    "mapped": mapped,
    "rename": rename,
    "sqlite-wal": sqlite("wal", "full"),
    # In this mode a commit is the removal of a file: only "extra" syncs that too.
    "sqlite-delete": sqlite("delete", "extra"),
    "git": git,
}


def read_notes(path):
    """What was acknowledged, and what was under way when the filesystem went."""
    done, will = [], None
    if path.exists():
        for line in path.read_text().splitlines():
            if line[0] == ">":
                will = line[2:]
            else:
                done.append(line[2:])
                will = None
    return done, will


def main():
    kind, place, path, seed, state = sys.argv[1:]
    # The state was established by whoever looked at the files last.
    state = eval(state, {"__builtins__": {}})
    KINDS[kind](Path(place), Notes(path), random.Random(seed), state)


if __name__ == "__main__":
    main()
