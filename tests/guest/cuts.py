"""The power fails at random moments: everything that was acknowledged is there, and `check` is clean.

    prepare   a guest makes namespaces, filesystems and pools, and is ended; what stays is the images
    snapshot  a small guest, booted up to its shell, nothing of the NVDIMMs in use yet: kept in a file
    cycle     restore it over the images; look at what the last cut left; work; SIGKILL to QEMU
                 ^--------------------------------------------------------------------'

The NVDIMMs are not part of the snapshot, so a cycle goes on with what the one before left, as a boot would, in a
fraction of the time. `power_cut`, an example of the library, is the load; its steps follow from a seed, so that what was
acknowledged is two numbers for each pool.
"""

import os
import re
import time

from lab import run
from qemu import Guest, Image, built, kit_of

POOLS = {"device dax": "/dev/dax0.0", "ext4 with dax": "/ext4/pool", "xfs with dax": "/xfs/pool"}
MOUNT = ("mkdir -p /ext4 /xfs; mount -t ext4 -o dax=always /dev/pmem1 /ext4 && "
         "mount -t xfs -o dax=always /dev/pmem2 /xfs && ls /ext4/pool /xfs/pool")


class Cuts:
    """Images, the snapshot, and what each pool has acknowledged."""

    def __init__(self, suite):
        self.suite, self.kit = suite, kit_of(suite)
        self.images = [Image(suite.memory / f"cut{n}.img", mib) for n, mib in enumerate((384, 512, 768))]
        self.state = suite.memory / "state"
        self.chance = suite.random("cuts")
        self.load = built("pagestone", "--profile", "test", "--example", "power_cut")
        self.prepare()
        self.snapshot()

    def prepare(self):
        guest = Guest(self.kit, self.kit.initrd(), self.images, ram="2G", hostfs=True)
        guest.sh("ndctl create-namespace -f -e namespace0.0 -m devdax -M mem -a 2M && "
                 "ndctl create-namespace -f -e namespace1.0 -m fsdax -M mem && "
                 "ndctl create-namespace -f -e namespace2.0 -m fsdax -M mem && "
                 "mkfs.ext4 -q -F /dev/pmem1 && mkfs.xfs -q -f -m reflink=0 /dev/pmem2")
        guest.sh("mkdir -p /ext4 /xfs && mount -o dax=always /dev/pmem1 /ext4 && mount -o dax=always /dev/pmem2 /xfs")
        for pool in POOLS.values():
            size = "" if pool.startswith("/dev") else "--size 256M"
            guest.sh(f"{self.suite.command} create {pool} {size}")
        guest.sh("umount /ext4 /xfs")
        guest.end()

    def small(self, saved=None):
        return Guest(self.kit, self.initrd, self.images, ram="384M", saved=saved)

    def snapshot(self):
        self.initrd = self.kit.initrd([self.load, self.suite.program])
        guest = self.small()
        guest.sh("ls /dev/dax0.0 /dev/pmem1 /dev/pmem2; echo 3 >/proc/sys/vm/drop_caches")
        guest.save(self.state)
        guest.kill()

    def cycle(self, last):
        """Looks at what was left, works on, and cuts; answers what was acknowledged."""
        guest = self.small(self.state)
        try:
            guest.sh(MOUNT, 120)
            replayed = 0
            for pool, (seed, done) in last.items():
                code, said = guest.try_sh(f"power_cut look {pool} {seed} {' '.join(map(str, done))} 2>&1")
                assert code == 0, f"{pool} after a power cut, seed {seed}, {done}: images in {self.keep()}\n{said}"
                replayed += int(re.search(r"(\d+) records replayed", said)[1])
            return self.work(guest), replayed
        finally:
            guest.kill()

    def keep(self):
        """The images as they are now, for whoever looks for the reason."""
        place = self.kit.cache / f"failed-{self.suite.seed}"
        place.mkdir(exist_ok=True)
        for image in self.images:
            run("cp", "--sparse=always", image.path, place)
        return place.name

    def work(self, guest):
        """All pools at once, until the plug is pulled: at a random moment after the first step of each."""
        seeds = {pool: self.chance.getrandbits(32) for pool in POOLS.values()}
        guest.send(" & ".join(f"power_cut work {pool} {seed}" for pool, seed in seeds.items()) + " & wait")
        wait, deadline, heard = self.chance.random() ** 2 * 3, None, b""
        while deadline is None or time.monotonic() < deadline:
            guest.some(0.02 if deadline else 60)
            heard, guest.rest = heard + guest.rest, b""
            if deadline is None and all(f"{seed} 0 " in heard.decode() for seed in seeds.values()):
                deadline = time.monotonic() + wait
        guest.cut()
        done, of = {pool: [0, 0] for pool in seeds}, {seed: pool for pool, seed in seeds.items()}
        for line in heard.replace(b"\r", b"").decode().split("\n")[:-1]:
            step = re.fullmatch(r"(\d+) ([01]) (\d+)", line)
            assert step, f"the load said {line!r}"
            done[of[int(step[1])]][int(step[2])] = int(step[3])
        return {pool: (seeds[pool], done[pool]) for pool in seeds}


def tests(suite):
    number = int(os.environ.get("PAGESTONE_GUEST_CUTS", 10 if suite.quick else 200))

    def body():
        cuts, last, steps, replays, began = Cuts(suite), {}, 0, 0, time.monotonic()
        for n in range(number + 1):
            last, replayed = cuts.cycle(last)
            replays += replayed
            if n < number:
                steps += sum(sum(done) for _, done in last.values())
            suite.kills += 1
        took = (time.monotonic() - began) / (number + 1)
        return (f"{number} cuts, each of {len(POOLS)} pools, {steps} acknowledged steps, {replays} records replayed, "
                f"{took:.1f} s for each")

    suite.test("power cuts", body)
