"""Plain WebSockets, as Kubernetes' conformance tests use them: the first protocols of exec and logs."""

import ssl
from urllib.parse import urlencode

import websocket
from common import NAMESPACE, PATIENCE, check, connect


def messages(core, path, query, protocol):
    """All messages until the server closes."""
    settings = core.api_client.configuration
    url = settings.host.replace("https://", "wss://") + f"/api/v1/namespaces/{NAMESPACE}/pods/{path}"
    tls = {"ca_certs": settings.ssl_ca_cert, "certfile": settings.cert_file, "keyfile": settings.key_file}
    tls["cert_reqs"] = ssl.CERT_REQUIRED
    socket = websocket.create_connection(
        f"{url}?{urlencode(query, doseq=True)}", sslopt=tls, subprotocols=[protocol], timeout=PATIENCE
    )
    received = []
    while True:
        opcode, data = socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return received
        received.append(data)


CORE = connect()
# [sig-node] Pods should support remote command execution over websockets
COMMAND = {"stdout": "1", "stderr": "1", "command": ["echo", "remote execution test"], "container": "c"}
OUT = messages(CORE, "shell/exec", COMMAND, "channel.k8s.io")
check("all output is on channel 1", all(m[:1] == b"\x01" or len(m) == 1 for m in OUT), OUT)
check("a command runs", b"".join(m[1:] for m in OUT) == b"remote execution test\n", OUT)
OUT = messages(CORE, "shell/exec", COMMAND, "base64.channel.k8s.io")
check("and in base64", b"1cmVtb3RlIGV4ZWN1dGlvbiB0ZXN0Cg==" in OUT, OUT)
# [sig-node] Pods should support retrieving logs from the container over websockets
OUT = messages(CORE, "counter/log", {"container": "c", "limitBytes": "14"}, "binary.k8s.io")
check("a log is read", b"".join(OUT) == b"line 0\nline 1\n", OUT)
try:
    messages(CORE, "shell/exec", COMMAND, "unheard.of")
    check("an unknown protocol is refused", False, "an answer")
except websocket.WebSocketBadStatusException as error:
    check("an unknown protocol is refused", error.status_code == 403, error)
