import functools
import gzip
import http.server
import io
import tarfile
import threading

import pytest

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_documents, read_in_order
from hsokv_ray.errors import ConfigError, DataError


def _write_tar(path, members, *, format=tarfile.GNU_FORMAT):
    """Write `members`: (name, bytes) or ready TarInfo objects."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data) if path.suffix in (".gz", ".tgz") else data)
    return path


def _samples(count, prefix="s"):
    return [
        member
        for i in range(count)
        for member in ((f"{prefix}{i:03}.txt", f"text {prefix}{i}".encode()), (f"{prefix}{i:03}.cls", b"7"))
    ]


def _read(source, **flags):
    plan = resolve_plan(DataConfig(source=str(source), **flags), seed=0)
    counts = ReadCounts()
    return [d.text for part in plan.parts for d in read_in_order(plan, part, split="all", counts=counts)], counts


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_shard_gives_one_document_per_sample_in_order(tmp_path, name, format):
    long = "folder/" * 12 + "name" if format == tarfile.USTAR_FORMAT else "folder/" * 20 + "name"
    members = [*_samples(30), (f"{long}.txt", "long élan".encode())]
    path = _write_tar(tmp_path / name, members, format=format)
    texts, counts = _read(path, logical_ranks=1)
    assert texts == [f"text s{i}" for i in range(30)] + ["long élan"]
    assert counts.missing_text_documents == 0


def test_ranges_of_a_large_shard_are_cut_between_samples(tmp_path):
    members = [m for i in range(60) for m in ((f"{i:03}.cls", b"7"), (f"{i:03}.txt", bytes([97 + i % 26]) * 5000))]
    path = _write_tar(tmp_path / "x.tar", members)
    plan = resolve_plan(DataConfig(source=str(path), logical_ranks=5), seed=0)
    assert len({(part.start, part.stop) for part in plan.parts}) > 5
    texts, counts = _read(path, logical_ranks=5)
    assert sorted(texts) == sorted(chr(97 + i % 26) * 5000 for i in range(60))
    assert counts.missing_text_documents == 0


def test_braces_and_globs_name_shards(tmp_path):
    for i in range(3):
        _write_tar(tmp_path / f"x-{i:03}.tar", _samples(2, f"shard{i}-"))
    expected = [f"text shard{i}-{j}" for i in range(3) for j in range(2)]
    assert sorted(_read(tmp_path / "x-{000..002}.tar")[0]) == expected
    assert sorted(_read(f"wds://{tmp_path}/x-*.tar")[0]) == expected


def test_a_pattern_that_matches_nothing_shows_its_expansion(tmp_path):
    message = r"matches no file; it expands to 10 names, '.*/x-000.tar' to '.*/x-009.tar'"
    with pytest.raises(DataError, match=message):
        _read(tmp_path / "x-{000..009}.tar")


def test_a_missing_shard_of_a_range_stops_or_is_named(tmp_path):
    _write_tar(tmp_path / "x-0.tar", _samples(2))
    with pytest.raises(DataError, match=r"No such file or directory: '.*x-1.tar' \(1 of 2 shards\)"):
        _read(tmp_path / "x-{0..1}.tar")
    plan = resolve_plan(DataConfig(source=str(tmp_path / "x-{0..1}.tar"), on_bad_shard="skip"), seed=0)
    assert len(plan.bad_shards) == 1
    assert "x-1.tar" in plan.bad_shards[0]


def test_links_devices_and_names_outside_are_skipped_and_counted(tmp_path):
    link, device, folder = tarfile.TarInfo("link.txt"), tarfile.TarInfo("device.txt"), tarfile.TarInfo("folder")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type, folder.type = tarfile.CHRTYPE, tarfile.DIRTYPE
    bad = [("/abs.txt", b"a"), ("../up.txt", b"b"), ("a/../../c.txt", b"c"), link, device, folder]
    path = _write_tar(tmp_path / "x.tar", [*bad, ("good.txt", b"good"), ("other.json", b"{}")])
    texts, counts = _read(path)
    assert texts == ["good"]
    assert (counts.skipped_members, counts.missing_text_documents) == (5, 1)


@pytest.mark.parametrize("key", ["pkl", "pickle", "pyd", "pth", "pt", "text.pkl"])
def test_members_whose_decoding_runs_code_are_refused(tmp_path, key):
    path = _write_tar(tmp_path / "x.tar", _samples(1))
    with pytest.raises(ConfigError, match="whose decoding can run code"):
        _read(path, wds_key=key)


def test_pickled_members_beside_the_text_are_left_alone(tmp_path):
    path = _write_tar(tmp_path / "x.tar", [("a.txt", b"good"), ("a.pkl", b"\x80\x04.")])
    assert _read(path)[0] == ["good"]


def test_a_key_that_no_sample_has_is_named(tmp_path):
    path = _write_tar(tmp_path / "x.tar", _samples(2))
    with pytest.raises(DataError, match="no member 'caption.txt'; see --wds-key"):
        _read(path, wds_key="caption.txt")


def test_bytes_survive_as_latin1(tmp_path):
    data = bytes(range(1, 256))
    path = _write_tar(tmp_path / "x.tar", [("a.txt", data)])
    texts, counts = _read(path, wds_decode="bytes")
    assert texts[0].encode("latin-1") == data
    assert counts.replaced_documents == 0


def test_the_shuffle_buffer_is_seeded_and_zero_keeps_the_order(tmp_path):
    path = _write_tar(tmp_path / "x.tar", _samples(50))

    def order(buffer, epoch):
        plan = resolve_plan(DataConfig(source=str(path), logical_ranks=1, wds_shuffle=buffer), seed=0)
        counts = ReadCounts()
        return [d.text for p in plan.parts for d in read_documents(plan, p, split="all", epoch=epoch, counts=counts)]

    straight = [f"text s{i}" for i in range(50)]
    assert order(0, 0) == order(0, 1) == straight
    assert order(1000, 0) == order(1000, 0) != order(1000, 1)
    assert sorted(order(10, 0)) == sorted(straight)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("total", [1, 7, 40, 95])
def test_resampled_shards_give_exactly_the_epoch_s_documents(tmp_path, name, total):
    for i in range(3):
        _write_tar(tmp_path / f"{i}{name}", _samples(4 + i, f"shard{i}-"))
    config = DataConfig(
        source=f"wds://{tmp_path}/*{name}", wds_resampled=True, wds_epoch_documents=total, logical_ranks=3
    )
    plan = resolve_plan(config, seed=0)

    def epoch(number):
        counts = ReadCounts()
        return [
            document.id
            for stream in range(3)
            for part in plan.stream_parts(stream, number)
            for document in read_documents(plan, part, split="all", epoch=number, counts=counts)
        ]

    first = epoch(0)
    assert len(first) == total
    assert first == epoch(0)
    if total > 40:
        assert first != epoch(1)
        assert len(set(first)) < total


def _damage(path):
    """Return the line that names the damage of a shard; None where it reads as if it had none."""
    try:
        _read(path, logical_ranks=1)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_shard_cut_at_any_place_is_named(tmp_path, name):
    path = _write_tar(tmp_path / name, _samples(3))
    data = path.read_bytes()
    step = 97 if name == "x.tar" else 5
    end_of_samples = 6 * 1024 if name == "x.tar" else len(data)
    for cut in range(0, len(data), step):
        path.write_bytes(data[:cut])
        damage = _damage(path)
        if damage is None:
            # Behind the last sample comes nothing but zeros.
            assert cut > end_of_samples
            assert _read(path, logical_ranks=1)[0] == [f"text s{i}" for i in range(3)]
        else:
            assert str(path) in damage
            assert "\n" not in damage


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_byte_flipped_anywhere_is_named(tmp_path, format):
    members = [("s0.txt", b"text s0"), ("ünï" * 50 + ".txt", b"text s1"), ("s2.txt", b"text s2")]
    path = _write_tar(tmp_path / "x.tar", members, format=format)
    data = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        headers = [member.offset_data - 512 for member in tar.getmembers()]
    for header in headers:
        for at in range(header, header + 512, 11):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
            assert (_damage(path) or "").startswith(str(path)), f"flip at {at} went unseen"


def test_damage_anywhere_gives_one_line_or_documents_and_never_another_exception(tmp_path):
    path = _write_tar(tmp_path / "x.tar", [*_samples(2), ("ünï" * 50 + ".txt", b"t")], format=tarfile.PAX_FORMAT)
    data = path.read_bytes()
    for at in range(0, len(data), 31):
        path.write_bytes(data[:at] + b"\xff\xff\xff" + data[at + 3 :])
        assert "\n" not in (_damage(path) or "")


def test_a_compressed_shard_with_a_flipped_bit_fails_its_checksum_or_keeps_what_lay_before(tmp_path):
    path = _write_tar(tmp_path / "x.tar.gz", _samples(20))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="CRC check failed"):
        list(_read(path, logical_ranks=1)[0])
    texts, counts = _read(path, logical_ranks=1, on_bad_shard="skip")
    assert texts == [f"text s{i}" for i in range(20)]
    assert counts.to_dict()["bad_shards"] == 1


def test_data_behind_the_end_of_the_archive_is_not_passed_over_in_silence(tmp_path):
    path = _write_tar(tmp_path / "x.tar", _samples(2))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="data after the end of the archive"):
        _read(path)


def test_a_damaged_shard_among_good_ones_is_left_out_and_named(tmp_path):
    _write_tar(tmp_path / "x-0.tar", _samples(3, "a"))
    torn = _write_tar(tmp_path / "x-1.tar", _samples(3, "b"))
    torn.write_bytes(torn.read_bytes()[:1700])
    plan = resolve_plan(DataConfig(source=str(tmp_path / "x-{0..1}.tar"), on_bad_shard="skip"), seed=0)
    assert [bad.split(": ")[0] for bad in plan.bad_shards] == [str(torn)]
    assert sorted(_read(tmp_path / "x-{0..1}.tar", on_bad_shard="skip")[0]) == ["text a0", "text a1", "text a2"]


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_shards_behind_urls_are_streamed(tmp_path, server, name):
    for i in range(2):
        _write_tar(tmp_path / f"{i}{name}", _samples(20, f"shard{i}-"))
    texts, _ = _read(f"{server}/{{0..1}}{name}", logical_ranks=2)
    assert sorted(texts) == sorted(f"text shard{i}-{j}" for i in range(2) for j in range(20))


def test_a_shard_that_the_server_lacks_is_named(tmp_path, server):
    _write_tar(tmp_path / "0.tar", _samples(2))
    with pytest.raises(DataError, match=r"/1.tar.*\(1 of 2 shards\); repair it or give --on-bad-shard skip"):
        _read(f"{server}/{{0..1}}.tar")
    assert sorted(_read(f"{server}/{{0..1}}.tar", on_bad_shard="skip")[0]) == ["text s0", "text s1"]


def test_a_torn_shard_behind_a_url_is_named_or_read_up_to_the_damage(tmp_path, server):
    path = _write_tar(tmp_path / "0.tar", _samples(6))
    path.write_bytes(path.read_bytes()[:5200])
    with pytest.raises(DataError, match=f"{server}/0.tar: .*give --on-bad-shard skip"):
        list(_read(f"{server}/0.tar", logical_ranks=1)[0])
    texts, counts = _read(f"{server}/0.tar", logical_ranks=1, on_bad_shard="skip")
    assert texts == ["text s0", "text s1", "text s2"]
    assert counts.to_dict()["bad_shards"] == 1
