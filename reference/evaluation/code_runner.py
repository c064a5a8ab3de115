"""The two processes in which a program and its tests run: `code_grader.py` starts this file with `python -c`.

The program runs in the *worker*, its tests in the *tester*. What the tests call is called in the worker, and comes back
as plain data (numbers, texts, lists, ..) which is built anew here: so the tests compare with the equality of what they
expect, whatever the program has made of its own classes, of json or of sys. The verdict goes back over a pipe that the
worker does not have, with a secret that was read after the worker was there.

Standard input has what the worker may know, then the secret and the tests; their lengths are arguments.
"""

import builtins
import ctypes
import decimal
import fractions
import importlib
import json
import operator
import os
import re
import resource
import signal
import socket
import sys

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
LONGEST = 1 << 24  # bytes of a message
KEYS = (bool, int, str, float, complex, bytes, tuple, frozenset)  # what of a dict's keys may be
SCALARS, LISTS = (bool, int, str), {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


# ---------------------------------------------------------------------------------------------------------------------
# Plain data as JSON, and back


def encoded(value, keep):
    """Subclasses count as what they are subclasses of; keep(value) -> a number for what is no plain data."""
    if value is None or type(value) in SCALARS:
        return value
    for kind in SCALARS:
        if isinstance(value, kind):
            return int.__int__(value) if kind is int else str.__str__(value)
    if isinstance(value, float):
        return {"float": [float.__repr__(float(value))]}
    if isinstance(value, complex):
        return {"complex": [float.__repr__(part) for part in (value.real, value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": list(bytes(value))}
    for name, kind in LISTS.items():
        if isinstance(value, kind):
            return {name: [encoded(each, keep) for each in kind.__iter__(value)]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict) and all(isinstance(key, KEYS) or key is None for key in dict.keys(value)):
        return {"dict": [[encoded(key, keep), encoded(each, keep)] for key, each in dict.items(value)]}
    if type(value) in (fractions.Fraction, decimal.Decimal):
        return {"fraction" if type(value) is fractions.Fraction else "decimal": [str(value)]}
    if hasattr(type(value), "__index__"):  # a whole number of another library's
        return operator.index(value)
    return {"object": keep(value)}


def decoded(value, find):
    """find(number) -> what stands for an object of the other side."""
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind in ("float", "complex"):
        return getattr(builtins, kind)(*map(float, inside))
    if kind in ("fraction", "decimal"):
        return (fractions.Fraction if kind == "fraction" else decimal.Decimal)(*inside)
    if kind in LISTS:
        return LISTS[kind](decoded(each, find) for each in inside)
    if kind == "dict":
        return {decoded(key, find): decoded(each, find) for key, each in inside}
    if kind in ("bytes", "range"):
        return bytes(inside) if kind == "bytes" else range(*inside)
    if kind == "module":  # tests may use what the program has imported, of Python's own
        return importlib.import_module(inside) if inside.partition(".")[0] in sys.stdlib_module_names else None
    return find(inside)


# ---------------------------------------------------------------------------------------------------------------------
# The worker


def serve(channel, source):
    """Run the program; then do what the tester asks, until it has no more questions."""
    objects, module = [], type(sys)("program")
    names, sys.modules["program"] = vars(module), module

    def keep(value):
        objects.append(value)
        return len(objects) - 1

    def answer(question):
        what, at, *rest = question
        target = objects[at]
        if what == "call":
            given = [decoded(each, objects.__getitem__) for each in rest[0]]
            named = {name: decoded(each, objects.__getitem__) for name, each in rest[1].items()}
            result = target(*given, **named)
            return [encoded(result, keep), [encoded(each, keep) for each in given]]
        made = getattr(target, rest[0]) if what == "get" else list(target) if what == "list" else str(target)
        return [encoded(made, keep), []]

    try:
        exec(compile(source, "program", "exec"), names)
        public = {name: value for name, value in names.items() if not name.startswith("__")}
        said = {name: {"module": value.__name__} if type(value) is type(sys) else briefly(value, keep)
                for name, value in public.items()}  # fmt: skip
    except BaseException as error:
        send(channel, {"error": described(error)})
        return
    send(channel, said)
    while (question := receive(channel)) is not None:
        try:
            reply = answer(question)
        except BaseException as error:
            reply = {"error": described(error)}
        send(channel, reply)


def briefly(value, keep):
    """As plain data, or as an object where that is too much, or cannot be."""
    try:
        if len(json.dumps(found := encoded(value, keep))) < 1 << 16:
            return found
    except (RecursionError, TypeError, ValueError):
        pass
    return {"object": keep(value)}


def described(error):
    """With the name of the nearest of Python's own exceptions, which tests may catch."""
    try:
        kind = next(each for each in type(error).__mro__ if vars(builtins).get(each.__name__) is each)
        name = type(error).__name__ if kind in (Exception, BaseException) else kind.__name__
        return [name, str(error)[:200]]
    except BaseException:
        return ["Exception", "an error that cannot be shown"]


def send(channel, message):
    data = json.dumps(message).encode()
    channel.sendall(len(data).to_bytes(8, "big") + data)


def receive(channel):
    """None: the other side has gone."""
    head = exactly(channel, 8)
    if head is None or (size := int.from_bytes(head, "big")) > LONGEST:
        return None
    data = exactly(channel, size)
    return None if data is None else json.loads(data)


def exactly(channel, size):
    found = b""
    while len(found) < size:
        if not (part := channel.recv(min(1 << 16, size - len(found)))):
            return None
        found += part
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The tester


class Gone(BaseException):
    """The worker has left, or what it says is no answer."""


class Remote:
    """An object of the worker: it can be called, iterated, and asked for attributes; it equals only itself."""

    def __init__(self, channel, number):
        self._channel, self._number = channel, number

    def _ask(self, what, *rest):
        send(self._channel, [what, self._number, *rest])
        reply = receive(self._channel)
        if isinstance(reply, dict) and "error" in reply:
            name, message = reply["error"]
            kind = None if name == "StopIteration" else getattr(builtins, name, None)  # no loop ends by it
            raise (
                kind(message)
                if isinstance(kind, type) and issubclass(kind, Exception)
                else Exception(f"{name}: {message}")
            )
        if not isinstance(reply, list):
            raise Gone
        return reply

    def _value(self, value):
        return decoded(value, lambda number: Remote(self._channel, number))

    def __call__(self, *given, **named):
        def number(value):
            if isinstance(value, Remote):
                return value._number
            raise TypeError(f"a {type(value).__name__} cannot be given to the program")

        sent = [encoded(each, number) for each in given]
        result, after = self._ask("call", sent, {name: encoded(each, number) for name, each in named.items()})
        for mine, before, now in zip(given, sent, after):  # what the program has done to its arguments
            if type(mine) in (list, dict, set) and before != now:
                theirs = self._value(now)
                mine.clear()
                mine.extend(theirs) if type(mine) is list else mine.update(theirs)
        return self._value(result)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._value(self._ask("get", name)[0])

    def __iter__(self):
        return iter(self._value(self._ask("list")[0]))

    def __len__(self):
        try:
            self._ask("get", "__len__")
        except AttributeError as error:
            raise TypeError(str(error)) from None  # as of what has no length
        return sum(1 for _ in self)  # as a loop sees it

    def __getitem__(self, key):
        return self._value(self._ask("get", "__getitem__")[0])(key)

    def __str__(self):
        return str(self._value(self._ask("str")[0]))

    def __eq__(self, other):
        return isinstance(other, Remote) and self._number == other._number

    __hash__ = None  # type: ignore[assignment]


def is_program_s(name, value, tests):
    """Whether tests are to see a name of the program: not where it stands for what is Python's own in them, unless it
    is what they check."""
    if name in vars(builtins) or (name in sys.stdlib_module_names and "module" not in (value or ())):
        return re.search(rf"\bcheck\(\s*{name}\s*\)", tests) is not None
    return True


def verdict(channel, tests):
    """ "" if the program and its tests come to their ends, else what ended them; None: the worker left."""
    defined = receive(channel)
    if not isinstance(defined, dict):
        return None
    if isinstance(defined.get("error"), list):
        return ": ".join(defined["error"])
    try:
        names = {name: decoded(value, lambda number: Remote(channel, number)) for name, value in defined.items()
                 if is_program_s(name, value, tests)}  # fmt: skip
        exec(compile(tests, "tests", "exec"), {**names, "__name__": "tests"})
    except Gone:
        return None
    except BaseException as error:
        return ": ".join(described(error))
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Both


def confine(uid, readable, limits):
    """For good: another user or root without privileges, none to be gained, and within limits."""
    system = ctypes.CDLL(None)
    if uid is not None:
        for capability in range(64):
            system.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    system.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if uid is not None:
        os.setgroups([])
        if readable:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        else:  # processes are counted by the real user; Python's files are the effective one's
            os.setresuid(uid, 0, 0)
            none = (ctypes.c_uint32 * 6)()
            if system.capset((ctypes.c_uint32 * 2)(0x20080522, 0), none):
                raise OSError("capset")
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, name), (most, most))
    system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    system.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody of the same user may look into this process


def main():
    sys.set_int_max_str_digits(0)
    pipe, size = int(sys.argv[1]), int(sys.argv[2])
    told = json.loads(exactly_from(0, size))
    confine(told["uid"], told["readable"], told["limits"])
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        os.close(pipe)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # the secret is on its way there
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        theirs.sendall(b"r")
        try:
            serve(theirs, told["source"])
        finally:
            os._exit(0)
    theirs.close()
    ours.recv(1)
    secret = json.loads(exactly_from(0, int(sys.argv[3])))
    why = verdict(ours, secret["tests"])
    if why is not None:
        os.write(pipe, json.dumps([secret["secret"], why[:300]]).encode())
    os._exit(0)


def exactly_from(descriptor, size):
    found = b""
    while len(found) < size:
        found += (part := os.read(descriptor, size - len(found)))
        if not part:
            os._exit(1)
    return found


main()
