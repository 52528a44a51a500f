#!/usr/bin/env python3
"""Files of pages that say where they belong; runs in a guest.

    pages.py write FILE...          forty pages each
    pages.py find POOL MARK...      where in the pool the pages lie that begin with these marks
    pages.py lose POOL MARK...      has the kernel declare these pages lost
    pages.py read FILE LOST...      every page is right but these, which are errors
"""

import ctypes
import errno
import mmap
import os
import signal
import sys

PAGE, PAGES, MADV_HWPOISON = 4096, 40, 100


def mark(page, path):
    return f"page {page:02} of {os.path.basename(path)}".encode()


def write(*paths):
    for path in paths:
        with open(path, "wb") as f:
            f.write(b"".join(mark(page, path).ljust(PAGE, b".") for page in range(PAGES)))


def places(memory, marks):
    """All are looked for before the first is lost: nobody can look past it then."""
    found = [memory.find(wanted.encode()) for wanted in marks]
    assert all(at >= 0 and at % PAGE == 0 for at in found), found
    return found


def find(pool, *marks):
    with open(pool, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as memory:
        print(*places(memory, marks))


def lose(pool, *marks):
    with open(pool, "r+b") as f:
        memory = mmap.mmap(f.fileno(), 0)
    # The kernel may tell by a signal whoever has such a page mapped: us.
    signal.signal(signal.SIGBUS, lambda *_: None)
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in places(memory, marks):
        done = libc.madvise(ctypes.c_void_p(start + at), ctypes.c_size_t(PAGE), MADV_HWPOISON)
        assert done == 0, os.strerror(ctypes.get_errno())


def read(path, *lost):
    lost = set(map(int, lost))
    fd = os.open(path, os.O_RDONLY)
    for page in range(PAGES):
        try:
            got = os.pread(fd, PAGE, page * PAGE)
            assert page not in lost and got == mark(page, path).ljust(PAGE, b"."), (page, got[:20])
        except OSError as e:
            assert e.errno == errno.EIO and page in lost, (page, e)
    # A long read ends in front of what is lost.
    assert len(os.pread(fd, PAGES * PAGE, 0)) == min(lost, default=PAGES) * PAGE


{"write": write, "find": find, "lose": lose, "read": read}[sys.argv[1]](*sys.argv[2:])
