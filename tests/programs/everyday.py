"""Programs as they are used every day, each on a mount of its own, on a file and in memory.

Each test ends with an unmount and a check; what was written is looked at again after a remount.
"""

import filecmp
import os
import shutil
import sqlite3
from pathlib import Path

from lab import ROOT, Skip, need, run

CARGO_HOME = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))


def history(place, commits):
    """A repository with a history: files that come, change and go."""
    run("git", "init", "-q", "-b", "main", place)
    stream = []
    for n in range(1, commits + 1):
        text = f"commit {n}\n" * (n % 97 + 1)
        stream.append(f"commit refs/heads/main\ncommitter A <a@b> {1_600_000_000 + n} +0000\ndata 3\nc{n % 10}\n")
        stream.append(f"M 100644 inline dir{n % 13}/file{n % 71}\ndata {len(text)}\n{text}\n")
        if n % 17 == 0:
            stream.append(f"D dir{(n - 1) % 13}/file{(n - 1) % 71}\n")
    run("git", "fast-import", "--quiet", cwd=place, stdin="".join(stream))
    run("git", "reset", "-q", "--hard", "main", cwd=place)


def quiet_git():
    """git without the settings of whoever runs the suite."""
    return {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b", "GIT_TERMINAL_PROMPT": "0"}


def git_clone(suite, mount):
    need("git")
    env = quiet_git()
    made = suite.scratch / "history"
    if not made.exists():
        history(made, 200 if suite.quick else 600)
    sources = [made]
    if (ROOT / ".git").exists() and run("git", "rev-parse", "--is-shallow-repository", cwd=ROOT).strip() == "false":
        sources.append(ROOT)
    counts = []
    for i, source in enumerate(sources):
        to = mount.dir / f"clone{i}"
        run("git", "-c", "safe.directory=*", "clone", "-q", "--no-local", f"file://{source}", to, env=env)
        run("git", "fsck", "--full", "--strict", cwd=to, env=env)
        count = run("git", "rev-list", "--count", "HEAD", cwd=to, env=env).strip()
        assert count == run("git", "-c", "safe.directory=*", "rev-list", "--count", "HEAD", cwd=source).strip()
        older = run("git", "rev-list", "-1", f"--skip={int(count) // 4}", "HEAD", cwd=to, env=env).strip()
        run("git", "checkout", "-q", older, cwd=to, env=env)
        run("git", "checkout", "-q", "-", cwd=to, env=env)
        run("git", "repack", "-adfq", cwd=to, env=env)
        run("git", "gc", "-q", "--prune=now", cwd=to, env=env)
        run("git", "worktree", "add", "-q", mount.dir / f"tree{i}", older, cwd=to, env=env)
        counts.append(count)
    mount.checked_restart()
    for i in range(len(sources)):
        to = mount.dir / f"clone{i}"
        run("git", "fsck", "--full", "--strict", cwd=to, env=env)
        assert run("git", "status", "--porcelain", cwd=to, env=env) == "", "the working tree has changed"
    return f"{' and '.join(counts)} commits"


def sqlite(suite, mount):
    """A million rows in one database: the first half in WAL mode, the second in DELETE mode."""
    rows = 100_000 if suite.quick else 1_000_000
    path = mount.dir / "base.db"
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("pragma synchronous=full")
    base.execute("pragma cache_size=-64000")
    base.execute("create table t(id integer primary key, k integer, v text)")
    base.execute("create index by_k on t(k)")
    step = rows // 50
    for mode, first_half in (("wal", True), ("delete", False)):
        assert base.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
        start = 0 if first_half else rows // 2
        for first in range(start, start + rows // 2, step):
            base.execute("begin")
            base.executemany("insert into t values(?,?,?)",
                             ((i, i * 2654435761 % 2**32, f"row {i}") for i in range(first, first + step)))
            base.execute("commit")
    base.execute("update t set v = v || '!' where id % 100 = 0")
    base.execute("delete from t where id % 1000 = 1")
    base.close()
    mount.checked_restart()
    base = sqlite3.connect(path)
    base.execute("pragma cache_size=-64000")
    assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
    assert base.execute("select count(*) from t").fetchone()[0] == rows - rows // 1000
    assert base.execute("select count(*) from t where v like '%!'").fetchone()[0] == rows // 100
    base.close()
    return f"{rows} rows, WAL and DELETE"


def registry_crate(names):
    """The packed source of a crate without dependencies, as cargo has fetched it."""
    for name in names:
        found = sorted((CARGO_HOME / "registry" / "cache").glob(f"*/{name}-[0-9]*.crate"))
        if found:
            return found[-1]
    raise Skip(f"none of {', '.join(names)} in cargo's registry")


def cargo_env(mount):
    env = {**os.environ, "CARGO_TARGET_DIR": str(mount.dir / "target"), "CARGO_NET_OFFLINE": "true"}
    env.pop("RUSTFLAGS", None)
    return env


def rust_crate(suite, mount):
    """Unpacks, builds and tests a crate; the compiler, the linker and the tests' own binaries run
    on the mount, and the binaries from it."""
    packed = registry_crate(["heck", "fnv"])
    run("tar", "xf", packed, "-C", mount.dir)
    crate = mount.dir / packed.name.removesuffix(".crate")
    env = cargo_env(mount)
    run("cargo", "build", "--offline", "-j2", cwd=crate, env=env)
    said = run("cargo", "test", "--offline", "-j2", cwd=crate, env=env)
    assert "test result: ok" in said, said
    mount.checked_restart()
    again = run("cargo", "test", "--offline", "--no-run", "--message-format=json", cwd=crate, env=env)
    assert '"fresh":false' not in again, "cargo finds files changed by a remount"
    return packed.name


def some_tree():
    """A tree of a few thousand files that every machine has."""
    return next(p for p in map(Path, ("/usr/share/doc", "/usr/include", "/usr/lib/python3")) if p.is_dir())


def tar(suite, mount):
    tree = some_tree()
    packed = suite.scratch / "tree.tar"
    run("tar", "cf", packed, "-C", tree, ".")
    out = mount.dir / "out"
    out.mkdir()
    run("tar", "xpf", packed, "-C", out)
    run("tar", "df", packed, "-C", out)
    run("tar", "czf", mount.dir / "again.tgz", "-C", out, ".")
    mount.checked_restart()
    run("tar", "df", packed, "-C", out)
    run("tar", "dzf", mount.dir / "again.tgz", "-C", tree)
    shutil.rmtree(out)


def with_everything(place):
    """A small tree with hard links, holes, long names, attributes and times of all kinds."""
    place.mkdir()
    for d in range(20):
        (place / f"dir{d}").mkdir(mode=0o750 if d % 2 else 0o2775)
        for f in range(30):
            path = place / f"dir{d}" / f"file{f}"
            path.write_bytes(os.urandom(d * 517 + f * 1000))
            path.chmod(0o600 + f)
            os.utime(path, ns=(10**18 + f, 1_500_000_000_123_456_789 + d))
    os.link(place / "dir1" / "file1", place / "dir2" / "hard")
    os.symlink("../dir1/file1", place / "dir3" / "soft")
    os.symlink("x" * 3000, place / "dir3" / "long")
    os.mkfifo(place / "dir4" / "fifo")
    with open(place / "sparse", "wb") as f:
        f.seek(50 << 20)
        f.write(b"end")
    (place / ("n" * 255)).touch()
    for n in range(8):
        # What the filesystem below cannot hold cannot be copied from it.
        os.setxattr(place / "dir5" / f"file{n}", f"user.name{n}", os.urandom(100 * n))


def rsync(suite, mount):
    need("rsync")
    source = suite.scratch / "everything"
    if not source.exists():
        with_everything(source)
    to = mount.dir / "copy"
    run("rsync", "-aHAXS", f"{source}/", f"{to}/")
    mount.checked_restart()
    left = run("rsync", "-aHAXSnci", "--delete", f"{source}/", f"{to}/")
    assert left == "", f"rsync would change again:\n{left}"
    assert os.stat(to / "dir2" / "hard").st_nlink == 2
    assert os.stat(to / "sparse").st_blocks < 1000, "the hole was filled"
    run("cp", "-a", to, mount.dir / "second")
    left = run("rsync", "-aHAXSnci", "--delete", f"{source}/", f"{mount.dir / 'second'}/")
    assert left == "", f"cp -a has lost:\n{left}"


FIO = """[global]
directory={dir}
size={size}
verify=crc32c
verify_fatal=1
randseed={seed}
group_reporting
[mixed]
rw=randrw
bssplit=512/20:4k/50:64k/20:1m/10
bs_unaligned=1
ioengine=psync
numjobs=2
[direct]
rw=randwrite
bs=4k
ioengine=libaio
iodepth=16
direct=1
fsync=64
[mapped]
rw=randrw
bs=4k
ioengine=mmap
fsync=32
[appended]
rw=write
bs=100k
ioengine=sync
end_fsync=1
"""


def fio_command(suite, mount, size):
    """Its jobs, and the state that it keeps for a later verification, lie beside the mount."""
    need("fio")
    job = suite.scratch / "verify.fio"
    job.write_text(FIO.format(dir=mount.dir, size=size, seed=suite.seed))
    return ["fio", "--minimal", f"--aux-path={suite.scratch}", job]


def fio(suite, mount):
    size = "8m" if suite.quick else "48m"
    command = fio_command(suite, mount, size)
    run(*command)
    mount.checked_restart()
    run(*command, "--verify_only")
    return f"5 jobs of {size}"


def compiler(suite, mount):
    """Many objects by two compilers at a time, and the linker, which maps its output."""
    need("gcc")
    need("make")
    count = 40
    for n in range(count):
        (mount.dir / f"f{n}.c").write_text(f"#include <stdio.h>\nint f{n}(int x) {{ return x + {n}; }}\n")
    (mount.dir / "main.c").write_text("".join(f"int f{n}(int);\n" for n in range(count)) + "int main(void) { int x = 0;\n"
                                      + "".join(f"x = f{n}(x);\n" for n in range(count)) + "return x == 780 ? 0 : 1; }\n")
    objects = " ".join([f"f{n}.o" for n in range(count)] + ["main.o"])
    (mount.dir / "Makefile").write_text(f"all: prog libf.so\nprog: {objects}\n\tcc -g -o $@ $^\n"
                                        f"libf.so: {objects}\n\tcc -shared -o $@ $^\nCFLAGS = -g -fPIC\n")
    run("make", "-j2", "-s", cwd=mount.dir)
    run(mount.dir / "prog")
    mount.checked_restart()
    run(mount.dir / "prog")
    assert "up to date" in run("make", cwd=mount.dir, ok=(0,)) or "Nothing to be done" in run("make", cwd=mount.dir)


def big_copy(suite, mount):
    """One large file through cp, dd, cmp and sparse copies."""
    source = suite.scratch / "big"
    if not source.exists():
        source.write_bytes(os.urandom(32 << 20) + bytes(32 << 20) + os.urandom(1234))
    for n, how in enumerate((["cp"], ["cp", "--sparse=always"], ["cp", "--reflink=auto"])):
        to = mount.dir / f"big{n}"
        run(*how, source, to)
        run(*how, to, mount.dir / f"twice{n}")
        run("fallocate", "-d", to)
    run("dd", f"if={source}", f"of={mount.dir / 'dd'}", "bs=7777", "conv=fsync", "status=none")
    mount.checked_restart()
    for to in [*(f"big{n}" for n in range(3)), *(f"twice{n}" for n in range(3)), "dd"]:
        assert filecmp.cmp(source, mount.dir / to, shallow=False), f"{to} differs"
    assert os.stat(mount.dir / "big1").st_blocks * 512 < 40 << 20, "cp --sparse=always made no hole"
    assert os.stat(mount.dir / "big0").st_blocks * 512 < 40 << 20, "fallocate --dig-holes made no hole"


TESTS = (git_clone, sqlite, rust_crate, tar, rsync, fio, compiler, big_copy)


def tests(suite):
    for media, _ in suite.media():
        for body in TESTS:
            def on_a_mount(body=body, media=media):
                mount = suite.mount(media, body.__name__, "2G").start()
                said = body(suite, mount)
                mount.finish()
                return said
            suite.test(f"everyday {body.__name__} on {media}", on_a_mount)
