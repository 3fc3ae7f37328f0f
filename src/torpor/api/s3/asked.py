"""What a request asks of S3: which action on which bucket or object, and what of it goes on to rclone.

rclone takes names apart in ways of its own: it strips slashes, resolves dots and prefers one parameter over another.
So it never sees what the client sent. It gets the path written anew from what was decided on, and only the parameters
of the operation that was decided on; a name that a file system would read otherwise than it is spelled is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

from torpor.api.s3.errors import S3Error

_SAFE: Final = "-_.~"
_PAGE: Final = frozenset({"prefix", "delimiter", "encoding-type"})
_LIST: Final = _PAGE | {"list-type", "marker", "max-keys", "continuation-token", "start-after", "fetch-owner"}
_UPLOADS: Final = _PAGE | {"uploads", "key-marker", "upload-id-marker", "max-uploads"}
_READ: Final = frozenset({
    "response-content-type", "response-content-language", "response-expires", "response-cache-control",
    "response-content-disposition", "response-content-encoding",
})
_UPLOAD: Final = frozenset({"uploadId"})
_PARTS: Final = _UPLOAD | {"max-parts", "part-number-marker"}
_NONE: Final[frozenset[str]] = frozenset()

_ROUTES: Final[Mapping[tuple[str, str, str], tuple[str, frozenset[str]]]] = {
    ("service", "GET", ""): ("s3:ListAllMyBuckets", _NONE),
    ("bucket", "GET", ""): ("s3:ListBucket", _LIST),
    ("bucket", "HEAD", ""): ("s3:ListBucket", _NONE),
    ("bucket", "PUT", ""): ("s3:CreateBucket", _NONE),
    ("bucket", "DELETE", ""): ("s3:DeleteBucket", _NONE),
    ("bucket", "GET", "location"): ("s3:GetBucketLocation", frozenset({"location"})),
    ("bucket", "GET", "versioning"): ("s3:GetBucketVersioning", frozenset({"versioning"})),
    ("bucket", "PUT", "versioning"): ("s3:PutBucketVersioning", frozenset({"versioning"})),
    ("bucket", "GET", "uploads"): ("s3:ListBucketMultipartUploads", _UPLOADS),
    ("bucket", "POST", "delete"): ("s3:DeleteObject", frozenset({"delete"})),
    ("object", "GET", ""): ("s3:GetObject", _READ),
    ("object", "HEAD", ""): ("s3:GetObject", _READ),
    ("object", "PUT", ""): ("s3:PutObject", _NONE),
    ("object", "DELETE", ""): ("s3:DeleteObject", _NONE),
    ("object", "POST", "uploads"): ("s3:PutObject", frozenset({"uploads"})),
    ("object", "PUT", "uploadId"): ("s3:PutObject", _UPLOAD | {"partNumber"}),
    ("object", "POST", "uploadId"): ("s3:PutObject", _UPLOAD),
    ("object", "GET", "uploadId"): ("s3:ListMultipartUploadParts", _PARTS),
    ("object", "DELETE", "uploadId"): ("s3:AbortMultipartUpload", _UPLOAD),
}  # fmt: skip
"""(level, method, subresource) → the action that a policy must allow, and the parameters that go on."""

_SUBRESOURCES: Final = (
    "uploadId", "uploads", "delete", "location", "versioning",
    "abac", "accelerate", "acl", "analytics", "annotation", "attributes", "cors", "encryption",
    "intelligent-tiering", "inventory", "legal-hold", "lifecycle", "logging", "metadataConfiguration",
    "metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus",
    "publicAccessBlock", "renameObject", "replication", "requestPayment", "restore", "retention", "select", "session",
    "tagging", "torrent", "versions", "website",
)  # fmt: skip
"""Parameters that make a request another operation; those that no route names are not implemented."""
_CONDITIONS: Final = ("prefix", "delimiter", "max-keys")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, decided on."""

    action: str
    method: str
    bucket: str = ""
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    """What goes on."""
    subresource: str = ""

    @property
    def resource(self) -> str | None:
        """The ARN that a policy must allow; None for every bucket."""
        return arn(self.bucket, self.key) if self.bucket else None

    @property
    def context(self) -> dict[str, str]:
        """Condition keys of a policy."""
        if self.action != "s3:ListBucket":
            return {}
        return {f"s3:{name}": self.query[name] for name in _CONDITIONS if name in self.query}

    @property
    def target(self) -> bytes:
        """Path and query as rclone gets them."""
        path = "/" + place(self.bucket, self.key) if self.bucket else "/"
        query = "&".join(f"{quote(name, safe=_SAFE)}={quote(value, safe=_SAFE)}" for name, value in self.query.items())
        return (f"{path}?{query}" if query else path).encode()


def read(method: str, raw_path: str, raw_query: str) -> Asked:
    """Raises S3Error."""
    try:
        path = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "Couldn't parse the specified URI.") from None
    bucket, _, key = path.removeprefix("/").partition("/")
    if bucket or key:
        check_bucket(bucket)
    if key.endswith("/") and method in ("GET", "HEAD"):
        raise S3Error("NoSuchKey", "The specified key does not exist.")
    if key:
        check_key(key)
    query = _parameters(raw_query)
    level = "object" if key else "bucket" if bucket else "service"
    subresource = next((name for name in _SUBRESOURCES if name in query), "")
    route = _ROUTES.get((level, method, subresource))
    if route is None:
        if subresource:
            raise S3Error("NotImplemented", f"The embedded S3 has no {method} of {level}s with {subresource}.")
        raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
    # An empty one is none to rclone, which would take the request for one about the object itself.
    if subresource == "uploadId" and not query["uploadId"]:
        raise S3Error("NoSuchUpload", "The specified upload does not exist.")
    check_version(query.get("versionId", ""))
    _check_prefix(query.get("prefix", ""))
    action, passed = route
    going_on = {name: query[name] for name in sorted(passed & query.keys())}
    return Asked(action, method, bucket, key, going_on, subresource)


def source_of(header: str) -> tuple[str, str]:
    """Bucket and key of `x-amz-copy-source`. Raises S3Error."""
    name, _, query = header.partition("?")
    bucket, _, key = unquote(name).removeprefix("/").partition("/")
    if not bucket or not key:
        raise S3Error("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
    check_version(_parameters(query).get("versionId", ""))
    check_bucket(bucket)
    check_key(key)
    return bucket, key


def place(bucket: str, key: str) -> str:
    """Bucket and key, encoded."""
    return f"{quote(bucket, safe=_SAFE)}/{quote(key, safe=f'/{_SAFE}')}" if key else quote(bucket, safe=_SAFE)


def arn(bucket: str, key: str = "") -> str:
    return f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"


def check_bucket(bucket: str) -> None:
    """Raises S3Error for what cannot be the name of a directory."""
    if bucket in ("", ".", "..") or "\0" in bucket or "/" in bucket or len(bucket.encode()) > 255:
        raise S3Error("InvalidBucketName", "The specified bucket is not valid.")


def check_key(key: str) -> None:
    """Raises S3Error for a key that is no path of a file: objects are files here."""
    if "\0" in key or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise S3Error("InvalidArgument", "The embedded S3 keeps objects as files: a key has no empty segment, '.' "
                      f"or '..', and does not end in '/', unlike {key!r}")


def check_version(version: str) -> None:
    """Raises S3Error: there is one version of an object, and S3 calls it null."""
    if version not in ("", "null"):
        raise S3Error("NotImplemented", "The embedded S3 keeps no versions of objects.")


def _check_prefix(prefix: str) -> None:
    directory, slash, _ = prefix.rpartition("/")
    if slash:
        check_key(directory)


def _parameters(raw_query: str) -> dict[str, str]:
    """By name, the last of repeated ones. A plus is a plus, as signatures have it."""
    pairs = (pair.partition("=") for pair in raw_query.split("&") if pair)
    try:
        return {_text(name): _text(value) for name, _, value in pairs}
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "Couldn't parse the specified URI.") from None


def _text(encoded: str) -> str:
    return unquote_to_bytes(encoded).decode()
