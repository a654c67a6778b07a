"One argument, three meanings: silence, a bar, or a function."
import pytest

from grefel.base.progress import ticking


@pytest.mark.parametrize('progress', [None, False])
def test_silence_is_silent(progress, capsys):
    with ticking(progress, 3) as tick: tick(3)
    assert capsys.readouterr() == ('', '')


def test_a_function_hears_how_many_are_done_after_every_step():
    heard = []
    with ticking(lambda *n: heard.append(n), total=9, done=2) as tick:
        tick()
        tick(4)
        tick(n=2)
    assert heard == [(3, 9), (7, 9), (9, 9)]


def test_nobody_need_know_the_total():
    heard = []
    with ticking(lambda *n: heard.append(n)) as tick: tick()
    assert heard == [(1, None)]


def test_a_bar_says_what_is_done_on_stderr(capsys):
    with ticking(True, total=8, what='faces', done=2) as tick:
        for _ in range(6): tick()
    out, err = capsys.readouterr()
    assert out == '' and err.lstrip().startswith('faces:')
    assert '2.00/8.00' in err and '8.00/8.00' in err


def test_a_bar_without_a_total_counts(capsys):
    with ticking(True) as tick: tick(5)
    assert '5.00' in capsys.readouterr().err


@pytest.mark.parametrize('progress', [None, True, print])
def test_an_error_in_the_loop_comes_through(progress):
    with pytest.raises(ZeroDivisionError):
        with ticking(progress, 2): 1/0
