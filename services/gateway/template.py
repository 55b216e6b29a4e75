"""A model's chat template, rendered within bounds. It is a program of the model's folder; clients' text is its data.

transformers renders in Jinja's immutable sandbox, where a template can neither change what it is given nor reach into
Python; but it may run, and write, for as long as it likes. Here every turn of a loop and every call is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_STEPS = 1 << 17
"""Turns of loops and calls of one rendering; templates take some twenty for each message."""

MAX_ADDED_CHARACTERS = 1 << 20
"""What a template may write beyond eight times what it was given."""

MAX_NUMBER = 1 << 20
"""The largest argument of a call, and length of a repeated text: what would fill with blanks, or repeat."""

UNBOUNDED_FILTERS = ("center", "format", "indent", "wordwrap")
"""They make text of any length out of a number, which is not seen here; chat templates have no use for them."""

_BUDGET = "_swaa_budget"


class _Budget:
    """Steps that one rendering has left."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts what a template does; the budget comes with the data of each rendering."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        for loop in source.find_all(nodes.For):
            call = nodes.Call(nodes.EnvironmentAttribute("turn"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(call).set_lineno(loop.lineno))
        return super()._generate(source, *args, **kwargs)

    def turn(self) -> None:
        """Called at every turn of a loop: the call is what counts."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja has it
        """See SandboxedEnvironment. Raises SecurityError beyond the bounds."""
        __context.parent[_BUDGET]._step()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise SecurityError(f"the template gives {value} to a call: at most {MAX_NUMBER}")
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment. Raises SecurityError for repeated and padded text, and for powers."""
        if operator == "*":
            items, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(items, str | list | tuple) and isinstance(times, int) and len(items) * times > MAX_NUMBER:
                raise SecurityError(f"the template repeats something {times} times")
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the template uses {operator}, of which nobody can say how much it makes")
        return super().call_binop(context, operator, left, right)


class BoundedTemplate:
    """Renders as `tokenizer.apply_chat_template` does, within bounds. Safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        base = _compile_jinja_template("").environment
        extensions = [type(extension) for extension in base.extensions.values()]
        self._environment = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self._environment.filters.update(base.filters)
        self._environment.globals.update(base.globals)
        self._environment.globals.pop("lipsum", None)
        for name in UNBOUNDED_FILTERS:
            self._environment.filters.pop(name, None)
        self._compiled: dict[str, Template] = {}

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> str:
        """The text of a conversation. Raises what the template raises, and SecurityError beyond the bounds."""
        template = self._template(tools)
        given = sum(len(str(message)) for message in (*messages, *(tools or ())))
        most = MAX_ADDED_CHARACTERS + 8 * given
        data = {**self._tokenizer.special_tokens_map, **options, "messages": messages, "tools": tools}
        written, pieces = 0, []
        for piece in template.generate({**data, "documents": None, _BUDGET: _Budget()}):
            written += len(piece)
            if written > most:
                raise SecurityError(f"the template writes more than {most} characters")
            pieces.append(piece)
        return "".join(pieces)

    def _template(self, tools: Any) -> Template:
        source: str = self._tokenizer.get_chat_template(None, tools)
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise SecurityError(f"the template has {len(source)} characters: at most {MAX_TEMPLATE_CHARACTERS}")
        if source not in self._compiled:
            self._compiled[source] = self._environment.from_string(source)
        return self._compiled[source]
