"""What an unkind user does, or a busy one: full pools, deep and wide trees, storms of renames,
everything a name may be, locks, special files, and two mounts of one pool.
"""

import collections
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import everyday
from lab import Skip, has, need, run


def refused(number, call, *arguments, **named):
    """The call must fail with just this error."""
    try:
        call(*arguments, **named)
    except OSError as e:
        assert e.errno == number, f"{errno.errorcode[number]} expected: {e}"
        return
    raise AssertionError(f"{errno.errorcode[number]} expected, but it works")


def free(place):
    return os.statvfs(place).f_bavail * os.statvfs(place).f_frsize


def full(suite, mount):
    """Filled to the last byte, in three ways, and emptied: all the space is there again."""
    place = mount.dir
    before = free(place)
    for round_number, step in enumerate((4096, 1 << 20, 100_001)):
        kept = place / "kept"
        kept.write_bytes(b"kept" * 1000)
        names = 0
        try:
            for names in range(10**6):
                with open(place / f"f{names}", "wb", buffering=0) as f:
                    for _ in range(64):
                        written = f.write(b"\x5a" * step)
                        assert written > 0
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
        left = free(place)
        assert left < before // 20 + 2 * step, f"full, with {left} of {before} bytes free"
        refused(errno.ENOSPC, fill_one, place / "more")
        # What was there can still be read, overwritten and removed.
        assert kept.read_bytes() == b"kept" * 1000
        with kept.open("r+b") as f:
            f.write(b"KEPT")
            os.fsync(f.fileno())
        if round_number == 1:
            mount.checked_restart()
        for n in range(names + 1):
            (place / f"f{n}").unlink(missing_ok=True)
        for extra in ("more", "kept"):
            (place / extra).unlink(missing_ok=True)
        lost = before - free(place)
        assert lost <= 64 << 10, f"{lost} bytes do not come back after a full pool was emptied"


def fill_one(path):
    with open(path, "wb", buffering=0) as f:
        for _ in range(10**6):
            f.write(b"x" * (1 << 20))


def full_of_names(suite, mount):
    """Full of empty files and directories; then `rm -rf`."""
    before = free(mount.dir)
    made = 0
    try:
        for d in range(10**4):
            (mount.dir / f"d{d}").mkdir()
            for n in range(2000):
                os.close(os.open(mount.dir / f"d{d}" / f"some-longer-name-{n}", os.O_CREAT | os.O_WRONLY, 0o644))
                made += 1
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
    mount.checked_restart()
    for d in mount.dir.iterdir():
        run("rm", "-rf", d)
    lost = before - free(mount.dir)
    assert lost <= 256 << 10, f"{lost} bytes do not come back after {made} files were removed"
    return f"{made} files"


def deep(suite, mount):
    """A thousand directories, one in the other, moved and removed."""
    here = os.open(mount.dir, os.O_RDONLY)
    top = os.dup(here)
    for n in range(1000):
        os.mkdir(f"d{n}", dir_fd=here)
        below = os.open(f"d{n}", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    refused(errno.EINVAL, os.rename, "d0", "inside", src_dir_fd=top, dst_dir_fd=here)
    os.mkdir("elsewhere", dir_fd=top)
    os.rename("d0", "elsewhere/d0", src_dir_fd=top, dst_dir_fd=top)
    os.close(here)
    os.close(top)
    assert len(run("find", mount.dir, "-name", "bottom").split()) == 1
    mount.checked_restart()
    run("rm", "-rf", mount.dir / "elsewhere")
    assert os.listdir(mount.dir) == []


def names(suite, mount):
    """Every byte, every length, and what is no name."""
    place = os.fsencode(mount.dir)
    wanted = {bytes([b]) for b in range(1, 256) if b not in b"./"} | {b"n" * n for n in range(1, 256)}
    wanted |= {b"...", b" ", b"\n\n", b"-rf", b"\xff\xfe" * 100, "ä".encode(), "a\u0308".encode(), b"A", b"a", b"*"}
    for name in wanted:
        with open(place + b"/" + name, "wb") as f:
            f.write(name)
    refused(errno.ENAMETOOLONG, open, place + b"/" + b"n" * 256, "wb")
    refused(errno.ENAMETOOLONG, os.mkdir, place + b"/" + b"n" * 300)
    mount.checked_restart()
    assert set(os.listdir(place)) == wanted
    for name in wanted:
        with open(place + b"/" + name, "rb") as f:
            assert f.read() == name
        os.rename(place + b"/" + name, place + b"/" + name[::-1] if name[::-1] not in wanted else place + b"/" + name)
    run("rm", "-rf", "--", *(mount.dir.iterdir()))


def wide(suite, mount):
    """A directory with a hundred thousand files, listed while it changes."""
    count = 100_000 if mount.in_memory and not suite.quick else 20_000
    place = mount.dir / "wide"
    place.mkdir()
    for n in range(count):
        os.close(os.open(place / f"{n}", os.O_CREAT | os.O_WRONLY, 0o644))
    assert len(os.listdir(place)) == count
    # What stays must be listed once, whatever comes and goes meanwhile.
    seen = []
    with os.scandir(place) as entries:
        for i, entry in enumerate(entries):
            seen.append(entry.name)
            if i % 50 == 0:
                (place / f"new{i}").touch()
                (place / f"{count - 1 - i // 50}").unlink()
    gone = (i for i in range(count - 1 - i // 50, count))
    stay = {str(n) for n in range(count)} - {str(n) for n in gone}
    seen_old = [n for n in seen if not n.startswith("new")]
    assert len(seen_old) == len(set(seen_old)), "a name is listed twice"
    assert stay <= set(seen_old), f"{len(stay - set(seen_old))} names were not listed"
    mount.checked_restart()
    assert stay <= set(os.listdir(place))
    run("rm", "-rf", place)
    return f"{count} files"


def storm(suite, mount):
    """Processes that rename, link, exchange and remove the same names, directories among them."""
    seconds = 4 if suite.quick else 15
    body = """
import os, random, sys, time, ctypes
place, seed, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
chance = random.Random(seed)
libc = ctypes.CDLL(None)
os.chdir(place)
names = [f"{d}{n}" for d in ("", "x/", "x/y/", "z/") for n in range(6)] + ["x", "x/y", "z", "w"]
until = time.monotonic() + seconds
done = 0
allowed = (1, 2, 17, 18, 20, 21, 22, 26, 39, 40)
while time.monotonic() < until:
    a, b = chance.sample(names, 2)
    try:
        what = chance.randrange(9)
        if what == 0:
            os.mkdir(a)
        elif what == 1:
            with open(a, "ab") as f:
                f.write(a.encode() * chance.choice([1, 1000]))
        elif what < 5:
            os.rename(a, b)
        elif what == 5:
            libc.renameat2(-100, a.encode(), -100, b.encode(), 2)
        elif what == 6:
            os.link(a, b)
        elif what == 7:
            os.unlink(a)
        else:
            os.rmdir(a)
        done += 1
    except OSError as e:
        if e.errno not in allowed:
            raise
print(done)
"""
    chance = suite.random("storm")
    workers = [subprocess.Popen([sys.executable, "-c", body, mount.dir, str(chance.random()), str(seconds)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    total = 0
    for worker in workers:
        out, err = worker.communicate(timeout=seconds + 60)
        assert worker.returncode == 0, err
        total += int(out)
    mount.checked_restart()
    # Each directory's link count tells how many are in it.
    # `find`, since what is moved below itself again and again ends deeper than a path or Python's stack may be.
    listed = run("find", mount.dir, "-type", "d", "-printf", "%n %p\\n").splitlines()
    links = {path: int(count) for count, path in (line.split(" ", 1) for line in listed)}
    inside = collections.Counter(os.path.dirname(path) for path in links)
    for path, count in links.items():
        assert count == 2 + inside[path], f"{path}: {count} links, {inside[path]} directories"
    deepest = max(path.count("/") for path in links) - str(mount.dir).count("/")
    run("rm", "-rf", *mount.dir.iterdir()) if any(mount.dir.iterdir()) else None
    return f"{total} operations, {deepest} directories deep"


def replaced(suite, mount):
    """A file and a symbolic link, replaced by rename all the time: whoever opens them finds one or the other."""
    seconds = 3 if suite.quick else 8
    start = "import os, sys, time\nos.chdir(sys.argv[1])\nme = os.getpid()\nuntil = time.monotonic() + float(sys.argv[2])\ndone = 0\n"
    writer = start + """
while time.monotonic() < until:
    with open(f"new{me}", "w") as f:
        f.write("x" * 100)
    os.rename(f"new{me}", "file")
    os.symlink("file", f"link{me}")
    os.rename(f"link{me}", "link")
    done += 1
print(done)
"""
    reader = start + """
while time.monotonic() < until:
    with open("file") as f:
        assert f.read() == "x" * 100
    assert os.readlink("link") == "file"
    with open("link", "r+") as f:
        assert len(f.read()) == 100
    os.chmod("file", 0o600)
    done += 1
print(done)
"""
    (mount.dir / "file").write_text("x" * 100)
    (mount.dir / "link").symlink_to("file")
    workers = [subprocess.Popen([sys.executable, "-c", body, mount.dir, str(seconds)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for body in (writer, writer, reader, reader, reader, reader)]
    counts = []
    for worker in workers:
        out, err = worker.communicate(timeout=seconds + 60)
        assert worker.returncode == 0, err
        counts.append(int(out))
    mount.checked_restart()
    assert sorted(os.listdir(mount.dir)) == ["file", "link"]
    return f"{sum(counts[:2])} times replaced, {sum(counts[2:])} times read"


def parallel_git(suite, mount):
    """Several clones of one repository at once, and commits in work trees of one."""
    need("git")
    env = everyday.quiet_git()
    base = mount.dir / "base"
    everyday.history(base, 150)
    clones = [subprocess.Popen(["git", "clone", "-q", "--no-local", f"file://{base}", mount.dir / f"c{n}"], env=env,
                               stderr=subprocess.PIPE) for n in range(4)]
    for clone in clones:
        _, err = clone.communicate(timeout=120)
        assert clone.returncode == 0, err
    script = "set -e; git worktree add -q ../w$0 -b b$0; cd ../w$0; for i in 1 2 3 4 5; do echo $0 $i > f$0; git add f$0; git commit -q -m $i; done"
    workers = [subprocess.Popen(["sh", "-c", script, str(n)], cwd=base, env=env, stderr=subprocess.PIPE) for n in range(4)]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        # Only adding a work tree at the same time may be refused by git itself.
        # Or it looks into one that another git has not finished.
        assert worker.returncode == 0 or b"lock" in err or b"commondir: Success" in err, err
    run("git", "gc", "-q", cwd=base, env=env)
    mount.checked_restart()
    for place in (base, *(mount.dir / f"c{n}" for n in range(4))):
        run("git", "fsck", "--full", cwd=place, env=env)


def special(suite, mount):
    """Pipes, sockets, devices, links, programs that run, and files without names."""
    place = mount.dir
    os.mkfifo(place / "pipe")
    reader = threading.Thread(target=lambda: (place / "pipe").write_bytes(b"through"))
    reader.start()
    assert (place / "pipe").read_bytes() == b"through"
    reader.join()

    server = socket.socket(socket.AF_UNIX)
    os.chdir(place)
    server.bind("socket")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("socket")
    server.accept()[0].sendall(b"hello")
    assert client.recv(5) == b"hello"
    server.close()  # it holds its name, and so the mount
    os.chdir("/")

    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place / "disk", stat.S_IFBLK | 0o600, os.makedev(254, 1 << 10))
    refused(errno.EACCES, open, place / "null", "rb")  # the mount has nodev

    (place / "first").write_text("x")
    for n in range(1000):
        os.link(place / "first", place / f"link{n}")
    assert os.stat(place / "first").st_nlink == 1001
    for n in range(1000):
        os.unlink(place / f"link{n}")
    refused(errno.EPERM, os.link, place, place / "self")
    os.symlink("loop", place / "loop")
    refused(errno.ELOOP, open, place / "loop")

    shutil.copy("/bin/true", place / "true")
    run(place / "true")
    (place / "script").write_text("#!/bin/sh\necho ran\n")
    (place / "script").chmod(0o755)
    assert run(place / "script") == "ran\n"
    # Open for writing, it is not executed; it may be unlinked while it runs.
    with open(place / "true", "r+b"):
        refused(errno.ETXTBSY, subprocess.run, [place / "true"])
    shutil.copy(shutil.which("sleep"), place / "sleep")
    sleeper = subprocess.Popen([place / "sleep", "0.3"])
    time.sleep(0.1)
    (place / "sleep").unlink()
    assert sleeper.wait(10) == 0

    try:
        fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"nameless")
        os.close(fd)
    except OSError as e:
        assert e.errno in (errno.EOPNOTSUPP, errno.EISDIR), e  # then programs fall back to a name
    fd = os.open(place / "unnamed", os.O_CREAT | os.O_RDWR, 0o600)
    os.unlink(place / "unnamed")
    os.write(fd, b"still here" * 100_000)
    assert os.pread(fd, 10, 500_000) == b"still here"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)

    mount.checked_restart()
    assert stat.S_ISFIFO(os.lstat(place / "pipe").st_mode) and stat.S_ISSOCK(os.lstat(place / "socket").st_mode)
    assert os.lstat(place / "disk").st_rdev == os.makedev(254, 1 << 10)


def unnamed_then_killed(suite, mount):
    """Files that are open without a name when the server is killed: their space comes back."""
    place = mount.dir
    before = free(place)
    held = []
    for n in range(50):
        fd = os.open(place / f"f{n}", os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, b"x" * (n * 50_000))
        held.append(fd)
        os.unlink(place / f"f{n}")
    os.fsync(held[-1])
    mount.kill()
    suite.kills += 1
    for fd in held:
        try:
            os.close(fd)
        except OSError:
            pass  # the server is gone
    mount.check()
    mount.start()
    # What an earlier session has left is given back in the background.
    deadline = time.monotonic() + 30
    while (lost := before - free(place)) > 64 << 10:
        assert time.monotonic() < deadline, f"{lost} bytes of unnamed files do not come back"
        time.sleep(0.01)


def locks(suite, mount):
    """flock and POSIX locks between processes."""
    path = mount.dir / "locked"
    path.write_bytes(b"x" * 100)
    other = """
import fcntl, sys, os
f = open(sys.argv[1], "r+b")
for lock in (lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB),
             lambda: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)):
    try:
        lock()
        print("got")
    except BlockingIOError:
        print("busy")
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
print("other range")
"""
    with path.open("r+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        fcntl.lockf(f, fcntl.LOCK_EX, 20, 0)
        assert run(sys.executable, "-c", other, path).split("\n")[:3] == ["busy", "busy", "other range"]
    assert run(sys.executable, "-c", other, path).split("\n")[:2] == ["got", "got"]


def watched(suite, mount):
    """inotify sees what is done through the mount."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, os.fsencode(mount.dir), 0x100 | 0x200 | 0x80 | 0x8) > 0
    (mount.dir / "new").write_text("x")
    os.rename(mount.dir / "new", mount.dir / "renamed")
    os.unlink(mount.dir / "renamed")
    data, masks = os.read(fd, 4096), []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        masks.append(mask)
        data = data[16 + length:]
    os.close(fd)
    assert masks == [0x100, 0x8, 0x80, 0x200], masks


def attributes(suite, mount):
    """Extended attributes of all lengths, with the tools and past their limits."""
    path = mount.dir / "file"
    path.touch()
    for length in (0, 1, 100, 4000, 4096, 20_000, 32 << 10):
        value = os.urandom(length)
        os.setxattr(path, "user.length", value)
        assert os.getxattr(path, "user.length") == value
    refused(errno.E2BIG, os.setxattr, path, "user.length", bytes((64 << 10)))
    for n in range(200):
        os.setxattr(path, f"user.{'n' * (n + 1)}", b"v" * n)
    refused(errno.ENODATA, os.getxattr, path, "user.none")
    refused(errno.EEXIST, os.setxattr, path, "user.n", b"", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.none", b"", os.XATTR_REPLACE)
    os.setxattr(path, "trusted.secret", b"1")
    os.setxattr(path, "security.note", b"2")
    try:
        need("setfattr", "attr")
        run("setfattr", "-n", "user.tool", "-v", "said", path)
        assert "said" in run("getfattr", "-n", "user.tool", "--only-values", "--absolute-names", path)
    except Skip as why:
        print(f"     {why}")
    mount.checked_restart()
    names = os.listxattr(path)
    assert len(names) == 204 - (not has("setfattr")), len(names)
    for n in range(200):
        assert os.getxattr(path, f"user.{'n' * (n + 1)}") == b"v" * n
        os.removexattr(path, f"user.{'n' * (n + 1)}")


def holes(suite, mount):
    """Sparse files far beyond the pool's size, and every way to make and find holes."""
    path = mount.dir / "sparse"
    with path.open("w+b") as f:
        for at in (0, 1 << 20, (1 << 40) + 123, (1 << 43) - 10):
            f.seek(at)
            f.write(b"data")
        f.flush()
        size = os.fstat(f.fileno()).st_size
        assert size == (1 << 43) - 6 and os.fstat(f.fileno()).st_blocks < 100
        fd, at, found = f.fileno(), 0, 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                assert e.errno == errno.ENXIO
                break
            found += 1
            at = os.lseek(fd, at, os.SEEK_HOLE)
        assert found == 4, f"{found} pieces of data"
        os.truncate(path, 1 << 21)
    run("fallocate", "-l", "4M", path)
    run("fallocate", "-p", "-o", "4096", "-l", "1000000", path)
    run("fallocate", "-z", "-o", "2000000", "-l", "5000", path)
    run("cp", "--sparse=always", path, mount.dir / "copy")
    run("cmp", path, mount.dir / "copy")
    mount.checked_restart()
    run("cmp", path, mount.dir / "copy")
    path.unlink()


def mappings(suite, mount):
    """Two mappings of one file, and reads and writes beside them, see the same bytes."""
    path = mount.dir / "mapped"
    path.write_bytes(bytes(1 << 20))
    chance = suite.random("mappings")
    with path.open("r+b", buffering=0) as f, path.open("r+b") as g:
        one, other = mmap.mmap(f.fileno(), 0), mmap.mmap(g.fileno(), 0)
        for n in range(500):
            at, data = chance.randrange((1 << 20) - 8), struct.pack("Q", n)
            if n % 2:
                one[at:at + 8] = data
                one.flush()
            else:
                os.pwrite(f.fileno(), data, at)
            assert other[at:at + 8] == data, f"step {n}: the other mapping is behind"
            assert os.pread(f.fileno(), 8, at) == data, f"step {n}: a read is behind"
        want = one[:]
        one.close()
        other.close()
    mount.checked_restart()
    assert path.read_bytes() == want


def mounted_twice(suite, mount):
    """A pool that is mounted is in use: a command that needs it alone says by whom, any other asks the server."""
    (mount.dir / "kept").write_text("x")
    second = mount.dir.with_name(mount.dir.name + "-second")
    for command in (["serve", mount.pool], ["check", mount.pool], ["create", "--force", mount.pool]):
        done = subprocess.run([suite.program, *map(str, command)], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0, f"{command[0]} of a mounted pool works"
        assert str(mount.server.pid) in done.stderr, f"{command[0]} does not say who has it: {done.stderr}"
    done = subprocess.run([suite.program, "ls", f"{mount.pool}:/"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["kept"]), f"ls asks the server: {done}"
    assert (mount.dir / "kept").read_text() == "x"
    # Root gets the same mount on a second directory.
    subprocess.run([suite.program, "mount", mount.pool, second], check=True, timeout=60, stdout=subprocess.DEVNULL)
    try:
        (second / "kept").write_text("y")
        assert (mount.dir / "kept").read_text() == "y"
    finally:
        subprocess.run([suite.program, "umount", second], check=True, timeout=60, stderr=subprocess.DEVNULL)
        second.rmdir()


def busy_end(suite, mount):
    """Ctrl-C while somebody works: what was written is there."""
    import signal
    with open(mount.dir / "held", "wb", buffering=0) as f:
        f.write(b"before")
        mount.server.send_signal(signal.SIGINT)
        time.sleep(0.5)
        f.write(b" after")
    mount.gone()
    mount.check()
    mount.start()
    assert (mount.dir / "held").read_bytes() == b"before after"


# Name -> size of the pool.
TESTS = {
    full: "96M", full_of_names: "16M", deep: "64M", names: "64M", wide: "256M", storm: "256M", replaced: "64M", parallel_git: "512M",
    special: "256M", unnamed_then_killed: "256M", locks: "64M", watched: "64M", attributes: "64M", holes: "256M",
    mappings: "64M", mounted_twice: "64M", busy_end: "64M",
}


def tests(suite):
    for media, _ in suite.media():
        for body, size in TESTS.items():
            def on_a_mount(body=body, media=media, size=size):
                mount = suite.mount(media, body.__name__, size).start()
                said = body(suite, mount)
                mount.finish()
                return said
            suite.test(f"hostile {body.__name__} on {media}", on_a_mount)
