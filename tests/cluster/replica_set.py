"""replica_set.py PORT: exits with 0 once the mongod at 127.0.0.1:PORT is the writable
primary of its one-member replica set, which it initiates if that was not done yet.
Speaks OP_MSG itself, as neither mongosh nor a driver is at hand."""

import socket
import struct
import sys


def bson(document):
    body = b"".join(element(key, value) for key, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def element(key, value):
    name = key.encode() + b"\0"
    if isinstance(value, int):
        return b"\x10" + name + struct.pack("<i", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return b"\x02" + name + struct.pack("<i", len(text)) + text
    if isinstance(value, list):
        return b"\x04" + name + bson({str(i): item for i, item in enumerate(value)})
    return b"\x03" + name + bson(value)


def command(connection, document):
    body = struct.pack("<iB", 0, 0) + bson({**document, "$db": "admin"})
    connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)
    with connection.makefile("rb") as answer:
        (length,) = struct.unpack("<i", answer.read(4))
        return answer.read(length - 4)


def main(port):
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError:
        return 1
    with connection:
        hello = command(connection, {"hello": 1})
        if b"\x08isWritablePrimary\0\x01" in hello:
            return 0
        if b"\x02setName\0" not in hello:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            config = {"_id": "rs0", "members": members}
            command(connection, {"replSetInitiate": config})
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
