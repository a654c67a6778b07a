"""The page of `grefel demo` in a real Chromium: does a person get the right answer, a readable
message, and no request to elsewhere?

Without Chromium or its driver there is nothing to test and the reason is said. With `--pictures
DIR` it leaves pictures of what it saw.
"""
import argparse
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

SERVE = 'import sys; from grefel.use.app import run_app; run_app(port=int(sys.argv[1]))'
QUIET = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--disable-dev-shm-usage', '--window-size=1280,900')
# a moving drawing without a face
CAMERA = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
HERE = ('data:', 'blob:', 'chrome:', 'chrome-untrusted:', 'about:')
# not among them: a stream that ends as the page is left
BAD_NEWS = ('Refused to', 'Content Security Policy', 'Uncaught', '404 (')
PATIENCE = 60  # seconds that one step may take


def why_not():
    "Why the tests cannot run here, or None."
    browser, driver = chromium()
    if not browser or not driver:
        return ('no Chromium with its driver on this machine '
                '(Debian: apt install chromium chromium-driver)')
    for module in ('selenium', 'gradio'):
        try: __import__(module)
        except ImportError: return f'{module} is not installed'


def chromium():
    "Where the browser and its driver lie, None where they do not."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return next(filter(None, map(shutil.which, names)), None), shutil.which('chromedriver')


# ---- What has to be started, and stopped again whatever happens

def stop(process, seconds=10):
    "End a process that was started here, at last by force."
    if process.poll() is not None: return
    process.terminate()
    try: process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def left_behind(folder):
    "Numbers of the processes that still work on the browser's own folder."
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            mine = str(folder).encode() in (p/'cmdline').read_bytes() and int(p.name) != os.getpid()
        except OSError: continue
        if mine: found.append(int(p.name))
    return found


@contextmanager
def served(folder, seconds=240):
    "The app in a process of its own: its address and the file that holds what it said."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    address, said = f'http://127.0.0.1:{port}/', Path(folder)/'said.txt'
    with open(said, 'wb') as out:
        process = subprocess.Popen([sys.executable, '-c', SERVE, str(port)], cwd=folder, stdout=out,
                                   stderr=out)
    try:
        until = time.time() + seconds
        while b'page is at' not in said.read_bytes():
            if process.poll() is not None or time.time() > until:
                raise RuntimeError('the app did not start: ' + said.read_text()[-300:])
            time.sleep(0.1)
        yield address, said
    finally: stop(process)


@contextmanager
def opened(folder):
    "Chromium with a profile that was never used; nothing of it stays."
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    browser, driver = chromium()
    profile, options = Path(folder)/'profile', webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*QUIET, *CAMERA, f'--user-data-dir={profile}', 'about:blank'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', dict(performance='ALL', browser='ALL'))
    service, page = Service(driver), None
    try:
        page = webdriver.Chrome(options=options, service=service)
        page.set_page_load_timeout(PATIENCE)
        page.set_script_timeout(PATIENCE)
        yield page
    finally:
        if page:
            try: page.quit()
            except Exception: pass   # whatever is left is ended below
        service.stop()
        for pid in left_behind(profile):
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass


# ---- What a person does and sees

class Visitor:
    "Somebody at the page."
    def __init__(self, page, address):
        self.page, self.address, self.requests, self.complaints = page, address, [], []

    def open(self, width=1280, height=900, dark=False):
        "A fresh visit, on a screen of this size."
        self.look_at_logs()
        theme = dict(features=[dict(name='prefers-color-scheme',
                                    value='dark' if dark else 'light')])
        self.page.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                  dict(width=width, height=height, deviceScaleFactor=1,
                                       mobile=False))
        self.page.execute_cdp_cmd('Emulation.setEmulatedMedia', theme)
        self.page.get(self.address)
        self.wait_for('.gf-said')

    def find(self, css): return self.page.find_elements('css selector', css)

    def wait_for(self, css, text=''):
        "The first visible element of this kind that holds `text`; TimeoutError if none comes."
        from selenium.common.exceptions import StaleElementReferenceException
        until = time.time() + PATIENCE
        while time.time() < until:
            try:
                for e in self.find(css):
                    if e.is_displayed() and text in e.text: return e
            except StaleElementReferenceException: pass
            time.sleep(0.1)
        raise TimeoutError(f'no {css} with {text!r}')

    def upload(self, path): self.find('input[type=file]')[0].send_keys(str(path))

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.page).send_keys(*keys).perform()

    def tab_to(self, text, most=25):
        "Press Tab until what has the focus says `text`; whether that came about."
        from selenium.webdriver.common.keys import Keys
        for _ in range(most):
            self.press(Keys.TAB)
            if text in self.page.execute_script('const e = document.activeElement; return '
                                                'e.innerText + " " + (e.ariaLabel || "")'):
                return True
        return False

    def look_at_logs(self):
        "Keep what was requested, and errors that the page wrote to the console."
        for entry in self.page.get_log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] in ('Network.requestWillBeSent', 'Network.webSocketCreated'):
                p = message['params']
                self.requests.append(p.get('request', p)['url'])
        self.complaints += [e['message'][:200] for e in self.page.get_log('browser')
                            if any(w in e['message'] for w in BAD_NEWS)]

    def picture(self, path):
        "The whole page as a PNG."
        size = self.page.execute_cdp_cmd('Page.getLayoutMetrics', {})['cssContentSize']
        clip = dict(x=0, y=0, width=size['width'], height=min(size['height'], 4000), scale=1)
        shot = self.page.execute_cdp_cmd('Page.captureScreenshot',
                                         dict(captureBeyondViewport=True, clip=clip))
        Path(path).write_bytes(base64.b64decode(shot['data']))


# Text whose colour does not stand out from the nearest opaque background by 4.5 : 1 (3 : 1 where
# it is large), WCAG 2.1, 1.4.3
CONTRAST = '''
const rgb = s => {
  const v = s.match(/[\\d.]+/g).map(Number);
  return v.length < 4 ? [...v, 1] : v;
};
const linear = v => { v /= 255; return v <= 0.03928 ? v/12.92 : ((v + 0.055)/1.055)**2.4; };
const lum = c => {
  const [r, g, b] = c.map(linear);
  return 0.2126*r + 0.7152*g + 0.0722*b;
};
const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3]));
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] > 0.95) return c;
  }
  return [255, 255, 255, 1];
};
const large = s => {
  const size = parseFloat(s.fontSize);
  return size >= 24 || size >= 18.6 && s.fontWeight >= 700;
};
const poor = [];
for (const e of document.querySelectorAll('.gf *, .gf-text *, button, label')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const r = e.getBoundingClientRect(), s = getComputedStyle(e);
  const hidden = r.width < 2 || r.height < 2 || s.visibility === 'hidden';
  if (!own || hidden || e.closest('.gf-photo')) continue;
  const back = behind(e), a = lum(over(rgb(s.color), back)), b = lum(back.slice(0, 3));
  const ratio = (Math.max(a, b) + 0.05)/(Math.min(a, b) + 0.05);
  if (ratio < (large(s) ? 3 : 4.5))
    poor.push(`${e.textContent.trim().slice(0, 30)} (${ratio.toFixed(1)} : 1)`);
}
return poor;'''


# ---- The tests: each yields its complaints

def reads_a_photograph(v, files):
    v.open()
    v.upload(files['astronaut'])
    v.wait_for('.gf-card .gf-headline', 'Happiness')
    if not v.find('.gf-photo polygon'): yield 'the face has no box'
    if len(v.find('.gf-photo circle')) != 68:
        yield f'{len(v.find(".gf-photo circle"))} landmarks are drawn, not 68'
    first = v.find('.gf-bars tbody tr')[0]
    if not first.text.startswith('happiness') or '%' not in first.text:
        yield f'the longest bar is {first.text!r}'
    if len(v.find('.gf-bars tbody tr')) != 8: yield 'not every expression has its bar'
    if v.page.title == 'Gradio': yield 'the page has no title of its own'


def says_what_is_wrong(v, files):
    v.open()
    for kind in ('broken', 'text', 'huge'):
        v.upload(files[kind])
        said = v.wait_for('.gf-sorry', files[kind].name).text
        if 'could not be read' not in said or len(said.splitlines()) > 4 or '/' in said:
            yield f'{kind}: {said!r}'
        v.find('button[aria-label="Clear"], button[aria-label="Remove Image"]')[0].click()
        v.wait_for('.gf-said', 'The answer appears here')


def works_by_keyboard(v, files):
    from selenium.webdriver.common.keys import Keys
    v.open()
    if not v.tab_to('Capture from camera'): yield 'Tab does not reach the camera'
    if not v.tab_to('Try a group'):
        yield 'Tab does not reach the button with the example'
        return
    v.press(Keys.ENTER)
    v.wait_for('.gf-pick')
    if not v.tab_to('Face 1'):
        yield 'Tab does not reach the choice of faces'
        return
    cards = v.find('.gf-card')
    if len(cards) < 2:
        yield f'{len(cards)} face was found on the example of a group'
        return
    v.press(Keys.ARROW_RIGHT)
    if [c.is_displayed() for c in cards[:2]] != [False, True]:
        yield 'the arrow key does not choose the next face'
    for _ in range(20):
        v.press(Keys.SHIFT + Keys.TAB + Keys.NULL)
        if v.page.execute_script('return document.activeElement.innerText') == 'What it means':
            break
    v.press(Keys.ENTER)
    v.wait_for('.gf-text h2', 'What it must not be used for')


def fits_a_narrow_screen(v, files):
    v.open(390, 844)
    wide = 'return document.documentElement.scrollWidth - innerWidth'
    if (over := v.page.execute_script(wide)) > 0: yield f'the empty page is {over} px too wide'
    v.upload(files['astronaut'])
    v.wait_for('.gf-card .gf-headline', 'Happiness')
    if (over := v.page.execute_script(wide)) > 0: yield f'the answer is {over} px too wide'
    beyond = v.page.execute_script('return [...document.querySelectorAll(".gf *")].filter(e => '
                                   'e.getBoundingClientRect().right > innerWidth + 1).length')
    if beyond: yield f'{beyond} parts of the answer lie beyond the edge'
    next(b for b in v.find('button') if b.text == 'What it means').click()
    v.wait_for('.gf-text h2', 'What it must not be used for')
    if (over := v.page.execute_script(wide)) > 0:
        yield f'the page of explanations is {over} px too wide'


def is_readable(v, files):
    for dark in (False, True):
        v.open(dark=dark)
        next(b for b in v.find('button') if b.text == 'Try a group').click()
        v.wait_for('.gf-card .gf-headline')
        time.sleep(0.5)   # colours fade in
        yield from (f'{"dark" if dark else "light"}: poor contrast: {p}'
                    for p in v.page.execute_script(CONTRAST))


def takes_a_picture(v, files):
    v.open()
    v.wait_for('button[aria-label="Capture from camera"]').click()
    v.wait_for('.gf-ask button', 'Webcam').click()
    button = v.wait_for('button[aria-label="capture photo"]')
    v.page.execute_async_script('const done = arguments[0], t = setInterval(() => { const e = '
                                'document.querySelector("video"); '
                                'if (e && e.videoWidth) { clearInterval(t); done(); } }, 100)')
    button.click()
    said = v.wait_for('.gf-nobody .gf-headline').text
    if said != 'No face found': yield f'a drawing without a face is called {said!r}'


TESTS = (reads_a_photograph, says_what_is_wrong, works_by_keyboard, fits_a_narrow_screen,
         is_readable, takes_a_picture)


def stays_home(v, said):
    "No request left this computer, the browser did not complain, the server wrote no traceback."
    v.look_at_logs()
    outside = sorted({u[:100] for u in v.requests if not u.startswith((v.address, *HERE))})
    if not any(u.startswith(v.address) for u in v.requests): yield 'the log of requests is empty'
    yield from (f'a request to {u}' for u in outside)
    yield from (f'the console: {c}' for c in sorted(set(v.complaints)))
    if 'Traceback' in (text := said.read_text()):
        yield f'the server wrote a traceback: {text.strip().splitlines()[-1][:200]}'


def make_files(folder):
    "What is uploaded."
    from PIL import Image
    from skimage.data import astronaut
    files = {n: Path(folder)/f for n, f in dict(astronaut='astronaut.png', broken='broken.png',
                                                text='letter.png', huge='huge.png').items()}
    Image.fromarray(astronaut()).save(files['astronaut'])
    files['broken'].write_bytes(files['astronaut'].read_bytes()[:20_000])
    files['text'].write_text('no picture at all')
    Image.new('1', (12_000, 12_000)).save(files['huge'])
    return files


def end_all(folder):
    "End the processes that still work on a folder."
    for pid in left_behind(folder): os.kill(pid, signal.SIGKILL)


def complaints(pictures=None, most=180):
    "Run all tests, each in `most` seconds at the longest; yield what is wrong, one line each."
    with tempfile.TemporaryDirectory(prefix='grefel-browser-',
                                     ignore_cleanup_errors=True) as folder:
        files = make_files(folder)
        with served(folder) as (address, said), opened(folder) as page:
            v = Visitor(page, address)
            for test in TESTS:
                start = time.time()
                watch = threading.Timer(most, end_all, [Path(folder)/'profile'])
                watch.daemon = True
                watch.start()
                try:
                    yield from (f'{test.__name__}: {c}' for c in test(v, files))
                    if pictures:
                        v.picture(Path(pictures)/f'{test.__name__}.png')
                        print(f'{test.__name__}: {time.time() - start:.1f} s')
                except Exception as e:
                    yield f'{test.__name__}: {type(e).__name__}: {" ".join(str(e).split())[:200]}'
                finally: watch.cancel()
            yield from (f'stays_home: {c}' for c in stays_home(v, said))
        if left_behind(Path(folder)/'profile'): yield 'a process of the browser is left'


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', metavar='DIR', help='leave a picture after each test here')
    args = parser.parse_args()
    if reason := why_not():
        print(f'skipped: {reason}')
        return
    if args.pictures: Path(args.pictures).mkdir(parents=True, exist_ok=True)
    found = list(complaints(args.pictures))
    print('\n'.join(found) or f'ok: {len(TESTS) + 1} tests')
    sys.exit(bool(found))


if __name__ == '__main__': main()
