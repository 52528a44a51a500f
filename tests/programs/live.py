"""Snapshots of a pool in use: each is a state that all files had at one moment, and says how long others waited.

    program ---- writes several files, in an order ----> mount
                                                          | snapshot create, again and again
                                              each snapshot opens, recovers, and keeps the order
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

from lab import ends_with_us, run
from postgres import Postgres

SQLITE = """
import os, sqlite3, sys
place, n = sys.argv[1], 0
before = os.open(f"{place}/before", os.O_RDWR | os.O_CREAT)
after = os.open(f"{place}/z-after", os.O_RDWR | os.O_CREAT)
db = sqlite3.connect(f"{place}/db", isolation_level=None)
db.execute("pragma journal_mode = wal")
db.execute("pragma synchronous = full")
db.execute("pragma wal_autocheckpoint = 50")
db.executescript("create table a(n integer primary key, x blob); create table b(n integer primary key, x blob)")
while True:
    n += 1
    os.pwrite(before, b"%020d" % n, 0)
    db.execute("begin")
    for table in "ab":
        db.execute(f"insert into {table} values(?, randomblob(300))", (n,))
    db.execute("delete from a where n = ?", (n - 500,))
    db.execute("delete from b where n = ?", (n - 500,))
    db.execute("commit")
    os.pwrite(after, b"%020d" % n, 0)
"""


class Probe(threading.Thread):
    """Writes to a file of its own all the time: the longest time that one write takes is what others notice."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.path, self.longest, self.stopped = directory / "probe", 0, False
        self.start()

    def run(self):
        with self.path.open("wb+", buffering=0) as file:
            while not self.stopped:
                began = time.monotonic()
                os.pwrite(file.fileno(), b"x" * 4096, 0)
                self.longest = max(self.longest, time.monotonic() - began)

    def stop(self):
        self.stopped = True
        self.join()
        return self.longest * 1000


def snapshot(suite, mount, name):
    """Creates one; answers how long others waited, in milliseconds."""
    made = json.loads(run(suite.program, "snapshot", "create", "--json", mount.pool, name))
    return made["pause_ns"] / 1e6


def numbers(path):
    text = path.read_text() if path.exists() else ""
    return int(text or 0)


def summary(count, pauses, probe):
    pauses = sorted(pauses)
    return (f"{count} snapshots; others waited {pauses[len(pauses) // 2]:.2f} ms, {pauses[-1]:.2f} at most; "
            f"the longest write beside them took {probe:.1f} ms")


def sqlite(suite, media):
    """A database in WAL mode, its log, and two plain files that are written before and after each commit."""
    mount = suite.mount(media, "live-sqlite", "1G").start()
    # Others' files, so that a snapshot takes its time between the files of the database.
    for n in range(500):
        (mount.dir / f"other{n}").write_bytes(b"other" * 1000)
    writer = subprocess.Popen([sys.executable, "-c", SQLITE, mount.dir], preexec_fn=ends_with_us)
    probe, pauses, copy = Probe(mount.dir), [], suite.scratch / "live"
    try:
        time.sleep(0.5)
        for n in range(8 if suite.quick else 25):
            acknowledged = numbers(mount.dir / "z-after")
            pauses.append(snapshot(suite, mount, f"s{n}"))
            begun = numbers(mount.dir / "before")
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            kept = mount.dir / ".snapshots" / f"s{n}"
            for name in ("db", "db-wal"):
                if (kept / name).exists():
                    shutil.copyfile(kept / name, copy / name)
            db = sqlite3.connect(copy / "db")
            assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
            last, = db.execute("select max(n) from a").fetchone()
            assert db.execute("select max(n) from b").fetchone() == (last,)
            assert db.execute("select count(*) from a").fetchone() == db.execute("select count(*) from b").fetchone()
            db.close()
            before, after = numbers(kept / "before"), numbers(kept / "z-after")
            said = f"s{n}: {acknowledged} then; before {before}, database {last}, after {after}; {begun} now"
            assert acknowledged <= after <= last <= before <= begun and before <= after + 1, said
            assert writer.poll() is None
    finally:
        longest = probe.stop()
        writer.kill()
        writer.wait()
    mount.finish()
    return summary(len(pauses), pauses, longest)


def pgbench(suite, media):
    """A snapshot under pgbench opens, recovers as after a crash, and its sums agree."""
    mount = suite.mount(media, "live-postgres", "2G").start()
    mount.dir.chmod(0o755)
    server = Postgres(mount.dir / "data", suite.scratch / "socket").create().start()
    suite.enders.insert(0, server.stop)
    server.run("pgbench", "-i", "-q", "-s", "2", "postgres")
    load = subprocess.Popen(server.command("pgbench", "-c", "4", "-j", "2", "-T", "600", "-n", "postgres"),
                            env=server.env, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            preexec_fn=ends_with_us)
    probe, pauses, found = Probe(mount.dir), [], 0
    try:
        for n in range(3 if suite.quick else 8):
            time.sleep(1)
            acknowledged = int(server.sql("select count(*) from pgbench_history"))
            pauses.append(snapshot(suite, mount, f"s{n}"))
            copy = suite.scratch / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            run("cp", "-a", mount.dir / ".snapshots" / f"s{n}" / "data", copy)
            (copy / "postmaster.pid").unlink()
            recovered = Postgres(copy, suite.scratch / "recovered")
            suite.enders.insert(0, recovered.stop)
            recovered.start()
            sums = recovered.sql("select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from "
                                 "pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select "
                                 "coalesce(sum(delta), 0) from pgbench_history)").split("|")
            found = int(recovered.sql("select count(*) from pgbench_history"))
            recovered.stop()
            suite.enders.remove(recovered.stop)
            assert len(set(sums)) == 1, f"s{n}: the sums differ: {sums}"
            assert found >= acknowledged, f"s{n}: {found} transactions, {acknowledged} were acknowledged"
            assert load.poll() is None
    finally:
        longest = probe.stop()
        load.terminate()
        load.wait()
    server.stop()
    suite.enders.remove(server.stop)
    mount.finish()
    return f"{summary(len(pauses), pauses, longest)}; {found} transactions in the last"


def tests(suite):
    for media, _ in suite.media():
        suite.test(f"live sqlite on {media}", lambda: sqlite(suite, media))
        suite.test(f"live pgbench on {media}", lambda: pgbench(suite, media))
