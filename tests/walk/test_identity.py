"""A service that asks who you are: openai, curl, grpcurl, the command line and our client; keys and tokens."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import yaml

from services.client import NO_RETRY, Client, NotFound, Unauthenticated
from services.gateway.auth.api_keys import new_key
from services.gateway.auth.authenticator import MESSAGE
from services.gateway.auth.key_file import editing
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.services.gateway.auth.signer import AUDIENCE, ISSUER, jwk, token

from .documented import REPOSITORY
from .harness import SWAA, Service, environment, log_of, refused, run_turn, wait_until
from .test_grpcurl import SERVICE, grpcurl

pytestmark = [pytest.mark.model, pytest.mark.redis]

CHAT: Any = [{"role": "user", "content": "Name a colour."}]
DATA = REPOSITORY / "services" / "gateway" / "data"


@dataclass(frozen=True, slots=True)
class Guarded:
    """A service, the file of its keys, and a key of each of its tenants."""

    service: Service
    keys_file: Path
    keys: dict[str, str]

    def openai(self, api_key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://{self.service.http_address}/v1", api_key=api_key, max_retries=0)

    def client(self, tenant: str) -> Client:
        return Client(self.service.address, api_key=self.keys[tenant], timeout_s=120, retry=NO_RETRY)

    def swaa(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return swaa(*arguments, **{"SWAA_LISTEN": self.service.address, **variables})


def swaa(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = (*SWAA, *arguments)
    return subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=120, check=False
    )


def catalogue(folder: Path) -> Path:
    """The default model's, with a tenant who may ask twice a minute, and one whose classes and priority are bounded."""
    told = yaml.safe_load((DATA / "catalogs" / "smollm2.yaml").read_text(encoding="utf-8"))
    told["quality_table"] = str(DATA / "quality_smollm2.json")
    told["tenants"] |= {
        "small": {"quota": {"requests_per_minute": 2, "prompt_tokens_per_minute": 500}},
        "modest": {"max_priority": 1, "sla_classes": ["balanced"]},
    }
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def guarded(walk_folder: Path, tiny: Service) -> Iterator[Guarded]:
    folder = walk_folder / "guarded"
    folder.mkdir()
    keys_file = folder / "keys.json"
    keys = {}
    with editing(keys_file) as kept:
        for tenant in ("acme", "rival", "small", "modest", "leaver", "operator"):
            keys[tenant], entry = new_key(tenant, datetime.now(UTC), operator=tenant == "operator")
            kept.append(entry)
    jwks = folder / "jwks.json"
    jwks.write_text(json.dumps({"keys": [jwk("OKP", kid="one")]}), encoding="utf-8")
    with Service(
        folder,
        model=tiny.model,
        cache_dir=str(Path(tiny.model).parent),
        dtype="float32",
        kv_memory_mib="16",
        checkpoint_tokens="64",
        catalog=str(catalogue(folder)),
        api_keys_file=str(keys_file),
        jwt_keys_file=str(jwks),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
    ) as service:
        yield Guarded(service, keys_file, keys)
        assert service.stop() == 0
        for key in keys.values():
            assert key[-64:] not in service.log


def test_openai_with_a_key_and_with_a_token(guarded: Guarded) -> None:
    for credential in (guarded.keys["acme"], token(kid="one")):
        with guarded.openai(credential) as client:
            answer = client.chat.completions.create(model="smollm2", messages=CHAT, max_tokens=2)
        assert answer.choices[0].message.role == "assistant"


@pytest.mark.parametrize("credential", ["sk-nobody", "swaa_000000000000_" + "0" * 64, "a.b.c"])
def test_openai_without_one(guarded: Guarded, credential: str) -> None:
    with guarded.openai(credential) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="smollm2", messages=CHAT)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == 'Bearer realm="swaa"'
    assert MESSAGE in str(caught.value)
    with guarded.openai(token(kid="one", exp=1)) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def curl(guarded: Guarded, path: str, *options: str) -> str:
    command = ("curl", "-sS", "-i", *options, f"http://{guarded.service.http_address}{path}")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_curl(guarded: Guarded) -> None:
    assert curl(guarded, "/healthz").startswith("HTTP/1.1 200")
    assert curl(guarded, "/readyz").startswith("HTTP/1.1 200")
    refusal = curl(guarded, "/api/sessions")
    assert refusal.startswith("HTTP/1.1 401")
    assert "www-authenticate: Bearer" in refusal
    assert curl(guarded, "/api/sessions", "--oauth2-bearer", guarded.keys["acme"]).startswith("HTTP/1.1 200")
    # More than curl sends before it looks for an answer: the service does not wait for it.
    big = guarded.keys_file.with_name("big.json")
    big.write_bytes(b" " * (8 << 20))
    posted = curl(guarded, "/v1/completions", "-H", "content-type: application/json", "--data-binary", f"@{big}")
    assert "HTTP/1.1 401" in posted


def test_grpcurl(guarded: Guarded) -> None:
    key = ("-H", f"authorization: Bearer {guarded.keys['acme']}")
    for arguments in (("list",), (f"{SERVICE}/ListRecipes",)):
        without = grpcurl(guarded.service, *arguments)
        assert without.returncode != 0
        assert "Unauthenticated" in without.stderr
        done = grpcurl(guarded.service, *arguments, options=key)
        assert done.returncode == 0, done.stderr
    assert "quality_source" in done.stdout.replace("qualitySource", "quality_source")


def test_the_command_line(guarded: Guarded) -> None:
    load = ("load", "--rate", "20", "--duration-s", "0.2", "--lengths", "20", "--max-tokens", "2")
    done = guarded.swaa(*load, SWAA_API_KEY=guarded.keys["acme"])
    assert "requests in" in done.stdout, done.stderr
    without = guarded.swaa("info")
    assert without.returncode == 1
    assert "UNAUTHENTICATED" in without.stderr


def test_other_tenants_find_nothing_and_start_from_nothing(guarded: Guarded) -> None:
    document = log_of(12)
    with guarded.client("acme") as acme, guarded.client("rival") as rival:
        first = acme.generate(document, session="new", recipe="full", max_tokens=2, raw=True)
        assert first.session is not None
        session_id = first.session.session_id
        again = acme.generate(document, session="new", recipe="full", max_tokens=2, raw=True)
        assert again.prediction.restore.kind != "none", "it is there, whether loading it is faster or not"
        theirs = rival.generate(document, session="new", recipe="full", max_tokens=2, raw=True)
        assert theirs.usage.restored_tokens == 0
        assert theirs.prediction.restore.kind == "none"
        planned = rival.plan(document, session="new", recipe="full", raw=True).chosen.prediction
        assert planned.restore.kind != "none", "by now it is the tenant's own"
        with pytest.raises(NotFound) as caught:
            rival.sessions.get(session_id)
        with pytest.raises(NotFound) as nobodys:
            rival.sessions.get("0" * 32)
        assert str(caught.value).replace(session_id, "0" * 32) == str(nobodys.value)
        assert session_id not in [session.session_id for session in rival.sessions.list()]
        assert session_id in [session.session_id for session in acme.sessions.list()]


def test_a_quota_is_told_to_openais_client_and_to_ours(guarded: Guarded) -> None:
    options: dict[str, Any] = {"model": "smollm2", "prompt": "A ship", "max_tokens": 1}
    with guarded.openai(guarded.keys["small"]) as client:
        for _ in range(2):
            client.completions.create(**options)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**options)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 30
    assert "requests_per_minute" in str(caught.value)
    headers = {"authorization": f"Bearer {guarded.keys['small']}"}
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "requests_per_minute: this tenant's quota of 2 is used up"):
        run_turn(guarded.service, "A ship", headers)
    run_turn(guarded.service, "A ship", {"authorization": f"Bearer {guarded.keys['acme']}"})
    figures = curl(guarded, "/metrics", "--oauth2-bearer", guarded.keys["operator"])
    assert 'swaa_quota_refusals_total{quota="requests_per_minute",tenant="small"} 2.0' in figures
    assert curl(guarded, "/metrics", "--oauth2-bearer", guarded.keys["small"]).startswith("HTTP/1.1 403")


def test_classes_and_priority_are_the_tenants(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.keys['modest']}"}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "not open to this tenant, which may use balanced"):
        run_turn(guarded.service, "A ship", {**headers, "x-swaa-sla": "interactive"})
    assert run_turn(guarded.service, "A ship", headers).accepted.objective.priority == 1


def test_a_key_that_is_revoked_is_refused_while_the_service_runs(guarded: Guarded) -> None:
    key_id = guarded.keys["leaver"].split("_")[1]
    with guarded.client("leaver") as client:
        client.recipes()
        done = swaa("keys", "revoke", key_id, SWAA_API_KEYS_FILE=str(guarded.keys_file))
        assert done.returncode == 0, done.stderr

        def is_refused() -> bool:
            try:
                client.recipes()
            except Unauthenticated:
                return True
            return False

        assert wait_until(is_refused)
    guarded.keys_file.with_name("keys.json").write_text("{}", encoding="utf-8")
    assert wait_until(lambda: "the new file is not used" in guarded.service.log)
    stub = guarded.service.stub
    stub.ListRecipes(pb.ListRecipesRequest(), metadata=[("authorization", f"Bearer {guarded.keys['acme']}")])
