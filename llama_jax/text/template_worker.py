"""The process that renders a foreign Jinja template: a script of its own, with little imported.

It reads lines of JSON: first the template, then lists of variables to render it with; it answers
each with a line of JSON. A template is read as hostile: its syntax tree may hold only what chat
templates need, it runs in Jinja's sandbox with few filters, and the process may use one second,
64 MiB and no file for each request. `render.py` starts it and kills it if it is late.
"""

import json
import re
import sys
from typing import Any

SECONDS = 1.0  # of CPU time for one request
MEMORY = 64 << 20  # beyond what the imports take
MOST_OUTPUT = 1 << 20  # characters, beyond those of the messages
MOST_REPEATED = 10_000  # characters or items that a `*` may give
DEEPEST_LOOP = 4  # messages, their calls, the calls' arguments and one more

# Between them they make Python load whatever it loads on first use.
WARM_UP = (
    "{%- set ns = namespace(a=1) -%}{% macro f(x) %}{{ x ~ 1.5 }}{% endmacro %}"
    "{% for x in ['a\\n', \"\u00e9\"] %}{{ f(x) | trim | tojson(indent=2) }}{% endfor %}"
    "{% if messages[0].content is defined and 1 in [1] %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    "{{ raise_exception('x') }}",
    "{{ messages[0].x.y }}",
    "{{ (",
)

NODES = set(
    "Template Output TemplateData For If Macro CallBlock FilterBlock With Assign AssignBlock "
    "ExprStmt Scope Continue Break Name NSRef Const Tuple List Dict Pair Keyword CondExpr Filter "
    "Test Call Getitem Getattr Slice Concat Compare Operand Add Sub Mul Div FloorDiv Mod And Or "
    "Not Neg Pos".split()
)
FUNCTIONS = {"range", "namespace", "raise_exception", "strftime_now", "dict", "caller"}
METHODS = set(
    "strip lstrip rstrip split rsplit splitlines startswith endswith removeprefix removesuffix "
    "upper lower title capitalize replace join find count index items keys values get "
    "isdigit isspace isalpha isalnum cycle".split()
)
FILTERS = set(
    "trim tojson upper lower title capitalize length count first last join list default d replace "
    "items dictsort string int float abs round safe escape e select reject selectattr rejectattr "
    "map sort unique reverse min max sum indent".split()
)
TESTS = set(
    "defined undefined none string number integer float boolean true false mapping iterable "
    "sequence callable in eq equalto == ne != lt < le <= gt > ge >= odd even sameas lower upper "
    "divisibleby".split()
)
# Whatever else a string can do: format and center make much of little.
BARRED = set(dir(str)) - METHODS


class Refused(Exception):
    """What the template asks for is not allowed."""


class Raised(Exception):
    """The template itself refuses its messages, by `raise_exception`."""


def check(tree: Any) -> None:
    """Raises Refused if the syntax tree holds anything that chat templates do not need."""
    from jinja2 import nodes

    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    for node in _walk(tree):
        kind = type(node).__name__
        if kind not in NODES:
            raise Refused(f"{kind} is not allowed")
        if isinstance(node, nodes.Getattr | nodes.NSRef):
            _check_name(node.attr)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            _check_name(node.arg.value)
        if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.name == "self"):
            raise Refused(f"the name {node.name!r} is not allowed")
        if isinstance(node, nodes.Name) and node.ctx != "load" and node.name in FUNCTIONS:
            raise Refused(f"{node.name!r} may not be set")
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise Refused(f"the filter {node.name!r} is not allowed")
        if isinstance(node, nodes.Test) and node.name not in TESTS:
            raise Refused(f"the test {node.name!r} is not allowed")
        if isinstance(node, nodes.Filter | nodes.Test | nodes.Call):
            _check_call(node, macros)
    _check_loops(tree, 0, False)


def _walk(tree: Any) -> Any:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.iter_child_nodes()


def _check_name(name: Any) -> None:
    if isinstance(name, str) and (name.startswith("_") or name in BARRED):
        raise Refused(f"the attribute {name[:40]!r} is not allowed")


def _check_call(node: Any, macros: set[str]) -> None:
    from jinja2 import nodes

    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise Refused("calls with * or ** are not allowed")
    for keyword in node.kwargs:
        if keyword.key == "attribute":
            parts = getattr(keyword.value, "value", None)
            if not isinstance(parts, str):
                raise Refused("a computed attribute is not allowed")
            for part in parts.split("."):
                _check_name(part)
    if isinstance(node, nodes.Call):
        called = node.node
        allowed = (isinstance(called, nodes.Name) and called.name in FUNCTIONS | macros) or (
            isinstance(called, nodes.Getattr) and called.attr in METHODS
        )
        if not allowed:
            raise Refused("a call of something other than a known function is not allowed")


def _check_loops(node: Any, depth: int, ranged: bool) -> None:
    from jinja2 import nodes

    if isinstance(node, nodes.For):
        if node.recursive:
            raise Refused("a recursive loop is not allowed")
        counts = any(name.name == "range" for name in _names(node.iter))
        if counts and ranged:
            raise Refused("a loop over a range within another is not allowed")
        depth, ranged = depth + 1, ranged or counts
        if depth > DEEPEST_LOOP:
            raise Refused(f"loops more than {DEEPEST_LOOP} deep are not allowed")
    for child in node.iter_child_nodes():
        _check_loops(child, depth, ranged)


def _names(node: Any) -> Any:
    from jinja2 import nodes

    return [part for part in _walk(node) if isinstance(part, nodes.Name)]


def environment() -> Any:
    """Jinja's sandbox with what transformers offers templates, and less of the rest."""
    from jinja2 import ext, nodes, sandbox, utils

    class Generation(ext.Extension):
        """`{% generation %}`: marks what an assistant says; of no effect here."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Reads up to the end tag."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        """Operators that can make much of little are looked at."""

        intercepted_binops = frozenset(("*", "%", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Computes with numbers, and repeats short texts a few times."""
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if not numbers and operator != "*":
                raise Refused(f"the operator {operator!r} is for numbers")
            if not numbers:
                items, times = (left, right) if isinstance(right, int) else (right, left)
                if not isinstance(times, int) or not isinstance(items, str | list | tuple):
                    raise Refused("the operator '*' is for numbers and texts")
                if len(items) * times > MOST_REPEATED:
                    raise Refused(f"a text of more than {MOST_REPEATED} repeated characters")
            return super().call_binop(context, operator, left, right)

    env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
    env.filters = {name: env.filters[name] for name in FILTERS if name in env.filters}
    env.filters["tojson"] = _tojson
    env.tests = {name: env.tests[name] for name in TESTS if name in env.tests}
    env.globals = {
        "range": sandbox.safe_range,
        "namespace": utils.Namespace,
        "dict": dict,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return env


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it, without HTML's escapes."""
    if isinstance(indent, str) or (indent or 0) > 16:
        raise Refused("an indent of more than 16 is not allowed")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any) -> None:
    raise Raised(str(message))


def _strftime_now(form: str) -> str:
    from datetime import datetime

    if len(form) > 100 or not re.fullmatch(r"(?:%-?[A-Za-z%]|[^%])*", form):
        raise Refused("a date of an unknown form")
    return datetime.now().strftime(form)


def render(template: Any, variables: dict[str, Any], most: int = MOST_OUTPUT) -> str:
    """Renders a compiled template; Refused if the text has more than `most` characters."""
    parts, length = [], 0
    for part in template.generate(**variables):
        length += len(part)
        if length > most:
            raise Refused(f"a text of more than {most} characters")
        parts.append(part)
    return "".join(parts)


def _limit_process() -> None:
    """No more memory than a template needs, and no file but those open already."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (OSError, ValueError):
        pass  # not Linux: time and output are limited all the same
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _limit_request() -> None:
    """The process dies when its time is over, inside a library too."""
    import signal

    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def _answer(env: Any, template: Any, line: str | bytes) -> tuple[Any, dict[str, Any]]:
    try:
        request, most = json.loads(line), MOST_OUTPUT + len(line)
        if "source" in request:
            check(env.parse(request["source"]))
            return env.from_string(request["source"]), {}
        return template, {"texts": [render(template, v, most) for v in request["renders"]]}
    except Raised as error:
        return template, {"raised": str(error)}
    except MemoryError:
        return template, {"refused": f"it needs more than {MEMORY >> 20} MiB"}
    except Exception as error:
        return template, {"refused": f"{str(error)[:200] or type(error).__name__}"}


def main() -> None:
    """Answers requests until there are no more."""
    sys.path[:0] = sys.argv[1:]
    import datetime  # noqa: F401  (all imports now: later there are no more files)
    import resource  # noqa: F401
    import signal  # noqa: F401

    import jinja2.debug  # noqa: F401

    env = environment()
    for source in WARM_UP:
        template, _ = _answer(env, None, json.dumps({"source": source}))
        _answer(env, template, json.dumps({"renders": [{"messages": []}]}))
    sys.path.clear()
    _limit_process()
    template = None
    print("{}", flush=True)
    for line in sys.stdin:
        _limit_request()
        template, answer = _answer(env, template, line)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
