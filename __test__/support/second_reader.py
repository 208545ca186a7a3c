"""A second reader of the stored format, written from docs/format.md alone: it shares no code with the product.

    second_reader.py DIRECTORY
                     (--application-key-env NAME | --passphrase-env NAME | --key-file FILE | --recovery-code-env NAME | --plain)
                     [--snapshot ID|latest] (--list | --hashes | --extract DIR | --search)

DIRECTORY is a `file://` repository. Secrets come from environment variables, so that none is in a process list. Prints one
JSON object; ends with 1 and a message as soon as a byte is not what it must be. --hashes and --extract read all content of
the snapshot and check every tag, checksum, chunk id and SHA-256 on the way. --search opens everything that is stored, of
whatever snapshot, and prints which lines of standard input occur in it. Everything is held in memory.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import re
import sqlite3
import struct
import sys

import blake3
import cbor2
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PACK, INDEX, MANIFEST, SLOT, PLAIN_LIST = 1, 2, 3, 4, 6
NO_KEY = bytes(16)
KINDS = ["file", "directory", "symlink", "database", "exception"]
MAX_CONTENT = (256 << 10) + (2 << 20)
MAX_CHUNKS = 65536
MAX_FRAME = MAX_CONTENT + 4 * (MAX_CHUNKS + 1)
MAX_PACK = 21_495_808


class Damaged(Exception):
    """Stored bytes that are not what they must be."""


def need(fact, problem):
    if not fact:
        raise Damaged(problem)


# Sections 3 and 4: slots and sealing


def derive(key, salt, purpose):
    return HKDF(SHA256(), 32, salt, b"openclaw-b2-backup/1 " + purpose).derive(key)


def make_header(role, master, salt):
    return b"OB2B" + bytes([1, role, master != NO_KEY, 0]) + master + salt


def parse_header(stored, role, name):
    header = stored[:56]
    need(len(header) == 56 and header == make_header(role, header[8:24], header[24:]), f"{name}: its header")
    return header


def open_part(secret, header, name, number, last, sealed):
    """`secret` is None in an unencrypted repository."""
    nonce = bytes([0, 0, 0, last]) + number.to_bytes(8, "big")
    bound = header + name.encode()
    if secret is None:
        hasher = blake3.blake3(derive_key_context="openclaw-b2-backup/1 checksum of a plain object")
        hasher.update(nonce + struct.pack("<Q", len(bound)) + bound + sealed[:-16])
        need(hasher.digest()[:16] == sealed[-16:], f"{name}: the checksum of part {number}")
        return sealed[:-16]
    try:
        return AESGCM(derive(secret, header[24:], b"object")).decrypt(nonce, sealed, bound)
    except InvalidTag:
        raise Damaged(f"{name}: the tag of part {number}") from None


def parse_json(data, name):
    def without_repetition(pairs):
        need(len(dict(pairs)) == len(pairs), f"{name}: a field is repeated")
        return dict(pairs)

    return json.loads(data, object_pairs_hook=without_repetition)


def fields(value, names, where):
    need(set(value) == set(names), f"{where}: its fields are not {names}")
    return [value[name] for name in names]


def unhex(text, length):
    need(re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text), f"{text!r} is not {length} bytes")
    return bytes.fromhex(text)


def open_slot(name, data, kind, password):
    """Master key id and master key, or None when this is not the secret of the slot."""
    slot = parse_json(data, name)
    retires = [fields(entry, ["masterKey", "proof"], name) for entry in slot.pop("retires", [])]
    proof = slot.pop("proof", None)
    slot = fields(slot, ["format", "id", "masterKey", "kind", "kdf", "wrapped"], name)
    form, slot_id, master, slot_kind, kdf, wrapped = slot
    function, log_n, r, p, salt = fields(kdf, ["name", "logN", "r", "p", "salt"], name)
    need(form == 1 and function == "scrypt" and name == f"keys/{slot_id}.json", f"{name}: contradicts itself")
    bounded = 1 <= log_n <= 24 and 1 <= r <= 64 and 1 <= p <= 16 and 128 * r * p << log_n <= 256 << 20
    need(bounded, f"{name}: its scrypt parameters")
    salt, wrapped, master = base64.b64decode(salt), base64.b64decode(wrapped), unhex(master, 16)
    need(len(salt) == 32 and len(wrapped) == 48 and master != NO_KEY, f"{name}: its fields")
    if slot_kind != kind:
        return None
    wrapping = hashlib.scrypt(password, salt=salt, n=1 << log_n, r=r, p=p, maxmem=1 << 30, dklen=32)
    bound = "\n".join([name, kind, *(f"{retired} {proof}" for retired, proof in retires)])
    try:
        secret = open_part(wrapping, make_header(SLOT, master, salt), bound, 0, True, wrapped)
    except Damaged:
        return None
    proven = derive(secret, b"", f"slot {bound}".encode()).hex()
    need(proof in (None, proven), f"{name}: its proof")
    return master, secret


def check_symbol(number, data):
    total = number
    for place, value in enumerate(reversed(data)):
        total += value if place % 2 else 2 * value // 32 + 2 * value % 32
    return -total % 32


def recovery_code(typed):
    """The secret of a recovery code."""
    code = re.sub(r"[\s_\u2010-\u2015\u2212-]", "", typed).upper().translate(str.maketrans("OIL", "011"))
    values = ["0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(symbol) for symbol in code]
    need(len(values) == 35, "a recovery code has 35 symbols")
    for number in range(7):
        *data, check = values[5 * number : 5 * number + 5]
        need(check_symbol(number, data) == check, f"group {number + 1} of the recovery code is mistyped")
    return code


# Sections 5 and 6: chunks and frames


def chunk_id(secret, chunk):
    return blake3.blake3(chunk, key=derive(secret or bytes(32), b"", b"chunk id")).digest()[:16]


def decompress(data, limit, name):
    size = zstandard.get_frame_parameters(data).content_size
    need(size <= limit, f"{name}: announces no size, or too large a one")  # No size is 2^64 - 1 here.
    plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    need(len(plain) == size, f"{name}: has another size than it announces")
    return plain


def split_frame(payload, name):
    need(payload[0] in (0, 1), f"{name}: its compression")
    plain = decompress(payload[1:], MAX_FRAME, name) if payload[0] else payload[1:]
    (count,) = struct.unpack_from("<I", plain)
    need(len(plain) <= MAX_FRAME and count <= MAX_CHUNKS, f"{name}: a frame that is too large")
    lengths, at, chunks = struct.unpack_from(f"<{count}I", plain, 4), 4 + 4 * count, []
    need(at + sum(lengths) == len(plain), f"{name}: the lengths of its chunks")
    for length in lengths:
        chunks.append(plain[at : at + length])
        at += length
    return chunks


def ids_of(joined):
    need(len(joined) % 16 == 0, "a list of chunk ids is cut")
    return [joined[at : at + 16] for at in range(0, len(joined), 16)]


class Repository:
    def __init__(self, root, kind, password):
        self.root, self.packs, self.places = root, {}, {}
        paths = [os.path.join(folder, file) for folder, _, files in os.walk(root) for file in files]
        self.names = sorted(os.path.relpath(path, root) for path in paths)
        slots = self.named(r"keys/[0-9a-f]{32}\.json")
        need(kind or not slots, "the repository is encrypted")
        opened = [open_slot(name, self.read(name), kind, password) for name in slots]
        self.keys = dict(filter(None, opened)) if kind else {NO_KEY: None}
        need(self.keys, "the secret opens no slot")
        self.accepted = {}
        for name in self.named(r"plain/[0-9a-f]{32}"):
            self.add_plain_list(name)
        for name in self.named(r"index/[0-9a-f]{32}"):
            self.add_index(name)

    def named(self, pattern):
        return [name for name in self.names if re.fullmatch(pattern, name, re.ASCII)]

    def read(self, name):
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def add_plain_list(self, name):
        """What was stored before encryption was turned on. A list of another key was left by an interruption."""
        stored = self.read(name)
        header = parse_header(stored, PLAIN_LIST, name)
        if header[8:24] in self.keys:
            opened = open_part(self.keys[header[8:24]], header, name, 0, True, stored[56:])
            (objects,) = fields(parse_json(opened, name), ["objects"], name)
            self.accepted = {**objects, **self.accepted}

    def key(self, header, name, stored=None):
        """`stored` is the whole of a manifest or an index object; a pack is named by one of these, and proved by chunk ids."""
        if header[8:24] == NO_KEY and self.accepted:
            known = stored is None or self.accepted.get(name) == hashlib.sha256(stored).hexdigest()
            need(known, f"{name}: is plain, and not on the list of what is")
            return None
        need(header[8:24] in self.keys, f"{name}: its key is not known, or it is plain among sealed ones, or the other way")
        return self.keys[header[8:24]]

    # Section 7: the index, and the packs it leads to

    def add_index(self, name):
        stored = self.read(name)
        header = parse_header(stored, INDEX, name)
        plain = open_part(self.key(header, name, stored), header, name, 0, True, stored[56:])
        live, condemned, *_ = cbor2.loads(decompress(plain, 64 << 20, name))
        for pack, size, frames, pack_header in live + condemned:
            pack_name = f"packs/{pack.hex()[:2]}/{pack.hex()}"
            need(len(pack) == 16 and size <= MAX_PACK, f"{name}: a pack in it")
            if pack_name not in self.names or os.path.getsize(os.path.join(self.root, pack_name)) != size:
                continue
            for number, (offset, length, lengths, ids) in enumerate(frames):
                fits = offset >= 56 and offset + length <= size and len(ids) == 16 * len(lengths)
                need(fits and sum(lengths) <= MAX_CONTENT, f"{name}: a frame in it")
                for place, wanted in enumerate(ids_of(ids)):
                    self.places[wanted] = pack_name, pack_header, number, (offset, length), place, lengths[place]

    def pack(self, name):
        """Header, key and frames of a pack from its own bytes alone; a frame is its place and its chunks."""
        if name not in self.packs:
            stored = self.read(name)
            header = parse_header(stored, PACK, name)
            secret, at, length, frames = self.key(header, name), 56, 0, []
            while length != 16:
                (length,) = struct.unpack_from("<I", stored, at)
                at += 4
                payload = open_part(secret, header, name, len(frames), length == 16, stored[at : at + length])
                if length != 16:
                    frames.append(((at, length), split_frame(payload, name)))
                at += length
            need(at == len(stored), f"{name}: something follows its end")
            self.packs[name] = header, secret, frames
        return self.packs[name]

    def chunk(self, wanted):
        need(wanted in self.places, f"the index lacks the chunk {wanted.hex()}")
        name, pack_header, number, span, place, length = self.places[wanted]
        header, secret, frames = self.pack(name)
        need(header == pack_header and frames[number][0] == span, f"{name}: the index contradicts it")
        chunk = frames[number][1][place]
        need(len(chunk) == length and chunk_id(secret, chunk) == wanted, f"{name}: {wanted.hex()} is another chunk")
        return chunk

    # Sections 8 and 9: manifests and trees

    def snapshots(self):
        """Ids, oldest first."""
        shape = r"(safety-)?\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ-[0-9a-f]{8}/manifest\.json"
        found = [name.removesuffix("/manifest.json") for name in self.named(shape)]
        return sorted(found, key=lambda snapshot: snapshot.removeprefix("safety-"))

    def summary(self, snapshot):
        name = f"{snapshot}/manifest.json"
        names = ["format", "snapshot", "createdAt", "masterKey", "salt", "body"]
        stored = self.read(name)
        form, own, created, master, salt, sealed = fields(parse_json(stored, name), names, name)
        header = make_header(MANIFEST, unhex(master, 16), unhex(salt, 32))
        opened = open_part(self.key(header, name, stored), header, f"{name}\n{created}", 0, True, base64.b64decode(sealed))
        body = parse_json(opened, name)
        need(re.sub("[:]", "-", created) in own, f"{name}: its time is not that of its name")
        need(form == 1 and own == snapshot and body["createdAt"] == created, f"{name}: contradicts itself")
        depth, chunks = fields(body["tree"], ["depth", "chunks"], name)
        need(depth <= 6 and len(chunks) <= 32, f"{name}: the root of its tree")
        return body

    def tree(self, snapshot):
        root = self.summary(snapshot)["tree"]
        level = [unhex(text, 16) for text in root["chunks"]]
        for _ in range(root["depth"]):
            level = ids_of(b"".join(map(self.chunk, level)))
        stream, previous = io.BytesIO(b"".join(map(self.chunk, level))), b""
        while stream.tell() < len(stream.getbuffer()):
            entry = cbor2.load(stream)
            need(list(entry) in (list(range(8)), list(range(9))), f"the tree entry {entry} has other keys")
            path = entry[0].encode()
            need(previous < path or previous == b"", f"{entry[0]!r} is out of order")
            previous = path
            yield check_entry(*entry.values())

    def content(self, entry):
        chunks = map(self.chunk, entry["chunks"])
        if entry["page"]:
            chunks = (absolute_page(page, number) for number, page in enumerate(chunks, 1))
        content = b"".join(chunks)
        whole = len(content) == entry["size"] and hashlib.sha256(content).hexdigest() == entry["sha256"]
        need(whole, f"{entry['path']}: its content has another size or hash")
        return content


    def everything(self):
        """All that a holder of the secret can read: stored bytes, names, contents, and chunks that no snapshot refers to."""
        yield from (name.encode() + self.read(name) for name in self.names)
        for name in self.named(r"packs/[0-9a-f]{2}/[0-9a-f]{32}"):
            yield b"".join(chunk for _, chunks in self.pack(name)[2] for chunk in chunks)
        for snapshot in self.snapshots():
            yield json.dumps(self.summary(snapshot)).encode()
            for entry in self.tree(snapshot):
                yield f"{entry['path']}\n{entry['target']}".encode()
                yield self.content(entry) if entry["kind"] in ("file", "database") else b""


def varint(page, at):
    """A number of SQLite's, and where it ends."""
    value = 0
    for length in range(1, 9):
        value = value << 7 | page[at + length - 1] & 127
        if page[at + length - 1] < 128:
            return value, at + length
    return value << 8 | page[at + 8], at + 9


def absolute_page(page, number):
    """Section 8: the numbers in a page that was stored relative to its own."""
    page, size = bytearray(page), len(page)
    if number > 1 and (number - 2) % (size // 5 + 1) == 0:
        return bytes(page)

    def add_at(at):
        (other,) = struct.unpack_from(">I", page, at)
        struct.pack_into(">I", page, at, (other + number) % (1 << 32) if other else 0)

    header = 100 if number == 1 else 0
    kind = page[header]
    if kind not in (2, 5, 10, 13):
        add_at(0)
        return bytes(page)
    interior, table = kind in (2, 5), kind in (5, 13)
    if interior:
        add_at(header + 8)
    (cells,) = struct.unpack_from(">H", page, header + 3)
    most, least = size - 35 if table else (size - 12) * 64 // 255 - 23, (size - 12) * 32 // 255 - 23
    for at in struct.unpack_from(f">{cells}H", page, header + (12 if interior else 8)):
        if interior:
            add_at(at)
            at += 4
        if kind == 5:
            continue
        payload, at = varint(page, at)
        if table:
            _rowid, at = varint(page, at)
        if payload > most:
            local = least + (payload - least) % (size - 4)
            add_at(at + (local if local <= most else least))
    return bytes(page)


def check_entry(path, kind, size, mode, mtime, sha256, chunks, target, page=None):
    kind, ids = KINDS[kind], ids_of(chunks)
    if kind != "exception":
        need(not {"", ".", ".."} & set(path.split("/")), f"{path!r} leads elsewhere")
        need("\0" not in path and len(path.encode()) <= 4096, f"{path!r} is no path")
        has_content = kind in ("file", "database")
        fits = len(sha256) == 32 * has_content and (size > 0) == bool(ids) and (has_content or not ids)
        pages = page is None or kind == "database" and page in (4096, 8192, 16384, 32768, 65536) and size == page * len(ids)
        need(fits and pages and mode <= 0o7777, f"{path!r}: contradicts itself")
    values = dict(path=path, kind=kind, size=size, mode=mode, mtime=mtime, chunks=ids, page=page)
    return {**values, "sha256": sha256.hex() or None, "target": target or None}


def extract(repository, entries, folder):
    os.mkdir(folder)
    not_directories = {entry["path"] for entry in entries if entry["kind"] != "directory"}
    for entry in entries:
        if entry["kind"] == "exception":
            continue
        behind = [entry["path"][: slash.start()] for slash in re.finditer("/", entry["path"])]
        need(not_directories.isdisjoint(behind), f"{entry['path']!r} lies behind a link or a file")
        path = os.path.join(folder, entry["path"])
        os.makedirs(path if entry["kind"] == "directory" else os.path.dirname(path), exist_ok=True)
        if entry["kind"] == "symlink":
            os.symlink(entry["target"], path)
        elif entry["kind"] != "directory":
            with open(path, "xb") as file:
                file.write(repository.content(entry))
        name = os.path.basename(path)
        if entry["kind"] == "database" and name.startswith("openclaw") and ".sqlite" in name:
            make_indexes(path)
    for entry in reversed(entries):  # Directories after what is in them.
        if entry["kind"] not in ("exception", "symlink"):
            os.chmod(os.path.join(folder, entry["path"]), entry["mode"])
            os.utime(os.path.join(folder, entry["path"]), ns=(entry["mtime"], entry["mtime"]))


def make_indexes(path):
    """Executes the definitions of indexes that were left out of a database."""
    connection = sqlite3.connect(path)
    tables = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'openclaw_b2_backup_indexes'"
    if connection.execute(tables).fetchone():
        query = "SELECT definition FROM openclaw_b2_backup_indexes ORDER BY rowid"
        for (definition,) in connection.execute(query).fetchall():
            need(definition.startswith("CREATE INDEX "), "a definition of something else than an index")
            connection.execute(definition)
        connection.execute("DROP TABLE openclaw_b2_backup_indexes")
    connection.commit()
    connection.close()


def secret_of(options):
    """The kind of slot to try, and the secret; two times None for an unencrypted repository."""
    if options.key_file:
        with open(options.key_file, "rb") as file:
            return "key-file", base64.b64encode(file.read())
    if options.recovery_code_env:
        return "recovery-code", recovery_code(os.environ[options.recovery_code_env]).encode()
    if options.application_key_env:
        return "application-key", os.environ[options.application_key_env].encode()
    return ("passphrase", os.environ[options.passphrase_env].encode()) if options.passphrase_env else (None, None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--application-key-env", metavar="NAME")
    secret.add_argument("--passphrase-env", metavar="NAME")
    secret.add_argument("--key-file", metavar="FILE")
    secret.add_argument("--recovery-code-env", metavar="NAME")
    secret.add_argument("--plain", action="store_true")
    parser.add_argument("--snapshot", default="latest")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true")
    action.add_argument("--hashes", action="store_true")
    action.add_argument("--extract", metavar="DIR")
    action.add_argument("--search", action="store_true")
    options = parser.parse_args()
    repository = Repository(options.directory, *secret_of(options))
    snapshots = repository.snapshots()
    if options.list:
        return {"snapshots": [{"id": snapshot, **repository.summary(snapshot)} for snapshot in snapshots]}
    if options.search:
        wanted, found = set(sys.stdin.read().splitlines()), set()
        for plain in repository.everything():
            found |= {needle for needle in wanted - found if needle.encode() in plain}
        return {"found": sorted(found)}
    snapshot = snapshots[-1] if options.snapshot == "latest" else options.snapshot
    entries = list(repository.tree(snapshot))
    if options.extract:
        extract(repository, entries, options.extract)
        return {"snapshot": snapshot, "entries": len(entries)}
    for entry in entries:
        if entry["kind"] in ("file", "database"):
            repository.content(entry)
        del entry["chunks"], entry["page"]
    return {"snapshot": snapshot, "entries": entries}


if __name__ == "__main__":
    try:
        print(json.dumps(main()))
    except Exception as problem:  # Whatever goes wrong while bytes are read is a finding about them.
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        sys.exit(1)
