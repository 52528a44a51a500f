"""NVDIMMs that are not what they were: missing, shrunk, exchanged or empty at the next boot.

    boot 1   two pools, each filling a device DAX namespace, closed well
    boot 2   one NVDIMM is gone        the other is whole; the missing one is named
    boot 3   both, in each other's slot   each pool is found whole, whatever its device is called now
    boot 4   one is empty memory       no pool, and how to make one
    boot 5   one is half as long       the size it has, and the size it should have

Without labels: those name the slot, and the kernel shows nothing at all of an NVDIMM with labels in another's slot.
"""


from qemu import Guest, Image, kit_of

MARK = "the pool of slot"


class Slots:
    """Two NVDIMMs, and guests that find them changed."""

    def __init__(self, suite):
        self.suite, self.kit = suite, kit_of(suite)
        self.images = [Image(suite.memory / f"slot{n}.img", 256, label=False) for n in range(2)]
        self.program = suite.command
        guest = self.boot(self.images)
        for n in range(2):
            guest.sh(f"ndctl create-namespace -f -e namespace{n}.0 -m devdax -M mem -a 2M")
            device = f"/dev/dax{n}.0"
            guest.sh(f"{self.program} create {device} && echo {MARK} {n} >/tmp/mark && "
                     f"{self.program} put /tmp/mark {device}:/mark && {self.program} check {device}")
        guest.kill()

    def boot(self, images):
        return Guest(self.kit, self.kit.initrd(), images, ram="1G", hostfs=True, smp=1)

    def holds(self, guest, device):
        """Which pool the device has; it must be whole."""
        guest.sh(f"{self.program} check {device}")
        said = guest.sh(f"{self.program} cat {device}:/mark").strip()
        assert said.startswith(MARK), said
        return int(said.split()[-1])


def refused(guest, command, *parts):
    code, said = guest.try_sh(command)
    assert code not in (0, 2) and code < 128, f"{command}: exit {code}: {said}"
    for part in parts:
        assert part in said, f"{command}: {part!r} is not in: {said}"
    return said.strip().removeprefix("pagestone: ")


def tests(suite):
    slots = None

    def of():
        nonlocal slots
        if slots is None:
            slots = Slots(suite)
        return slots

    def gone():
        guest = of().boot(of().images[:1])
        assert of().holds(guest, "/dev/dax0.0") == 0
        said = refused(guest, f"{suite.command} info /dev/dax1.0", "/dev/dax1.0")
        guest.kill()
        return said

    def exchanged():
        guest = of().boot(of().images[::-1])
        found = [of().holds(guest, f"/dev/dax{n}.0") for n in range(2)]
        assert found == [1, 0], found
        guest.kill()
        return "each pool is found whole under the other name"

    def empty():
        fresh = Image(suite.memory / "fresh.img", 256, label=False)
        guest = of().boot([of().images[0], fresh])
        guest.sh("ndctl create-namespace -f -e namespace1.0 -m devdax -M mem -a 2M")
        said = refused(guest, f"{suite.command} info /dev/dax1.0", "/dev/dax1.0", "create")
        refused(guest, f"{suite.command} check /dev/dax1.0", "/dev/dax1.0")
        assert of().holds(guest, "/dev/dax0.0") == 0
        guest.kill()
        return said

    def shrunk():
        """The same first half: another namespace on it, since labels and info block tell the kernel of the old size."""
        short = Image(suite.memory / "short.img", 128, label=False)
        guest = of().boot([of().images[1], short])
        guest.sh("ndctl create-namespace -f -e namespace1.0 -m devdax -M mem -a 2M")
        # What of the pool fits: put there through a mapping, as device DAX takes no writes.
        copy = ("import mmap,os;f=os.open('/dev/dax0.0',os.O_RDWR);t=os.open('/dev/dax1.0',os.O_RDWR);"
                "n=int(open('/sys/bus/dax/devices/dax1.0/size').read());"
                "mmap.mmap(t,n)[:]=mmap.mmap(f,n)[:]")
        guest.sh(f'/usr/bin/python3 -c "{copy}"')
        said = refused(guest, f"{suite.command} info /dev/dax1.0", "/dev/dax1.0", "bytes")
        refused(guest, f"{suite.command} check /dev/dax1.0", "bytes")
        assert of().holds(guest, "/dev/dax0.0") == 1
        guest.kill()
        return said

    suite.test("an NVDIMM is missing", gone)
    suite.test("NVDIMMs in each other's slot", exchanged)
    suite.test("an NVDIMM was replaced", empty)
    suite.test("an NVDIMM has shrunk", shrunk)
