"""A small NBD client: is a server ready, does it return what it should, and what do many idle connections cost it?"""

import os
import random
import socket
import ssl
import struct
from pathlib import Path
from urllib.parse import parse_qs, urlparse

BLOCK = 4096
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
SENDS_FLUSH = 4
OPTION_STARTTLS, OPTION_GO = 5, 7
REPLY_ACK, REPLY_INFO, REPLY_ERROR = 1, 3, 1 << 31


class NbdError(OSError):
    """The server says or does what it must not."""


class Client:
    """A connection in the transmission phase, by an URI of scheme nbd, nbd+unix or nbds."""

    def __init__(self, uri, timeout=5):
        parts = urlparse(uri)
        query = parse_qs(parts.query)
        if parts.scheme == "nbd+unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(query["socket"][0])
        else:
            self.socket = socket.create_connection((parts.hostname, parts.port or 10809), timeout=timeout)
        if self._take(16) != b"NBDMAGICIHAVEOPT":
            raise NbdError("not a newstyle NBD server")
        (flags,) = struct.unpack(">H", self._take(2))
        self.socket.sendall(struct.pack(">I", flags & 3))
        if parts.scheme == "nbds":
            self._encrypt(Path(query["tls-certificates"][0]), parts.hostname)
        self.size, self.flags = self._go(parts.path.lstrip("/").encode())
        self.cookie = 0

    def _take(self, count):
        taken = b""
        while len(taken) < count:
            more = self.socket.recv(count - len(taken))
            if not more:
                raise NbdError("the server has hung up")
            taken += more
        return taken

    def _option(self, option, data=b""):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)

    def _option_reply(self):
        _, _, kind, length = struct.unpack(">QIII", self._take(20))
        data = self._take(length)
        if kind & REPLY_ERROR:
            raise NbdError(f"the server refuses: {kind:#x} {data!r}")
        return kind, data

    def _encrypt(self, certificates, host):
        self._option(OPTION_STARTTLS)
        self._option_reply()
        context = ssl.create_default_context(cafile=certificates / "ca-cert.pem")
        context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
        self.socket = context.wrap_socket(self.socket, server_hostname=host)

    def _go(self, name):
        self._option(OPTION_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        export = None
        while True:
            kind, data = self._option_reply()
            if kind == REPLY_INFO and data[:2] == b"\0\0":
                export = struct.unpack(">QH", data[2:12])
            if kind == REPLY_ACK:
                if export is None:
                    raise NbdError("the server does not say how large the export is")
                return export

    def request(self, kind, offset, length, data=b""):
        self.cookie += 1
        header = struct.pack(">IHHQQI", 0x25609513, 0, kind, self.cookie, offset, length)
        self.socket.sendall(header + data)
        magic, error, cookie = struct.unpack(">IIQ", self._take(16))
        if magic != 0x67446698 or error or cookie != self.cookie:
            raise NbdError(f"bad reply {magic:#x}, error {error}")
        return self._take(length) if kind == READ else b""

    def close(self):
        try:
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            # It has hung up first.
            pass
        self.socket.close()


def verify(uri, path, size):
    """The server must return what the file holds, if that is given, and read back what was written."""
    client = Client(uri)
    if client.size < size:
        raise NbdError(f"the export has {client.size} bytes, {size} are needed")
    chosen = random.Random(7)
    blocks = [chosen.randrange(size // BLOCK) * BLOCK for _ in range(16)]
    if path:
        with open(path, "rb") as file:
            for offset in blocks[:8]:
                file.seek(offset)
                if client.request(READ, offset, BLOCK) != file.read(BLOCK):
                    raise NbdError(f"wrong data at {offset}")
    for offset in blocks[8:]:
        data = os.urandom(BLOCK)
        client.request(WRITE, offset, BLOCK, data)
        if client.flags & SENDS_FLUSH:
            client.request(FLUSH, 0, 0)
        if client.request(READ, offset, BLOCK) != data:
            raise NbdError(f"what is read back at {offset} is not what was written")
    client.close()


def idle_connections(uri, count):
    """So many connections, each of which has been used once."""
    clients = []
    for number in range(count):
        clients.append(Client(uri, timeout=30))
        clients[-1].request(READ, number * BLOCK, BLOCK)
    return clients
