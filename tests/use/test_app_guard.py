"""The guard lets through what the page needs and nothing else, and says so in one line."""
import asyncio
import json

import pytest

from grefel.use.app_guard import API_PATH, CONTENT_POLICY, Guard

JOIN = API_PATH + 'queue/join'
NAME = 'a'*64


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path.resolve()/'uploads'
    (folder/NAME).mkdir(parents=True)
    (folder/NAME/'face.png').write_bytes(b'')
    (folder/'face.png').write_bytes(b'')
    (folder/('b'*64)/'c').mkdir(parents=True)
    (folder/('b'*64)/'c'/'face.png').write_bytes(b'')
    return folder


async def open_house(scope, receive, send):
    "An app that grants everything and repeats the body that it was given."
    body, more = b'', scope['method'] == 'POST'
    while more:
        message = await receive()
        body, more = body + message['body'], message.get('more_body', False)
    if b'fail' in scope['query_string']: raise RuntimeError('a fault\ninside')
    lengths = [int(v) for k, v in scope['headers'] if k == b'content-length']
    assert lengths == [len(body)]*(scope['method'] == 'POST')
    await send(dict(type='http.response.start', status=200, headers=[
        (b'x-own', b'1'), (b'Access-Control-Allow-Origin', b'http://localhost:9999'),
        (b'access-control-allow-credentials', b'true')]))
    if b'late' in scope['query_string']: raise RuntimeError('late')
    await send(dict(type='http.response.body', body=body))


class Asked:
    "What the guard answers to one request."
    def __init__(self, uploads, path, method='GET', body=b'', query=b'', type='http', parts=None,
                 gone=False, **headers):
        self.sent, waiting = [], list(parts or [body])
        lines = dict(host='127.0.0.1:7860') | headers
        if method == 'POST': lines = {'content-length': str(len(body))} | lines
        lines = {k.replace('_', '-'): v for k, v in lines.items() if v is not None}
        scope = dict(type=type, method=method, path=path, query_string=query,
                     headers=[(k.encode(), v.encode()) for k, v in lines.items()])

        async def receive():
            if not waiting: return dict(type='http.disconnect')
            return dict(type='http.request', body=waiting.pop(0), more_body=bool(waiting) or gone)

        async def send(message): self.sent.append(message)
        asyncio.run(Guard(open_house, uploads, {0: 1, 1: 0})(scope, receive, send))

    @property
    def status(self): return self.sent[0]['status']

    @property
    def text(self): return self.sent[1]['body'].decode().strip()

    @property
    def headers(self): return dict(self.sent[0]['headers'])


@pytest.fixture
def ask(uploads): return lambda *args, **kw: Asked(uploads, *args, **kw)


@pytest.fixture
def join(ask, uploads):
    "What becomes of a request to read an upload, changed by keywords."
    def send(path=None, **more):
        path = f'{uploads}/{NAME}/face.png' if path is None else path
        asked = dict(data=[dict(path=path)], fn_index=0, session_hash='abc') | more
        return ask(JOIN, 'POST', json.dumps(asked).encode())
    return send


# ---- Who may ask

@pytest.mark.parametrize('host', ['127.0.0.1:7860', '127.0.0.1', 'localhost:80', '[::1]:7860'])
def test_this_computer_is_answered_by_its_names(ask, host): assert ask('/', host=host).status == 200


@pytest.mark.parametrize('host', [
    'example.org', '127.0.0.1.example.org', 'localhost.example.org', 'example.org:7860',
    '192.168.0.1:7860', '127.0.0.1:7860@example.org', '', None])
def test_other_names_are_refused(ask, host):
    "A site whose name resolves to 127.0.0.1 (DNS rebinding) asks under its own name."
    refused = ask('/', host=host)
    assert (refused.status, refused.text) == (421, 'This server answers on 127.0.0.1 only.')


@pytest.mark.parametrize('method, path', [('GET', '/'), ('GET', '/config'), ('POST', JOIN)])
@pytest.mark.parametrize('origin', [
    'https://example.org', 'http://127.0.0.1.example.org', 'http://localhost.example.org', 'null',
    'file://', 'http://127.0.0.1:9999', 'http://localhost:7860', 'http://127.0.0.1'])
def test_requests_of_other_sites_are_refused(ask, method, path, origin):
    refused = ask(path, method, b'{}', origin=origin)
    assert (refused.status, refused.text) == (403, 'Requests from other sites are refused.')


def test_cross_site_posts_are_refused_even_without_an_origin(ask):
    "Browsers tell by themselves where a request comes from; a page cannot forge this header."
    upload = API_PATH + 'upload'
    assert ask(upload, 'POST', sec_fetch_site='cross-site').status == 403
    assert ask(upload, 'POST', sec_fetch_site='same-origin').status == 200
    assert ask('/', sec_fetch_site='cross-site').status == 200  # a link to the page may be followed


def test_the_pages_own_requests_are_let_through(join, ask):
    assert join().status == 200
    assert ask('/', origin='http://127.0.0.1:7860').status == 200


# ---- What may be asked for

@pytest.mark.parametrize('path', [
    '/', '/config', '/theme.css', '/favicon.ico', '/assets/index.js', '/static/img/logo.svg',
    '/gradio_api/info', '/gradio_api/heartbeat/abc', '/gradio_api/queue/data'])
def test_what_the_page_needs_is_served(ask, path): assert ask(path).status == 200


@pytest.mark.parametrize('path', [
    '/gradio_api/file=/etc/passwd', '/gradio_api/file=http://example.org/', '/file=/etc/passwd',
    '/gradio_api/proxy=http://example.org/', '/gradio_api/run/0', '/gradio_api/call/read',
    '/gradio_api/information', '/gradio_api/queue/data/x',
    '/gradio_api/vibe-code', '/gradio_api/stream/a/b/c', '/monitoring', '/login', '/logout',
    '/assets/../../etc/passwd', '/assets/..', '/docs', '/gradio_api/mcp', '/config\n', '//',
    '/assets/' + 'x'*300, '/assets/' + 'é'*100])               # longer than a file's name can be
def test_nothing_else_is_served(ask, path):
    refused = ask(path)
    assert (refused.status, refused.text) == (404, 'There is nothing here.')


def test_an_upload_is_served(ask, uploads):
    assert ask(f'/gradio_api/file={uploads}/{NAME}/face.png').status == 200


@pytest.mark.parametrize('path', [
    '{u}/face.png', '{u}', '{u}/' + NAME, '{u}/' + NAME + '/../face.png',
    '{u}/' + NAME + '/../../secret', '{u}/' + 'b'*64 + '/c/face.png', '{u}/' + 'A'*64 + '/face.png',
    '{u}/' + 'a'*63 + '/face.png', '{u}/' + NAME + 'a/face.png', '{u}/' + NAME + '/face.png\0',
    '/' + NAME + '/face.png', '/etc/' + NAME + '/face.png', NAME + '/face.png',
    '{u}/' + NAME + '/..', '{u}/deeper/' + NAME + '/face.png',
    '{u}/../elsewhere/' + NAME + '/face.png', '{u}2/' + NAME + '/face.png',
    '{u}/' + NAME + '/' + 'x'*1000])
def test_no_other_file_is_served_or_read(ask, join, uploads, path):
    "Each of them is outside of the folder, or not named as an upload is."
    path = path.format(u=uploads)
    assert ask('/gradio_api/file=' + path).status == 404
    assert join(path).status == 400


def test_a_file_outside_is_not_read_though_it_exists_and_is_named_like_an_upload(join, tmp_path):
    outside = tmp_path/'elsewhere'/NAME
    outside.mkdir(parents=True)
    (outside/'face.png').write_bytes(b'')
    assert join(str(outside/'face.png')).status == 400


@pytest.mark.parametrize('method, status', [
    ('GET', 200), ('HEAD', 200), ('PUT', 405), ('DELETE', 405), ('OPTIONS', 405), ('PATCH', 405),
    ('TRACE', 405), ('POST', 404)])
def test_only_some_methods_are_answered(ask, method, status):
    assert ask('/', method).status == status


@pytest.mark.parametrize('path, length, status', [
    ('upload', '100010000', 200), ('upload', '100010001', 413), ('upload', '1000000000', 413),
    ('upload', 'x', 411), ('upload', '-1', 411), ('upload', '', 411), ('upload', None, 411),
    ('upload', '9'*19, 411), ('queue/join', '60001', 413), ('cancel', '2001', 413),
    ('reset', '2001', 413), ('run/0', '2', 404), ('queue/data', '2', 404)])
def test_a_body_tells_its_length_and_is_not_too_long(uploads, path, length, status):
    headers = {} if length is None else {'content-length': length}
    scope = dict(path=API_PATH + path, method='POST', headers=[
        (k.encode(), v.encode()) for k, v in (dict(host='localhost') | headers).items()])
    refused = Guard(open_house, uploads, {}).refuses(scope)
    assert (refused or [200])[0] == status


def test_websockets_are_closed(ask):
    assert ask('/', type='websocket').sent == [dict(type='websocket.close', code=1008)]


# ---- What is passed on

def test_of_a_request_to_read_only_what_was_checked_is_passed_on(join, uploads):
    path = f'{uploads}/{NAME}/face.png'
    photo = dict(path=path, url='http://example.org/x.png', is_stream=True, meta=dict(_type='x'))
    told = join(data=[photo], simple_format=True, event_data=dict(a=1), trigger_id=7)
    assert json.loads(told.text) == dict(
        data=[dict(path=path, orig_name='face.png', meta=dict(_type='gradio.FileData'))],
        fn_index=0, session_hash='abc', event_data=None, trigger_id=None)


def test_a_body_may_come_in_parts(ask, uploads):
    asked = json.dumps(dict(data=[], fn_index=1, session_hash='abc')).encode()
    told = ask(JOIN, 'POST', asked, parts=[asked[:9], asked[9:]])
    assert told.status == 200 and json.loads(told.text)['fn_index'] == 1


@pytest.mark.parametrize('changed', [
    dict(fn_index=-1), dict(fn_index='0'), dict(fn_index=True, data=[]),
    dict(fn_index=False), dict(fn_index=0.), dict(fn_index=1),
    dict(fn_index=2), dict(fn_index=None), dict(fn_index=[0]), dict(session_hash='../x'),
    dict(session_hash=''), dict(session_hash='x'*41), dict(session_hash=None), dict(data=[1]),
    dict(data={}), dict(data=[]), dict(data=None), dict(data=['/etc/passwd']), dict(data=[{}]),
    dict(data=[dict(path=None)]*2), dict(data=[[]])])
def test_what_the_page_would_not_ask_is_refused(join, changed):
    refused = join(**changed)
    assert (refused.status, refused.text) == (400, 'This is no request of this page.')


def test_an_upload_that_does_not_exist_is_refused(join, uploads):
    assert join(f'{uploads}/{NAME}/missing.png').status == 400


def test_several_uploads_are_passed_on_each_checked(join, uploads):
    path = f'{uploads}/{NAME}/face.png'
    told = join(data=[[dict(path=path, url='http://example.org/x.png')]*2])
    assert json.loads(told.text)['data'] == [
        [dict(path=path, orig_name='face.png', meta=dict(_type='gradio.FileData'))]*2]
    assert join(data=[[dict(path=path), dict(path='/etc/passwd')]]).status == 400
    assert join(data=[[dict(path=path)]*51]).status == 400
    assert join(data=[[[dict(path=path)]]]).status == 400   # no lists within lists


def test_a_cleared_photograph_is_passed_on(join):
    assert json.loads(join(data=[None]).text)['data'] == [None]


@pytest.mark.parametrize('body', [
    b'['*19_000, b'\xff', b'', b'1', b'[]', b'null', b'{"data": 1}', b'{"a": NaN}'])
def test_a_body_that_is_no_request_is_refused(ask, body):
    assert ask(JOIN, 'POST', body).status == 400


def test_a_client_that_goes_away_is_no_fault(uploads, ask):
    asked = json.dumps(dict(data=[], fn_index=1, session_hash='abc')).encode()
    assert ask(JOIN, 'POST', asked, gone=True).status == 400


# ---- What is answered

@pytest.mark.parametrize('path, query', [('/', b''), ('/nothing', b''), ('/', b'fail')])
def test_every_answer_keeps_the_browser_at_home(ask, path, query):
    headers = ask(path, query=query).headers
    assert headers[b'content-security-policy'] == CONTENT_POLICY.encode()
    assert headers[b'x-content-type-options'] == b'nosniff'
    assert headers[b'referrer-policy'] == b'no-referrer'
    assert headers[b'cross-origin-resource-policy'] == b'same-origin'


def test_the_apps_own_headers_stay(ask): assert ask('/').headers[b'x-own'] == b'1'


def test_nobody_is_told_that_they_may_read_from_another_port(ask):
    assert not [k for k in ask('/').headers if k.lower().startswith(b'access-control-')]


@pytest.mark.parametrize('query', [b'', b'fail'])
def test_what_an_upload_that_was_broken_off_has_left_is_removed(ask, uploads, query):
    (uploads/'tmpabc').write_bytes(b'half a photograph')
    ask('/')
    assert (uploads/'tmpabc').exists()   # an upload may be on its way
    ask(API_PATH + 'upload', 'POST', query=query)
    assert not (uploads/'tmpabc').exists() and (uploads/NAME/'face.png').exists()


def test_what_another_upload_is_writing_stays(uploads):
    guard = Guard(open_house, uploads, {})
    guard.uploading = 1
    (uploads/'tmpabc').write_bytes(b'half a photograph')
    guard.sweep()
    assert (uploads/'tmpabc').exists()


def test_the_policy_names_no_other_host():
    sources = {word for rule in CONTENT_POLICY.split('; ') for word in rule.split()[1:]}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", 'data:', 'blob:'}


def test_a_fault_inside_ends_in_one_line(ask, capsys):
    failed = ask('/', query=b'fail')
    assert (failed.status, failed.text) == (500, 'Something went wrong with this request.')
    assert capsys.readouterr().err == 'grefel demo: RuntimeError: a fault inside\n'


def test_a_broken_upload_is_the_clients_fault(ask, capsys):
    failed = ask(API_PATH + 'upload', 'POST', query=b'fail')
    assert (failed.status, failed.text) == (400, 'This upload could not be read.')
    assert capsys.readouterr().err == ''


def test_an_answer_that_has_begun_is_not_begun_again(ask, capsys):
    assert [m['type'] for m in ask('/', query=b'late').sent] == ['http.response.start']
    assert 'RuntimeError: late' in capsys.readouterr().err
