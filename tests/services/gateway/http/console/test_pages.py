"""The console's files as they are sent: policy, caching, types; and that nothing in them asks for what it forbids."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from services.gateway.http.console_pages import CONTENT_TYPES
from tests.services.gateway.http.builders import FakeAnswers, client_of, make_app
from tests.services.replica.builders import asynchronous

FOLDER = files("services.gateway.http").joinpath("console")
NAMES = sorted(file.name for file in FOLDER.iterdir())


@asynchronous
async def test_the_page_and_every_file_of_it_are_served_under_the_policy() -> None:
    async with client_of(make_app(FakeAnswers())) as client:
        index = await client.get("/")
        referred = re.findall(r'(?:href|src)="(console/[^"]+)"', index.text)
        assert {"console/console.css", "console/main.js", "console/icon.svg"} == set(referred)
        for path in ["/", *(f"/console/{name}" for name in NAMES)]:
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] in CONTENT_TYPES.values()
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"


@asynchronous
async def test_what_a_browser_has_is_not_sent_again() -> None:
    async with client_of(make_app(FakeAnswers())) as client:
        first = await client.get("/console/main.js")
        assert first.headers["cache-control"] == "no-cache"
        for tags in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
            again = await client.get("/console/main.js", headers={"if-none-match": tags})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
        changed = await client.get("/console/main.js", headers={"if-none-match": '"other"'})
        assert changed.content == first.content


@pytest.mark.parametrize("path", ["/console/none.js", "/console/..%2Fapp.py", "/console/%2e%2e/app.py", "/console/"])
@asynchronous
async def test_nothing_else_is_served(path: str) -> None:
    async with client_of(make_app(FakeAnswers())) as client:
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "unknown_path"


def test_scripts_import_only_one_another() -> None:
    for name in NAMES:
        for imported in re.findall(r'from "([^"]+)"', FOLDER.joinpath(name).read_text(encoding="utf-8")):
            assert imported.removeprefix("./") in NAMES, name
