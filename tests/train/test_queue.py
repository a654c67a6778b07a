"""The queue: order, time, what failed, what is done, and one line for what can't be read."""
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pandas as pd
import pytest

import grefel.train.queue as queue
from grefel.base.core import GrefelError
from grefel.train.experiments import read_spec, ROW_PROCESS
from grefel.train.queue import read_queue, run_queue, what_is_left


@pytest.fixture
def place(tmp_path):
    spec = dict(question='?', base=dict(data='synth', epochs=2), long=dict(epochs=9), seeds=[0, 1],
                rows={'a': {}, 'b': dict(lr=1e-4)})
    (tmp_path/'E00_x.json').write_text(json.dumps(spec))
    listed = dict(cpu=[dict(file='E00_x.json', rows=['b'], seeds=[5]), dict(file='E00_x.json')],
                  gpu=[dict(file='E00_x.json', rows=['a'])])
    (tmp_path/'queue.json').write_text(json.dumps(listed))
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    "What would have been run, without running it: (row, seed, seconds left)."
    calls = []

    def run(waiting, folder, device, data_home, seconds):
        calls.append((waiting.row, waiting.seed, seconds))
        return 'it broke' if waiting.row == 'a' and waiting.seed == 0 else ''
    monkeypatch.setattr(queue, '_run', run)
    monkeypatch.setattr(queue, 'run_table', lambda *args, seeds, only, **kw: calls.append(
        ('told', only[0], seeds[0])))
    return calls


def test_the_list_keeps_its_order_and_takes_seeds_one_after_the_other(place):
    assert [(w.row, w.seed, w.long) for w in read_queue(place/'queue.json')] == [
        ('b', 5, False), ('a', 0, False), ('b', 0, False), ('a', 1, False), ('b', 1, False)]
    assert [(w.row, w.seed, w.long) for w in read_queue(place/'queue.json', 'cuda')] == [
        ('a', 0, True), ('a', 1, True)]


def test_a_run_named_twice_waits_once_where_it_was_named_first(place):
    twice = dict(cpu=[dict(file='E00_x.json', rows=['b'], seeds=[1]), dict(file='E00_x.json')])
    (place/'queue.json').write_text(json.dumps(twice))
    assert [(w.row, w.seed) for w in read_queue(place/'queue.json')] == [
        ('b', 1), ('a', 0), ('b', 0), ('a', 1)]


def test_what_failed_is_said_and_the_others_go_on(place, ran):
    said = []
    run_queue(read_queue(place/'queue.json'), 1, log=said.append)
    assert said == ['E00_x, a, seed 0: it broke']
    assert [c[1:] for c in ran if c[0] == 'told'] == [('b', 5), ('b', 0), ('a', 1), ('b', 1)]
    assert all(0 < c[2] <= 60 for c in ran if c[0] != 'told')


@pytest.mark.parametrize('how, at_once', [({}, 1), (dict(jobs=3), 3)])
def test_as_many_run_at_a_time_as_were_asked_for_or_one(place, monkeypatch, how, at_once):
    running, most = [], []

    def run(waiting, *args):
        running.append(waiting)
        most.append(len(running))
        time.sleep(.1)
        running.remove(waiting)
        return 'tried'
    monkeypatch.setattr(queue, '_run', run)
    run_queue(read_queue(place/'queue.json'), 1, log=lambda text: None, **how)
    assert len(most) == 5 and max(most) == at_once


def test_when_the_time_is_up_nothing_is_begun(place, ran):
    run_queue(read_queue(place/'queue.json'), 0)
    assert not ran


def test_what_stands_in_the_table_is_done_and_times_the_rest(place, ran):
    recipes = read_spec(place/'E00_x.json')['recipes']
    lines = [dict(row='a', seed=0, seconds=60., recipe=asdict(recipes['a'])),
             dict(row='b', seed=0, seconds=9., recipe=asdict(recipes['b']) | dict(lr=1.))]  # former
    pd.DataFrame(lines).assign(recipe=[json.dumps(n['recipe']) for n in lines]).to_csv(
        place/'E00_x.csv', index=False)
    left = what_is_left(read_queue(place/'queue.json'))
    assert left.done.tolist() == [False, True, False, False, False]
    assert left.minutes.dropna().tolist() == [1., 1., 1., 1.]   # two epochs of 30 seconds
    run_queue(read_queue(place/'queue.json'), 1)
    assert ('a', 0) not in [c[:2] for c in ran]


@pytest.mark.parametrize('change, words', [
    (dict(cpu=[dict(file='E00_x.json', rows=['c'])]), "has no row 'c'"),
    (dict(cpu=[dict(file='E99.json')]), 'E99.json: not a readable description'),
    (dict(), 'no readable list of runs for cpu')])
def test_a_list_that_can_not_be_meant_is_refused_in_one_line(place, change, words):
    (place/'queue.json').write_text(json.dumps(change))
    with pytest.raises(GrefelError, match=words): read_queue(place/'queue.json')


def test_a_run_can_be_stopped_though_its_parent_ignores_interrupts(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)    # as in a script's background jobs
    try: child = subprocess.Popen([sys.executable, '-c', ROW_PROCESS], stdin=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True)
    finally: signal.signal(signal.SIGINT, before)
    recipe = dict(data='synth', size='plain', epochs=100, bs=16, limit=32,
                  model=dict(widths=[8, 8, 8, 8]))
    child.stdin.write(json.dumps([recipe, str(tmp_path/'run'), 'cpu', None]))
    child.stdin.close()
    while child.poll() is None and not (tmp_path/'run'/'history.csv').exists(): time.sleep(.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) != 0
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) < 100


def test_the_repositorys_own_list_names_rows_that_exist():
    assert len(read_queue()) > 20 and len(read_queue(device='cuda')) > 20
