"""What a person reads when the service is ready."""

from __future__ import annotations

import shlex

from torpor.config import DEFAULT_DATA_DIR, Config
from torpor.ready import Service


def banner(service: Service, config: Config) -> str:
    """Where everything is, and what to type next. Holds no secrets."""
    port = "" if service.endpoint_port == 443 else f":{service.endpoint_port}"
    facts = {
        "API": service.api_url,
        "S3": service.s3_url or "(AWS's own)",
        "endpoints": f"https://<id>.lambda-microvm.{service.region}.{config.domain}{port}",
        "CA file": service.ca_file,
        "data": str(config.data_dir),
        "engine": config.engine,
    }
    lines = [f"Torpor is ready, process {service.pid}"]
    lines += [f"  {name:<10} {value}" for name, value in facts.items()]
    commands = ["torpor deploy DIR", "torpor run NAME", 'eval "$(torpor env)"', "torpor down"]
    if config.data_dir != DEFAULT_DATA_DIR:
        commands.insert(0, f"export TORPOR_DATA_DIR={shlex.quote(str(config.data_dir))}")
    return "\n".join([*lines, "Next, in another terminal:", *(f"  {command}" for command in commands)])
