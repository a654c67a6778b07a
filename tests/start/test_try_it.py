"The page that reads faces in the browser: the answers of Python, and no request meanwhile."
import json
import re
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from tests.repository import NBS, ROOT

import browser
import try_it
from grefel.base.synth import synth_faces
from grefel.use.predict import Predictor
from grefel.use.scenes import make_scene


def missing():
    "Why these tests cannot run here, or None."
    if not all(browser.chromium()): return 'no Chromium with its driver on this machine'
    try: import selenium  # noqa: F401
    except ImportError: return 'selenium is not installed'
    return try_it.why_not()


@pytest.fixture(scope='module')
def able():
    if reason := missing(): pytest.skip(reason)


PAGE = '''<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Try it</title>
<link rel="stylesheet" href="try/page.css">
<style>.visually-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden }</style>
<main><div id="try-it" class="try"></div></main><script type="module" src="try/page.js"></script>'''


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@contextmanager
def served(folder):
    "The address of a folder on a plain static server."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()
        thread.join()


@pytest.fixture(scope='module')
def folder(able, tmp_path_factory):
    "What the built site holds for the page, and two pages that use it."
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(NBS/'try', folder/'try')
    try_it.fill(folder/'try')
    (folder/'page.html').write_text(PAGE, encoding='utf-8')
    (folder/'empty.html').write_text('<!doctype html><title>Test</title>', encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def site(folder):
    with served(folder) as address: yield folder, address


@pytest.fixture(scope='module')
def chrome(able):
    with tempfile.TemporaryDirectory() as profile, browser.opened(profile) as page: yield page


def test_the_runtime_is_pinned_and_locked():
    version = json.loads((ROOT/'package.json').read_text())['devDependencies']['onnxruntime-web']
    locked = json.loads((ROOT/'package-lock.json').read_text())['packages']
    assert re.fullmatch(r'\d+\.\d+\.\d+', version)
    assert locked['node_modules/onnxruntime-web']['version'] == version
    assert all(p.get('integrity') for name, p in locked.items() if name)


def test_the_page_has_no_constants_of_its_own():
    "Neither the model's, which stand in its file, nor those of Python's modules."
    engine = Predictor('nano', backend='onnx').engine
    model = [*engine.config['classes'], *engine.config['mean'], *engine.config['std'],
             engine.metadata['temperature'], *engine.metadata['photographs']['temper']]
    known = try_it.constants()
    python = [known['frame']['CROP_SCALE'], *known['frame']['CROP_SHIFT'],
              *np.ravel(known['frame']['FIVE']), known['finder']['ONE_PASS'],
              known['finder']['SECOND'], *(words for _, words in known['words']['ambiguity'])]
    program = '\n'.join(p.read_text(encoding='utf-8') for p in (NBS/'try').glob('*.js')
                        if p.name != 'page.js')     # which describes the drawings
    numbers = set(re.findall(r'\d*\.?\d+', program))
    for constant in [*model, *python]:
        if isinstance(constant, str): assert not re.search(rf'\b{constant}\b', program)
        else: assert not numbers & {f'{abs(constant):g}', f'{abs(constant):g}'.lstrip('0')}


START = '''
const [base, done] = arguments
const worker = window.worker = new Worker(base + 'try/worker.js', {type: 'module'})
worker.onerror = e => done({error: e.message})
worker.onmessage = ({data}) => {
  if (data.ready || data.error) done(data)
}
worker.postMessage({load: base + 'try/'})'''
READ = '''
const [urls, done] = arguments, answers = []
const next = async () => {
  if (answers.length === urls.length) return done(answers)
  worker.postMessage({id: answers.length, image: await (await fetch(urls[answers.length])).blob()})
}
worker.onmessage = ({data}) => { answers.push(data); next() }
next()'''


@pytest.fixture(scope='module')
def read(site, chrome):
    "Images → what the page's worker answers."
    folder, address = site
    chrome.get(address + 'empty.html')
    chrome.set_script_timeout(300)
    ready = chrome.execute_async_script(START, address)
    assert ready.get('ready'), ready
    def ask(images):
        for i, image in enumerate(images): image.save(folder/f'{i}.png')
        return chrome.execute_async_script(READ, [f'{address}{i}.png' for i in range(len(images))])
    return ask


@pytest.fixture(scope='module')
def predictor(): return Predictor('nano', backend='onnx', coverage=.9)


def drawn_faces():
    return [Image.fromarray(x) for x in synth_faces(200, size=48, seed=1)['images'][:, 0].numpy()]


def scenes():
    faces = synth_faces(40, size=192, seed=2, occlusion=0)['images'][:, 0].numpy()
    sizes = ((640, 480), (320, 240), (1000, 700), (1600, 1200))
    return [make_scene(faces, seed, size=sizes[seed % 4], sides=(40, 300), fault=None).image
            for seed in range(20)]


OPINIONS = ('probabilities', 'primary', 'anchor', 'attentive')


def apart(face, wanted):
    "By how much two answers about one face differ, by what; the same faces in the same order."
    found = {k: np.abs(np.subtract(face[k], list(getattr(wanted, k).values()))).max()
             for k in OPINIONS}
    for k in ('ambiguity', 'familiarity'): found[k] = abs(face[k] - getattr(wanted, k))
    found['frame'] = np.abs(np.subtract(face['frame'], wanted.frame)).max()
    if wanted.box: found['box'] = np.abs(np.subtract(face['box'], wanted.box)).max()
    return found


def same_place(face, wanted):
    "Whether the finders agree to the tenth of a pixel that both round to."
    if wanted.box is None: return face['box'] is None
    return face['box'] == list(wanted.box) and face['points'] == wanted.points.tolist()


@pytest.mark.parametrize('images', [drawn_faces, scenes])
def test_the_browser_answers_as_python_does(read, predictor, images):
    "A coordinate between two tenths may fall to either side: such faces only share their answer."
    images, worst, faces, placed = images(), {}, 0, 0
    for i, (answer, wanted) in enumerate(zip(read(images), predictor(images))):
        assert 'error' not in answer, (i, answer)
        assert len(answer['faces']) == len(wanted), i
        for face, other in zip(answer['faces'], wanted):
            faces += 1
            same = (other.emotion, other.reliable, list(other.set), other.evidence,
                    other.face_found, other.doubts)
            assert tuple(face[k] for k in ('emotion', 'reliable', 'set', 'evidence', 'faceFound',
                                           'doubts')) == same, i
            differs = apart(face, other)
            assert differs.get('box', 0) < 1 and differs['frame'] < 1, (i, differs)
            if not same_place(face, other): continue
            placed += 1
            assert face['said'] == other.said
            for k, v in differs.items(): worst[k] = max(worst.get(k, 0), float(v))
    assert faces >= len(images) and placed >= .95*faces, (faces, placed)
    assert max(worst.values()) < 1e-3, worst


# ---- What a visitor sees

class Visitor:
    "Somebody at the page."
    def __init__(self, chrome, address, before=''):
        self.chrome = chrome
        script = chrome.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument',
                                        dict(source=before))
        chrome.get(address)
        chrome.execute_cdp_cmd('Page.removeScriptToEvaluateOnNewDocument', script)
        self.wait_for('.try-privacy', 'stays on your device')

    def find(self, css): return self.chrome.find_element('css selector', css)

    def wait_for(self, css, text, seconds=300):
        until = time.time() + seconds
        while time.time() < until:
            if any(text in e.text for e in self.chrome.find_elements('css selector', css)): return
            time.sleep(.1)
        raise TimeoutError(f'no {text!r}: {self.find("#try-it").text}')

    def choose(self, path): self.find('input[type=file]').send_keys(str(path))

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.chrome).send_keys(*keys).perform()

    def requests(self):
        "What was asked of any server since the last call."
        messages = [json.loads(e['message'])['message'] for e in self.chrome.get_log('performance')]
        urls = [m['params']['request']['url'] for m in messages
                if m['method'] == 'Network.requestWillBeSent']
        return [u for u in urls if not u.startswith(('data:', 'blob:'))]


def test_it_reads_on_when_the_network_is_gone(folder, chrome, tmp_path):
    "A drawing, a file and a paste, with no server left to ask, and not even a try to."
    with served(folder) as address:
        visitor = Visitor(chrome, address + 'page.html')
        assert not [u for u in visitor.requests() if 'onnx' in u], 'loaded before anybody asked'
        visitor.find('[data-example=clear]').click()
        visitor.wait_for('.try-status', 'surprise')
    visitor.requests()
    visitor.find('[data-example=unsure]').click()
    visitor.wait_for('.try-status', 'unsure')
    visitor.choose(folder/'try/group.png')
    visitor.wait_for('.try-status', '6 faces')
    assert len(visitor.chrome.find_elements('css selector', '.try-faces article')) == 6
    assert len(visitor.chrome.find_elements('css selector', '.try-photo rect')) == 6
    Image.new('RGB', (320, 240), 'grey').save(tmp_path/'grey.png')
    visitor.choose(tmp_path/'grey.png')
    visitor.wait_for('.try-faces', 'No face found')
    assert visitor.requests() == []
    visitor.wait_for('.try-proof', 'Requests since the model was loaded: 0.')


NO_WASM = 'delete window.WebAssembly'
NO_CAMERA = ("navigator.mediaDevices.getUserMedia = async () => "
             "{ throw new DOMException('', 'NotFoundError') }")


UNREADABLE = [('notes.txt', b'not an image', "isn't an image"),
              ('broken.png', b'\x89PNG\r\n\x1a\n' + bytes(50), "isn't an image"),
              ('empty.png', b'', 'file is empty'),
              ('tiny.png', Image.new('L', (5, 5)), '5 × 5 pixels are too few')]


def test_what_cannot_be_read_gets_a_sentence_and_the_page_goes_on(site, chrome, tmp_path):
    visitor = Visitor(chrome, site[1] + 'page.html')
    for name, content, sentence in UNREADABLE:
        if isinstance(content, bytes): (tmp_path/name).write_bytes(content)
        else: content.save(tmp_path/name)
        visitor.choose(tmp_path/name)
        visitor.wait_for('.try-sorry', sentence)
        assert visitor.find('.try-faces').text == visitor.find('.try-status').text == ''
        visitor.find('[data-example=clear]').click()
        visitor.wait_for('.try-status', 'surprise')
        assert visitor.find('.try-sorry').text == ''


@pytest.mark.parametrize('before, press, sentence', [
    (NO_WASM, None, "can't run WebAssembly"), (NO_CAMERA, '.try-camera', 'No camera was found')])
def test_what_a_browser_lacks_is_said(site, chrome, before, press, sentence):
    visitor = Visitor(chrome, site[1] + 'page.html', before)
    if press: visitor.find(press).click()
    visitor.wait_for('.try-sorry', sentence)


def test_a_site_without_the_models_says_so(folder, chrome, tmp_path):
    shutil.copytree(NBS/'try', tmp_path/'try')
    (tmp_path/'page.html').write_text(PAGE, encoding='utf-8')
    with served(tmp_path) as address:
        Visitor(chrome, address + 'page.html').wait_for('.try-sorry', 'make docs puts them there')


def test_it_works_by_keyboard_and_fits_a_phone(site, chrome):
    from selenium.webdriver.common.keys import Keys
    chrome.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           dict(width=360, height=740, deviceScaleFactor=1, mobile=False))
    visitor = Visitor(chrome, site[1] + 'page.html')
    for _ in range(3): visitor.press(Keys.TAB)   # a file, the camera, the first drawing
    visitor.press(Keys.ENTER)
    visitor.wait_for('.try-status', 'surprise')
    assert chrome.execute_script('return document.documentElement.scrollWidth') <= 360
    chrome.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_the_camera_is_followed_until_it_is_stopped(site, chrome):
    visitor = Visitor(chrome, site[1] + 'page.html')
    visitor.find('.try-camera').click()
    visitor.wait_for('.try-status', 'frames a second')
    visitor.find('.try-camera').click()
    visitor.wait_for('.try-camera', 'Use the camera')
    assert chrome.execute_script("return document.querySelector('.try-photo canvas').width") > 100
