"""The Python client's streams: exec, attach, port forwarding, logs; and proxies."""

import itertools

from common import NAMESPACE, PATIENCE, check, connect
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream
from kubernetes.watch import Watch


def executed(core):
    """Commands, their outputs, their input and their exit codes."""
    run = lambda command, **more: stream(
        core.connect_get_namespaced_pod_exec,
        "shell",
        NAMESPACE,
        command=command,
        stdout=True,
        stderr=True,
        tty=False,
        **{"stdin": False, **more},
    )
    output = run(["echo", "plain"])
    check("exec returns what a command prints", output == "plain\n", output)
    session = run(["sh", "-c", "cat; echo bye >&2; exit 7"], stdin=True, _preload_content=False)
    session.write_stdin("to and fro\n")
    line = session.readline_stdout(timeout=PATIENCE)
    check("exec carries input", line == "to and fro", line)
    session.close()
    session = run(["sh", "-c", "read line; echo got $line >&2; exit 7"], stdin=True, _preload_content=False)
    session.write_stdin("it\n")
    session.run_forever(timeout=PATIENCE)
    check("the outputs are apart", session.read_stderr() == "got it\n", session.read_stdout())
    check("the exit code arrives", session.returncode == 7, session.returncode)


def attached(core):
    """The streams of the container's own process."""
    session = stream(
        core.connect_get_namespaced_pod_attach,
        "shell",
        NAMESPACE,
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    session.write_stdin("hello\n")
    line = session.readline_stdout(timeout=PATIENCE)
    check("attach reaches the container's process", line == "read hello", line)
    session.close()


def forwarded(core):
    """A socket to a port of a pod, and an error for one that is not there."""
    ports = portforward(core.connect_get_namespaced_pod_portforward, "web", NAMESPACE, ports="80,81")
    socket = ports.socket(80)
    socket.setblocking(True)
    socket.sendall(b"GET /version HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
    answer = b""
    while piece := socket.recv(4096):
        answer += piece
    check("a forwarded port answers", answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n1\n"), answer)
    closed = ports.socket(81)
    closed.setblocking(True)
    while closed.recv(4096):
        pass
    check("a closed port is told of", "refused" in (ports.error(81) or ""), ports.error(81))


def text_of(response):
    """A body as it came: what this client makes of a `str` differs from version to version."""
    return response.data.decode()


def logged(core):
    """Logs as a whole, their end, and as they grow."""
    read = lambda **more: text_of(
        core.read_namespaced_pod_log("counter", NAMESPACE, _preload_content=False, **more)
    )
    text = read(limit_bytes=7)
    check("limitBytes cuts", text == "line 0\n", text)
    text = read(tail_lines=2, timestamps=True)
    check("tailLines and timestamps", len(text.splitlines()) == 2 and text.startswith("20"), text)
    follow = Watch().stream(core.read_namespaced_pod_log, name="counter", namespace=NAMESPACE)
    lines = list(itertools.islice(follow, 20))
    check("following misses nothing", lines == [f"line {i}" for i in range(20)], lines)
    try:
        core.read_namespaced_pod_log("counter", NAMESPACE, previous=True)
        check("no previous container is said", False, "an answer")
    except ApiException as error:
        wanted = 'previous terminated container \\"c\\" in pod \\"counter\\" not found'
        check("no previous container is said", error.status == 400 and wanted in error.body, error.body)


def proxied(core):
    """Pods and Services through the API server."""
    proxy = core.connect_get_namespaced_pod_proxy_with_path
    text = text_of(proxy("web:80", NAMESPACE, "version", _preload_content=False))
    check("the proxy of a pod answers", text == "1\n", text)


CORE = connect()
executed(CORE)
attached(CORE)
forwarded(CORE)
logged(CORE)
proxied(CORE)
