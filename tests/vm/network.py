"""The cable between guests: a learning switch over unix datagram sockets, which needs no networking of this machine.

It can lose frames and be cut between any two guests, and it does not mind a guest that dies and comes back.
"""

import random
import socket
import struct
import threading


class Switch(threading.Thread):
    """Passes frames between the sockets `port-1` … `port-N` in a directory; its own is `switch`."""

    def __init__(self, directory, guests):
        super().__init__(daemon=True)
        self.ports = {number: f"{directory}/port-{number}" for number in range(1, guests + 1)}
        self.path = f"{directory}/switch"
        self.cuts = set()
        self.loss = 0.0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        # A receiver whose queue is full pushes back for 20 ms; then the frame is lost, as on any cable.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 20_000))

    def cut(self, one, other):
        self.cuts |= {(one, other), (other, one)}

    def heal(self):
        self.cuts = set()

    def run(self):
        numbers = {path: number for number, path in self.ports.items()}
        learned = {}
        while True:
            frame, sender = self.socket.recvfrom(70_000)
            source = numbers.get(sender)
            if source is None:
                continue
            learned[frame[6:12]] = source
            known = learned.get(frame[:6])
            for target in [known] if known else self.ports:
                if target != source and (source, target) not in self.cuts and random.random() >= self.loss:
                    self.pass_on(frame, target)

    def pass_on(self, frame, target):
        try:
            self.socket.sendto(frame, self.ports[target])
        except OSError:
            pass                                # the guest is down or does not keep up: a lost frame
