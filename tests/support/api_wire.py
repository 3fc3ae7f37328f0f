"""botocore's own half of the wire, used without its clients: what an SDK would send, and what it would read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlencode

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, prepare_request_dict
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import RestJSONParser
from botocore.serialize import RestJSONSerializer

API_VERSIONS = {"lambda-microvms": "2025-09-09", "lambda-core": "2026-04-30"}
HOST = "127.0.0.1:7060"


@cache
def service_model(service: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(service, "service-2", API_VERSIONS[service]), service)


def sent_by_botocore(service: str, operation: str, parameters: Mapping[str, Any]) -> AWSRequest:
    """The unsigned request that an SDK sends for these parameters."""
    model = service_model(service).operation_model(operation)
    request = RestJSONSerializer().serialize_to_request(dict(parameters), model)
    prepare_request_dict(request, endpoint_url=f"http://{HOST}")
    query = urlencode(request["query_string"], doseq=True) if request["query_string"] else ""
    url = request["url"] if "?" in request["url"] or not query else f"{request['url']}?{query}"
    return AWSRequest(method=request["method"], url=url, data=request["body"], headers=request["headers"])


def signed(request: AWSRequest, credentials: Credentials, region: str = "us-east-1") -> AWSRequest:
    SigV4Auth(credentials, "lambda", region).add_auth(request)
    return request


def read_by_botocore(service: str, operation: str, status: int, headers: Mapping[str, str],
                     body: bytes) -> dict[str, Any]:
    """What an SDK makes of an answer."""
    model = service_model(service).operation_model(operation)
    answer = {"status_code": status, "headers": dict(headers), "body": body}
    parsed: dict[str, Any] = RestJSONParser().parse(answer, model.output_shape)
    return parsed
