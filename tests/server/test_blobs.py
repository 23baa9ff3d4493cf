"""Blobs are named by their content whatever happens, and only whole pictures of a bearable size become one."""

import asyncio
import contextlib
import hashlib
import io
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from server.blobs import CHUNK, PART, Blobs, Upload
from server.picture import PARTS, SCANS, Picture, examine
from server.problem import Refusal

ROOT = Path(__file__).parents[2]
PIXELS = 1 << 20
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp"}


@pytest.fixture
def blobs(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    yield blobs
    blobs.close()


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def files(blobs):
    return [path for path in blobs.folder.rglob("*") if path.is_file()]


@contextlib.contextmanager
def full_disk(room):
    """No file of this process may grow beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def encoded(form, size=(40, 30), mode="RGB", **options):
    """A picture with something to see, so that every format has data to lose."""
    noise = hashlib.shake_128(b"noise").digest(size[0] * size[1] * 3)
    stream = io.BytesIO()
    Image.frombytes("RGB", size, noise).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks, width=1, height=1, depth=8, rows=None):
    """A grey PNG made by hand, with further chunks before the pixels."""
    row = b"\0" + b"\0" * ((width * depth + 7) // 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(row * (height if rows is None else rows), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND")


def webp(kind, body):
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def written(folder, data):
    path = folder / "picture"
    path.write_bytes(data)
    return path


def refused(folder, data, pixels=PIXELS):
    with pytest.raises(Refusal) as caught:
        examine(written(folder, data), pixels)
    return caught.value


async def sent(*chunks):
    for part in chunks:
        yield part


def upload(blobs, *chunks, limit=1 << 22, pixels=PIXELS):
    """Take an upload in as a route does."""

    async def run():
        with Upload(blobs) as upload:
            digest = await upload.receive(sent(*chunks), limit)
            picture = await upload.examine(pixels)
            await asyncio.to_thread(upload.keep)
            return digest, upload.size, picture

    return asyncio.run(run())


# Files named by their content


def test_what_was_put_is_read_back_under_its_digest(blobs):
    digest = blobs.put(b"fox")
    assert digest == digest_of(b"fox")
    assert blobs.read(digest) == b"fox"
    assert blobs.path(digest) == blobs.folder / digest[:2] / digest


def test_nothing_is_read_where_nothing_was_put(blobs):
    assert blobs.read(digest_of(b"fox")) is None


def test_equal_content_is_written_once(blobs):
    before = blobs.path(blobs.put(b"fox")).stat()
    blobs.put(b"fox")
    assert blobs.path(digest_of(b"fox")).stat() == before
    assert len(files(blobs)) == 1


def test_a_file_of_another_size_is_replaced(blobs):
    path = blobs.path(blobs.put(b"fox"))
    path.write_bytes(b"f")
    blobs.put(b"fox")
    assert path.read_bytes() == b"fox"


def test_a_damaged_file_is_never_read_and_goes_away(blobs):
    path = blobs.path(blobs.put(b"fox"))
    path.write_bytes(b"box")
    assert blobs.read(path.name) is None
    assert files(blobs) == []


def test_a_deleted_content_is_gone_and_may_be_deleted_again(blobs):
    digest = blobs.put(b"fox")
    blobs.delete(digest)
    blobs.delete(digest)
    assert list(blobs.digests()) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "A" * 64,
        "a" * 63,
        "a" * 65,
        "a" * 64 + "\n",
        "\0" * 64,
        "\N{FULLWIDTH DIGIT ONE}" * 64,
    ],
)
def test_what_is_no_digest_leads_nowhere(blobs, name):
    for operation in (blobs.path, blobs.read, blobs.delete):
        with pytest.raises(KeyError):
            operation(name)


@given(st.text())
def test_no_name_leads_out_of_the_folder(name):
    blobs = Blobs(Path("/tmp"))  # nothing is written
    with contextlib.suppress(KeyError):
        assert blobs.path(name).parent.parent == blobs.folder


def test_digests_lists_contents_alone(blobs):
    contents = {blobs.put(bytes([number])) for number in range(20)}
    (blobs.folder / f"stray{PART}").touch()
    (blobs.folder / "ab").mkdir(exist_ok=True)
    (blobs.folder / "ab" / "notes.txt").touch()
    assert set(blobs.digests()) == contents


def test_a_sweep_removes_what_was_left_half_written(blobs):
    digest = blobs.put(b"fox")
    (blobs.folder / f"stray{PART}").touch()
    blobs.sweep()
    assert files(blobs) == [blobs.path(digest)]


def test_a_full_disk_is_a_refusal_that_leaves_nothing(blobs):
    with full_disk(1000), pytest.raises(Refusal, match="File too large") as caught:
        blobs.put(b"x" * 5000)
    assert caught.value.kind == "storage"
    assert files(blobs) == []
    assert blobs.read(blobs.put(b"x" * 5000)) == b"x" * 5000


def test_a_folder_that_went_away_is_a_refusal(blobs):
    shutil.rmtree(blobs.folder)
    with pytest.raises(Refusal, match="No such file") as caught:
        blobs.put(b"fox")
    assert caught.value.kind == "storage"


def test_threads_that_put_the_same_content_leave_one_whole_file(blobs):
    data = b"fox" * 100_000
    start = threading.Barrier(8)

    def put(_):
        start.wait()
        return blobs.put(data)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(put, range(8))) == {digest_of(data)}
    assert [path.read_bytes() for path in files(blobs)] == [data]


WRITERS = """
import os, sys
from itertools import count
from pathlib import Path
from server.blobs import Blobs
for line in sys.stdin:
    writer = os.fork()
    if not writer:
        print(os.getpid(), flush=True)
        blobs = Blobs(Path(sys.argv[1]))
        for number in count():
            print(blobs.put(f"{line.strip()} {number} ".encode() * 100_000), flush=True)
    os.waitpid(writer, 0)
    print("dead", flush=True)
"""
"""For each line that it reads, a process that puts contents and prints their digests until it is killed."""


def killed(writers, attempt):
    """Digests that the next writer printed before it was killed."""
    writers.stdin.write(f"{attempt}\n")
    writers.stdin.flush()
    writer = int(writers.stdout.readline())
    promised = [writers.stdout.readline().strip() for _ in range(1 + attempt % 4)]
    os.kill(writer, signal.SIGKILL)
    return [*promised, *(line.strip() for line in iter(writers.stdout.readline, "dead\n"))]


def test_a_killed_writer_leaves_no_file_under_a_wrong_name_and_loses_none_that_it_had_put(blobs):
    command = [sys.executable, "-c", WRITERS, str(blobs.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        for attempt in range(12):
            promised = killed(writers, attempt)
            assert all(digest_of(path.read_bytes()) == path.name for path in files(blobs) if path.suffix != PART)
            blobs.sweep()
            assert set(promised) <= set(blobs.digests()) == {path.name for path in files(blobs)}


# Uploads


@pytest.mark.parametrize(("form", "type_"), FORMATS.items())
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_every_format_is_decoded_and_named_by_what_it_is(tmp_path, form, type_, mode):
    if form in {"JPEG", "BMP"} and mode in {"P", "RGBA"}:
        mode = "L"
    if form == "WEBP":
        mode = "RGBA" if mode == "RGBA" else "RGB"
    assert examine(written(tmp_path, encoded(form, mode=mode)), PIXELS) == Picture(type_, 40, 30)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {"mode": "I;16"}),
        ("PNG", {"mode": "LA"}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ],
)
def test_less_common_kinds_are_decoded_too(tmp_path, form, options):
    if options.get("mode") == "I;16":
        stream = io.BytesIO()
        Image.new("I;16", (40, 30), 999).save(stream, "PNG")
        data = stream.getvalue()
    else:
        data = encoded(form, **options)
    assert examine(written(tmp_path, data), PIXELS) == Picture(FORMATS[form], 40, 30)


def test_an_upload_becomes_a_blob(blobs):
    data = encoded("PNG")
    assert upload(blobs, data[:7], data[7:]) == (digest_of(data), len(data), Picture("image/png", 40, 30))
    assert blobs.read(digest_of(data)) == data


def test_an_upload_of_many_chunks_is_the_same_blob(blobs):
    data = png(chunk(b"teST", os.urandom(2 * CHUNK + 5)))
    parts = [data[start : start + 65_521] for start in range(0, len(data), 65_521)]
    assert upload(blobs, *parts)[0] == digest_of(data)
    assert blobs.read(digest_of(data)) == data


def test_an_upload_that_is_there_already_is_not_written_again(blobs):
    data = encoded("PNG")
    before = blobs.path(blobs.put(data)).stat()
    upload(blobs, data)
    assert blobs.path(digest_of(data)).stat() == before
    assert len(files(blobs)) == 1


def test_more_than_the_limit_is_refused_at_once_and_leaves_nothing(blobs):
    seen = []

    async def endless():
        while True:
            seen.append(1)
            yield b"x" * 1000

    async def run():
        with Upload(blobs) as upload:
            await upload.receive(endless(), 5500)

    with pytest.raises(Refusal, match="more than 5500 bytes") as caught:
        asyncio.run(run())
    assert (caught.value.kind, caught.value.extra["setting"], len(seen)) == ("too-large", "limits.upload", 6)
    assert files(blobs) == []


def test_exactly_the_limit_is_taken(blobs):
    data = encoded("PNG")
    assert upload(blobs, data, limit=len(data))[1] == len(data)


def test_a_refused_picture_leaves_nothing(blobs):
    with pytest.raises(Refusal):
        upload(blobs, encoded("PNG")[:-20])
    assert files(blobs) == []


def test_a_full_disk_refuses_an_upload_and_leaves_nothing(blobs):
    with full_disk(1000), pytest.raises(Refusal) as caught:
        upload(blobs, encoded("BMP"))
    assert caught.value.kind == "storage"
    assert files(blobs) == []


def test_a_client_that_goes_away_leaves_nothing(blobs):
    class Gone(OSError):
        """What reading a broken connection raises."""

    async def broken():
        yield b"x" * (CHUNK + 1)
        raise Gone

    async def run():
        with Upload(blobs) as upload:
            await upload.receive(broken(), 1 << 30)

    with pytest.raises(Gone):
        asyncio.run(run())
    assert files(blobs) == []


def test_an_upload_is_written_as_it_comes_and_leaves_nothing_when_it_is_cancelled(blobs):
    async def run():
        stuck = asyncio.Event()

        async def dribble():
            yield b"x" * (CHUNK + 1)
            stuck.set()
            await asyncio.Event().wait()

        async def receive():
            with Upload(blobs) as upload:
                await upload.receive(dribble(), 1 << 30)

        task = asyncio.create_task(receive())
        await stuck.wait()
        assert [path.stat().st_size for path in files(blobs)] == [CHUNK + 1]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert files(blobs) == []


# What is no picture


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_picture_is_refused(tmp_path, form, part):
    data = encoded(form)
    assert refused(tmp_path, data[: int(len(data) * part)]).kind == "unreadable-picture"


def test_a_flipped_bit_anywhere_in_a_png_is_refused(tmp_path):
    data = encoded("PNG", (4, 4))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert refused(tmp_path, bytes(damaged)).kind in {"unreadable-picture", "limit-pixels"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"GIF89a" + b"\0" * 100,
        b"%PDF-1.7",
        b"<svg/>",
        b"BM",
        b"RIFF1234WEBP",
        b"\xff\xd8\xff",
        b"\0" * 99,
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, data):
    assert refused(tmp_path, data).kind == "unreadable-picture"


@pytest.mark.parametrize("form", ["GIF", "TIFF", "ICO", "PPM"])
def test_a_format_that_is_not_listed_is_refused_with_the_list(tmp_path, form):
    assert "PNG, JPEG, WebP, BMP" in refused(tmp_path, encoded(form, (32, 32))).detail


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_behind_a_web_page_is_refused(tmp_path, form):
    assert refused(tmp_path, b"<html><script>alert(1)</script>" + encoded(form)).kind == "unreadable-picture"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_refused(tmp_path, form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    stream = io.BytesIO()
    frames[0].save(stream, form, save_all=True, append_images=frames[1:])
    assert "3 frames" in refused(tmp_path, stream.getvalue()).detail


def test_a_refusal_says_what_to_do_and_not_where_the_file_lies(tmp_path):
    for data in (b"nothing", encoded("JPEG")[:200], encoded("PNG")[:200], encoded("WEBP")[:200], encoded("BMP")[:200]):
        refusal = refused(tmp_path, data)
        assert "end " in refusal.detail
        assert str(tmp_path) not in refusal.detail


# Bombs


def claiming(form, packing, side):
    """A picture whose header claims `side` x `side` pixels."""
    sides = (40, 30) if form == "BMP" else (30, 40)
    return encoded(form).replace(struct.pack(packing, *sides), struct.pack(packing, side, side))


def inflating(kind, keyword):
    """A small PNG with a chunk of 100 MB."""
    return png(chunk(kind, keyword + zlib.compress(bytes(100 << 20))))


def many_texts():
    text = zlib.compress(bytes(1_000_000))
    return png(*[chunk(b"zTXt", b"a%d\0\0" % number + text) for number in range(200)])


BOMBS = {
    "png": lambda: png(width=30_000, height=30_000, depth=1),
    "webp-canvas": lambda: webp(b"VP8X", bytes(4) + (16_383).to_bytes(3, "little") * 2),
    "webp-lossless": lambda: webp(b"VP8L", b"\x2f" + (0x3FFF | 0x3FFF << 14).to_bytes(4, "little") + bytes(30)),
    "webp-lossy": lambda: webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(30)),
    "jpeg": lambda: claiming("JPEG", ">HH", 65_000),
    "bmp": lambda: claiming("BMP", "<II", 30_000),
}
"""Less than a megabyte each, and hundreds of millions of pixels."""
TEXTS = {
    "one text": lambda: inflating(b"zTXt", b"a\0\0"),
    "one international text": lambda: inflating(b"iTXt", b"a\0\1\0\0\0"),
    "a colour profile": lambda: inflating(b"iCCP", b"a\0\0"),
    "many texts": many_texts,
    "many chunks": lambda: png(*[chunk(b"teST")] * 1_000_000),
}
EXAMINER = """
import resource, sys
from pathlib import Path
from server.picture import examine
from server.problem import Refusal
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    examine(Path(sys.argv[1]), 1 << 24)
except Refusal as refusal:
    print(refusal.kind, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def alone(folder, data):
    """Kind of the refusal and megabytes that it took, in a process that may not warn."""
    command = [sys.executable, "-W", "error", "-c", EXAMINER, str(written(folder, data))]
    kind, taken = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return kind, int(taken)


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_refused_before_memory_is_taken_for_them(tmp_path, name):
    data = BOMBS[name]()
    assert len(data) < 1 << 20
    kind, taken = alone(tmp_path, data)
    assert kind == "limit-pixels"
    assert taken < 20


@pytest.mark.parametrize("name", TEXTS)
def test_what_inflates_beside_the_pixels_is_refused_in_bounded_memory(tmp_path, name):
    kind, taken = alone(tmp_path, TEXTS[name]())
    assert kind == "unreadable-picture"
    assert taken < 100


def test_the_number_of_pixels_is_the_limit_and_not_the_sides(tmp_path):
    data = encoded("PNG", (40, 30))
    assert examine(written(tmp_path, data), 1200).width == 40
    refusal = refused(tmp_path, data, 1199)
    assert refusal.detail == "The picture has 40 x 30 pixels; 1199 is the most (limits.pixels). Send a smaller one."
    assert refusal.extra == {"setting": "limits.pixels", "limit": 1199}


def test_a_limit_beyond_pillows_own_brings_no_warning(tmp_path):
    assert examine(written(tmp_path, png(width=10_000, height=9_500, depth=1)), 10**8).height == 9_500


def test_pixels_that_inflate_beyond_the_picture_are_left_packed(tmp_path):
    assert examine(written(tmp_path, png(width=8, height=8, rows=10_000_000)), 64) == Picture("image/png", 8, 8)


@pytest.mark.parametrize(
    ("count", "segment", "words"),
    [
        (PARTS, b"\xff\xef\0\x02", f"more than {PARTS} segments"),
        (SCANS, b"\xff\xda\0\x08\x01\x01\0\0\x3f\0", f"more than {SCANS} scans"),
    ],
)
def test_a_jpeg_of_very_many_parts_is_refused(tmp_path, count, segment, words):
    data = encoded("JPEG")
    assert words in refused(tmp_path, data[:2] + segment * count + data[2:]).detail


def test_a_run_length_encoded_bitmap_is_refused(tmp_path):
    data = bytearray(encoded("BMP", mode="L"))
    data[30] = 1
    assert "run-length" in refused(tmp_path, bytes(data)).detail


ORIGINALS = [
    *(encoded(form, (24, 16)) for form in FORMATS),
    encoded("WEBP", (24, 16), lossless=True),
    encoded("PNG", (24, 16), "P"),
    encoded("JPEG", (24, 16), progressive=True),
]
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(original=st.sampled_from(ORIGINALS), edits=EDITS, end=st.none() | st.integers(0, 2000))
def test_a_mangled_picture_is_decoded_or_refused_and_nothing_else(tmp_path, original, edits, end):
    data = bytearray(original)
    for position, patch in edits:
        start = position % len(data)
        data[start : start + len(patch)] = patch
    with contextlib.suppress(Refusal):
        assert examine(written(tmp_path, bytes(data[:end])), PIXELS).type in FORMATS.values()
