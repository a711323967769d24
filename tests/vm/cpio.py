"""Writes initramfs archives: the "newc" cpio format of the kernel's Documentation/driver-api/early-userspace.

Every file belongs to root, whoever writes; the same contents give the same bytes. The kernel unpacks several archives
that follow each other, and what a later one holds replaces what an earlier one held.
"""

import os
import shutil
import stat


class Archive:
    """An archive being written. Of several entries with one name the first stays; parents are made by themselves."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.names = set()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self._entry("TRAILER!!!", 0)
        self.file.write(b"\0" * (-self.file.tell() % 512))
        self.file.close()

    def directory(self, name, mode=0o755):
        self._parents(name)
        self._entry(name, stat.S_IFDIR | mode)

    def link(self, name, target):
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name, major, minor, mode=0o600):
        self._parents(name)
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def contents(self, name, data, mode=0o644):
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def copy(self, name, source):
        """Takes over one file, link or directory (without what is in it) from this machine."""
        facts = os.lstat(source)
        if stat.S_ISLNK(facts.st_mode):
            self.link(name, os.readlink(source))
        elif stat.S_ISDIR(facts.st_mode):
            self.directory(name, stat.S_IMODE(facts.st_mode))
        elif stat.S_ISREG(facts.st_mode):
            self._parents(name)
            if self._entry(name, facts.st_mode, size=facts.st_size):
                with open(source, "rb") as file:
                    shutil.copyfileobj(file, self.file, 1 << 20)
                self.file.write(b"\0" * (-facts.st_size % 4))

    def tree(self, name, source):
        """Takes over a directory with everything below it."""
        for directory, _, files in os.walk(source):
            here = os.path.normpath(os.path.join(name, os.path.relpath(directory, source)))
            self.directory(here)
            for file in sorted(files):
                self.copy(f"{here}/{file}", os.path.join(directory, file))

    def _parents(self, name):
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            self._entry("/".join(parts[:count]), stat.S_IFDIR | 0o755)

    def _entry(self, name, mode, data=b"", device=(0, 0), size=None):
        """Writes one header and its data; with `size` the caller writes that many bytes of data. Says if it is new."""
        if name in self.names:
            return False
        self.names.add(name)
        path = name.encode() + b"\0"
        size_of_data = len(data) if size is None else size
        # inode, mode, uid, gid, links, time, size, device, device of the node, length of the name, checksum
        fields = (len(self.names), mode, 0, 0, 1, 0, size_of_data, 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self.file.write(header + path + b"\0" * (-(len(header) + len(path)) % 4) + data)
        if size is None:
            self.file.write(b"\0" * (-len(data) % 4))
        return True
