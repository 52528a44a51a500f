"""Guests with emulated NVDIMMs: the kernel, the first memory disk, and a shell on a serial line.

    Kit     what guests boot: a Debian kernel unpacked in the cache directory, its modules, busybox
    Guest   one QEMU: start, run a command, read what a program says, pull the plug

       host                                guest
     Guest.sh("...") --- serial line ---> init: eval, prints what it says, and its exit status
     /  (read-only)  ------- 9p --------> below overlays in memory: all tools, all that was built
     nv0.img ...     --- shared memory -> /dev/pmem0, /dev/dax0.0 ...

The image files hold at every moment what the guest has stored: killing QEMU is a power cut. Software emulation
has no caches to lose, so this shows recovery and not missing flushes; those the crash lab looks for.

A guest that does not boot is tried again: emulated kernels now and then die as they boot. The kernel ends a guest whose
suite is gone.
"""

import functools
import json
import lzma
import os
import select
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

from lab import ROOT, Skip, ends_with_us, has, need, pagestone, run, target_dir

LABEL = 128 << 10
# In the order of their needs; some kernels have one or the other built in.
MODULES = ["virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "encrypted-keys", "trusted", "libnvdimm", "nfit",
           "nd_btt", "nd_pmem", "device_dax", "dax_pmem", "kmem", "virtio_pmem", "ext4", "xfs", "fuse", "crc32c-intel",
           "crc32c_generic"]
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /lower /rw /new /run /tmp
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module 2>/dev/null; done
chroot=
case "$(cat /proc/cmdline)" in *hostfs*)
    mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro host /lower
    mount -t tmpfs -o size=75% rw /rw; mkdir /rw/up /rw/work
    mount -t overlay -o lowerdir=/lower,upperdir=/rw/up,workdir=/rw/work over /new
    mount -t proc proc /new/proc; mount -t sysfs sys /new/sys; mount -t devtmpfs dev /new/dev
    mount -t tmpfs run /new/run; mount -t tmpfs tmp /new/tmp; mount -t tmpfs vartmp /new/var/tmp
    mkdir -p /new/dev/shm; mount -t tmpfs shm /new/dev/shm; mount -t devpts pts /new/dev/pts
    n=0
    while read -r shown; do
        mkdir -p /below/$n /rw/up$n /rw/work$n /new/run/shown/$n "/new$shown"
        mount -o bind "/lower$shown" /below/$n
        mount -t overlay -o lowerdir=/below/$n,upperdir=/rw/up$n,workdir=/rw/work$n over /new/run/shown/$n
        mount -o bind /new/run/shown/$n "/new$shown"
        n=$((n + 1))
    done </shown
    chroot="chroot /new" ;;
esac
ip link set lo up 2>/dev/null
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
echo "ready" >&3
while read -r command <&3; do
    echo "$command" >/command
    if [ -n "$chroot" ]; then
        cp /command /new/tmp/command; $chroot /bin/bash /tmp/command </dev/null >&3 2>&1
    else
        sh /command </dev/null >&3 2>&1
    fi
    echo "=exit $?=" >&3
done
"""


# A thread for each processor. Now and then one of them runs code that the other has just patched, as the kernel does
# while it boots: an int3 that the kernel has no answer to, and a panic.
EMULATED = "tcg,thread=multi"
BOOTS = 3


def word(path):
    """A path as the guest's shell reads it."""
    return shlex.quote(str(path))


def hidden():
    """Where what was built lies, as far as the guest has memory of its own there."""
    places = []
    for path in sorted({ROOT, target_dir(), pagestone().parent}):
        own = str(path).startswith(("/tmp/", "/var/tmp/", "/run/", "/dev/shm/"))
        if own and not any(path.is_relative_to(place) for place in places):
            places.append(path)
    return places


class Kit:
    """What guests of one kernel boot."""

    # Chosen by the first guest of a run.
    accel, cpu, speed = EMULATED, "max", None

    def __init__(self, scratch, newer):
        self.scratch = Path(scratch) / ("newer" if newer else "stable")
        self.scratch.mkdir(exist_ok=True)
        if os.geteuid() != 0:
            raise Skip("the guests need root")
        for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"),
                                 ("cpio", "cpio"), ("depmod", "kmod"), ("ndctl", "ndctl"), ("daxctl", "daxctl"),
                                 ("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("sqlite3", "sqlite3"),
                                 ("git", "git"), ("fusermount3", "fuse3")):
            need(program, package)
        self.cache = target_dir() / "guest"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.tree = self.kernel_tree(self.backports() if newer else [])
        self.kernel = next((self.tree / "boot").glob("vmlinuz-*"))
        self.version = self.kernel.name.removeprefix("vmlinuz-")
        # Write protection of what is not there came with 6.4.
        self.userfaultfd = tuple(map(int, self.version.split(".")[:2])) >= (6, 4)
        if Kit.speed is None:
            Kit.speed = self.choose_accelerator()
        print(f"     guests run Linux {self.version} on {Kit.speed}", flush=True)

    def backports(self):
        """Debian's newer kernels: options for apt that leave this machine's own sources as they are."""
        system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        suite, apt = system.get("VERSION_CODENAME", "").strip('"'), self.cache / "apt"
        if system.get("ID") != "debian" or not suite:
            raise Skip("newer kernels come from Debian's backports, and this is not Debian")
        (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "list").write_text(f"deb http://deb.debian.org/debian {suite}-backports main\n")
        options = [f"-oDir::Etc::SourceList={apt / 'list'}", "-oDir::Etc::SourceParts=/nonexistent",
                   f"-oDir::State::Lists={apt / 'lists'}", "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache="]
        # What was found once is good for a while.
        if not self.unpacked(options):
            try:
                run("apt-get", *options, "update", "-q")
            except AssertionError as why:
                raise Skip(f"the list of {suite}-backports cannot be had: {str(why)[-200:]}") from None
        return options

    def kernel_name(self, options):
        if not has("apt-get") or not has("dpkg"):
            raise Skip("the guest's kernel comes from a Debian package, and there is no apt here")
        said = run("apt-cache", *options, "depends", "linux-image-amd64", ok=(0, 100))
        names = [line.split()[-1] for line in said.splitlines() if "Depends: linux-image-" in line]
        return names[0] if names else None

    def unpacked(self, options):
        name = self.kernel_name(options)
        return name is not None and (self.cache / name / "boot").is_dir()

    def kernel_tree(self, options):
        """The newest kernel package that apt knows, unpacked."""
        name = self.kernel_name(options)
        if name is None:
            raise Skip("apt knows no linux-image-amd64 (apt-get update?)")
        tree = self.cache / name
        if not (tree / "boot").is_dir():
            fresh = self.cache / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            try:
                run("apt-get", *options, "download", "-q", name, cwd=fresh)
            except AssertionError as why:
                raise Skip(f"the kernel package cannot be had: {str(why)[-200:]}") from None
            for package in fresh.glob("*.deb"):
                run("dpkg", "-x", package, fresh)
                package.unlink()
            run("depmod", "-b", fresh, name.removeprefix("linux-image-"))
            fresh.rename(tree)
        return tree

    def initrd(self, programs=()):
        """A memory disk with busybox, the modules, and these programs with their libraries."""
        place = self.scratch / "initrd"
        shutil.rmtree(place, ignore_errors=True)
        for folder in ("bin", "modules", "empty"):
            (place / folder).mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), place / "bin")
        (place / "init").write_text(INIT)
        (place / "shown").write_text("".join(f"{path}\n" for path in hidden()))
        (place / "init").chmod(0o755)
        order = []
        for module in MODULES:
            # An empty configuration: that of ndctl replaces the loading of libnvdimm by a command.
            said = run("modprobe", "-C", place / "empty", "-d", self.tree, "-S", self.version, "--show-depends", module,
                       ok=(0, 1))
            for line in said.splitlines():
                if line.startswith("insmod ") and (path := Path(line.split()[1])).name not in order:
                    order.append(path.name)
                    # Newer kernels' modules are packed.
                    opened = lzma.open if path.suffix == ".xz" else open
                    with opened(path, "rb") as packed:
                        (place / "modules" / path.name).write_bytes(packed.read())
        (place / "modules" / "order").write_text("\n".join(order))
        for program in programs:
            shutil.copy(program, place / "bin")
            for word in run("ldd", program, ok=(0, 1)).split():
                if word.startswith("/") and not (target := place / word[1:]).exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(word, target)
        files = run("find", ".", cwd=place)
        name = self.scratch / f"initrd-{len(programs)}"
        with name.open("wb") as out:
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=place, input=files.encode(), stdout=out, check=True)
        return name

    def choose_accelerator(self):
        """KVM if a guest really comes up with it; nested hosts may have the device and no more."""
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "software emulation (no /dev/kvm)"
        Kit.accel, Kit.cpu = "kvm", "host"
        try:
            guest = Guest(self, self.initrd(), ram="512M", patience=8, boots=1)
            guest.end()
            return "KVM"
        except AssertionError:
            Kit.accel, Kit.cpu = EMULATED, "max"
            return "software emulation (there is /dev/kvm, but this kernel does not come up on it)"


# The images hold their memory already: it is no part of what is saved and restored.
SHARED_STAYS = "migrate_set_capability x-ignore-shared on"


class Image:
    """The memory of one NVDIMM: a sparse file."""

    def __init__(self, path, mib, label=True):
        self.path, self.label, self.size = Path(path), label, (mib << 20) + (LABEL if label else 0)
        # Not in tmpfs only for the speed: it is what remains when QEMU is killed.
        with self.path.open("wb") as image:
            image.truncate(self.size)


class Guest:
    """One running QEMU."""

    running = []

    def __init__(self, kit, initrd, images=(), ram="2G", hostfs=False, extra=(), append="", patience=120, smp=2,
                 machine="", counting=False, boots=BOOTS, saved=None):
        self.scratch = kit.scratch / f"guest-{time.monotonic_ns()}"
        self.scratch.mkdir()
        self.log = self.scratch / "console"
        self.rest = b""
        how = ["-accel", kit.accel, "-cpu", kit.cpu]
        if counting:
            # A clock of instructions; no string instruction that does in one what others do in many.
            how = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max,erms=off,fsrm=off"]
        command = ["qemu-system-x86_64", *how, "-smp", str(smp),
                   "-M", f"q35,nvdimm=on{machine}", "-m", f"{ram},slots=8,maxmem=64G", "-nodefaults", "-display", "none",
                   "-no-reboot", "-kernel", str(kit.kernel), "-initrd", str(initrd),
                   "-append", f"console=ttyS0 quiet panic=-1 {'hostfs' if hostfs else ''} {append}",
                   "-serial", f"file:{self.log}", "-chardev", f"socket,id=line,path={self.scratch / 'line'},server=on,wait=off",
                   "-serial", "chardev:line", "-monitor", f"unix:{self.scratch / 'monitor'},server=on,wait=off"]
        if hostfs:
            command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on"]
        for n, image in enumerate(images):
            command += ["-object", f"memory-backend-file,id=m{n},share=on,mem-path={image.path},size={image.size}",
                        "-device", f"nvdimm,id=nv{n},memdev=m{n}" + (",label-size=128K" if image.label else "")]
        if saved:
            command += ["-incoming", "defer"]
        for tried in range(1, boots + 1):
            try:
                return self.boot(command + list(extra), patience, saved)
            except (AssertionError, OSError) as why:
                if tried == boots:
                    raise AssertionError(f"the guest did not boot, {boots} times of {boots}: {why}") from None
                reason = "its kernel panicked" if "Kernel panic" in str(why) else str(why).splitlines()[0][:150]
                print(f"     a guest did not boot ({reason}); once more", flush=True)
                self.scratch.mkdir()

    def boot(self, command, patience, saved):
        self.rest = b""
        with (self.scratch / "qemu").open("wb") as said:
            self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, preexec_fn=ends_with_us)
        Guest.running.append(self)
        try:
            self.socket = self.connect("line", patience)
            if saved:
                self.restore(saved, patience)
            else:
                self.until(b"ready\n", patience)
        except BaseException:
            self.kill()
            raise

    def restore(self, saved, patience):
        """Goes on where another guest was saved; nothing of the images was in use then."""
        self.monitor(SHARED_STAYS)
        self.monitor(f'migrate_incoming "exec:cat {saved}"')
        # What is sent before it runs would be forgotten.
        deadline = time.monotonic() + patience
        while "running" not in self.monitor("info status"):
            if time.monotonic() > deadline:
                raise AssertionError(f"not restored after {patience} s: {self.said()}")
            time.sleep(0.02)
        self.sh("true", patience)

    def save(self, to):
        """Its state without the images."""
        for command in (SHARED_STAYS, "migrate_set_parameter max-bandwidth 8G", f'migrate "exec:cat >{to}"'):
            said = self.monitor(command)
            assert "rror" not in said, said

    def connect(self, name, patience=30):
        """A line to QEMU, which needs a moment until it listens."""
        deadline = time.monotonic() + patience
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self.scratch / name))
                return line
            except OSError:
                line.close()
                if self.qemu.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"QEMU does not start: {self.said()}") from None
                time.sleep(0.01)

    def said(self):
        text = [p.read_text(errors="replace")[-1500:] for p in (self.scratch / "qemu", self.log) if p.exists()]
        return "\n".join(text)

    def some(self, patience):
        """What the guest says next; nothing after `patience` seconds."""
        if select.select([self.socket], [], [], max(patience, 0))[0]:
            try:
                got = self.socket.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                raise AssertionError(f"the guest is gone: {self.said()}")
            self.rest += got

    def until(self, mark, patience):
        """All that the guest says up to a mark."""
        deadline = time.monotonic() + patience
        while mark not in self.rest:
            if time.monotonic() > deadline:
                raise AssertionError(f"no {mark!r} in {patience} s, but {self.rest[-500:]!r}\n{self.said()}")
            self.some(1)
        before, self.rest = self.rest.split(mark, 1)
        return before.decode(errors="replace")

    def send(self, command):
        assert "\n" not in command and len(command) < 3500, "one line, not too long"
        self.socket.sendall(command.encode() + b"\n")

    def try_sh(self, command, patience=300):
        """Runs a command in the guest: its exit status and what it said."""
        self.send(command)
        said = self.until(b"=exit ", patience)
        return int(self.until(b"=\n", patience)), said.replace("\r", "")

    def sh(self, command, patience=300):
        code, said = self.try_sh(command, patience)
        assert code == 0, f"in the guest: {command}: exit {code}\n{said[-3000:]}"
        return said

    def json(self, command):
        return json.loads(self.sh(command))

    def monitor(self, command, patience=60):
        """A command of QEMU's own."""
        with self.connect("monitor") as line:
            line.settimeout(patience)

            def prompt():
                got = b""
                while not got.endswith(b"(qemu) "):
                    more = line.recv(4096)
                    assert more, f"QEMU is gone: {self.said()}"
                    got += more
                return got.decode(errors="replace")
            prompt()
            line.sendall(command.encode() + b"\n")
            return prompt()

    def cut(self):
        """The power fails."""
        self.kill()

    def kill(self):
        if self.qemu.poll() is None:
            self.qemu.kill()
        self.qemu.wait()
        if hasattr(self, "socket"):
            self.socket.close()
        if self in Guest.running:
            Guest.running.remove(self)
            shutil.rmtree(self.scratch, ignore_errors=True)

    def end(self):
        """An orderly end: what is mounted is written out."""
        try:
            self.send("sync; /bin/busybox umount -a 2>/dev/null; sync")
            self.until(b"=exit ", 60)
        finally:
            self.kill()

    @classmethod
    def end_all(cls):
        for guest in list(cls.running):
            guest.kill()


def kit_of(suite, newer=True):
    """The kit of a run: with a kernel of Debian's backports if that can be had, or with Debian's own."""
    kits = suite.__dict__.setdefault("kits", {})
    if newer not in kits:
        try:
            kits[newer] = Kit(suite.scratch, newer)
        except Skip as why:
            if newer:
                print(f"     no newer kernel, so the guests run Debian's own: {why}", flush=True)
            # What cannot be had is not asked for again.
            kits[newer] = kit_of(suite, False) if newer else why
    if isinstance(kits[newer], Skip):
        raise kits[newer]
    return kits[newer]


@functools.cache
def built(crate, *what):
    """Builds a program of a crate. With the profile of tests it is the one that `cargo test --workspace` has made."""
    said = run("cargo", "build", "--quiet", "--workspace", "--message-format=json", *what, cwd=ROOT, timeout=1800)
    programs = [m["executable"] for m in map(json.loads, said.splitlines())
                if m.get("executable") and Path(m["target"]["src_path"]).is_relative_to(ROOT / "crates" / crate)
                and m["target"]["name"] == what[-1]]
    assert len(programs) == 1, f"cargo build {' '.join(what)}: {programs}"
    return Path(programs[0])
