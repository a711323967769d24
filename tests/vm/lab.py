"""Runs the cases of one group in one or several guests: listens to what they print, answers what they ask, keeps time.

A guest has two lines to here. On `out` comes everything that its cases print, and between it, marked with a secret of
this run so that no output can be taken for it, where a case begins and how it ends. On `host` it asks, a line a
question, and gets one line back: `ok` with an answer, or `error` with a reason. The questions are those of `Desk`.
"""

import random
import re
import selectors
import socket
import time
from functools import partial

from machine import Guest
from network import Switch

# Seconds. Booting takes five on an idle machine; these are for a very busy one.
BOOTING = 120
LINE = 1 << 16


class Failure(Exception):
    """Why a case failed, in a sentence."""


class Desk:
    """What guests may ask of this machine. An answer is a text; a question that waits is answered later."""

    def __init__(self, lab):
        self.lab = lab
        self.notes = {}
        self.waiting = {}

    def note(self, guest, key, value):
        """Keeps a value over a guest's death: what it has seen acknowledged."""
        self.notes[key] = value
        return ""

    def recall(self, guest, key):
        return self.notes.get(key, "")

    def crash(self, guest, within="0"):
        """Kills the asker at a moment within so many milliseconds that it cannot know, and boots it again."""
        delay = random.uniform(0, int(within) / 1000)
        self.lab.say(guest, f"host: node{guest.number} dies in {delay * 1000:.0f} ms\n")
        self.lab.later(delay, partial(self.lab.reboot, guest))
        return ""

    def kill(self, guest, number):
        """Kills another guest; it stays dead until `boot`."""
        self.lab.put_down(self.lab.guests[int(number) - 1])
        return ""

    def boot(self, guest, number):
        self.lab.start(self.lab.guests[int(number) - 1])
        return ""

    def cut(self, guest, one, other):
        self.lab.switch.cut(int(one), int(other))
        return ""

    def heal(self, guest):
        self.lab.switch.heal()
        return ""

    def loss(self, guest, percent):
        self.lab.switch.loss = float(percent) / 100
        return ""

    def barrier(self, guest, name):
        """Answers when every guest that is up has come to the same point."""
        self.waiting.setdefault(name, []).append(guest)
        self.release()
        return None

    def release(self):
        up = len(self.lab.up())
        for name in [name for name, waiting in self.waiting.items() if len(waiting) >= up]:
            for guest in self.waiting.pop(name):
                self.lab.answer(guest, "ok")

    def forget(self, guest):
        """A guest that is down waits for nothing, and nobody for it."""
        for waiting in self.waiting.values():
            if guest in waiting:
                waiting.remove(guest)
        self.release()


class Lab:
    """One group of cases on its hardware. `directory` is empty and for this run alone; `logs` is where each case's
    output goes, `group` the cases in order."""

    def __init__(self, image, initrd, group, directory, logs):
        self.group, self.logs = list(group), logs
        hardware = group[0].hardware
        self.nonce = f"{random.getrandbits(64):016x}"
        self.guests = [
            Guest(number, hardware, image, initrd, self.nonce, directory) for number in range(1, hardware.guests + 1)
        ]
        self.switch = Switch(directory, hardware.guests) if hardware.guests > 1 else None
        self.selector = selectors.DefaultSelector()
        self.lines = {}                         # (guest number, line name): its connection
        self.unread = {}                        # the same: what came without its end yet
        self.timers = []
        self.desk = Desk(self)
        self.began = {}                         # the name of a case: when it did
        self.codes = {case.name: {} for case in group}
        self.log = open(self.logs / f"{group[0].name}.log", "wb")

    def run(self):
        """Yields (case, seconds, why it failed or None) as cases end. The first failure is the last: what it left
        behind is nobody's ground to build on."""
        try:
            if self.switch:
                self.switch.start()
            for guest in self.guests:
                self.start(guest)
            for case in self.group:
                yield case, *self.outcome(case)
        finally:
            for guest in self.guests:
                guest.kill()
            self.selector.close()
            for connection in self.lines.values():
                connection.close()
            self.log.close()

    def outcome(self, case):
        """Waits for the end of one case: the seconds it took, and why it failed."""
        called, failure = time.monotonic(), None
        try:
            self.until_it_ends(case, called)
        except Failure as reason:
            failure = str(reason)
            self.log_consoles(failure)
        return time.monotonic() - self.began.get(case.name, called), failure

    def until_it_ends(self, case, called):
        codes = self.codes[case.name]
        while True:
            bad = [f"{code} in node{number}" for number, code in codes.items() if code]
            if bad:
                raise Failure(f"it ended with {', '.join(bad)}")
            if all(guest.number in codes for guest in self.up()):
                return
            for key, _ in self.selector.select(0.05):
                key.data()
            self.run_timers()
            for guest in self.up():
                if not guest.is_running() and guest.number not in codes:
                    self.drain(guest)
                    raise Failure(f"node{guest.number} died by itself")
            now, began = time.monotonic(), self.began.get(case.name)
            if began and now > began + case.seconds:
                raise Failure(f"it did not end within {case.seconds} s")
            if not began and now > called + BOOTING:
                raise Failure(f"no guest began it within {BOOTING} s")

    def log_consoles(self, failure):
        self.log.write(f"--- {failure}\n".encode())
        for guest in self.guests:
            tail = "".join(f"  | {line}\n" for line in guest.console_tail())
            self.log.write(f"--- the kernel of node{guest.number} said last\n{tail}".encode())
        self.log.flush()

    # Guests come and go.

    def up(self):
        """Those that nobody has put down on purpose."""
        return [guest for guest in self.guests if guest.process]

    def start(self, guest):
        for name in ("out", "host"):
            path = guest.port(name)
            listener = socket.socket(socket.AF_UNIX)
            self.forget(guest, name)
            listener.bind(path)
            listener.listen(1)
            self.lines[guest.number, name] = listener
            self.selector.register(listener, selectors.EVENT_READ, partial(self.accept, guest, name))
        guest.start()

    def accept(self, guest, name):
        listener = self.lines[guest.number, name]
        connection, _ = listener.accept()
        self.selector.unregister(listener)
        listener.close()
        self.lines[guest.number, name] = connection
        self.unread[guest.number, name] = b""
        self.selector.register(connection, selectors.EVENT_READ, partial(self.receive, guest, name))

    def forget(self, guest, name):
        guest.directory.joinpath(guest.port(name)).unlink(missing_ok=True)
        connection = self.lines.pop((guest.number, name), None)
        if connection:
            self.selector.unregister(connection)
            connection.close()

    def put_down(self, guest):
        guest.kill()
        guest.process = None
        for name in ("out", "host"):
            self.forget(guest, name)
        self.desk.forget(guest)

    def reboot(self, guest):
        self.put_down(guest)
        self.start(guest)

    def later(self, seconds, action):
        self.timers.append((time.monotonic() + seconds, action))

    def run_timers(self):
        due = [timer for timer in self.timers if timer[0] <= time.monotonic()]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, action in due:
            action()

    # What guests say.

    def receive(self, guest, name):
        try:
            data = self.lines[guest.number, name].recv(LINE)
        except ConnectionError:
            data = b""
        if not data:
            self.forget(guest, name)
            return
        *lines, rest = (self.unread[guest.number, name] + data).split(b"\n")
        self.unread[guest.number, name] = rest
        for line in lines:
            if name == "out":
                self.hear(guest, line)
            else:
                self.consider(guest, line.decode(errors="replace"))

    def drain(self, guest):
        """Reads what a dead guest had still sent."""
        while (guest.number, "out") in self.lines and self.selector.select(0.2):
            self.receive(guest, "out")

    def hear(self, guest, line):
        mark = re.match(rb"\x1e" + self.nonce.encode() + rb" (\w+) (\S+) ?(\d*)$", line)
        if not mark:
            self.say(guest, line.decode(errors="replace") + "\n")
        elif mark[1] == b"begin":
            self.begin(mark[2].decode())
        elif mark[1] == b"end":
            self.codes[mark[2].decode()][guest.number] = int(mark[3])

    def begin(self, name):
        """What is said from here on is of this case. A guest that comes back begins its case again."""
        if name not in self.began and self.began:
            self.log.close()
            self.log = open(self.logs / f"{name}.log", "wb")
        self.began.setdefault(name, time.monotonic())

    def say(self, guest, text):
        prefix = f"[{guest.number}] " if len(self.guests) > 1 else ""
        self.log.write(f"{prefix}{text}".encode())
        self.log.flush()

    def consider(self, guest, line):
        word, *arguments = line.split() or ["nothing"]
        question = getattr(self.desk, word, None) if word.isalpha() else None
        try:
            answer = question(guest, *arguments) if question else None
            if answer is not None:
                self.answer(guest, f"ok {answer}".rstrip())
            elif not question:
                self.answer(guest, f"error: nobody here understands '{line}'")
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            self.answer(guest, f"error: {error}")

    def answer(self, guest, text):
        connection = self.lines.get((guest.number, "host"))
        if connection:
            connection.sendall(text.encode() + b"\n")
