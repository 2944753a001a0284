"""A real directory for tests: OpenLDAP's slapd in a folder and on free loopback ports of its own.

What it holds is :data:`TREE`. It takes a bind with a name and an empty password
(``bind_anon_dn``), as many directories do, so that only the client keeps such a login out.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.process import LOOPBACK, HarnessError, Process, free_port, listens
from tests.support.rabbit import TlsFiles

BASE = "dc=example,dc=com"
PEOPLE = f"ou=people,{BASE}"
GROUPS = f"ou=groups,{BASE}"
SERVICE = f"cn=service,{BASE}"
SERVICE_PASSWORD = "service-password"
SCHEMA = Path("/etc/ldap/schema")


def password_of(user: str) -> str:
    return f"password-of-{user}"


@dataclass(frozen=True)
class Entry:
    """dn: relative to BASE, empty for BASE itself."""

    dn: str
    classes: Sequence[str]
    attributes: Mapping[str, Sequence[str]]

    def ldif(self) -> str:
        name = f"{self.dn},{BASE}" if self.dn else BASE
        rows = [f"dn: {name}", *(f"objectClass: {kind}" for kind in self.classes)]
        rows += [f"{key}: {value}" for key, values in self.attributes.items() for value in values]
        return "\n".join(rows) + "\n"


def person(cn: str, *, rdn: str = "", mail: Sequence[str] = (), **more: str) -> Entry:
    return Entry(
        f"cn={rdn or cn},ou=people",
        ("inetOrgPerson",),
        {
            "cn": [cn],
            "sn": [cn],
            "userPassword": [password_of(cn)],
            "mail": mail,
            **{key: [value] for key, value in more.items()},
        },
    )


def group(cn: str, *members: str, kind: str = "groupOfNames", below: str = "ou=groups") -> Entry:
    attribute = "member" if kind == "groupOfNames" else "uniqueMember"
    return Entry(f"cn={cn},{below}", (kind,), {"cn": [cn], attribute: members})


def unit(ou: str, below: str = "") -> Entry:
    return Entry(f"ou={ou},{below}" if below else f"ou={ou}", ("organizationalUnit",), {"ou": [ou]})


def in_groups(cn: str) -> str:
    return f"cn={cn},{GROUPS}"


def in_people(cn: str) -> str:
    return f"cn={cn},{PEOPLE}"


TREE = (
    Entry("", ("dcObject", "organization"), {"dc": ["example"], "o": ["example"]}),
    Entry(
        "cn=service",
        ("organizationalRole", "simpleSecurityObject"),
        {"cn": ["service"], "userPassword": [SERVICE_PASSWORD]},
    ),
    unit("people"),
    unit("groups"),
    unit("deep", "ou=groups"),
    unit("vhosts"),
    unit("test", "ou=vhosts"),
    unit("hidden"),
    person("alice", mail=["alice@example.com"], uid="a1", description="^pub-"),
    person("bob", mail=["bob@example.com", "robert@example.com"], uid="b1", description="("),
    person("carol", uid="twice"),
    person("dave", uid="twice"),
    person("smith, john", rdn="smith\\, john", uid="j1"),
    person("DOM\\user", rdn="DOM\\\\user"),
    Entry("cn=key,ou=hidden", ("organizationalRole",), {"cn": ["key"]}),
    group("admins", in_people("alice")),
    group("uniques", in_people("bob"), kind="groupOfUniqueNames"),
    group("staff", in_groups("admins"), in_people("bob")),
    group("all", in_groups("staff")),
    group("loop-a", in_groups("loop-b"), in_people("carol")),
    group("loop-b", in_groups("loop-a")),
    group("deep", in_people("carol"), below="ou=deep,ou=groups"),
)

CONFIG = """
include {schema}/core.schema
include {schema}/cosine.schema
include {schema}/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.pid
argsfile {folder}/slapd.args
allow bind_anon_dn
{tls}
database mdb
suffix "{base}"
rootdn "cn=root,{base}"
rootpw root-password
directory {folder}/data
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=hidden,{base}" by dn.exact="{service}" read by * none
access to * by * read
"""


class Slapd:
    """port: plain and StartTLS. tls_port: LDAPS. After ``stop`` it can ``start`` again."""

    def __init__(self, folder: Path, *, tls: TlsFiles | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls_port = free_port()
        self._tls = tls
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise HarnessError("slapd was not started")
        return self._process.pid

    def start(self) -> Self:
        program = shutil.which("slapd") or "/usr/sbin/slapd"
        config = self.folder / "slapd.conf"
        if not config.exists():
            self._create(program, config)
        urls = f"ldap://{LOOPBACK}:{self.port}/"
        if self._tls is not None:
            urls += f" ldaps://{LOOPBACK}:{self.tls_port}/"
        self._process = Process(
            [program, "-f", config, "-h", urls, "-d", "0"], log=self.folder / "slapd.log"
        ).start()
        self._process.wait_for(lambda: listens(self.port), what="listens")
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _create(self, program: str, config: Path) -> None:
        (self.folder / "data").mkdir(parents=True)
        tls = ""
        if self._tls is not None:
            tls = (
                f"TLSCACertificateFile {self._tls.ca}\n"
                f"TLSCertificateFile {self._tls.certificate}\n"
                f"TLSCertificateKeyFile {self._tls.key}"
            )
        config.write_text(
            CONFIG.format(schema=SCHEMA, folder=self.folder, tls=tls, base=BASE, service=SERVICE)
        )
        ldif = self.folder / "tree.ldif"
        ldif.write_text("\n".join(entry.ldif() for entry in TREE))
        done = subprocess.run(
            [program, "-T", "add", "-f", config, "-l", ldif],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HarnessError(f"slapadd: {done.stderr}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
