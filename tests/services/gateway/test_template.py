"""Chat templates run in a sandbox, within bounds, and render as transformers does; what clients send is data only."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from services.gateway.template import BoundedTemplate

TOKENS: dict[str, Any] = {"eos_token": "</s>"}
MESSAGES = [{"role": "user", "content": "{{ 7 * 7 }}{% for x in y %}"}, {"role": "assistant", "content": "yes"}]
CHAT = """{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def render(source: str, messages: Any = MESSAGES, **options: Any) -> str:
    tokenizer = SimpleNamespace(special_tokens_map=TOKENS, get_chat_template=lambda template, tools: source)
    return BoundedTemplate(tokenizer).render(messages, **options)


@pytest.mark.parametrize(
    "source",
    [
        CHAT,
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro say(m) %}[{{ m.role }}: {{ m.content | tojson }}]{% endmacro %}{{ say(messages[0]) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{{ m.role }}{% endfor %}",
        "{{ messages[1].content.split('e')[0] }}",
        "{% for m in messages | reverse %}{{ m.content * 2 }}{% else %}none{% endfor %}{{ 7 % 4 }}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ tools | tojson(indent=2) }}",
    ],
)
def test_it_renders_as_transformers_does(source: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": "<b>"}}}]
    options: dict[str, Any] = {"add_generation_prompt": True, "tools": tools}
    rendered: Any = render_jinja_template([MESSAGES], chat_template=source, **options | TOKENS)
    [expected] = rendered[0]
    assert render(source, **options) == expected


def test_what_clients_send_is_never_a_template() -> None:
    assert "{{ 7 * 7 }}{% for x in y %}" in render(CHAT)


HOSTILE = {
    "change": "{{ messages.append(1) }}",
    "change-item": "{{ messages[0].update({'role': 'system'}) }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "silent": "{% set x = range(2000) | list %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "endless-macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "macro-tree": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "repeat": "{{ 'x' * 1000000000 }}",
    "repeat-list": "{{ ([0] * 1000000000) | length }}",
    "power": "{{ 2 ** 100000000 }}",
    "pad": "{{ 'x'.ljust(1000000000) }}",
    "pad-filter": "{{ 'x' | center(1000000000) }}",
    "pad-percent": "{{ '%1000000000d' % 1 }}",
    "indent": "{{ 'x\\ny' | indent(1000000000) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "long": "{% for a in range(3000) %}{{ 'x' * 1000 }}{% endfor %}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
    "large": "{# " + "x" * (1 << 18) + " #}",
    "budget": "{% set _swaa_budget = 0 %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "budget-step": "{{ _swaa_budget._step() }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_ended(name: str) -> None:
    given = [dict(message) for message in MESSAGES]
    with pytest.raises((TemplateError, RecursionError, OverflowError)):
        render(HOSTILE[name], given)
    assert given == MESSAGES


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ _swaa_budget._left }}",
    ],
)
def test_templates_do_not_reach_into_python(source: str) -> None:
    """What is not theirs is undefined: nothing, or an error."""
    with contextlib.suppress(TemplateError):
        assert render(source) in ("", "{}")
