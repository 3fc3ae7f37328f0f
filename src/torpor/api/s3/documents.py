"""The XML that the front itself has to understand: lists of buckets and of objects to delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from xml.etree import ElementTree

from torpor.api.s3.errors import S3Error

NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_KEYS: Final = 1000
_HEAD: Final = b'<?xml version="1.0" encoding="UTF-8"?>\n'


def keep_buckets(document: bytes, is_kept: Callable[[str], bool]) -> bytes:
    """A list of buckets without those that are not to be seen."""
    root = _parsed(document)
    for listed in root.iter(f"{{{NAMESPACE}}}Buckets"):
        for bucket in list(listed):
            if not is_kept(bucket.findtext(f"{{{NAMESPACE}}}Name", "")):
                listed.remove(bucket)
    return _HEAD + ElementTree.tostring(root, default_namespace=NAMESPACE)


def keys_to_delete(document: bytes) -> tuple[list[str], bool]:
    """The keys of a DeleteObjects, and whether only failures are to be told. Raises S3Error."""
    root = _parsed(document)
    keys: list[str] = []
    is_quiet = False
    for element in root:
        name = _local(element)
        if name == "Quiet":
            is_quiet = (element.text or "").strip().lower() == "true"
        elif name == "Object":
            members = {_local(member): member.text or "" for member in element}
            if members.get("VersionId", "null") != "null":
                raise S3Error("NotImplemented", "The embedded S3 keeps no versions of objects.")
            keys.append(members.get("Key", ""))
    if not 0 < len(keys) <= MAX_KEYS or not all(keys):
        raise S3Error("MalformedXML", f"A Delete names 1 to {MAX_KEYS} objects by their keys.")
    return keys, is_quiet


def delete_request(keys: list[str], is_quiet: bool) -> bytes:
    root = ElementTree.Element(f"{{{NAMESPACE}}}Delete")
    ElementTree.SubElement(root, f"{{{NAMESPACE}}}Quiet").text = "true" if is_quiet else "false"
    for key in keys:
        ElementTree.SubElement(ElementTree.SubElement(root, f"{{{NAMESPACE}}}Object"), f"{{{NAMESPACE}}}Key").text = key
    return _HEAD + ElementTree.tostring(root, default_namespace=NAMESPACE)


def delete_result(document: bytes | None, refused: Mapping[str, S3Error]) -> bytes:
    """rclone's answer, if it was asked, with what was refused before it was."""
    root = _parsed(document) if document is not None else ElementTree.Element("DeleteResult")
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    for key, error in refused.items():
        told = ElementTree.SubElement(root, f"{space}Error")
        for name, text in (("Key", key), ("Code", error.code), ("Message", str(error))):
            ElementTree.SubElement(told, f"{space}{name}").text = text
    return _HEAD + ElementTree.tostring(root, default_namespace=space.strip("{}") or None)


def _parsed(document: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(document)  # noqa: S314 - expat refuses entities that grow, and the size is capped
    except ElementTree.ParseError:
        raise S3Error("MalformedXML", "The XML you provided was not well-formed or did not validate against our "
                      "published schema") from None


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
