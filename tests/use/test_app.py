"""The app is served on this computer only, and no photograph stays behind when it stops."""
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import av
import numpy as np
import pytest

from tests.use.client import wait_for_answer
from tests.use.films import write_film

import grefel.use.app as app_module
from grefel.base.core import GrefelError
from grefel.use.app import make_app, run_app
from grefel.use.app_page import example, MAX_FILES, MAX_UPLOAD

pytest.importorskip('gradio')

SERVE = 'import sys; from grefel.use.app import run_app; run_app(port=int(sys.argv[1]))'
ENDS = '''
import json
from gradio import networking
from grefel.use.app import run_app
networking.setup_tunnel = lambda *_, **__: 'https://shared.example.org'   # asks nobody
app = run_app(block=False)
print(json.dumps(dict(
    folder=str(app.settings['uploads']), address=app.local_url, server=app.server_name,
    share=app.share_url, paths=app.allowed_paths, mcp=app.mcp_server, root=app.root_path,
    ssr=app.ssr_mode, analytics=app.analytics_enabled)))
'''
OPENING = dict(GRADIO_SERVER_NAME='0.0.0.0', GRADIO_SHARE='True', GRADIO_ALLOWED_PATHS='/etc',
               GRADIO_MCP_SERVER='True', GRADIO_SSR_MODE='True', GRADIO_ROOT_PATH='/x',
               GRADIO_ANALYTICS_ENABLED='True')
FORM = {'Content-Type': 'multipart/form-data; boundary=x'}


def request(port, method, path, body=b'', **headers):
    "Status and text of the answer to one request."
    link = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    headers = {k.replace('_', '-'): v for k, v in headers.items()}
    if method == 'POST': headers |= {'Content-Length': str(len(body))}
    try:
        link.request(method, path, body or None, headers)
        answer = link.getresponse()
        return answer.status, answer.read().decode(errors='replace')
    finally: link.close()


def as_png(image):
    image.save(file := io.BytesIO(), 'PNG')
    return file.getvalue()


def upload(port, data, name=b'face.png', kind=b'image/png'):
    "Where the app has put a photograph or a film."
    head = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name
            + b'"\r\nContent-Type: ' + kind + b'\r\n\r\n')
    body = head + data + b'\r\n--x--\r\n'
    status, text = request(port, 'POST', '/gradio_api/upload', body, **FORM)
    assert status == 200, text
    return json.loads(text)[0]


def read(port, path):
    "Ask the app to read an upload, and wait for its answer."
    asked = dict(data=[dict(path=path)], fn_index=0, session_hash='test')
    assert request(port, 'POST', '/gradio_api/queue/join', json.dumps(asked).encode())[0] == 200
    return wait_for_answer(port, 'test')


def film_size(path):
    "Width and height of a film."
    with av.open(str(path)) as film:
        return film.streams.video[0].width, film.streams.video[0].height


# ---- While it runs

@pytest.fixture(scope='module')
def app():
    app = run_app(block=False)
    yield app
    app.close(verbose=False)


@pytest.fixture(scope='module')
def port(app): return int(app.local_url.rsplit(':', 1)[1].strip('/'))


def test_a_photograph_is_read_through_the_guard(port):
    page = read(port, upload(port, as_png(example())))
    assert 'Happiness' in page and 'gf-bars' in page


def read_several(port, paths, session):
    "Ask for several files at once, and wait for the answer."
    number = max(d['id'] for d in json.loads(request(port, 'GET', '/config')[1])['dependencies'])
    asked = dict(data=[[dict(path=p) for p in paths]], fn_index=number, session_hash=session)
    assert request(port, 'POST', '/gradio_api/queue/join', json.dumps(asked).encode())[0] == 200
    return wait_for_answer(port, session)


def test_several_files_give_one_table(port):
    paths = [upload(port, as_png(example(k))) for k in ('portrait', 'group')]
    page = read_several(port, paths, 'several')
    assert 'Download the table' in page and page.count('<tr>') == 1 + 5


def test_a_film_comes_back_with_its_answers_drawn_and_can_be_played(app, port, tmp_path):
    photo = example().resize((240, 240))
    film = write_film(tmp_path/'film.mp4', np.arange(20)/10, (240, 240), lambda i: photo)
    path = upload(port, film.read_bytes(), b'my film.mp4', b'video/mp4')
    page = read_several(port, [path], 'film')
    address = re.search(r'<video [^>]*src="([^"]+)"', page)[1]
    assert 'my film.mp4 with its answers' in page and address.startswith('/gradio_api/file=')
    drawn = Path(unquote(address.removeprefix('/gradio_api/file=')))
    assert drawn.is_relative_to(app.settings['uploads'])
    assert request(port, 'GET', address)[0] == 200 and film_size(drawn) == (240, 240)
    assert any(str(drawn) in files for files in app.temp_file_sets)   # goes when uploads go


@pytest.mark.parametrize('more, said', [
    (0, 'the album'), (1, f'{MAX_FILES} at once are read here')])
def test_an_album_has_at_most_so_many_files(monkeypatch, more, said):
    "The function that the page calls with the uploads, without a page."
    made = {}

    class Widget:
        temp_files, upload, clear = set(), None, None
        def __init__(self, *args, **kw): pass
        def __enter__(self): return self
        def __exit__(self, *error): pass
    page = SimpleNamespace(Column=Widget, File=Widget, HTML=Widget,
                           on=lambda events, read, *rest, **kw: made.update(read=read))
    monkeypatch.setattr(app_module, 'read_album', lambda *args: iter(['the album']))
    app_module._fill_album_tab(page, None)
    assert said in ''.join(made['read']([dict(path='a.png')]*(MAX_FILES + more)))


def test_what_is_too_large_is_told_before_it_is_sent(port):
    page = request(port, 'GET', '/config')[1]
    assert 'More than 100 MB at once are not read here' in page and '<= 100000000' in page


def test_a_broken_photograph_gets_a_sentence_without_its_folder(app, port):
    sorry = read(port, upload(port, as_png(example())[:300]))
    assert 'could not be read' in sorry and 'face.png' in sorry
    assert str(app.settings['uploads']) not in sorry


@pytest.mark.parametrize('path, headers, status', [
    ('/', {}, 200), ('/', dict(Host='example.org'), 421),
    ('/config', dict(Origin='https://example.org'), 403),
    ('/config', dict(Origin='http://localhost:9'), 403),
    ('/gradio_api/file=/etc/passwd', {}, 404), ('/docs', {}, 404), ('/openapi.json', {}, 404)])
def test_the_guard_stands_before_the_app(port, path, headers, status):
    assert request(port, 'GET', path, **headers)[0] == status


def test_uploads_lie_in_a_private_folder(app, port):
    folder = Path(app.settings['uploads'])
    assert Path(upload(port, as_png(example('group')))).parent.parent == folder
    assert folder.stat().st_mode & 0o077 == 0


def test_uploads_go_after_half_an_hour_which_is_looked_at_every_ten_minutes(app):
    assert app.delete_cache == (10*60, 30*60)


def test_it_listens_on_this_computer_only(app, port):
    assert app.local_url.startswith('http://127.0.0.1:')
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect(('192.0.2.1', 9))                       # sends nothing, but picks an address
        except OSError: pytest.skip('this computer has no other address')
        address = s.getsockname()[0]
    with socket.socket() as s: assert s.connect_ex((address, port)) != 0


def test_nothing_is_shared_counted_or_fetched_from_elsewhere(app, port):
    page, config = request(port, 'GET', '/')[1], json.loads(request(port, 'GET', '/config')[1])
    assert app.share_url is None and not app.analytics_enabled
    assert not config.get('analytics_enabled') and not config.get('is_space')
    assert config.get('show_api') is not True and config.get('enable_queue') is not False
    assert 'fonts.googleapis' not in page and 'cdnjs' not in page


def test_events_have_numbers_of_their_own(port):
    numbers = [d['id'] for d in json.loads(request(port, 'GET', '/config')[1])['dependencies']]
    assert len(numbers) == len(set(numbers)) >= 3


def test_an_upload_larger_than_allowed_is_refused(port):
    status, text = request(port, 'POST', '/gradio_api/upload', bytes(MAX_UPLOAD + 10_001), **FORM)
    assert (status, text.strip()) == (413, 'More than 100,010,000 bytes are not taken.')


def test_a_port_in_use_is_named(port):
    with pytest.raises(GrefelError) as told: run_app(port=port, block=False)
    assert str(told.value) == f'port {port} is in use on this computer; name another with --port'


@pytest.mark.parametrize('bad', [0, -1, 65536, 70000])
def test_a_port_is_a_port(bad):
    with pytest.raises(GrefelError) as told: run_app(port=bad)
    assert str(told.value) == f'a port is a number from 1 to 65535, not {bad}'


def test_without_gradio_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(GrefelError) as told: make_app()
    assert str(told.value) == "the app needs Gradio: pip install 'grefel[app]'"


# ---- When it stops

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


ENDS_BY = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGKILL', 'SIGABRT')
           if hasattr(signal, name)]


def wait_until(holds, seconds=30):
    until = time.time() + seconds
    while not holds() and time.time() < until: time.sleep(.05)
    return holds()


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')
@pytest.mark.parametrize('number', ENDS_BY)
def test_no_photograph_stays_behind_however_it_ends(tmp_path, number):
    "Ctrl-C, a system that shuts down, a closed terminal, kill -9, a crash: its uploads go."
    import fcntl
    port, env = free_port(), os.environ | dict(TMPDIR=str(tmp_path))
    for name in ('stale', 'live'):   # of an app that lost its power, and of one that runs
        (tmp_path/f'grefel-demo-{name}').mkdir()
        (tmp_path/f'grefel-demo-{name}'/'photo.png').touch()
        (tmp_path/f'grefel-demo-{name}'/'.lock').touch()
    lock = open(tmp_path/'grefel-demo-live'/'.lock')
    fcntl.flock(lock, fcntl.LOCK_EX)
    # whoever runs these tests in the background passes on that Ctrl-C, or a hang-up, is ignored
    heard = ('import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
             'signal.signal(signal.SIGHUP, signal.SIG_DFL); ')
    app = subprocess.Popen([sys.executable, '-c', heard + SERVE, str(port)], env=env,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert f'http://127.0.0.1:{port}/' in app.stdout.readline()
        photo = Path(upload(port, as_png(example())))
        assert photo.exists() and photo.is_relative_to(tmp_path)
        assert not (tmp_path/'grefel-demo-stale').exists()
        app.send_signal(number)
        app.wait(60)
    finally:
        app.kill()
        app.communicate()
    assert wait_until(lambda: not photo.exists())
    with lock: assert wait_until(lambda: [p.name for p in tmp_path.glob('grefel-demo-*')] == [
        'grefel-demo-live'])


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    "What a program said that served the app for a moment, in an environment that would open it."
    folder = tmp_path_factory.mktemp('ended')
    done = subprocess.run([sys.executable, '-c', ENDS], capture_output=True, text=True, timeout=120,
                          env=os.environ | OPENING | dict(TMPDIR=str(folder)))
    return folder, json.loads(done.stdout.strip().splitlines()[-1])


def test_its_folder_goes_when_a_program_that_served_it_ends(ended):
    home, said = ended
    folder = Path(said['folder'])
    assert folder.is_relative_to(home) and wait_until(lambda: not folder.exists())


def test_no_environment_variable_opens_it(ended):
    _, said = ended
    said.pop('folder')
    assert said.pop('address').startswith('http://127.0.0.1:')
    assert said == dict(server='127.0.0.1', share=None, paths=[], mcp=False, root='', ssr=False,
                        analytics=False)
