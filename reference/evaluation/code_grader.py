"""Is a program right? Run it with its tests in a process of its own, within limits.

**This is no security boundary.** It keeps honest mistakes of a model from hurting the machine: a program that runs for
ever, eats memory, forks, or fills a file ends, and is wrong. Code that means harm needs a virtual machine.

    prevented      more than `seconds` of time, `memory` for each process, `processes`, `file_size` for each file; it
                   gets no environment variables; the temporary folder, where it starts, is deleted after it
    where Linux's  the network (a namespace with no device, not even a loopback), and processes that outlive the program
    unshare works  (a namespace of processes, which ends as one); elsewhere only its process group is killed
    as root        it becomes a user who owns nothing, if that user can read Python's files; else root with no privilege
                   and with none that it could gain
    its verdict    tests run in another process than the program (`code_runner.py`), which cannot say that it is right
    not prevented  reading what the user can read, writing outside the folder where the user can write, many small files

`confinement()` says which of these hold here.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import secrets
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
PREFIX = "sharpen-code-"  # of temporary folders; the process's number follows
LONGEST = 100_000  # characters of a program
ENDS = re.compile(r"\n(?=(?:class|def|if|print|assert|import|from|@|#|```))")  # where a completed function is over
BLOCK = re.compile(r"^([ \t>]*)```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:^(?:\1)?```|\Z)", re.DOTALL | re.MULTILINE)
NO_PYTHON = (
    "bash",
    "console",
    "json",
    "output",
    "plaintext",
    "sh",
    "shell",
    "text",
    "txt",
    "yaml",
)  # languages of blocks
BEGINS = re.compile(r"(?:def|class)\s+\w+|import\s+[\w., ]+$|from\s+[\w.]+\s+import\b|@\w")  # a statement of a program
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


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

    It is the last code block that defines `begin`'s last function, with what `begin` and other blocks have that it
    needs: imports, helpers; else the last code block, as what goes on with `begin`. Without blocks it is the function
    where the text defines it, else the text, as what goes on with `begin`.
    """
    text = text.replace("\ufeff", "")
    blocks = blocks_of(text)
    for function in [*re.finditer(r"^def +(\w+)", begin, re.MULTILINE)][-1:]:
        define = re.compile(rf"^def +{function[1]}\b", re.MULTILINE)
        whole = [i for i, block in enumerate(blocks) if define.search(block)]
        whole = [i for i in whole if not is_stub(blocks[i], function[1])] or whole
        if whole:
            others = [block for i, block in enumerate(blocks) if i != whole[-1]]
            return begin[: function.start()] + with_helpers([*others, blocks[whole[-1]]])
        if not blocks and define.search(text):
            return begin[: function.start()] + in_prose(text)
    if blocks and not begin:
        last = next((i for i in reversed(range(len(blocks))) if does_something(blocks[i])), len(blocks) - 1)
        return with_helpers([*blocks[:last], *blocks[last + 1 :], blocks[last]])
    if blocks:
        return begin + blocks[-1]
    if not begin:
        found = text if does_something(text) else in_prose(text)
        return found if does_something(found) else None
    return begin + ENDS.split(text)[0] + "\n" if begin and text.strip() else None


def blocks_of(text: str) -> list[str]:
    """The code blocks of a text that may be Python, without the indentation or the quotation marks that they stand
    behind."""
    found = [(indent, block) for indent, language, block in BLOCK.findall(text) if language.lower() not in NO_PYTHON]
    return [
        "\n".join(line.removeprefix(indent) for line in block.split("\n")) for indent, block in found if block.strip()
    ]


def does_something(source: str) -> bool:
    """It is Python, and more than names and numbers."""
    return any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in parsed(source).body)


def is_stub(source: str, function: str) -> bool:
    """The function has nothing but a docstring, `pass` or `...`."""
    bodies = [node.body for node in parsed(source).body if isinstance(node, DEFINES[:2]) and node.name == function]
    return bool(bodies) and all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in bodies[-1]
    )


def with_helpers(blocks: list[str]) -> str:
    """The last block, behind what it uses of what the others define."""
    *others, last = blocks
    nodes = [node for block in others for node in parsed(block).body]
    own = {name for node in parsed(last).body for name in names_of(node)}
    wanted, helpers = names_in(parsed(last)) - own, set[int]()
    while more := [i for i, node in enumerate(nodes) if i not in helpers and wanted & {*names_of(node)}]:
        helpers.update(more)
        wanted |= set().union(*(names_in(nodes[i]) for i in more)) - own
    return "\n".join([*(ast.unparse(nodes[i]) for i in sorted(helpers)), last])


def names_in(node: ast.AST) -> set[str]:
    """The names that it uses, and "*", which any import of everything gives."""
    return {"*", *(each.id for each in ast.walk(node) if isinstance(each, ast.Name))}


def parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def names_of(node: ast.AST) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.Try):
        return [name for each in (*node.body, *(x for handler in node.handlers for x in handler.body))
                for name in names_of(each)]  # fmt: skip
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(each.asname or each.name).partition(".")[0] for each in node.names]
    if isinstance(node, ast.Assign):
        return [each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return [node.name] if isinstance(node, DEFINES[:3]) else []


def in_prose(text: str) -> str:
    """The lines of code in a text without fences: those that begin a statement, and what is indented below them."""
    kept, inside = [], False
    for line in text.splitlines():
        if line.strip() and not line[0].isspace():
            inside = BEGINS.match(line) is not None
        if inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


RUNNER = Path(__file__).with_name("code_runner.py")


def run_program(source: str, limits: CodeLimits | None = None, tests: str = "") -> Outcome:
    """Right if the program, and then its tests, which call what it defines, come to their ends without an exception."""
    limits = limits or CodeLimits()
    if len(source) > LONGEST:
        return Outcome(False, f"the program has {len(source):,} characters; at most {LONGEST:,} are run")
    root = os.name == "posix" and os.geteuid() == 0
    uid = 60_000 + os.getpid() % 5_000 if root else None  # a number for each run: processes are counted for each user
    prefix, _ = namespaces()
    count = limits.processes + 1 + (0 if root or "--user" in prefix else threads_of_user())
    most = {"RLIMIT_AS": limits.memory, "RLIMIT_NPROC": count, "RLIMIT_FSIZE": limits.file_size, "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 64, "RLIMIT_CPU": int(-(-limits.seconds // 1)) + 1}  # fmt: skip
    sweep()
    secret, folder = secrets.token_hex(16), Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    source = source.encode(errors="replace").decode()
    told = json.dumps({"uid": uid, "readable": readable_by_all(), "limits": most, "source": source}).encode()
    asked = json.dumps({"secret": secret, "tests": tests}).encode()
    ours, theirs = os.pipe()
    process = None
    try:
        work = folder / "work"
        work.mkdir()
        work.chmod(0o777)
        folder.chmod(0o711)
        process = subprocess.Popen(
            [*prefix, sys.executable, "-I", "-c", RUNNER.read_text(), str(theirs), str(len(told)), str(len(asked))],
            cwd=work, env={"PATH": "/usr/bin:/bin", "HOME": str(work), "TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[theirs], start_new_session=True, preexec_fn=die_with_us,
        )  # fmt: skip
        os.close(theirs)
        theirs = -1
        try:
            process.communicate(told + asked, limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"still running after {limits.seconds:g} s")
        os.set_blocking(ours, False)
        try:
            said, why = json.loads(os.read(ours, 4096))
        except (ValueError, TypeError, BlockingIOError):
            return Outcome(False, f"left before its tests had ended (exit status {process.returncode})")
        return Outcome(said == secret and not why, str(why))
    finally:
        if process is not None:
            kill_group(process)
        for end in (ours, theirs):
            if end >= 0:
                os.close(end)
        remove(folder)


def die_with_us() -> None:
    """In the new process: it ends when this one does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def remove(folder: Path) -> None:
    """However deep its folders are."""
    with suppress(OSError, RecursionError):
        shutil.rmtree(folder)
    if folder.exists():
        subprocess.run(["rm", "-rf", str(folder)], check=False, capture_output=True)


@cache
def sweep() -> None:
    """Remove what runs that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove(folder)


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
    root = os.name == "posix" and os.geteuid() == 0
    who = "a user who owns nothing" if readable_by_all() else "root without privileges, which it cannot regain"
    limits = "time, memory, processes and file sizes are limited"
    return f"{limits}; {namespaces()[1]}; {f'it runs as {who}; ' if root else ''}{WARNING}"
