"""Chat templates are foreign programs: they end within seconds, and make no text that a machine cannot hold."""

import threading
import time

import pytest

from reference.text import rendering
from reference.text.rendering import TooMuch, render

LOOP = "{% for a in range(99999) %}" * 4 + "{{ BODY }}" + "{% endfor %}" * 4


@pytest.mark.parametrize("template", [
    "{{ 'a' * 10**9 }}", "{{ 10**9 * 'ab' }}", "{{ [1] * 10**9 }}", "{{ 9**9**9 }}", "{{ 'a'|center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}", "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}", "{{ '%1000000000d'|format(1) }}",
    "{{ ('a' * 10**6)|replace('a', 'a' * 10**6) }}", "{{ ('a' * 10**6).join('b' * 10**6) }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{{ range(10**9)|list }}", "{{ '{:>1000000000}'.format('a') }}", "{{ '%*d' % (1000000000, 1) }}",
    LOOP.replace("{{ BODY }}", "{{ message }}"),
])  # fmt: skip
def test_what_would_make_too_much_is_refused(template):
    begin = time.perf_counter()
    with pytest.raises((TooMuch, OverflowError)):
        render(template, message="hello " * 100)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("body", ["", "{% set x = a %}", "{% if a == 1 %}{{ a }}{% endif %}"])
def test_a_loop_without_end_is_interrupted(body, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    begin = time.perf_counter()
    with pytest.raises(TooMuch, match=r"takes more than 0\.3 s"):
        render(LOOP.replace("{{ BODY }}", body))
    assert time.perf_counter() - begin < 3


def test_no_interruption_comes_late(monkeypatch):
    """The clock is stopped with the rendering: nothing is raised after it, in any thread."""
    monkeypatch.setattr(rendering, "SECONDS", 0.05)
    for _ in range(20):
        assert render("{% for a in range(9) %}{{ a }}{% endfor %}") == "012345678"
    time.sleep(0.2)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@pytest.mark.parametrize(("template", "text"), [
    ("{{ 'ab' * 3 }}{{ 2 * 3 }}{{ 2**10 }}{{ [1] + [2] }}", "ababab61024[1, 2]"), ("{{ 'a' ~ 1 ~ none }}", "a1None"),
    ("{{ message.split('x')[-1].strip() }}", "b"), ("{{ message|replace('x', '-')|upper }}", "A- B"),
    ("{{ messages|map(attribute='content')|join(', ') }}", "p, q"),
    ("{{ 'a'.center(5) }}|{{ 3|string|length }}", "  a  |1"),
    ("{{ {'b': 1, 'a': '<é>'}|tojson }}", '{"b": 1, "a": "<é>"}'), ("{{ '%s-%d'|format('a', 3) }}", "a-3"),
    ("{% generation %}{{ message[:1] }}{% endgeneration %}", "a"),
    ("{{ messages|selectattr('role', 'equalto', 'u')|list|length }}", "1"),
])  # fmt: skip
def test_what_chats_need_works(template, text):
    assert (
        render(template, message="ax b", messages=[{"role": "u", "content": "p"}, {"role": "v", "content": "q"}])
        == text
    )
