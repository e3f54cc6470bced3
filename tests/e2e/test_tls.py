"""https on the proxy's own port, with a certificate of one's own and the real clients."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path

import anthropic
import httpx
import ollama
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .harness import TOKEN, Hosts, Proxy, running_proxy

pytestmark = pytest.mark.e2e


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate of this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "balancer.pem"
    path.write_bytes(private + built.public_bytes(pem))
    return path


class Http2First(ssl.SSLContext):
    """Offers HTTP/2 first, as curl and browsers do, whatever the client says."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        super().set_alpn_protocols(["h2", "http/1.1"])


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Proxy, str, Path]]:
    """A balancer, its https URL, and its certificate."""
    hosts, path = Hosts(), certificate(tmp_path)
    try:
        agent = hosts.start("a", "llama3.2")
        with running_proxy(tmp_path, "--set", f"balancer_agents=a={agent.url}", "--set", f"certs=*={path}") as proxy:
            proxy.wait_online("a")
            url = proxy.url.replace("http://127.0.0.1", "https://localhost")
            yield proxy, url, path
    finally:
        hosts.stop()


@pytest.mark.parametrize("http2", [False, True])
def test_prompts_are_answered_over_https_with_the_given_certificate(
    secure: tuple[Proxy, str, Path], http2: bool
) -> None:
    _, url, path = secure
    trust = (Http2First if http2 else ssl.SSLContext)(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(path)
    body = {"model": "llama3.2", "prompt": "hi"}
    with httpx.Client(verify=trust, http2=http2, timeout=20) as client:
        with client.stream("POST", f"{url}/api/generate", json=body) as answer:
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            lines = list(answer.iter_lines())
        assert '"done":true' in lines[-1]
        assert client.get(f"{url}/dashboard").status_code == 200
        changed = client.post(f"{url}/api/agents/a/drain", headers={"Authorization": f"Bearer {TOKEN}"})
        assert changed.status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/api/version")


def test_the_real_clients_speak_https_and_plain_http_goes_on(
    secure: tuple[Proxy, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url, path = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    assert ollama.Client(url).chat("llama3.2", [{"role": "user", "content": "hi"}]).message.content
    answer = openai.OpenAI(base_url=f"{url}/v1", api_key="x").chat.completions.create(
        model="llama3.2", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content
    reply = anthropic.Anthropic(base_url=url, api_key="x").messages.create(
        model="llama3.2", max_tokens=20, messages=[{"role": "user", "content": "hi"}]
    )
    assert reply.content
    assert proxy.generate().status_code == 200
