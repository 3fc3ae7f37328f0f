"""Envoy's whole configuration as one plain value. Envoy carries; the authorizer decides (`authorizer.py`).

A request passes these, in this order: our own names are taken out of it and it gets its request id; the authorizer is
asked and may hold it; what speaks to the proxy is taken out; the router sends it to the address of the answer. That
address travels as dynamic metadata, which no client can write, and never as a header.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torpor.edge.request import UPGRADE, Via

_TYPE = "type.googleapis.com/envoy."
_ANSWER = "envoy.filters.http.ext_authz"
"""Envoy's namespace for the metadata made from the authorizer's headers."""

DESTINATION = "edge-to"
VIA = "edge-via"
UNAVAILABLE = "unavailable"
"""In place of a `Via`: the 502. The authorizer cannot say 502 itself, Envoy takes that as a failure to answer."""
SUBPROTOCOL = "edge-subprotocol"
GRPC_STATUS = "x-torpor-status"
"""On an answer of Envoy's own to gRPC: the HTTP status it had before it was put into gRPC's form."""
PLAIN_ANSWERS = f"""
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("{GRPC_STATUS}")
  if status == nil then return end
  headers:remove("{GRPC_STATUS}")
  if headers:get("grpc-status") == nil or not string.match(status, "^[45]%d%d$") then return end
  local text = headers:get("grpc-message") or ""
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:replace(":status", status)
  if text == "" then
    headers:remove("content-type")
  else
    headers:replace("content-type", "text/plain")
    handle:body(true):setBytes(text)
  end
end
"""
"""Gives gRPC clients the answers everybody gets: a bare status they map themselves (spec 5.4). Envoy would say 200 with
`grpc-status` instead, which whoever is no gRPC client takes for a success."""
UPSTREAM_HEADERS = "x-torpor-"
"""`Upstream.headers` have names that begin so; a client's own of such names are removed."""

FORWARDED_TO_AUTHORIZER = (
    "x-aws-proxy-auth", "x-aws-proxy-port", "x-aws-proxy-force-h2", "content-type",
    "sec-websocket-protocol", UPGRADE, "x-amzn-requestid",
)

_KIB = 1024
_WINDOW = 1024 * _KIB
"""HTTP/2 flow-control window of a stream: what one client can make Envoy hold while its application does not read."""
_UNBOUNDED = 1_000_000
"""Envoy's own limits are for all microVMs together and would let one starve the others; caps are the gate's."""


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    address: str
    port: int
    run_dir: Path
    """Where the sockets and the certificate are; short, because socket paths end at 107 bytes."""
    hold: timedelta = timedelta(seconds=75)
    """How long the authorizer may take; longer than the gate holds a request."""
    is_lasting: bool = False
    """Envoy outlives a Torpor that is killed, and holds new requests until the next one listens."""

    @property
    def authorizer_socket(self) -> Path:
        return self.run_dir / "authorizer.sock"

    @property
    def shell_socket(self) -> Path:
        return self.run_dir / "shell.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "envoy" / "admin.sock"

    @property
    def ends_pipe(self) -> Path:
        return self.run_dir / "ends.pipe"

    @property
    def certificate(self) -> Path:
        return self.run_dir / "envoy" / "certificate.json"


def bootstrap(settings: EnvoySettings) -> dict[str, Any]:
    """The document Envoy starts from."""
    return {
        "node": {"id": "torpor", "cluster": "torpor"},
        "admin": {"address": _pipe(settings.admin_socket)},
        "static_resources": {
            "listeners": [_listener(settings)],
            "clusters": [_socket_cluster("authorizer", settings.authorizer_socket),
                         _socket_cluster(Via.SHELL, settings.shell_socket),
                         *(_microvm_cluster(via) for via in Via if via is not Via.SHELL)],
        },
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": f"{_TYPE}extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 50_000,
            },
        }]},
    }


def certificate_secret(chain: str, key: str) -> dict[str, Any]:
    """The file at `EnvoySettings.certificate`; replaced by a rename, Envoy takes the new one into use."""
    return {"resources": [{
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.Secret",
        "name": "server",
        "tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}},
    }]}


def _listener(settings: EnvoySettings) -> dict[str, Any]:
    return {
        "name": "endpoints",
        "address": {"socket_address": {"address": settings.address, "port_value": settings.port}},
        # A second Torpor on the same port must fail, not get every other connection.
        "enable_reuse_port": False,
        # A client that vanished does not hold its silent stream for ever.
        "tcp_keepalive": {"keepalive_time": 60, "keepalive_interval": 15, "keepalive_probes": 4},
        "per_connection_buffer_limit_bytes": 256 * _KIB,
        "filter_chains": [{
            "transport_socket": {"name": "tls", "typed_config": _downstream_tls(settings)},
            "transport_socket_connect_timeout": "15s",
            "filters": [{"name": "http", "typed_config": _http(settings)}],
        }],
    }


def _downstream_tls(settings: EnvoySettings) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [{
                "name": "server",
                "sds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": {
                        "path": str(settings.certificate),
                        "watched_directory": {"path": str(settings.certificate.parent)},
                    },
                },
            }],
        },
    }


def _http(settings: EnvoySettings) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "endpoints",
        # The application sees the client's own headers: nothing is added to them, changed or answered on its behalf.
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "skip_xff_append": True,
        "generate_request_id": False,
        "preserve_external_request_id": True,
        "proxy_100_continue": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # Streams may be silent for ever; only a client that does not finish its headers is cut.
        "stream_idle_timeout": "0s",
        "request_headers_timeout": "30s",
        # How long a closed connection waits for its client to close first: a WebSocket client sees it as a slow close.
        "delayed_close_timeout": "0.25s",
        "max_request_headers_kb": 128,
        "common_http_protocol_options": {"max_headers_count": 256, "idle_timeout": "900s"},
        "http_protocol_options": {"enable_trailers": True, "accept_http_10": True},
        "http2_protocol_options": {
            "max_concurrent_streams": 128,
            "initial_stream_window_size": _WINDOW,
            "initial_connection_window_size": 4 * _WINDOW,
        },
        "access_log": [_ends(settings)],
        "local_reply_config": _local_replies(),
        "route_config": _routes(),
        "http_filters": [
            _mutation("arrival", request=[*_remove("x-torpor-", "x-envoy-"), _set("x-amzn-requestid", "%UNIQUE_ID%"),
                                          _set(UPGRADE, "%REQ(upgrade)%")],
                      response=[_set("x-amzn-requestid", "%REQ(x-amzn-requestid)%"), _base_subprotocol()]),
            {"name": "plain-answers", "typed_config": {"@type": f"{_TYPE}extensions.filters.http.lua.v3.Lua",
                                                       "default_source_code": {"inline_string": PLAIN_ANSWERS}}},
            _authorization(settings),
            _mutation("departure", request=_remove("x-aws-proxy-", "x-envoy-", UPGRADE)),
            {"name": "router", "typed_config": {"@type": f"{_TYPE}extensions.filters.http.router.v3.Router",
                                                "suppress_envoy_headers": True}},
        ],
    }


def _ends(settings: EnvoySettings) -> dict[str, Any]:
    """One line for each request that has ended, read by `ends.py`."""
    answers = [f"%DYNAMIC_METADATA({_ANSWER}:{name})%" for name in (DESTINATION, VIA)]
    line = " ".join(["%REQ(x-amzn-requestid)%", *answers, "%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%"]) + "\n"
    return {"name": "ends", "typed_config": {
        "@type": f"{_TYPE}extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(settings.ends_pipe),
        "log_format": {"text_format_source": {"inline_string": line}},
    }}


def _authorization(settings: EnvoySettings) -> dict[str, Any]:
    return {
        "name": _ANSWER,
        "typed_config": {
            "@type": f"{_TYPE}extensions.filters.http.ext_authz.v3.ExtAuthz",
            "clear_route_cache": True,
            # No answer is an error of ours, and closed.
            "status_on_error": {"code": "InternalServerError"},
            "allowed_headers": {"patterns": [{"exact": name} for name in FORWARDED_TO_AUTHORIZER]},
            "disallowed_headers": {"patterns": [{"exact": "authorization"}]},
            "http_service": {
                "server_uri": {"uri": "http://authorizer", "cluster": "authorizer",
                               "timeout": f"{settings.hold.total_seconds():.3f}s"},
                "path_override": "/",
                **({"retry_policy": _until_torpor_is_back()} if settings.is_lasting else {}),
                "authorization_response": {
                    "dynamic_metadata_from_headers": {"patterns": [{"prefix": "edge-"}]},
                    "allowed_upstream_headers": {"patterns": [
                        {"prefix": UPSTREAM_HEADERS}, {"exact": "sec-websocket-protocol"},
                    ]},
                    "allowed_client_headers": {"patterns": [{"exact": "content-type"}, {"exact": "cache-control"}]},
                },
            },
        },
    }


def _until_torpor_is_back() -> dict[str, Any]:
    """Half a minute or so; asking twice does no harm, since the gate's answer changes nothing but who is awake."""
    return {
        "retry_on": "connect-failure,reset",
        "num_retries": 60,
        "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
    }


def _routes() -> dict[str, Any]:
    def match(via: str) -> dict[str, Any]:
        answer = {"filter": _ANSWER, "path": [{"key": VIA}], "value": {"string_match": {"exact": via}}}
        return {"prefix": "/", "dynamic_metadata": [answer]}

    def route(via: Via) -> dict[str, Any]:
        return {
            "match": match(via),
            "route": {
                "cluster": str(via),
                "timeout": "0s",
                "idle_timeout": "0s",
                # Nothing has been sent when connecting fails, so any request may be tried again: a listener that is a
                # moment late after a wake is not the client's business.
                "retry_policy": {
                    "retry_on": "connect-failure",
                    "num_retries": 3,
                    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.1s"},
                },
            },
        }

    unavailable = {"match": match(UNAVAILABLE), "direct_response": {"status": 502}}
    # Asked for before the authorizer has answered as well, when no route of it matches.
    unanswered = {"match": {"prefix": "/"}, "direct_response": {"status": 500}}
    return {
        "virtual_hosts": [{"name": "endpoints", "domains": ["*"],
                           "routes": [*(route(via) for via in Via), unavailable, unanswered]}],
        # Envoy finds no route for a request without it, so it goes at the very end.
        "request_headers_to_remove": ["x-forwarded-proto"],
    }


def _local_replies() -> dict[str, Any]:
    """What Envoy says itself (spec 5.4): anything it cannot deliver is an empty 502, a refused upgrade a 400."""
    def status(op: str, value: int) -> dict[str, Any]:
        return {"status_code_filter": {"comparison": {"op": op, "value": {"default_value": value,
                                                                          "runtime_key": "unused"}}}}

    identified = [_append("x-amzn-requestid", "%UNIQUE_ID%", "ADD_IF_ABSENT")]
    own: list[dict[str, Any]] = [
        {"filter": {"response_flag_filter": {"flags": ["UAEX"]}}},  # the authorizer's answers are whole already
        {"filter": status("GE", 500), "status_code": 502, "body": {"inline_string": ""}, "headers_to_add": identified},
        {"filter": {"or_filter": {"filters": [status("EQ", 403), status("EQ", 404)]}}, "status_code": 400,
         "body": {"inline_string": "Bad Request"}, "headers_to_add": identified},
        {"filter": status("GE", 400), "headers_to_add": identified},
    ]
    return {"mappers": [*(_for_grpc(mapper) for mapper in own), *own]}


def _for_grpc(mapper: dict[str, Any]) -> dict[str, Any]:
    """The same answer for a gRPC request, with a note for `PLAIN_ANSWERS`."""
    is_grpc = {"header_filter": {"header": {"name": "content-type",
                                            "string_match": {"prefix": "application/grpc"}}}}
    note = _append(GRPC_STATUS, str(mapper.get("status_code", "%RESPONSE_CODE%")), "OVERWRITE_IF_EXISTS_OR_ADD")
    return {**mapper, "filter": {"and_filter": {"filters": [is_grpc, mapper["filter"]]}},
            "headers_to_add": [*mapper.get("headers_to_add", []), note]}


def _socket_cluster(name: str, socket: Path) -> dict[str, Any]:
    return {
        "name": str(name),
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": _open_breakers(),
        "load_assignment": {"cluster_name": str(name), "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": _pipe(socket)}},
        ]}]},
    }


def _microvm_cluster(via: Via) -> dict[str, Any]:
    http1 = {"enable_trailers": True}
    http2 = {"initial_stream_window_size": _WINDOW, "initial_connection_window_size": 4 * _WINDOW}
    protocols: dict[Via, dict[str, Any]] = {
        Via.HTTP1: {"explicit_http_config": {"http_protocol_options": http1}},
        Via.H2C: {"explicit_http_config": {"http2_protocol_options": http2}},
        Via.TLS: {"auto_config": {"http_protocol_options": http1, "http2_protocol_options": http2},
                  "upstream_http_protocol_options": {"auto_sni": True}},
    }
    cluster = {
        "name": str(via),
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": 256 * _KIB,
        "original_dst_lb_config": {"metadata_key": {"key": _ANSWER, "path": [{"key": DESTINATION}]}},
        "circuit_breakers": _open_breakers(),
        # A suspended microVM's address disappears without a word: its streams are cut 57 s later, as AWS's (spec 5.7).
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30, "keepalive_interval": 9,
                                                          "keepalive_probes": 3}},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
            # Below the 5 s after which common servers close an idle connection, which would meet a request half way.
            "common_http_protocol_options": {"idle_timeout": "4s", "max_headers_count": 256,
                                             "max_response_headers_kb": 256},
            **protocols[via],
        }},
    }
    if via is Via.TLS:
        # Certificates of applications are their own; who runs there is known by the address (spec 14, C6).
        cluster["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": {}}}
    return cluster


def _base_subprotocol() -> dict[str, Any]:
    value = f"%DYNAMIC_METADATA({_ANSWER}:{SUBPROTOCOL})%"
    return {"append": _append("sec-websocket-protocol", value, "ADD_IF_ABSENT")}


def _mutation(name: str, request: list[dict[str, Any]], response: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"name": name, "typed_config": {
        "@type": f"{_TYPE}extensions.filters.http.header_mutation.v3.HeaderMutation",
        "mutations": {"request_mutations": request, "response_mutations": response or []},
    }}


def _remove(*prefixes: str) -> list[dict[str, Any]]:
    return [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes]


def _set(name: str, value: str) -> dict[str, Any]:
    return {"append": _append(name, value, "OVERWRITE_IF_EXISTS_OR_ADD")}


def _append(name: str, value: str, action: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": action}


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path)}}


def _open_breakers() -> dict[str, Any]:
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(limits, _UNBOUNDED)]}
