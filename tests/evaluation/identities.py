"""What hands out keys that expire to whoever has a token: AWS's STS, and an agent as of EKS' pod identities."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

ROLE = "arn:aws:iam::000000000000:role/cycleqd"
ASSUMED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>{}</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId>
<Arn>{}</Arn></AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@dataclass
class Issuer:
    """Gives out these keys, always about to expire, so that clients renew them with every request."""

    access: str
    secret: str
    token: str
    asked: int = 0
    url: str = ""
    refused: list[str] = field(default_factory=list)

    def answer(self, token: str, web_identity: bool) -> tuple[int, str]:
        if token != self.token:
            self.refused.append(token)
            return 403, "{}"
        self.asked += 1
        expires = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if web_identity:
            return 200, ASSUMED.format(self.access, self.secret, expires, ROLE)
        keys = {"AccessKeyId": self.access, "SecretAccessKey": self.secret, "Token": ""}
        return 200, json.dumps({**keys, "Expiration": expires})

    def environment(self, kind: str, file: Path) -> dict[str, str]:
        """What a pod of an identity is given; the token is written to the file."""
        file.write_text(self.token)
        if kind == "web identity":
            found = {"AWS_ROLE_ARN": ROLE, "AWS_ROLE_SESSION_NAME": "pod", "AWS_WEB_IDENTITY_TOKEN_FILE": str(file)}
            return {**found, "AWS_ENDPOINT_URL_STS": self.url}
        found = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/v1/credentials"}
        return {**found, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(file)}


@contextlib.contextmanager
def issuing(access: str, secret: str, token: str) -> Iterator[Issuer]:
    issuer = Issuer(access, secret, token)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send(*issuer.answer(body["WebIdentityToken"][0], web_identity=True))

        def do_GET(self) -> None:
            self.send(*issuer.answer(self.headers["Authorization"] or "", web_identity=False))

        def send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
