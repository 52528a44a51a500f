"""Every kind of persistent device, one guest: what `info` says of it, and whether all works on it.

The kernel is one of Debian's backports, with write protection of what is not there (Linux 6.4): mappings are answered
by userfaultfd. What Pagestone does without it is gone through with Debian's own kernel.

    namespace0.0 fsdax    /dev/pmem0    ext4 and XFS, with and without DAX; the raw block device
    namespace1.0 devdax   /dev/dax1.0
    virtio-pmem           /dev/pmem2    DAX, but no MAP_SYNC: an ordinary file
    virtio-blk            /dev/vda      a disk for direct I/O
"""

import re

from lab import ROOT, Skip
from qemu import Guest, Image, built, hidden, kit_of, word

MIB = 1024
DAX_DEVICE = {"kind": "dax-device", "granularity": "cache-line", "durability": "at-fence"}
DAX_FILE = {**DAX_DEVICE, "kind": "dax-file"}
ORDINARY = {"kind": "file", "granularity": "page", "durability": "at-sync", "method": "fdatasync"}
FLUSHING = ("non-temporal", "clwb", "clflushopt", "clflush")
PROGRAMS = word(ROOT / "tests" / "guest" / "programs.sh")
# Tests of the library that put their pools into /dev/shm: with DAX there, they run on DAX.
LIBRARY = ("basic", "clones", "space", "map")
# What docs/mappings.md says does not work without userfaultfd: children; stores of raw pointers and of the kernel to
# holes (a segfault in `reads_and_writes_...`, EFAULT in `the_kernel_...`); windows that come and go, so a mapping of
# a sparse TiB takes 2 GiB of page tables, and one of more pieces than the kernel has mappings for is ENOMEM.
NEEDS_USERFAULTFD = ("fork::", "hammer::", "a_sparse_tebibyte", "files_in_more_pieces", "the_kernel_reads",
                     "reads_and_writes_take_buffers")


class Devices:
    """The guest with the devices, booted when the first test asks for it."""

    def __init__(self, suite, machine="", newer=True):
        self.suite, self.machine, self.newer, self.now = suite, machine, newer, None

    @property
    def kit(self):
        return kit_of(self.suite, self.newer)

    def guest(self):
        if self.now is None or self.now not in Guest.running:
            kit, memory = self.kit, self.suite.memory
            self.images = [Image(memory / f"nv{n}.img", MIB) for n in range(2)]
            for name in ("virtio", "disk"):
                with (memory / f"{name}.img").open("wb") as image:
                    image.truncate(512 << 20)
            extra = ["-object", f"memory-backend-file,id=vp,share=on,mem-path={memory / 'virtio.img'},size=512M",
                     "-device", "virtio-pmem-pci,memdev=vp,id=vp",
                     "-drive", f"file={memory / 'disk.img'},format=raw,if=none,id=disk,cache=none,aio=threads",
                     "-device", "virtio-blk-pci,drive=disk"]
            self.now = Guest(kit, kit.initrd(), self.images, ram="4G", hostfs=True, extra=extra,
                             machine=self.machine, append="nokaslr no5lvl")
            namespaces(self.now)
        return self.now

    def filesystem(self, kind, options, device="/dev/pmem0", at="/mnt"):
        """A new filesystem; answers where the pool goes."""
        guest = self.guest()
        make = {"ext4": "mkfs.ext4 -q -F", "xfs": "mkfs.xfs -q -f -m reflink=0 -d su=2m,sw=1"}[kind]
        # Wherever the test before has left it.
        guest.try_sh(f"umount -R {at}; umount {device}")
        guest.sh(f"{make} {device} && mkdir -p {at} && mount -t {kind} -o {options} {device} {at}")
        for n, place in enumerate(hidden()):
            if place.is_relative_to(at):
                guest.sh(f"mkdir -p {word(place)} && mount -o bind /run/shown/{n} {word(place)}")
        return f"{at}/pool"

    def library(self, name):
        """A test program of the library, as the guest's shell reads it."""
        return word(built("pagestone", "--profile", "test", "--test", name))


def namespaces(guest):
    """The first NVDIMM for filesystems, the second as a character device."""
    guest.sh("ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem && "
             "ndctl create-namespace -f -e namespace1.0 -m devdax -M mem -a 2M && ls /dev/pmem0 /dev/dax1.0")


def names(devices, pool, expect):
    """What `info` calls the media; it must be what it is."""
    info = devices.guest().json(f"{devices.suite.command} info --json {pool}")
    media = info["media"]
    wrong = {k: media[k] for k, v in expect.items() if media[k] != v}
    assert not wrong, f"{pool}: {wrong} where {expect} was expected"
    if "method" not in expect:
        # Which of them is measured. Where caches survive, none is needed, and one may still be the faster.
        good = FLUSHING + (("none",) if expect["granularity"] == "byte" else ())
        assert media["method"] in good, f"{media['method']} makes nothing durable here"
    mappings = "userfaultfd" if devices.kit.userfaultfd else "signals"
    assert info["mappings"] == mappings, f"{info['mappings']} on Linux {devices.kit.version}"
    return f"{media['kind']}, {media['granularity']}, {media['method']}, {media['durability']}, {mappings}"


def short_life(devices, pool, size, expect):
    """create, info, put, get, check; then programs on the mount; then the library's tests for devices."""
    guest, program = devices.guest(), devices.suite.command
    guest.sh(f"{program} create {pool} {size}")
    said = names(devices, pool, expect)
    guest.sh(f"{program} put -r /usr/share/perl5 {pool}:/ && {program} check {pool} && "
             f"rm -rf /tmp/back && {program} get -r {pool}:/perl5 /tmp/back && diff -r /usr/share/perl5 /tmp/back", 600)
    said += "; " + guest.sh(f"{PROGRAMS} {program} {pool}", 600).strip().splitlines()[-1]
    done = guest.sh(f"PAGESTONE_TEST_MEDIA={pool} TMPDIR=/tmp {devices.library('devices')} --test-threads 1 2>&1", 600)
    return f"{said}; {passed(done)} tests"


def passed(said):
    return sum(map(int, re.findall(r"(\d+) passed", said)))


def refusals(devices):
    """What is not there is not granted, and the refusal names it."""
    guest, program = devices.guest(), devices.suite.command
    pool = devices.filesystem("ext4", "dax=never")
    code, said = guest.try_sh(f"{program} create --media dax-file --size 64M {pool}")
    assert code == 1 and "mounted with DAX" in said, said
    code, said = guest.try_sh(f"ls {pool}")
    assert code != 0, "a refused create left its file"
    code, said = guest.try_sh(f"{program} create --force /dev/pmem0")
    assert code == 1 and "busy" in said.lower(), f"a mounted device was not refused: {said}"
    code, said = guest.try_sh(f"{program} create --force /dev/dax1.0 --size 100G")
    assert code == 1 and "bytes were asked for" in said, said
    code, said = guest.try_sh(f"{program} create --force --media file /dev/dax1.0")
    assert code == 1 and "takes no pwrite" in said, said
    guest.sh(f"{program} create --force /dev/dax1.0")
    code, said = guest.try_sh(f"{program} create /dev/dax1.0")
    assert code == 1 and "--force" in said, said
    code, said = guest.try_sh(f"{program} create /dev/dax7.0 --size 64M")
    assert code == 1 and "no such device" in said, said
    code, said = guest.try_sh(f"{program} create /dev/null")
    assert code == 1 and "not a DAX device" in said, said
    guest.sh("umount /mnt")
    return "DAX without DAX, a mounted device, too large a size, pwrite on device DAX, a pool in the way, a missing device"


def library_tests(devices, kind):
    """The library's own tests, with a DAX filesystem where they look for tmpfs."""
    guest = devices.guest()
    pool, program = devices.filesystem(kind, "dax=always", at="/dev/shm"), devices.suite.command
    guest.sh(f"{program} create --size 64M {pool}")
    said = [names(devices, pool, DAX_FILE)]
    try:
        for name in LIBRARY:
            few = name == "map" and not devices.kit.userfaultfd
            skip = " ".join(f"--skip {part}" for part in NEEDS_USERFAULTFD) if few else ""
            done = guest.sh(f"TMPDIR=/tmp {devices.library(name)} {skip} 2>&1", 900)
            said.append(f"{name} {passed(done)}" + (f" ({skip})" if skip else ""))
    finally:
        guest.try_sh("umount -R /dev/shm")
    return ", ".join(said)


TRACE = "/sys/kernel/tracing"
# Where the kernel without address space randomization and with four levels of page tables keeps its page descriptors.
VMEMMAP, DESCRIPTOR = 0xffffea0000000000, 64


def storage(guest, pool):
    """Physical addresses of the pool's pages: of the device, or of the file's blocks on it."""
    if pool.startswith("/dev"):
        iomem = guest.sh("cat /proc/iomem")
        spans = re.findall(rf"([0-9a-f]+)-([0-9a-f]+) : {pool.removeprefix('/dev/')}", iomem)
        return [(int(start, 16), int(end, 16)) for start, end in spans]
    begin = int(guest.sh("cat /sys/block/pmem0/device/resource"), 16)
    extents = re.findall(r"\.\. +\d+: +(\d+)\.\. +(\d+):", guest.sh(f"filefrag -v -b4096 {pool}"))
    return [(begin + int(first) * 4096, begin + int(last) * 4096 + 4095) for first, last in extents]


def direct(devices, pool):
    """A disk read into a mapping and written from one: whose pages the kernel hands to the disk."""
    guest = devices.guest()
    guest.sh(f"mount -t tracefs trace {TRACE} 2>/dev/null; cd {TRACE} && echo 'p:add __bio_add_page page=%si:x64' >kprobe_events "
             f"&& echo 1 >events/kprobes/add/enable && echo 1 >events/block/block_bio_queue/enable && echo >trace")
    guest.sh(f"PAGESTONE_TEST_MEDIA={pool} PAGESTONE_TEST_DISK=/dev/vda TMPDIR=/tmp "
             f"{devices.library('devices')} --exact the_kernel_reads_into_a_mapping_and_writes_from_it", 300)
    lines = guest.sh(f"cd {TRACE} && grep the_kernel_read trace; echo 0 >events/enable; echo >trace; echo >kprobe_events")
    disk, spans = guest.sh("cat /sys/block/vda/dev").strip().replace(":", ","), storage(guest, pool)
    assert spans, f"where {pool} lies is not known"
    inside, moved = [], {"R": [0, 0], "W": [0, 0]}
    for line in lines.splitlines():
        if page := re.search(r"page=0x([0-9a-f]+)", line):
            at = (int(page[1], 16) - VMEMMAP) // DESCRIPTOR * 4096
            inside.append(any(start <= at <= end for start, end in spans))
        elif bio := re.search(r"block_bio_queue: (\S+) ([RW])\S* \d+ \+ (\d+)", line):
            if inside and bio[1] == disk:
                moved[bio[2]][all(inside)] += int(bio[3]) * 512
            inside = []
    assert moved["R"][True] == moved["W"][True] == 2 << 20, f"through the pool's pages: {moved}"
    return "2 MiB each way, every page of every request is the pool's own"


def tests(suite):
    devices = Devices(suite)
    program = suite.command

    def end(on):
        if on.now in Guest.running:
            on.now.kill()

    def filesystem(kind, options, expect, device="/dev/pmem0"):
        def body():
            pool = devices.filesystem(kind, options, device)
            said = short_life(devices, pool, "--size 256M", expect)
            devices.guest().sh("umount /mnt")
            return said
        return body

    def raw(device):
        def body():
            devices.guest().sh(f"dd if=/dev/zero of={device} bs=1M count=4 conv=fsync 2>&1")
            return short_life(devices, device, "--force", ORDINARY)
        return body

    def virtio():
        code, _ = devices.guest().try_sh("ls /dev/pmem2")
        if code != 0:
            raise Skip("the guest's kernel shows no virtio-pmem")
        said = filesystem("ext4", "dax=always", ORDINARY, "/dev/pmem2")()
        return said + "; raw: " + raw("/dev/pmem2")()

    def eadr():
        """The same memory on a machine whose caches survive: nothing has to be flushed."""
        machine = Devices(suite, ",nvdimm-persistence=cpu")
        guest = machine.guest()
        guest.sh(f"{program} create /dev/dax1.0")
        said = names(machine, "/dev/dax1.0", {**DAX_DEVICE, "granularity": "byte"})
        guest.kill()
        return said

    def without_userfaultfd(body):
        def guarded():
            if own.kit.userfaultfd:
                raise Skip(f"Debian's own kernel, {own.kit.version}, has what the newer one was for")
            return body()
        return guarded

    suite.test("device dax", lambda: short_life(devices, "/dev/dax1.0", "--force", DAX_DEVICE))
    suite.test("ext4 with dax", filesystem("ext4", "dax=always", DAX_FILE))
    suite.test("xfs with dax", filesystem("xfs", "dax=always", DAX_FILE))
    suite.test("what is not there is refused", lambda: refusals(devices))
    suite.test("direct on device dax", lambda: direct(devices, "/dev/dax1.0"))
    if not suite.quick:
        suite.test("ext4 without dax", filesystem("ext4", "dax=never", ORDINARY))
        suite.test("xfs without dax", filesystem("xfs", "dax=never", ORDINARY))
        suite.test("pmem as a block device", raw("/dev/pmem0"))
        suite.test("virtio-pmem", virtio)
        for kind in ("ext4", "xfs"):
            suite.test(f"direct on {kind} with dax",
                       lambda kind=kind: direct(devices, devices.filesystem(kind, "dax=always")))
            suite.test(f"the library's tests on {kind} with dax", lambda kind=kind: library_tests(devices, kind))
    end(devices)
    suite.test("caches that survive", eadr)

    own = Devices(suite, newer=False)
    suite.test("device dax, by signals", without_userfaultfd(lambda: short_life(own, "/dev/dax1.0", "--force", DAX_DEVICE)))
    if not suite.quick:
        suite.test("the library's tests on ext4 with dax, by signals", without_userfaultfd(lambda: library_tests(own, "ext4")))
    end(own)
