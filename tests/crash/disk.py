"""A file system on a loop device whose power can be cut: what was not on the disk by then is gone.

The cut is FS_IOC_SHUTDOWN without a flush of the log, as for xfs_io -c "shutdown": from then on every call fails, and
what a mount finds afterwards is what a disk has after a loss of power, but for the disk's own cache.
"""

import fcntl
import os
import struct
import subprocess
from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
SIZE = 512 * 1024 * 1024  # bytes, of a sparse file: xfs wants 300 MB, sendmail wants 64 MB of it free
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
# The old file system may live on (see remount), and xfs mounts no second one with the same number of its own.
OPTIONS = {"ext4": "rw", "xfs": "nouuid"}
WITHIN = 60.0  # seconds for any of the programs


def why_not(kind: str) -> str:
    """Why this kernel cannot do it at all, "" if it can. That we may not, or lack a program, is no reason."""
    run(["modprobe", "-a", "loop", kind], check=False)  # whatever comes of that shows in the next lines
    if not os.path.exists("/dev/loop-control"):
        return "the kernel has no loop devices"
    if kind not in Path("/proc/filesystems").read_text("ascii").split():
        return f"the kernel has no {kind}"
    return ""


def run(command: list[str], *, check: bool = True) -> str:
    """What the program says."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=WITHIN, check=False)
    except FileNotFoundError:
        assert not check, f"{command[0]} is missing"
        return ""
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
    return done.stdout.decode()


class Disk:
    """A new file system of this kind, mounted at `path`."""

    def __init__(self, kind: str, image: str, path: str) -> None:
        self.kind, self.path, self._image = kind, path, image
        with open(image, "wb") as file:
            file.truncate(SIZE)
        os.makedirs(path, exist_ok=True)
        run([*MAKE[kind], image])
        self._device = ""
        self.mount()
        os.chmod(path, 0o755)

    def mount(self) -> None:
        self._device = run(["losetup", "--find", "--show", self._image]).strip()
        run(["mount", "-t", self.kind, "-o", OPTIONS[self.kind], self._device, self.path])

    def sync(self) -> None:
        """Everything on this disk is safe from here on."""
        run(["sync", "-f", self.path])

    def cut(self) -> None:
        """The power is gone. Whoever has files open gets errors."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def remount(self) -> None:
        """The power is back. Nobody has files open any more.

        What is mounted is a copy on a device of its own: some other process's mount namespace may hold on to the old
        file system, and what that has in memory is still written to its device, now or later.
        """
        self.close()
        copy = f"{self._image}.copy"
        run(["cp", "--sparse=always", self._image, copy])
        os.replace(copy, self._image)
        self.mount()

    def close(self) -> None:
        if self._device:
            run(["umount", self.path])
            run(["losetup", "--detach", self._device])
            self._device = ""
