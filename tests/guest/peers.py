"""Instructions of program and kernel together, for one load on Pagestone and on filesystems with DAX.

    QEMU counts: one processor, and a clock that goes on by a nanosecond for each instruction
       `peers`, an example of the benchmarks: nanoseconds by that clock for each operation, rounds and medians
          Pagestone    on device DAX, in a file on ext4 with DAX, through its mount
          peers        ext4 and XFS, mounted with dax=always, each alone on the same NVDIMM

A string instruction counts once for each of its steps, so the guest's processor does not offer the fast ones: library
and kernel then copy in loops. What the kernel does meanwhile for itself (the timer) counts too. Where nobody has
anything to do the clock jumps; with one processor and no disk that does not happen during an operation.
"""

from qemu import Guest, Image, built, kit_of, word

COLUMNS = ("Pagestone, device DAX", "Pagestone on ext4 DAX", "ext4 DAX", "XFS DAX", "Pagestone's mount")
FILESYSTEMS = {"ext4 DAX": "mkfs.ext4 -q -F", "XFS DAX": "mkfs.xfs -q -f -m reflink=0 -d su=2m,sw=1"}


class Peers:
    """The guest, and what it counted."""

    def __init__(self, suite):
        kit, self.program = kit_of(suite), suite.command
        self.load = word(built("bench", "--release", "--example", "peers"))
        images = [Image(suite.memory / f"peers{n}.img", 768) for n in range(2)]
        self.guest = Guest(kit, kit.initrd(), images, ram="3G", hostfs=True, smp=1, counting=True, patience=300)
        self.guest.sh("ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem && "
                      "ndctl create-namespace -f -e namespace1.0 -m devdax -M mem -a 2M && mkdir -p /mnt")
        self.rows = {}

    def count(self, column, what):
        """Runs the load; what it says is one line for each operation."""
        for line in self.guest.sh(f"{self.load} {what}", 900).strip().splitlines():
            name, ops, *numbers = line.split("\t")
            self.rows.setdefault((name, int(ops)), {})[column] = [float(n) for n in numbers]

    def run(self):
        self.count("clock", "clock")
        (self.clock,) = self.rows.pop(next(iter(self.rows)))["clock"][:1]
        self.guest.sh(f"{self.program} create --force /dev/dax1.0")
        self.count(COLUMNS[0], "pool /dev/dax1.0")
        for name, make in FILESYSTEMS.items():
            kind = make.split()[0].removeprefix("mkfs.")
            self.guest.sh(f"{make} /dev/pmem0 && mount -t {kind} -o dax=always /dev/pmem0 /mnt && mkdir /mnt/load")
            self.count(name, "dir /mnt/load")
            if name == "ext4 DAX":
                self.guest.sh(f"{self.program} create --size 512M /mnt/pool")
                self.count(COLUMNS[1], "pool /mnt/pool")
            self.guest.sh("umount /mnt")
        self.guest.sh(f"{self.program} mount /dev/dax1.0 /mnt & "
                      "for n in $(seq 100); do mountpoint -q /mnt && break; sleep 0.1; done; mkdir /mnt/load", 120)
        self.count(COLUMNS[4], "dir /mnt/load")
        self.guest.sh("umount /mnt; wait")
        self.guest.kill()

    def table(self):
        yield "| instructions for each | N | " + " | ".join(COLUMNS) + " |"
        yield "|---|---|" + "---|" * len(COLUMNS)
        order = sorted(self.rows, key=lambda row: row[0])
        for row in order:
            cells = [f"{self.rows[row][c][0]:,.0f}" if c in self.rows[row] else "" for c in COLUMNS]
            yield f"| {row[0]} | {row[1]} | " + " | ".join(cells) + " |"

    def spread(self):
        """The largest distance of a round from its median, in percent, and where."""
        def distance(numbers):
            median, least, most = numbers
            return max(most - median, median - least) / median * 100
        return max((distance(numbers), f"{row[0]}, {column}")
                   for row, columns in self.rows.items() for column, numbers in columns.items())


def tests(suite):
    def body():
        peers = Peers(suite)
        peers.run()
        assert 0.99 < peers.clock < 1.01, f"the clock tells {peers.clock} for each instruction"
        for line in peers.table():
            print("     " + line)
        distance, where = peers.spread()
        return (f"by the clock {peers.clock:.5f} for each instruction of a known loop; 7 rounds of N each, medians; "
                f"a round is at most {distance:.1f} % off ({where})")

    suite.test("peers", body)
