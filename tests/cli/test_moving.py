"""Images and sleeping microVMs in a file, and a whole Torpor in one, with simulated machines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.terminal import Torpor, assert_as_expected, plain
from support.world import World, running_world
from torpor.host.archive import Reader, Writer, reading, writing

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/counter"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torpor]:
    """Another Torpor, of another account."""
    with running_world("simulated", tmp_path_factory.mktemp("other"), 'account = "123456789012"\n') as found:
        yield Torpor(found.data_dir)


@pytest.fixture
def asleep(torpor: Torpor) -> Iterator[str]:
    found = torpor.right("run", "counter", "--idle", 300).stdout.strip()
    torpor.right("curl", found, "/values/x", "-X", "PUT", "-d", "41")
    torpor.right("suspend", found)
    yield found
    torpor.right("terminate", found)


def sized(text: str) -> str:
    """How large an archive is depends on what it says of the machine."""
    return re.sub(r"[\d.]+ [KM]?i?B", "<size>", text)


def no_stages(torpor: Torpor) -> bool:
    return list((torpor.data_dir / "simulated/exports").glob("*")) == []


@pytest.mark.parametrize("compress", ["none", "auto"])
def test_an_image_goes_to_another_machine_and_runs_there(torpor: Torpor, other: Torpor, tmp_path: Path,
                                                         compress: str) -> None:  # fmt: skip
    file = tmp_path / "counter.torpor"
    result = torpor.right("export", "counter", file, "--compress", compress)
    assert result.stdout == ""
    assert_as_expected("export-image", sized(result.stderr), file=file)
    name = f"moved-{compress}"
    imported = other.right("import", file, "--name", name)
    assert imported.stdout == f"arn:aws:lambda:us-east-1:123456789012:microvm-image:{name}\n"
    microvm = other.right("run", name).stdout.strip()
    other.right("terminate", microvm)
    assert json.loads(other.right("import", file, "--name", name, "--json").stdout)["imageVersion"] == "2.0"
    assert [each["imageVersion"] for each in json.loads(other.right("builds", name, "--json").stdout)] == ["2.0", "1.0"]
    other.right("delete-image", name)
    assert no_stages(torpor)
    assert no_stages(other)
    assert json.loads(other.right("gc", "--dry-run", "--json").stdout)["leaks"] == []


def test_a_sleeping_microvm_goes_to_another_machine_and_wakes_there_with_its_memory(
        torpor: Torpor, other: Torpor, asleep: str, tmp_path: Path) -> None:  # fmt: skip
    file = tmp_path / "vm.torpor"
    told = json.loads(torpor.right("export", asleep[:16], file, "--json").stdout)
    assert (told["kind"], told["microvmId"], told["bytes"]) == ("microvm", asleep, file.stat().st_size)
    result = other.right("import", file)
    assert result.stdout == f"{asleep}\n"
    assert_as_expected("import-microvm", result.stderr)
    assert other.right("curl", asleep, "/values/x").stdout == "41"
    other.right("suspend", asleep)
    refused = other("import", file)
    assert refused.exit_code == 1
    assert_as_expected("import-twice", refused.stderr)
    copy = other.right("import", file, "--new-id").stdout.strip()
    assert copy != asleep
    assert other.right("curl", copy, "/values/x").stdout == "41"
    for microvm in (asleep, copy):
        other.right("terminate", microvm)
    assert no_stages(other)


def test_through_pipes_it_goes_without_a_file(torpor: Torpor, other: Torpor, tmp_path: Path) -> None:
    exporting = torpor.start("export", "counter", "-")
    data, stderr = exporting.communicate(timeout=30)
    assert (exporting.returncode, stderr) == (0, b"")
    (tmp_path / "file").write_bytes(data)
    other.right("import", tmp_path / "file", "--name", "piped")
    other.right("delete-image", "piped")


def test_what_cannot_be_exported_is_refused_with_the_way_out(torpor: Torpor, microvm: str, tmp_path: Path) -> None:
    results = [torpor("export", microvm, tmp_path / "x"), torpor("export", "nope", tmp_path / "x"),
               torpor("export", "counter", tmp_path / "x", "--version", "9.0")]  # fmt: skip
    assert {each.exit_code for each in results} == {1}
    assert_as_expected("export-refused", "".join(each.stderr for each in results))
    assert list(tmp_path.iterdir()) == []


def changed(file: Path, into: Path, **facts: str) -> Path:
    """The same archive, made on another machine."""
    with reading(file) as source, writing(into, "none") as target:
        archive = Reader(source, lambda _: None)
        about = {**archive.about, "facts": {**archive.about["facts"], **facts}}
        writer = Writer(target, about, lambda _: None)
        folder = into.with_suffix(".files")
        archive.extract(lambda name: folder / name)
        writer.directory("files", folder / "files")
        writer.end()
    return into


def test_what_cannot_run_here_is_refused_with_its_reason_and_a_microvm_may_come_cold(
        torpor: Torpor, other: Torpor, asleep: str, tmp_path: Path) -> None:  # fmt: skip
    file = tmp_path / "vm.torpor"
    torpor.right("export", asleep, file)
    foreign = changed(file, tmp_path / "foreign.torpor", engine="qemu", acceleration="kvm")
    refused = other("import", foreign)
    assert refused.exit_code == 1
    assert_as_expected("import-foreign", refused.stderr)
    cold = other.right("import", foreign, "--cold")
    assert "torpor recover boots its disk" in cold.stderr
    assert "is RUNNING" in other.right("recover", asleep).stderr
    other.right("terminate", asleep)
    strange = changed(file, tmp_path / "strange.torpor", architecture="SPARC")
    assert "it was made on SPARC, and this machine is" in plain(other("import", strange).stderr)


def test_files_that_are_none_or_damaged_are_refused_and_leave_nothing(torpor: Torpor, tmp_path: Path) -> None:
    file, damaged, text = (tmp_path / name for name in ("good", "damaged", "text"))
    torpor.right("export", "counter", file, "--compress", "none")
    data = file.read_bytes()
    at = data.index(b'"memory"')
    damaged.write_bytes(data[:at] + b'"nemory"' + data[at + 8 :])
    text.write_text("hello")
    images = torpor.right("images", "--json").stdout
    results = [torpor("import", each) for each in (damaged, text)]
    assert {each.exit_code for each in results} == {1}
    assert_as_expected("import-damaged", "".join(each.stderr for each in results), folder=tmp_path)
    assert torpor.right("images", "--json").stdout == images
    assert no_stages(torpor)


@pytest.mark.parametrize("is_running", [True, False])
def test_a_backup_brings_everything_back_into_an_empty_data_directory(tmp_path: Path, is_running: bool) -> None:
    torpor, file = Torpor(tmp_path / "data"), tmp_path / "backup"
    with running_world("simulated", torpor.data_dir) as world:
        keys = world.service.access_key_id
        torpor.right("deploy", EXAMPLE, "--quiet")
        asleep = torpor.right("run", "counter", "--idle", 300).stdout.strip()
        torpor.right("curl", asleep, "/values/x", "-X", "PUT", "-d", "41")
        torpor.right("suspend", asleep)
        if is_running:
            assert_as_expected("backup", sized(torpor.right("backup", file).stderr), file=file)
    if not is_running:
        told = json.loads(torpor.right("backup", file, "--json").stdout)
        assert (told["images"], told["microvms"], told["bytes"]) == (1, 1, file.stat().st_size)
    again = Torpor(tmp_path / "again")
    restored = json.loads(again.right("restore", file, "--json").stdout)
    assert (restored["images"], restored["microvms"]) == (1, 1)
    with running_world("simulated", again.data_dir) as world:
        assert world.service.access_key_id == keys
        assert again.right("curl", asleep, "/values/x").stdout == "41"
        again.right("terminate", again.right("run", "counter").stdout.strip())
        assert json.loads(again.right("gc", "--dry-run", "--json").stdout)["leaks"] == []


def test_a_restore_over_records_or_under_a_running_service_is_refused(torpor: Torpor, world: World,
                                                                      tmp_path: Path) -> None:  # fmt: skip
    file = tmp_path / "backup"
    torpor.right("backup", file)
    full = Torpor(tmp_path / "full")
    full.right("restore", file)
    results = [torpor("restore", file), full("restore", file), torpor("import", file), full("backup", file, "--config",
               _postgres(tmp_path)), Torpor(tmp_path / "none")("backup", tmp_path / "x")]  # fmt: skip
    assert {each.exit_code for each in results} == {1}
    text = "".join(each.stderr for each in results)
    assert_as_expected("restore-refused", text, full=full.data_dir, data=torpor.data_dir, folder=tmp_path)


def _postgres(tmp_path: Path) -> Path:
    config = tmp_path / "postgres.toml"
    config.write_text('database = "postgresql://nowhere/torpor"\n')
    return config


def test_a_damaged_backup_restores_nothing(torpor: Torpor, tmp_path: Path) -> None:
    file, target = tmp_path / "backup", Torpor(tmp_path / "target")
    torpor.right("backup", file, "--compress", "none")
    data = bytearray(file.read_bytes())
    data[len(data) - len(data) // 4] ^= 1
    file.write_bytes(data)
    result = target("restore", file)
    assert result.exit_code == 1
    assert "Nothing was restored." in result.stderr
    assert not (target.data_dir / "torpor.db").exists()
    assert not (target.data_dir / "restore.draft").exists()
