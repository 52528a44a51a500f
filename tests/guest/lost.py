"""Memory that has failed: what a program sees of the mount, and what `check` says.

    a tmpfs file as pool     MADV_HWPOISON on one of its pages: from then on SIGBUS at every access, EFAULT in the
                             kernel's own copies, as after a machine check
    ext4, XFS with DAX       bad blocks written into the list of the kernel's driver, as if a scrub had found them: a
                             page that has one cannot be mapped any more, and nobody is to touch it
    device DAX               cannot be shown: the kernel maps a poisoned page again at the next fault, its region's list
                             is not for writing, and the emulated NVDIMM takes no injected errors ("operation not
                             supported")
"""

import re

from lab import ROOT
from qemu import Guest, Image, kit_of, word

# What runs in the guest.
PAGES = word(ROOT / "tests" / "guest" / "pages.py")
LOST = ("page 07 of a", "page 08 of a", "page 20 of a")


class Pool:
    """A pool in a guest, mounted for some commands at a time."""

    def __init__(self, suite, guest, path):
        self.program, self.guest, self.path = suite.command, guest, path
        guest.sh(f"{self.program} create {path} --size 64M")
        self.mounted(f"{PAGES} write /tmp/m/a /tmp/m/b /tmp/m/c", "rm /tmp/m/c")

    def mounted(self, *lines):
        """All of the commands succeed, and so does the server."""
        steps = " && ".join(lines)
        self.guest.sh(f"mkdir -p /tmp/m; {self.program} mount {self.path} /tmp/m >/tmp/said 2>&1 & server=$!; "
                      "for n in $(seq 300); do mountpoint -q /tmp/m && break; sleep 0.1; done; "
                      f"({steps}); code=$?; umount /tmp/m; wait $server; ended=$?; "
                      "[ $code = 0 ] && [ $ended = 0 ] || { cat /tmp/said; echo steps $code server $ended; false; }")

    def check(self):
        return self.guest.try_sh(f"{self.program} check --data {self.path}")

    def survives(self):
        """The pages of LOST are gone: that is all that is."""
        # The server goes on, the other file is whole.
        self.mounted(f"{PAGES} read /tmp/m/a 7 8 20", f"{PAGES} read /tmp/m/b")
        code, said = self.check()
        assert code == 4 and len(said.strip().splitlines()) == 3 and "/b" not in said, said
        assert "/a, bytes 28672 to 36863" in said and "/a, bytes 81920 to 86015" in said, said
        # Copies fail as a disk's do; what is written over has storage again, and what is deleted leaves the lost pages
        # out, however much is asked for.
        self.mounted("! cp /tmp/m/a /tmp/copy 2>/tmp/why && grep -q 'Input/output error' /tmp/why",
                     "dd if=/dev/zero of=/tmp/m/a bs=4096 seek=7 count=2 conv=notrunc 2>/dev/null",
                     "cmp -n 8192 -i 28672:0 /tmp/m/a /dev/zero",
                     "! dd if=/tmp/m/a bs=4096 skip=20 count=1 of=/dev/null 2>/dev/null", "rm /tmp/m/a",
                     "! cat /dev/zero >/tmp/m/full 2>/tmp/why && grep -q 'No space left' /tmp/why",
                     "size=$(stat -c %s /tmp/m/full) && test $size -gt 50000000 && cmp -n $size /tmp/m/full /dev/zero",
                     "rm /tmp/m/full", f"{PAGES} read /tmp/m/b")
        code, said = self.check()
        assert code == 0 and "3 of them retired" in said, said


def declared(suite):
    kit = kit_of(suite)
    guest = Guest(kit, kit.initrd(), ram="2G", hostfs=True)
    pool = Pool(suite, guest, "/dev/shm/pool")
    guest.sh(f"{PAGES} lose {pool.path} {' '.join(map(repr, LOST))}")
    said = guest.sh("dmesg | grep -ci 'memory failure' || true").strip()
    assert int(said) > 0, "the kernel has not taken the pages away"
    pool.survives()
    guest.kill()
    return "3 pages lost: named, EIO there alone, written over, retired"


def sectors(guest, path, places):
    """Where bytes of a file lie on its disk."""
    said = guest.sh(f"filefrag -v -b4096 {path}")
    extents = [tuple(map(int, e)) for e in re.findall(r": +(\d+)\.\. +(\d+): +(\d+)\.\. +\d+:", said)]
    blocks = [first + at // 4096 - start for at in places for start, end, first in extents if start <= at // 4096 <= end]
    assert len(blocks) == len(places), f"{places}: {said}"
    return [block * 8 for block in blocks]


def listed(suite, make, options):
    """Three pages of a file are listed, and one that is free."""
    kit = kit_of(suite)
    guest = Guest(kit, kit.initrd(), [Image(suite.memory / "bad.img", 512)], ram="2G", hostfs=True)
    guest.sh(f"ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem && {make} /dev/pmem0 && "
             f"mount -o {options} /dev/pmem0 /mnt")
    pool = Pool(suite, guest, "/mnt/pool")
    marks = " ".join(map(repr, (*LOST, "page 30 of c")))
    places = list(map(int, guest.sh(f"{PAGES} find {pool.path} {marks}").split()))
    for sector in sectors(guest, pool.path, places):
        # One of the eight sectors of the page.
        guest.sh(f"echo {sector + 5} 1 >/sys/block/pmem0/badblocks")
    code, _ = guest.try_sh(f"cat {pool.path} >/dev/null 2>&1")
    assert code != 0, "the kernel reads bad blocks"
    assert guest.json(f"{pool.program} info --json {pool.path}")["lost"] == len(places), "not all are known"
    pool.survives()
    guest.kill()
    return "3 pages of a file, 1 that is free: named, EIO there alone, written over, retired, never handed out"


def tests(suite):
    suite.test("memory that the kernel has declared lost", lambda: declared(suite))
    suite.test("bad blocks that the kernel lists, on ext4 with dax",
               lambda: listed(suite, "mkfs.ext4 -q -F -b 4096", "dax=always"))
    if not suite.quick:
        suite.test("bad blocks that the kernel lists, on xfs with dax",
                   lambda: listed(suite, "mkfs.xfs -q -f -m reflink=0", "dax=always"))
