"""The disk that everything is measured on: an ext4 as mkfs makes it, in a file, so that figures do not depend on what
the machine's own file system is, and on what else lies there.

Without a journal, for instance, ext4 looks at every inode that was freed within a minute before it makes a file: the
cost of a queue file then grows with the mail of the last minute. Each run has a new file system. Syncs reach the
machine's disk: the loop device passes flushes on.
"""

import subprocess
import tempfile
from pathlib import Path

SIZE = "12G"  # takes only what is written


class Disk:
    """Mounted at `path` from `mount` to `remove`."""

    def __init__(self, directory: Path, *, is_machines_own: bool = False) -> None:
        """is_machines_own: no file system of its own, but a directory."""
        self.path = Path(tempfile.mkdtemp(prefix="disk-", dir=directory))
        self._image = Path(f"{self.path}.image")
        self._is_machines_own = is_machines_own

    def mount(self) -> None:
        if self._is_machines_own:
            return
        for words in (["truncate", "-s", SIZE, self._image], ["mkfs.ext4", "-q", "-F", self._image],
                      ["mount", "-o", "loop", self._image, self.path]):
            subprocess.run(words, check=True)

    def remove(self) -> None:
        if not self._is_machines_own:
            subprocess.run(["umount", "--lazy", self.path], check=False)
            self._image.unlink(missing_ok=True)
        self.path.rmdir()
