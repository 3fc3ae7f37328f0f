"""What S3 says of a request that is refused: codes, statuses and XML of its own, unlike AWS's other services."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from torpor.api import errors as wire
from torpor.api.errors import Answer

XML: Final = b"application/xml"
_STATUS: Final = {
    "AccessDenied": 403, "AuthorizationHeaderMalformed": 400, "AuthorizationQueryParametersError": 400,
    "BadDigest": 400, "BucketAlreadyExists": 409, "EntityTooLarge": 400, "ExpiredToken": 400, "IncompleteBody": 400,
    "InternalError": 500, "InvalidAccessKeyId": 403, "InvalidArgument": 400, "InvalidBucketName": 400,
    "InvalidRequest": 400, "InvalidToken": 400, "InvalidURI": 400, "MalformedXML": 400, "MethodNotAllowed": 405,
    "MissingContentLength": 411, "NoSuchBucket": 404, "NoSuchKey": 404, "NoSuchUpload": 404, "NotImplemented": 501,
    "RequestHeaderSectionTooLarge": 400, "RequestTimeTooSkewed": 403, "RequestTimeout": 400,
    "ServiceUnavailable": 503, "SignatureDoesNotMatch": 403, "XAmzContentSHA256Mismatch": 400,
}  # fmt: skip


class S3Error(Exception):
    """Refused with one of S3's codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = _STATUS[code]

    def answer(self, resource: str, request_id: str) -> Answer:
        body = (f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{self.code}</Code>'
                f"<Message>{escape(str(self))}</Message><Resource>{escape(resource)}</Resource>"
                f"<RequestId>{request_id}</RequestId></Error>")
        return Answer(self.status, body.encode(), content_type=XML)


def access_denied(message: str = "Access Denied") -> S3Error:
    return S3Error("AccessDenied", message)


def no_such_bucket() -> S3Error:
    return S3Error("NoSuchBucket", "The specified bucket does not exist")


def expired_token() -> S3Error:
    return S3Error("ExpiredToken", "The provided token has expired.")


def of_signature(error: wire.WireError, is_presigned: bool) -> S3Error:
    """S3's word for what is wrong with a signature."""
    match error:
        case wire.MissingAuthentication():
            return access_denied()
        case wire.WrongToken():
            return S3Error("InvalidToken", "The provided token is malformed or otherwise invalid.")
        case wire.UnknownKey():
            return S3Error("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
        case wire.SignatureMismatch():
            return S3Error("SignatureDoesNotMatch", "The request signature we calculated does not match the signature "
                           "you provided. Check your key and signing method.")
        case wire.SignatureExpired() if is_presigned:
            return access_denied("Request has expired")
        case wire.SignatureNotYetCurrent() if is_presigned:
            return access_denied("Request is not valid yet")
        case wire.SignatureExpired() | wire.SignatureNotYetCurrent():
            return S3Error("RequestTimeTooSkewed",
                           "The difference between the request time and the current time is too large.")
        case wire.HeadersTooLarge():
            return S3Error("RequestHeaderSectionTooLarge", str(error))
        case wire.IncompleteSignature() | wire.InvalidSignature():
            code = "AuthorizationQueryParametersError" if is_presigned else "AuthorizationHeaderMalformed"
            return S3Error(code, str(error))
        case wire.Unreadable():
            return S3Error("IncompleteBody", str(error))
        case _:
            return S3Error("InvalidRequest", str(error))
