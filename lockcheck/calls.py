"""What is known of calls by name: which block, and which do not raise."""

from __future__ import annotations

import ast

from lockcheck.project import FunctionInfo
from lockcheck.values import Values

#: Dotted names of functions that wait, do I/O or start processes.
BLOCKING_FUNCTIONS = {
    "time.sleep": "sleeps",
    "open": "opens a file",
    "io.open": "opens a file",
    "print": "prints",
    "input": "waits for input",
    "os.system": "runs a command",
    "os.popen": "runs a command",
    "os.fork": "forks",
    "os.wait": "waits for a process",
    "os.waitpid": "waits for a process",
    "os.read": "reads",
    "os.write": "writes",
    "os.fsync": "writes to the disk",
    "os.fdatasync": "writes to the disk",
    "os.sync": "writes to the disk",
    "os.open": "opens a file",
    "select.select": "waits for I/O",
    "shutil.copy": "copies files",
    "shutil.copyfile": "copies files",
    "shutil.copytree": "copies files",
    "shutil.move": "moves files",
    "shutil.rmtree": "removes files",
    "socket.create_connection": "connects",
    "socket.getaddrinfo": "resolves a name",
    "socket.gethostbyname": "resolves a name",
    "socket.getfqdn": "resolves a name",
    "urllib.request.urlopen": "fetches a URL",
    "urllib.request.urlretrieve": "fetches a URL",
    "subprocess.run": "runs a command",
    "subprocess.call": "runs a command",
    "subprocess.check_call": "runs a command",
    "subprocess.check_output": "runs a command",
    "subprocess.getoutput": "runs a command",
    "subprocess.Popen": "starts a process",
    "asyncio.run": "runs an event loop",
    **{f"logging.{n}": "logs" for n in ("debug", "info", "warning", "error", "critical", "exception", "log")},
    **{f"requests.{n}": "fetches a URL" for n in ("get", "post", "put", "delete", "head", "patch", "request")},
    **{f"httpx.{n}": "fetches a URL" for n in ("get", "post", "put", "delete", "head", "patch", "request")},
}

_LOG_METHODS = {"debug", "info", "warning", "warn", "error", "critical", "exception", "log"}
#: type -> method -> what it does
BLOCKING_METHODS: dict[str, dict[str, str]] = {
    "thread": {"join": "waits for a thread"},
    "process": {"join": "waits for a process"},
    "event": {"wait": "waits for an event"},
    "barrier": {"wait": "waits at a barrier"},
    "queue": {"get": "waits for a queue", "put": "may wait for a queue", "join": "waits for a queue"},
    "unbounded queue": {"get": "waits for a queue", "join": "waits for a queue"},
    "popen": {"wait": "waits for a process", "communicate": "waits for a process"},
    "future": {"result": "waits for a result", "exception": "waits for a result"},
    "logger": dict.fromkeys(_LOG_METHODS, "logs"),
    "socket": dict.fromkeys(
        ("accept", "connect", "recv", "recvfrom", "recv_into", "recvmsg", "send", "sendall", "sendto", "sendmsg"),
        "does network I/O",
    ),
    "file": dict.fromkeys(("read", "readline", "readlines", "write", "writelines", "flush"), "does file I/O"),
}

_LOGGER_NAMES = {"logger", "_logger", "log", "_log", "LOG", "LOGGER", "_LOGGER", "_LOG"}

#: Methods that do not raise with the arguments they usually get.
_QUIET_METHODS = {
    *("append", "appendleft", "add", "discard", "clear", "items", "keys", "values", "copy", "extend", "get"),
    *("setdefault", "is_set", "set", "locked", "notify", "notify_all", "notifyAll", "is_alive", "cancelled", "done"),
    *("startswith", "endswith", "lower", "upper", "strip", "join", "format", "empty", "qsize", "fileno", "cancel"),
    *("is_owned", "_is_owned", "bit_length", "isdigit", "total_seconds"),
    *_LOG_METHODS,
}
_QUIET_FUNCTIONS = {
    *("len", "isinstance", "issubclass", "id", "type", "bool", "callable", "repr", "hasattr", "super", "object"),
    *("list", "dict", "set", "tuple", "frozenset", "range", "enumerate", "zip", "print", "min", "max", "abs", "str"),
    *("time.time", "time.monotonic", "time.perf_counter", "time.monotonic_ns", "time.perf_counter_ns", "time.time_ns"),
    *(
        "time.sleep",
        "os.getpid",
        "threading.get_ident",
        "threading.current_thread",
        "_thread.get_ident",
        "sys.exc_info",
    ),
    *("threading.Lock", "threading.RLock", "threading.Event", "threading.Condition", "collections.deque"),
    *("sys._getframe", "gc.collect", "weakref.ref", "traceback.print_exc", "collections.OrderedDict"),
    *("os.sched_yield", "sorted", "any", "all", "sum", "getattr", "setattr", "iter"),
    *(f"logging.{name}" for name in _LOG_METHODS),
}


def blocks(call: ast.Call, function: FunctionInfo, values: Values) -> str:
    """What a call does that may take long; empty if nothing is known of it."""
    dotted = values.project.dotted(call.func, function.module, function)
    if dotted in BLOCKING_FUNCTIONS and not _returns_at_once(dotted, call):
        return f"{dotted}() {BLOCKING_FUNCTIONS[dotted]}"
    if not isinstance(call.func, ast.Attribute):
        return ""
    receiver, method = call.func.value, call.func.attr
    if not any(method in methods for methods in BLOCKING_METHODS.values()):
        return ""
    value = values.infer(receiver, function)
    what = value.type if value is not None else ""
    name = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", "")
    if not what and method in _LOG_METHODS and name in _LOGGER_NAMES and call.args:
        what = "logger"
    action = BLOCKING_METHODS.get(what, {}).get(method, "")
    if not action or _does_not_wait(what, method, call):
        return ""
    return f"{ast.unparse(call.func)}() {action}"


def _returns_at_once(dotted: str, call: ast.Call) -> bool:
    """sleep(0), waitpid(pid, WNOHANG)"""
    if dotted == "time.sleep":
        return isinstance(call.args[0], ast.Constant) and call.args[0].value == 0 if call.args else False
    return any("WNOHANG" in ast.unparse(a) for a in call.args)


def _does_not_wait(what: str, method: str, call: ast.Call) -> bool:
    """queue.get(False), event.wait(0), thread.join(0)"""
    arguments = {k.arg: k.value for k in call.keywords}
    if what.endswith("queue"):
        position = 0 if method == "get" else 1
        block = arguments.get("block", call.args[position] if len(call.args) > position else None)
        if isinstance(block, ast.Constant) and not block.value:
            return True
    first = arguments.get("timeout", call.args[0] if call.args else None)
    return what in ("event", "thread", "process") and isinstance(first, ast.Constant) and first.value == 0


def is_quiet(call: ast.Call, function: FunctionInfo, values: Values) -> bool:
    """Whether a call can be taken not to raise."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in _QUIET_METHODS:
        return True
    dotted = values.project.dotted(call.func, function.module, function)
    return dotted in _QUIET_FUNCTIONS
