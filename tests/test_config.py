"""Settings: what cannot work is refused by name before the service starts, and nothing secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.config import Config, ConfigError, load

SECRET = "t0psecret-token"


def loaded(path: Path, text: str, **overrides: object) -> Config:
    file = path / "torpor.toml"
    file.write_text(text)
    return load(file, **overrides)


@pytest.mark.parametrize("text", [
    'kind = "cloudwatch"', 'kind = "cloudwatch"\nregion = "eu-west-1"',
    'kind = "cloudwatch"\nendpoint_url = "https://logs.example.com"',
    'kind = "otlp"\nendpoint_url = "http://[::1]:4318"',
    f'kind = "otlp"\nendpoint_url = "https://example.com/otlp"\nheaders = {{ X-Key = "{SECRET}" }}',
])
def test_forwarding_that_can_work_is_taken(tmp_path: Path, text: str) -> None:
    config = loaded(tmp_path, f"[logs.forward]\n{text}\n")
    assert config.logs.forward.kind in ("cloudwatch", "otlp")
    assert SECRET not in repr(config)


@pytest.mark.parametrize(("text", "named"), [
    ('kind = "syslog"', "kind must be cloudwatch or otlp, not 'syslog'"),
    ('endpoint_url = "http://h"', "kind is missing"),
    ('kind = "otlp"', "endpoint_url is missing"),
    ('kind = "otlp"\nendpoint_url = "ftp://h"', "endpoint_url must be http:// or https:// with a host"),
    ('kind = "otlp"\nendpoint_url = "http://h:99999"', "endpoint_url must be http:// or https:// with a host"),
    ('kind = "otlp"\nendpoint_url = 7', "endpoint_url must be http:// or https:// with a host"),
    (f'kind = "otlp"\nendpoint_url = "http://h/?key={SECRET}"', "neither ? nor #"),
    (f'kind = "otlp"\nendpoint_url = "http://me:{SECRET}@h"', "no user or password"),
    ('kind = "otlp"\nendpoint_url = "http://h"\nregion = "eu-west-1"', "region must be the name of a region"),
    ('kind = "cloudwatch"\nregion = "EU West"', "region must be the name of a region, for cloudwatch alone"),
    (f'kind = "cloudwatch"\nheaders = {{ x = "{SECRET}" }}', "headers are for otlp"),
    (f'kind = "otlp"\nendpoint_url = "http://h"\nheaders = {{ "x y" = "{SECRET}" }}', "'x y' must be a header's name"),
    (f'kind = "otlp"\nendpoint_url = "http://h"\nheaders = {{ x = "{SECRET}\\nx" }}', "its value printable ASCII"),
    ('kind = "otlp"\nendpoint_url = "http://h"\nheaders = { x = 7 }', "its value printable ASCII"),
    (f'kind = "otlp"\nendpoint_url = "http://h"\nheaders = "x: {SECRET}"', "logs.forward.headers must be dict"),
])  # fmt: skip
def test_forwarding_that_cannot_work_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"^setting logs\.forward\.") as raised:
        loaded(tmp_path, f"[logs.forward]\n{text}\n")
    assert named in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "10.0.0.1"])
def test_a_service_does_not_forward_to_itself(tmp_path: Path, host: str) -> None:
    text = 'api_address = "10.0.0.1"\n[logs.forward]\nkind = "cloudwatch"\nendpoint_url = "http://{}:{}"\n'
    with pytest.raises(ConfigError, match="this service's own API"):
        loaded(tmp_path, text.format(host, 7060))
    with pytest.raises(ConfigError, match="this service's own API"):
        loaded(tmp_path, text.format(host, 7999), api_port=7999)
    assert loaded(tmp_path, text.format(host, 7061)).logs.forward.kind == "cloudwatch"


def test_the_builder_vm_has_the_size_it_is_given(tmp_path: Path) -> None:
    build = loaded(tmp_path, "[build]\nvcpus = 8\nmemory_mib = 16384\n").build
    assert (build.vcpus, build.memory_mib) == (8, 16384)


@pytest.mark.parametrize(("text", "said"), [
    ("vcpus = 0", "setting build.vcpus must be from 1 to 32, not 0"),
    ("vcpus = 33", "setting build.vcpus must be from 1 to 32, not 33"),
    ("memory_mib = 256", "setting build.memory_mib must be from 512 to 65536, not 256"),
    ("memory_mib = 65537", "setting build.memory_mib must be from 512 to 65536, not 65537"),
    ("vcpus = true", "setting build.vcpus must be int, not True"),
])
def test_a_builder_vm_that_no_engine_can_make_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, f"[build]\n{text}\n")
    assert str(raised.value) == said
