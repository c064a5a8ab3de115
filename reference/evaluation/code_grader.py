"""Is a program right? Run it with its tests in a process of its own, within limits.

**This is no security boundary.** It keeps honest mistakes of a model from hurting the machine: a program that runs for
ever, eats memory, forks, or fills a file ends, and is wrong. Code that means harm needs a virtual machine.

    prevented      more than `seconds` of time, `memory` for each process, `processes`, `file_size` for each file; it
                   gets no environment variables; the temporary folder, where it starts, is deleted after it
    where Linux's  the network (a namespace with no device, not even a loopback), and processes that outlive the program
    unshare works  (a namespace of processes, which ends as one); elsewhere only its process group is killed
    as root        it becomes a user who owns nothing, if that user can read Python's files; else root with no privilege
    not prevented  reading what the user can read, writing outside the folder where the user can write, many small files

`confinement()` says which of these hold here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WARNING = "it runs the model's programs on this machine, within limits that are no security boundary"
ENDS = re.compile(r"\n(?=(?:class|def|if|print|assert|import|from|@|#|```))")  # where a completed function is over
BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeLimits:
    seconds: float = 10.0  # of wall-clock time; of CPU time, rounded up, for each process
    memory: int = 2**30  # bytes of address space, for each process
    processes: int = 16  # threads count
    file_size: int = 2**20  # bytes, for each file

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        for name in self.__dataclass_fields__:
            if not 0 < (value := getattr(self, name)) < 2**62:
                raise ValueError(f"{name} is {value}; it must be a positive number")


@dataclass(frozen=True)
class Outcome:
    right: bool
    why: str  # "" if it is right, else what ended it


def find_program(text: str, begin: str = "") -> str | None:
    """The program of a response; None if there is none.

    It is the last code block that defines `begin`'s last function (with what `begin` has before that: imports), else
    the last code block, else the text, as what goes on with `begin`.
    """
    blocks = [block for block in BLOCK.findall(text) if block.strip()]
    for function in [*re.finditer(r"^def +(\w+)", begin, re.MULTILINE)][-1:]:
        whole = [block for block in blocks if re.search(rf"^def +{function[1]}\b", block, re.MULTILINE)]
        if whole:
            return begin[: function.start()] + whole[-1]
    if blocks:
        return begin + blocks[-1]
    return begin + ENDS.split(text)[0] + "\n" if begin and text.strip() else None


# Runs in the new process. What is said on `pipe` is the verdict; a program that leaves early says nothing.
LAUNCHER = """
import ctypes, json, os, resource, sys
pipe, uid, readable, limits, path = json.loads(sys.argv[1])
if uid is not None:
    os.setgroups([])
    if readable:
        os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    else:  # processes are counted by the real user; Python's files are the effective one's
        os.setresuid(uid, 0, 0)
        none = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none): raise OSError('capset')
for name, most in limits.items():
    resource.setrlimit(getattr(resource, name), (most, most))
me, why = os.getpid(), ''
try:
    with open(path, encoding='utf-8') as file: source = file.read()
    exec(compile(source, 'program', 'exec'), {'__name__': '__main__'})
except BaseException as error:
    why = (type(error).__name__ + ': ' + str(error))[:200]
if os.getpid() == me:
    os.write(pipe, json.dumps([not why, why]).encode())
    os._exit(0)
"""


def run_program(source: str, limits: CodeLimits | None = None) -> Outcome:
    """Right if the program, which ends with its tests, comes to its end without an exception."""
    limits = limits or CodeLimits()
    root = os.name == "posix" and os.geteuid() == 0
    uid = 60_000 + os.getpid() % 5_000 if root else None  # a number for each run: processes are counted for each user
    prefix, _ = namespaces()
    count = limits.processes + (0 if root or "--user" in prefix else threads_of_user())
    most = {"RLIMIT_AS": limits.memory, "RLIMIT_NPROC": count, "RLIMIT_FSIZE": limits.file_size, "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 64, "RLIMIT_CPU": int(-(-limits.seconds // 1)) + 1}  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="sharpen-code-"))
    ours, theirs = os.pipe()
    process = None
    try:
        work = folder / "work"
        work.mkdir()
        work.chmod(0o777)
        (folder / "program.py").write_text(source, encoding="utf-8", errors="replace")
        folder.chmod(0o711)
        told = json.dumps([theirs, uid, readable_by_all(), most, str(folder / "program.py")])
        process = subprocess.Popen(
            [*prefix, sys.executable, "-I", "-c", LAUNCHER, told],
            cwd=work, env={"PATH": "/usr/bin:/bin", "HOME": str(work), "TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[theirs], start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        theirs = -1
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"still running after {limits.seconds:g} s")
        os.set_blocking(ours, False)
        try:
            right, why = json.loads(os.read(ours, 4096))
        except (ValueError, TypeError, BlockingIOError):
            return Outcome(False, f"left before its tests had ended (exit status {process.returncode})")
        return Outcome(right is True, str(why))
    finally:
        if process is not None:
            kill_group(process)
        for end in (ours, theirs):
            if end >= 0:
                os.close(end)
        shutil.rmtree(folder, ignore_errors=True)


def kill_group(process: subprocess.Popen) -> None:
    """The process, what it started, and with a namespace of processes everything in that."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def namespaces() -> tuple[tuple[str, ...], str]:
    """The command that gives a program namespaces of its own, the best of those that work here, and what it gives."""
    user = () if os.name == "posix" and os.geteuid() == 0 else ("--user", "--map-root-user")
    processes = ("--pid", "--fork", "--kill-child")
    program = shutil.which("unshare")
    for flags, gives in (
        ((*user, "--net", *processes), "no network, and no process outlives the program"),
        ((*user, "--net"), "no network"),
    ):
        if program and not subprocess.run([program, *flags, "true"], capture_output=True).returncode:
            return (program, *flags), gives
    return (), "the network is open and processes may outlive the program, since unshare does not work here"


@cache
def readable_by_all() -> bool:
    """Whether a user who owns nothing can run this Python."""
    places = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix)}
    return all(path.stat().st_mode & 0o005 == 0o005 for place in places for path in (place, *place.parents))


def threads_of_user() -> int:
    """Of all processes of this user: what the kernel counts against the limit."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            found += len(os.listdir(process / "task")) if process.stat().st_uid == os.getuid() else 0
    return found


def confinement() -> str:
    """What holds on this machine, in one line."""
    return f"time, memory, processes and file sizes are limited; {namespaces()[1]}; {WARNING}"
