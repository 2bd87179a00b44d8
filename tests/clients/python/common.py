"""What the scripts share: the namespace they may use, and how they say what they saw."""

import sys
import time

from kubernetes import client, config

NAMESPACE = sys.argv[1]
# How long anything may take: slow machines run these scripts, too.
PATIENCE = 60


def connect():
    """Reads the kubeconfig that KUBECONFIG names."""
    config.load_kube_config()
    return client.CoreV1Api()


def check(what, condition, seen):
    """Prints what was verified; ends the script where it was not."""
    if not condition:
        sys.exit(f"FAILED: {what}; saw {seen!r}")
    print(f"ok: {what}", flush=True)


def until(what, look):
    """Waits until `look` returns something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    sys.exit(f"FAILED: waited {PATIENCE} s in vain for {what}")
