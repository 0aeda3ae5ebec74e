"""What a chat template cannot do: change what it is given, take the machine's memory, run for hours."""

import copy
import time
from datetime import datetime

import pytest

from minclipo.checkpoint.chat_template import ChatTemplate, compiled
from minclipo.runs.machine import peak_memory_mib

USER = [{"role": "user", "content": "hi"}]
DOUBLED = "{%% set n = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "here/chat_template.jinja", {})


# Each makes a value much larger than what it is made of, or takes many turns.
GREEDY = {
    "padding": "{{ 'a'.ljust(2000000000)|length }}",
    "padding bytes": "{{ 'a'.encode().ljust(2000000000)|length }}",
    "padding by a filter": "{{ 'a'|center(2000000000)|length }}",
    "padding a block": "{% filter center(2000000000) %}a{% endfilter %}",
    "padding each": "{{ range(100000)|map('center', 100000)|list|length }}",
    "tabs": "{{ 'a\t'.expandtabs(2000000000)|length }}",
    "indented JSON": "{{ [1]|tojson(indent=2000000000) }}",
    "indented by a text": "{{ [1]|tojson(indent='x' * 17) }}",
    "repetition": "{{ ('a' * 2000000000)|length }}",
    "repetition, number first": "{{ (2000000000 * [1])|length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": DOUBLED % ("9", "{% set n.x = n.x * n.x %}"),
    "replacement": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x)|length }}",
    "replacement by a filter": "{% set x = 'a' * 1000000 %}{{ x|replace('a', x)|length }}",
    "translation": "{% set x = 'a' * 1000000 %}{{ x.translate({97: x})|length }}",
    "joining": "{{ ('a' * 100000).join(range(5000)|map('string'))|length }}",
    "joining by a filter": "{{ range(5000)|map('string')|join('a' * 100000)|length }}",
    "width": "{{ '{:>2000000000}'.format('a')|length }}",
    "width as an argument": "{{ '{:>{w}}'.format('a', w='2000000000')|length }}",
    "percent": "{{ ('%2000000000d' % 1)|length }}",
    "percent and star": "{{ ('%*d' % (2000000000, 1))|length }}",
    "percent as a filter": "{{ '%.2000000000f'|format(1.5)|length }}",
    "slices": "{{ [1]|slice(2000000000)|list|length }}",
    "date": "{{ strftime_now('%c' * 1000)|length }}",
    "pages of nonsense": "{{ lipsum(1000000)|length }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "doubled text": DOUBLED % ("'a'", "{% set n.x = n.x ~ n.x %}"),
    "doubled text, added": DOUBLED % ("'a'", "{% set n.x = n.x + n.x %}"),
    "doubled block": DOUBLED % ("'a'", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "lists of lists": DOUBLED % ("[]", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
    "objects of objects": DOUBLED % ("{}", "{% set n.x = {'a': n.x, 'b': n.x} %}") + "{{ n.x }}",
    "views of views": DOUBLED % ("[]", "{% set n.x = {'a': n.x, 'b': n.x}.values() %}") + "{{ n.x }}",
    "turns in turns": "{% set r = range(9999) %}{% for i in range(99) %}{% for j in r %}{% endfor %}{% endfor %}",
    "turns left out": "{% set r = range(9999) %}{% for i in range(99) %}{% for j in r if false %}{% endfor %}{% endfor %}",
    "recursive turns": "{% for i in range(99999) recursive %}{% if loop.depth < 9 %}{{ loop(range(99999)) }}{% endif %}"
    "{% endfor %}",
    "many ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "turns in filters": "{% for i in range(99999) %}{% if range(99999)|sum %}{% endif %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
}


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY.keys())
def test_greedy_templates_are_stopped(source, monkeypatch):
    """By name, soon, within little memory; here with a tenth of the limit. Catches: a file that takes the machine."""
    monkeypatch.setattr("minclipo.checkpoint.sandbox.WORK", 1_000_000)
    started, before = time.process_time(), peak_memory_mib()
    with pytest.raises(ValueError, match="here/chat_template.jinja: chat_template failed") as error:
        template(source).render(USER)
    assert "MemoryError" not in str(error.value)
    assert peak_memory_mib() - before < 200 and time.process_time() - started < 20


def test_the_limit_is_named():
    """Catches: a refusal that leaves a template's author in the dark."""
    with pytest.raises(ValueError, match=r"more than is allowed: 100,\d+ loop turns and calls, 10,\d+,\d+ characters"):
        template(GREEDY["turns in turns"]).render(USER)


def test_the_limit_is_one_of_a_chat():
    """Catches: a count that goes on, so that a data set's ten thousandth question is refused."""
    many = template("{% for i in range(60000) %}{% endfor %}{{ messages[0].content }}")
    assert [many.render(USER) for _ in range(3)] == ["hi"] * 3


@pytest.mark.parametrize(
    "reading", ["'b' in x", "x[1:]", "'b' == x", "x|upper", "x.strip()", "[x]", "{'x': x}", "x ~ 1"]
)
def test_reading_a_long_text_costs_what_it_is_long(reading):
    """Catches: a hundred thousand searches in a text, or copies of it, at the price of a hundred thousand turns."""
    long = template("{% set x = messages[0].content %}{% if " + reading + " %}{% endif %}")
    long.render([{"role": "user", "content": "a" * 5000}])
    assert compiled(long.source).environment.spent >= 5000


@pytest.mark.parametrize("name", ["striptags", "urlize", "wordwrap", "xmlattr"])
def test_filters_for_web_pages_are_not_there(name):
    """Catches: minutes for a text of a few hundred thousand times "<"."""
    with pytest.raises(ValueError, match=f"No filter named '{name}'"):
        template("{{ 'a'|" + name + " }}").render(USER)


def test_long_chats_may_take_more():
    """Catches: a long question that ends the run instead of being left out as too long."""
    chatml = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('<think>')[-1] | trim + '<|end|>' }}{% endfor %}"
    )
    text = "What is 1 + 1? " * 400_000
    assert template(chatml).render([{"role": "user", "content": text}]) == f"<|user|>{text.strip()}<|end|>"


@pytest.mark.parametrize(
    "source, text",
    [
        ("{% for i in [1, 2, 3] if i != 2 %}{{ loop.index }}{{ i }}{{ loop.last }}{% endfor %}", "11False23True"),
        ("{% for a, b in {'x': 1}.items() %}{{ a ~ '=' ~ b }}{% else %}none{% endfor %}", "x=1"),
        ("{% set a, b = 1, [2, 3] %}{{ a }}{{ b[1:] }}{{ b[-1] }}{{ (1, 2) }}", "1[3]3(1, 2)"),
        ("{% set n = namespace(found=false) %}{% set n.found = true %}{{ n.found }}", "True"),
        ("{% macro f(x, y='d') %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}{{ f('a') }}", "<ad>"),
        ("{% macro f(x) %}{{ caller(x) }}{% endmacro %}{% call(z) f('a') %}{{ z }}!{% endcall %}", "a!"),
        ("{% filter upper %}a{{ 'b' ~ 1 }}{% endfilter %}{% set x | trim %} c {% endset %}{{ x }}", "AB1c"),
        ("{{ messages|map(attribute='role')|join(', ') }}", "user"),
        ("{{ messages|selectattr('role', 'eq', 'user')|list|length }}", "1"),
        ("{{ '%s-%03d' % ('a', 7) }} {{ '{0}{x}'.format(1, x=2) }} {{ '%.2f'|format(1.5) }}", "a-007 12 1.50"),
        ("{{ dict(a=1)['a'] }}{{ dict([('b', 2)])|tojson }}{{ 'ab'|replace('a', '') }}", '1{"b": 2}b'),
        ("{{ 7 % 4 * 2 ** 3 + 1 }}", "25"),
        ("{% for m in messages recursive %}{{ loop.depth }}{{ loop([]) }}{% endfor %}", "1"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}",
            "ab|",
        ),
        ("{{ 1 in [1] and 'a' not in 'bc' and 1 < 2 <= 2 and messages[0] is mapping }}", "True"),
    ],
)
def test_counting_changes_nothing(source, text):
    """What Jinja writes without it. Catches: a tag, an operator or a call that counting has broken."""
    assert template(source).render(USER) == text


@pytest.mark.parametrize(
    "source",
    [
        "{% set _ = dict.update(options, {'n': options.n + 1}) %}{{ messages[0].content }} [{{ options.n }}]",
        "{% set _ = dict.update(messages[0], {'content': 'x'}) %}",
        "{% set _ = dict.pop(messages[0].nested.list[0], 'a') %}",
        "{% set _ = dict.setdefault(bos_token, 'a', 1) %}",
        "{% set _ = options.update({'n': 1}) %}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = [messages, options].clear() %}",
    ],
)
def test_a_template_changes_nothing_that_it_is_given(source):
    """Catches: a prompt that depends on the questions before it, and a caller's own objects changed."""
    options, messages = {"n": 0}, [{"role": "user", "content": "hi", "nested": {"list": [{"a": 1}]}}]
    before = copy.deepcopy((options, messages))
    for _ in range(2):
        with pytest.raises(ValueError, match="here/chat_template.jinja"):
            template(source).render(messages, options=options)
    assert (options, messages) == before


def test_a_template_gets_copies(monkeypatch):
    """Catches: trust in the sandbox alone. Here it is open, and the caller's objects still stay as they are."""
    open_one, options = template("{% set _ = options.update({'n': options.n + 1}) %}{{ options.n }}"), {"n": 0}
    monkeypatch.setattr("jinja2.sandbox.modifies_known_mutable", lambda *_: False)
    assert [open_one.render(USER, options=options) for _ in range(3)] == ["1"] * 3 and options == {"n": 0}


def test_the_date_is_the_one_that_is_set():
    """Also after a first use, such as the look for the end of a turn. Catches: the day on which the file was read."""
    day = template("Today: {{ strftime_now('%d %b %Y') }} {{ messages[0].content }}")
    first = day.render(USER)
    assert first == f"Today: {day.now:%d %b %Y} hi"
    day.now = datetime(2031, 1, 1)
    assert day.render(USER) == "Today: 01 Jan 2031 hi"


def test_half_a_character_is_no_prompt():
    """Catches: a TypeError of the tokenizer that names no file."""
    with pytest.raises(ValueError, match="here/chat_template.jinja: .*surrogates"):
        template("{{ '\\ud83d' }}").render(USER)
