"""Memory that the kernel has declared lost: what a program sees of the mount, and what `check` says.

    a tmpfs file as pool     MADV_HWPOISON on one of its pages: from then on SIGBUS at every access, EFAULT in the
                             kernel's own copies, as after a machine check
    device DAX, fsdax        cannot be shown: these kernels map the page again at the next fault, and the emulated
                             NVDIMM takes no injected errors (its driver: "operation not supported")
"""

from lab import ROOT
from qemu import Guest, kit_of

# What runs in the guest.
PAGES = ROOT / "tests" / "guest" / "pages.py"


def lost(suite):
    kit, program = kit_of(suite), suite.program
    guest = Guest(kit, kit.initrd(), ram="2G", hostfs=True)
    pool = "/dev/shm/pool"
    guest.sh(f"{program} create {pool} --size 64M")

    def mounted(*lines):
        steps = " && ".join(lines)
        return guest.try_sh(f"mkdir -p /tmp/m; {program} mount {pool} /tmp/m >/tmp/said 2>&1 & server=$!; "
                            "for n in $(seq 300); do mountpoint -q /tmp/m && break; sleep 0.1; done; "
                            f"({steps}); code=$?; umount /tmp/m; wait $server; ended=$?; "
                            "[ $code = 0 ] && [ $ended = 0 ] || { cat /tmp/said; echo steps $code server $ended; false; }")

    def well(*lines):
        code, said = mounted(*lines)
        assert code == 0, said
        return said

    well(f"{PAGES} write /tmp/m/a /tmp/m/b")
    guest.sh(f"{PAGES} lose {pool} 'page 07 of a' 'page 08 of a' 'page 20 of a'")
    said = guest.sh("dmesg | grep -ci 'memory failure' || true").strip()
    assert int(said) > 0, "the kernel has not taken the pages away"
    # Found by reading, not known before; the server goes on, the other file is whole.
    well(f"{PAGES} read /tmp/m/a 7 8 20", f"{PAGES} read /tmp/m/b")
    code, said = guest.try_sh(f"{program} check --data {pool}")
    assert code == 4 and "/a, bytes 28672 to 36863" in said and "/a, bytes 81920 to 86015" in said and "/b" not in said, said
    assert len(said.strip().splitlines()) == 3, said
    # Copies fail as a disk's do; what is written over has storage again, and what is deleted leaves the lost pages out.
    well("! cp /tmp/m/a /tmp/copy 2>/tmp/why && grep -q 'Input/output error' /tmp/why",
         "dd if=/dev/zero of=/tmp/m/a bs=4096 seek=7 count=2 conv=notrunc 2>/dev/null",
         "test $(dd if=/tmp/m/a bs=4096 skip=7 count=2 2>/dev/null | tr -d '\\0' | wc -c) = 0",
         "! dd if=/tmp/m/a bs=4096 skip=20 count=1 of=/dev/null 2>/dev/null", "rm /tmp/m/a", "cmp /tmp/m/b /tmp/m/b")
    code, said = guest.try_sh(f"{program} check --data {pool}")
    assert code == 0 and "3 of them retired" in said, said
    guest.kill()
    return "3 pages lost: named, EIO there alone, written over, retired"


def tests(suite):
    suite.test("memory that the kernel has declared lost", lambda: lost(suite))
