"""Commands that agents run in these tests, as the text of small scripts."""

from __future__ import annotations

#: `one_at_a_time.py FOLDER SECONDS INPUT`: notes its start and end in FOLDER/INPUT. A living instance of the same input holds a lock that
#: the kernel takes away with its process, so a second one beside it notes "overlap" instead. SIGTERM does not impress it.
ONE_AT_A_TIME = """
import fcntl, os, signal, sys, time

folder, seconds, name = sys.argv[1], float(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
journal = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(word):
    os.write(journal, f"{word} {os.getpid()}\\n".encode())


lock = os.open(f"{folder}/{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("overlap")
    sys.exit(9)
note("start")
time.sleep(seconds)
note("end")
print(name)
"""

#: `outlive.py FOLDER INPUT`: what really works is two forks away, in a session of its own, deaf to SIGTERM, with an empty environment. The
#: first one of an input works "for ever": only a kill ends it. Its successor is quick. Notes and lock as above.
OUTLIVE = """
import os, sys, time

folder, name = sys.argv[1], sys.argv[2]
DEEP = '''
import fcntl, os, signal, sys, time
folder, name = sys.argv[1], sys.argv[2]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
journal = os.open(f"{folder}/{name}", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
lock = os.open(f"{folder}/{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(journal, f"overlap {os.getpid()}\\\\n".encode())
    sys.exit(9)
first = not os.read(journal, 1)
os.write(journal, f"start {os.getpid()}\\\\n".encode())
time.sleep(600 if first else 0.1)
os.write(journal, f"end {os.getpid()}\\\\n".encode())
'''
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/usr/bin/env", ["env", "-i", sys.executable, "-I", "-S", "-c", DEEP, folder, name], {})
    os._exit(0)
os.wait()
while True:  # as long as no work has ended, whoever is asked says "still working"
    try:
        if "end" in open(f"{folder}/{name}").read():
            break
    except FileNotFoundError:
        pass
    time.sleep(0.02)
print(name)
"""
