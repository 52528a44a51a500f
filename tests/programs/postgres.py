"""A PostgreSQL server for one test: in a directory of its own, on a socket, as the user postgres."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from lab import Skip, ends_with_us, need, run


def programs():
    """The directory of PostgreSQL's programs; installs them if it has to and may."""
    for attempt in range(2):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if found:
            return found[-1].parent
        if attempt == 0:
            need("pgbench", "postgresql")
    raise Skip("PostgreSQL is not installed")


class Postgres:
    """A server on the data directory `data`. `socket` is a directory that is made if it is missing."""

    def __init__(self, data, socket):
        self.programs, self.data, self.socket, self.server = programs(), data, socket, None
        self.log = Path(f"{socket}.log")
        socket.mkdir(exist_ok=True)
        shutil.chown(socket, "postgres")
        # The user has to get there.
        socket.parent.chmod(0o755)
        self.env = {**os.environ, "PGHOST": str(socket), "LC_ALL": "C"}

    def command(self, program, *rest):
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
                *map(str, (self.programs / program, *rest))]

    def run(self, program, *rest):
        return run(*self.command(program, *rest), env=self.env, cwd="/")

    def create(self):
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, "postgres")
        self.run("initdb", "-D", self.data, "-A", "trust", "-E", "UTF8")
        return self

    def start(self):
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                self.command("postgres", "-D", self.data, "-k", self.socket, "-c", "listen_addresses="),
                cwd="/", env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=ends_with_us)
        deadline = time.monotonic() + 60
        while subprocess.run(self.command("pg_isready", "-q"), env=self.env, cwd="/").returncode != 0:
            assert self.server.poll() is None and time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)
        return self

    def sql(self, text):
        return self.run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres").strip()

    def stop(self):
        if self.server:
            self.server.terminate()
            self.server.wait(60)
            self.server = None
