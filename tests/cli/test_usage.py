from __future__ import annotations

import json
import re

import httpx

from support.terminal import Torpor
from support.world import World


def test_usage_is_told_by_image_and_by_microvm_with_what_aws_would_charge(torpor: Torpor, world: World,
                                                                         microvm: str) -> None:  # fmt: skip
    before = json.loads(torpor.right("usage", "--json").stdout)["total"]
    world.pass_time(200)
    torpor.right("suspend", microvm)
    world.pass_time(3600)
    found = json.loads(torpor.right("usage", "--json").stdout)
    (image,) = [each for each in found["items"] if each["image"].endswith(":counter")]
    assert image["runningSeconds"] - before["runningSeconds"] >= 199
    assert image["asleepSeconds"] >= 3599
    assert found["total"]["awsDollars"] > before["awsDollars"]
    assert image["savedDollars"] > 0.01
    (one,) = [each for each in json.loads(torpor.right("usage", "--by", "microvm", "--json").stdout)["items"]
              if each["microvm"] == microvm]  # fmt: skip
    assert (one["launches"], one["suspends"], one["imageArn"]) == (1, 1, image["image"])
    shown = torpor.right("usage")
    assert re.split(r" {2,}", shown.stdout.splitlines()[0]) == [
        "IMAGE", "RUNNING", "ASLEEP", "VCPU-S", "GB-S", "READ", "WRITTEN", "STORED", "AWS", "SAVED"]  # fmt: skip
    assert "counter" in shown.stdout
    assert "at the configured prices" in shown.stderr
    for by in ("account", "day"):
        assert json.loads(torpor.right("usage", "--by", by, "--json").stdout)["items"]


def test_metrics_are_open_name_nobody_and_follow_the_text_format(torpor: Torpor, world: World, microvm: str) -> None:
    answer = httpx.get(f"{world.service.api_url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? -?[0-9.e+-]+')
    lines = answer.text.splitlines()
    assert all(line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line) for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values['torpor_microvms{state="RUNNING"}']) >= 1
    assert float(values["torpor_used_launches_total"]) >= 1
    assert int(values['torpor_api_requests_total{operation="RunMicrovm",code="200"}']) >= 1
    assert not re.search(r"microvm-[0-9a-f]|arn:aws|000000000000|counter\b(?!$)", "\n".join(values))
