#!/usr/bin/env python3
"""Writes container images, from programs of this machine, into an archive that `docker load` takes:

images.py cluster OUT --kubernetes DIR --coredns FILE --pause FILE NAME...   what kubeadm wants, by its NAMEs
images.py node OUT NAME ROOT_TAR FOLDER                                     ROOT_TAR with FOLDER on top of it
images.py program OUT NAME PROGRAM=FILE... [--folder PATH] [--argument=ARGUMENT]
                                                                            programs with their libraries for any user;
                                                                            the first is what runs
"""

import argparse
import glob
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOBODY = "65532"


class Layer:
    """A tar file in the making; folders on the way to a file are added as needed."""

    def __init__(self, tar):
        self.tar = tar
        self.folders = set()

    def folder(self, path, mode=0o755):
        path = path.strip("/")
        if not path or path in self.folders:
            return
        self.folder(os.path.dirname(path))
        self.folders.add(path)
        info = tarfile.TarInfo(path)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.tar.addfile(info)

    def link(self, path, target):
        self.folder(os.path.dirname(path))
        info = tarfile.TarInfo(path)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self.tar.addfile(info)

    def data(self, path, data):
        self.folder(os.path.dirname(path))
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(data), 0o644
        self.tar.addfile(info, io.BytesIO(data))

    def program(self, path, source=None):
        source = os.path.realpath(source or path)
        path = path.lstrip("/")
        self.folder(os.path.dirname(path))
        info = self.tar.gettarinfo(source, path)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime, info.mode = 0, 0o755
        with open(source, "rb") as file:
            self.tar.addfile(info, file)


def libraries(programs):
    """The files that the dynamic linker loads for the programs, itself included."""
    found = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        if "not found" in listed:
            sys.exit(f"images.py: libraries of {program} are missing:\n{listed}")
        for line in listed.splitlines():
            path = re.search(r"(/\S+)", line.split("=>")[-1])
            if path:
                found.add(path.group(1))
    return sorted(found)


class Archive:
    def __init__(self, path):
        self.tar = tarfile.open(path, "w")
        self.manifest = []

    def layer(self, source):
        """Adds the tar file `source` as a layer; returns its digest."""
        with open(source, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        self.tar.add(source, f"{digest.hexdigest()}/layer.tar")
        return digest.hexdigest()

    def made_layer(self, fill):
        """Adds a layer that `fill` fills."""
        with tempfile.NamedTemporaryFile(suffix=".tar", dir=os.path.dirname(self.tar.name)) as file:
            with tarfile.open(file.name, "w") as tar:
                fill(Layer(tar))
            return self.layer(file.name)

    def image(self, name, layers, entrypoint=(), arguments=(), environment=(), user="", folder=""):
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        config = {
            "architecture": machine,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {
                "Env": [f"PATH={SEARCH_PATH}", *environment],
                "Entrypoint": list(entrypoint) or None,
                "Cmd": list(arguments) or None,
                "User": user,
                "WorkingDir": folder,
                # Two images of the same layers have to differ in something.
                "Labels": {"name": name},
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in layers]},
        }
        data = json.dumps(config).encode()
        config_name = hashlib.sha256(data).hexdigest() + ".json"
        Layer(self.tar).data(config_name, data)
        files = [f"{digest}/layer.tar" for digest in layers]
        self.manifest.append({"Config": config_name, "RepoTags": [name], "Layers": files})

    def close(self):
        Layer(self.tar).data("manifest.json", json.dumps(self.manifest).encode())
        self.tar.close()


def cluster(options):
    programs = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd"]

    def kubernetes(layer):
        layer.folder("etc")
        layer.folder("tmp", 0o1777)
        layer.program("usr/local/bin/kubernetes", f"{options.kubernetes}/kubernetes")
        for name in programs:
            layer.link(f"usr/local/bin/{name}", "kubernetes")

    def iptables(layer):
        program = "/usr/sbin/xtables-nft-multi"
        extensions = glob.glob("/usr/lib/*/xtables/*.so")
        for path in [program, *extensions, *libraries([program, *extensions])]:
            layer.program(path)
        for family in ("iptables", "ip6tables"):
            for name in (family, f"{family}-save", f"{family}-restore"):
                layer.link(f"usr/sbin/{name}", "xtables-nft-multi")

    archive = Archive(options.out)
    layers = {
        "kubernetes": archive.made_layer(kubernetes),
        "iptables": archive.made_layer(iptables),
        "coredns": archive.made_layer(lambda layer: layer.program("coredns", options.coredns)),
        "pause": archive.made_layer(lambda layer: layer.program("pause", options.pause)),
    }
    for name in options.names:
        of = name.split("/")[-1].split(":")[0]
        if of in ("coredns", "pause"):
            archive.image(name, [layers[of]], entrypoint=[f"/{of}"])
        elif of == "kube-proxy":
            archive.image(name, [layers["kubernetes"], layers["iptables"]])
        elif of in programs:
            archive.image(name, [layers["kubernetes"]])
        else:
            sys.exit(f"images.py: kubeadm wants {name}, and I do not know how to make it")
    archive.close()


def node(options):
    def overlay(layer):
        def own(info):
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            return info

        for name in sorted(os.listdir(options.folder)):
            layer.tar.add(os.path.join(options.folder, name), name, filter=own)

    archive = Archive(options.out)
    layers = [archive.layer(options.root), archive.made_layer(overlay)]
    archive.image(options.name, layers, entrypoint=["/usr/local/bin/node-init"], environment=["container=docker"])
    archive.close()


def program(options):
    name = os.path.basename(options.name.split(":")[0])

    def fill(layer):
        for path in ["tmp", *options.folder]:
            layer.folder(path, 0o1777)
        layer.data("etc/passwd", f"root:x:0:0::/:\n{name}:x:{NOBODY}:{NOBODY}::/:\n".encode())
        layer.data("etc/group", f"root:x:0:\n{name}:x:{NOBODY}:\n".encode())
        for at, path in programs.items():
            layer.program(f"usr/bin/{at}", path)
        for path in libraries(programs.values()):
            layer.program(path)

    programs = dict(given.split("=", 1) for given in options.programs)
    archive = Archive(options.out)
    layer = archive.made_layer(fill)
    archive.image(
        options.name,
        [layer],
        entrypoint=[next(iter(programs))],
        arguments=options.argument,
        user=NOBODY,
        folder=options.folder[0] if options.folder else "/tmp",
    )
    archive.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("cluster")
    command.set_defaults(run=cluster)
    command.add_argument("out")
    command.add_argument("--kubernetes", required=True)
    command.add_argument("--coredns", required=True)
    command.add_argument("--pause", required=True)
    command.add_argument("names", nargs="+")
    command = commands.add_parser("node")
    command.set_defaults(run=node)
    for name in ("out", "name", "root", "folder"):
        command.add_argument(name)
    command = commands.add_parser("program")
    command.set_defaults(run=program)
    for name in ("out", "name"):
        command.add_argument(name)
    command.add_argument("programs", nargs="+")
    command.add_argument("--folder", action="append", default=[])
    command.add_argument("--argument", action="append", default=[])
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
