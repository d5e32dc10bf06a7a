#!/usr/bin/env python3
"""Compares a mounted image with what applying its layers in order gives, entry by entry.

usage: compare.py LAYOUT REF MOUNTPOINT [--shown-owner UID:GID]

An independent unpacker: it reads the OCI layout's tars with Python's tarfile into a tree in memory, by the rules of the OCI
image-spec (layer.md), and looks at the mount with lstat, readlink, getxattr and read. Compared are the kind, mode, owner, size,
mtime to the nanosecond, device numbers, link targets, extended attributes, contents, hard-link groups, and that no entry is
missing or too many. With --shown-owner every entry must be that owner's (a user namespace with one id).
"""
import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile


class Inode:
    def __init__(self, member, body):
        self.kind = member.type
        self.member = member
        self.body = body          # sha256 of the content of a regular file
        self.children = {} if member.isdir() else None

    def mode(self):
        m = self.member
        bits = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR,
                tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}.get(m.type, stat.S_IFREG)
        return bits | (0o777 if bits == stat.S_IFLNK else m.mode & 0o7777)


def implied():
    member = tarfile.TarInfo("")
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    return Inode(member, None)


def find(root, parts):
    node = root
    for part in parts:
        if node is None or node.children is None:
            return None
        node = node.children.get(part)
    return node


def parts_of(name):
    return [p for p in name.encode("utf-8", "surrogateescape").split(b"/") if p not in (b"", b".")]


def apply(root, tar):
    own = set()                       # paths of this layer: its whiteouts do not hide them
    hidden = []                       # whiteouts take effect before the layer's own entries
    members = []
    for member in tar:
        parts = parts_of(member.name)
        if parts and parts[-1] == b".wh..wh..opq":
            hidden.append((parts[:-1], None))
        elif parts and parts[-1].startswith(b".wh..wh."):
            continue
        elif parts and parts[-1].startswith(b".wh."):
            hidden.append((parts[:-1], parts[-1][4:]))
        else:
            body = None
            if member.isreg():
                digest = hashlib.sha256()
                source = tar.extractfile(member)
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                body = digest.digest()
            members.append((parts, member, body))
    for parts, name in hidden:
        directory = find(root, parts)
        if directory is not None and directory.children is not None:
            if name is None:
                directory.children.clear()
            else:
                directory.children.pop(name, None)
    for parts, member, body in members:
        if not parts:
            root.member = member
            continue
        directory = root
        for part in parts[:-1]:
            below = directory.children.get(part)
            if below is None or below.children is None:
                below = directory.children[part] = implied()
            directory = below
        old = directory.children.get(parts[-1])
        if member.islnk():
            target = find(root, parts_of(member.linkname))
            assert target is not None, f"hard link {member.name} to a missing {member.linkname}"
            directory.children[parts[-1]] = target
        elif member.isdir() and old is not None and old.children is not None:
            old.member = member
        else:
            directory.children[parts[-1]] = Inode(member, body)
        own.add(tuple(parts))


def opened(layout, descriptor):
    path = os.path.join(layout, "blobs", *descriptor["digest"].split(":"))
    with open(path, "rb") as blob:
        magic = blob.read(4)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(path)
    if magic == b"\x28\xb5\x2f\xfd":
        import subprocess
        return io.BytesIO(subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout)
    return open(path, "rb")


def load(layout, digest):
    with open(os.path.join(layout, "blobs", *digest.split(":")), "rb") as blob:
        return json.load(blob)


def tree_of(layout, ref):
    with open(os.path.join(layout, "index.json"), "rb") as index:
        manifests = json.load(index)["manifests"]
    chosen = [m for m in manifests if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == ref]
    assert chosen, f"{layout} has no {ref}"
    root = implied()
    for descriptor in load(layout, chosen[0]["digest"])["layers"]:
        with opened(layout, descriptor) as stream, tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
            apply(root, tar)
    return root


class Comparison:
    def __init__(self, owner):
        self.owner, self.wrong, self.entries = owner, [], 0
        self.groups, self.numbers = {}, {}

    def differ(self, path, what, expected, found):
        self.wrong.append(f"{os.fsdecode(path)}: {what}: expected {expected!r}, found {found!r}")

    def entry(self, path, node):
        self.entries += 1
        member, found = node.member, os.lstat(path)
        expected = {"mode": node.mode(), "uid": member.uid, "gid": member.gid}
        if self.owner:
            expected["uid"], expected["gid"] = self.owner
        if member.name or node.kind != tarfile.DIRTYPE:
            text = member.pax_headers.get("mtime", str(member.mtime))
            whole, _, part = text.partition(".")
            expected["mtime"] = int(whole) * 10**9 + int((part + "0" * 9)[:9]) * (-1 if text.startswith("-") else 1)
        if node.body is not None:
            expected["size"] = member.size
        if member.ischr() or member.isblk():
            expected["rdev"] = (member.devmajor, member.devminor)
        has = {"mode": found.st_mode, "uid": found.st_uid, "gid": found.st_gid, "mtime": found.st_mtime_ns,
               "size": found.st_size, "rdev": (os.major(found.st_rdev), os.minor(found.st_rdev))}
        for what, value in expected.items():
            if has[what] != value:
                self.differ(path, what, value, has[what])
        if node.kind == tarfile.SYMTYPE and os.fsdecode(os.readlink(path)) != member.linkname:
            self.differ(path, "target", member.linkname, os.readlink(path))
        xattrs = {k[len("SCHILY.xattr."):]: v for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")}
        if found_names := set(os.listxattr(path, follow_symlinks=False)) ^ set(xattrs):
            self.differ(path, "xattrs", sorted(xattrs), sorted(found_names))
        if node.body is not None:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            if digest.digest() != node.body:
                self.differ(path, "content", node.body.hex(), digest.hexdigest())
        if node.children is None:
            self.groups.setdefault(id(node), set()).add(path)
            self.numbers.setdefault(found.st_ino, set()).add(path)
            self.groups[id(node), "nlink"] = (path, found.st_nlink)

    def walk(self, path, node):
        pending = [(path, node)]
        while pending:
            path, node = pending.pop()
            self.entry(path, node)
            if node.children is None:
                continue
            listed = {}
            with os.scandir(path) as entries:
                for entry in entries:
                    listed[entry.name] = entry.inode()
            for name in listed.keys() - node.children.keys():
                self.differ(os.path.join(path, name), "entry", None, "too many")
            for name, child in node.children.items():
                below = os.path.join(path, name)
                if name not in listed:
                    self.differ(below, "entry", child.kind, "missing")
                    continue
                if listed[name] != os.lstat(below).st_ino:
                    self.differ(below, "d_ino", os.lstat(below).st_ino, listed[name])
                pending.append((below, child))

    def links(self):
        names = {key: paths for key, paths in self.groups.items() if isinstance(key, int)}
        for key, paths in names.items():
            path, nlink = self.groups[key, "nlink"]
            if nlink != len(paths):
                self.differ(path, "nlink", len(paths), nlink)
        if sorted(map(sorted, names.values())) != sorted(map(sorted, self.numbers.values())):
            self.differ(b"", "hard-link groups", len(names), len(self.numbers))


def main():
    arguments = sys.argv[1:]
    owner = None
    if "--shown-owner" in arguments:
        at = arguments.index("--shown-owner")
        owner = tuple(map(int, arguments[at + 1].split(":")))
        del arguments[at:at + 2]
    layout, ref, mountpoint = arguments
    comparison = Comparison(owner)
    comparison.walk(os.fsencode(mountpoint), tree_of(layout, ref))
    comparison.links()
    for line in comparison.wrong[:20]:
        print(line, file=sys.stderr)
    print(f"{ref}: {comparison.entries} entries compared, {len(comparison.wrong)} differences")
    return 1 if comparison.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
