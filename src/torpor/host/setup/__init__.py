"""Prepares a machine: everything Torpor needs on a fresh Debian, made here or fetched by apt, and found again."""

from torpor.host.setup.bases import ContainerBase as ContainerBase
from torpor.host.setup.certificates import Certificates as Certificates
from torpor.host.setup.certificates import ensure_certificates as ensure_certificates
from torpor.host.setup.check import check as check
from torpor.host.setup.doctor import examine as examine
from torpor.host.setup.engines import engines as engines
from torpor.host.setup.envoy import envoy_binary as envoy_binary
from torpor.host.setup.findings import Finding as Finding
from torpor.host.setup.imports import container_bases as container_bases
from torpor.host.setup.imports import import_base as import_base
from torpor.host.setup.prepare import prepare as prepare
from torpor.host.setup.prepared import Prepared as Prepared
from torpor.host.setup.progress import PlainLines as PlainLines
from torpor.host.setup.progress import Progress as Progress
from torpor.host.setup.progress import Report as Report
from torpor.host.setup.progress import unreported as unreported
from torpor.host.setup.volume import unmount_volume as unmount_volume
