import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.uri import SourceSpec, expand_braces, parse_source, source_spec
from hsokv_ray.errors import ConfigError

_WORD = st.text("ab0", max_size=2)
_NUMBERS = st.tuples(st.integers(-12, 120), st.integers(-12, 120), st.integers(1, 7), st.integers(0, 4))


@st.composite
def _ranges(draw) -> str:
    low, high, step, width = draw(_NUMBERS)
    ends = f"{low:0{width}d}..{high:0{width}d}"
    return draw(st.sampled_from([f"{{{ends}}}", f"{{{ends}..{step}}}", "{a..e}", "{e..a..2}"]))


_PATTERNS = st.recursive(
    st.one_of(_WORD, _ranges(), st.sampled_from(["{}", "{a}"])),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: "{" + ",".join(items) + "}"),
    ),
    max_leaves=6,
)


def _bash(pattern: str) -> list[str]:
    # The letter in front keeps bash from dropping empty words.
    command = f"printf '%s\\n' x{pattern}"
    result = subprocess.run(["bash", "-fc", command], capture_output=True, text=True, check=True)
    return [line[1:] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("pattern", "count", "first", "last"),
    [
        ("x-{000..009}.tar", 10, "x-000.tar", "x-009.tar"),
        ("x-{098..102}.tar", 5, "x-098.tar", "x-102.tar"),
        ("{a,b}/x-{0..1}.tar", 4, "a/x-0.tar", "b/x-1.tar"),
        ("{train-{00..01},val}.tar", 3, "train-00.tar", "val.tar"),
        ("{3..1}", 3, "3", "1"),
        ("{00..10..5}", 3, "00", "10"),
        ("plain.tar", 1, "plain.tar", "plain.tar"),
        ("{one}.tar", 1, "{one}.tar", "{one}.tar"),
    ],
)
def test_braces_expand_as_documented(pattern, count, first, last):
    names = list(expand_braces(pattern))
    assert (len(names), names[0], names[-1]) == (count, first, last)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is the reference")
@settings(max_examples=60, deadline=None)
@given(_PATTERNS)
def test_braces_expand_as_in_bash(pattern):
    assert list(expand_braces(pattern)) == _bash(pattern)


def test_a_range_of_billions_is_refused_before_it_is_built():
    with pytest.raises(ConfigError, match="expands to more than 1,000,000"):
        list(expand_braces("x-{0..9999999999}.tar"))


_NAMES = st.from_regex(r"[a-z][\w-]{0,8}(/[a-z][\w-]{0,8})?", fullmatch=True)
_PARTS = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)


@given(_NAMES, st.none() | _PARTS, st.none() | _PARTS, _PARTS)
def test_a_hub_uri_survives_the_round_trip(name, revision, config, split):
    spec = SourceSpec(backend="hf", location=name, hf_config=config, hf_split=split, hf_revision=revision)
    assert parse_source(spec.uri) == spec


@given(_NAMES, st.none() | _PARTS, st.none() | _PARTS, _PARTS)
def test_flags_and_uri_name_the_same_hub_data_set(name, revision, config, split):
    by_flags = DataConfig(hf_name=name, hf_config=config, hf_split=split, hf_revision=revision)
    at = f"@{revision}" if revision else ""
    by_uri = DataConfig(source=f"hf://{name}{at}:{config or ''}:{split}")
    assert source_spec(by_flags) == source_spec(by_uri)


@pytest.mark.parametrize(
    ("flags", "uri"),
    [
        ({"wds_pattern": "x-{0..3}.tar"}, "wds://x-{0..3}.tar"),
        ({"wds_pattern": "wds://x.tar"}, "x.tar"),
        ({"source": "x.tgz", "dataset_backend": "webdataset"}, "wds://x.tgz"),
        ({"source": "https://host/x-{0..3}.tar"}, "wds://https://host/x-{0..3}.tar"),
        ({"source": "org/name", "dataset_backend": "hf"}, "hf://org/name"),
        ({"source": "hf://datasets/org/name"}, "hf://org/name"),
        ({"dataset_file": "hf://org/name:en:test"}, "hf://org/name:en:test"),
        ({"source": "file:///data/my%20books"}, "/data/my books"),
        ({"source": "data/*.txt", "dataset_backend": "custom"}, "data/*.txt"),
        ({"dataset_backend": "custom"}, "python://stdlib"),
        ({}, "python://stdlib"),
    ],
)
def test_flags_mirror_uris(flags, uri):
    assert source_spec(DataConfig(**flags)) == source_spec(DataConfig(source=uri))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://wikitext", ("wikitext", None, None, None)),
        ("hf://org/name@main:en:test", ("org/name", "main", "en", "test")),
        ("hf://org/name@refs/convert/parquet", ("org/name", "refs/convert/parquet", None, None)),
        ("hf://name::validation", ("name", None, None, "validation")),
        ("hf:///data/se@t:en", ("/data/se@t", None, "en", None)),
    ],
)
def test_every_form_of_a_hub_uri_is_read(uri, expected):
    spec = parse_source(uri)
    assert (spec.location, spec.hf_revision, spec.hf_config, spec.hf_split) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": "hf://org/name", "dataset_backend": "webdataset"}, "--dataset-backend webdataset cannot read"),
        ({"source": "wds://x.tar", "dataset_backend": "hf"}, "--dataset-backend hf cannot read"),
        ({"source": "hf://org/name", "dataset_backend": "custom"}, "--dataset-backend custom cannot read"),
        ({"source": "x.tar", "dataset_backend": "custom"}, "cannot read tar shards"),
        ({"hf_name": "a", "wds_pattern": "b.tar"}, "more than one source: --hf-name a, --wds-pattern b.tar"),
        ({"hf_name": "a", "source": "b.txt"}, "more than one source"),
        ({"hf_name": "a", "dataset_backend": "webdataset"}, "does not use --hf-name"),
        ({"dataset_backend": "hf"}, "needs a source; give --hf-name"),
        ({"dataset_backend": "webdataset"}, "needs a source; give --wds-pattern"),
        ({"source": "hf://a:en:test", "hf_split": "validation"}, "--hf-split validation contradicts"),
        ({"source": "hf://a:en", "hf_config": "de"}, "--hf-config de contradicts"),
        ({"source": "hf://a", "hf_split": "train[:10%]"}, "without slices"),
        ({"source": "b.txt", "hf_config": "de"}, "--hf-config belongs to Hugging Face"),
        ({"source": "b.txt", "wds_resampled": True, "wds_epoch_documents": 9}, "--wds-resampled draws tar shards"),
        ({"source": "b.tar", "wds_epoch_documents": 9}, "give --wds-resampled or drop it"),
        ({"source": "wds://pipe:curl x"}, "would run a shell command"),
        ({"source": "ftp://x"}, "schemes are file://, hf://, wds://, python://"),
        ({"source": "python://os"}, "the only source of that scheme is python://stdlib"),
        ({"source": "hf://a:b:c:d"}, "the form is hf://org/name@revision:config:split"),
        ({"source": "hf://"}, "names nothing"),
        ({"source": "https://host/x.jsonl"}, "download it"),
    ],
)
def test_contradictions_and_wrong_forms_are_named_in_one_line(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        source_spec(DataConfig(**flags))
    assert "\n" not in str(caught.value)
