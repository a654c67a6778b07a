"""Inputs that were damaged on purpose: each ends as an answer or as one clear line.

What happens to a library that strangers feed? A download broke off, a spreadsheet rewrote a table,
an image of a few bytes claims a billion pixels, a request asks for a file outside of the app. Here
such inputs are made from good ones, with a seed, so that every machine tries the same. An input is
*answered*, or it is *refused* with a `GrefelError` of one line. Any other exception, a traceback, a
wait beyond the limit, and any row that is lost on the way is a *fault*, and fails the test.

A twelfth of the inputs is tried each time, all of them with SLOW=1.
"""
import csv
import faulthandler
import http.client
import io
import json
import logging
import os
import random
import re
import signal
import struct
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

import grefel
from tests.use.client import wait_for_answer
from grefel.base.core import GrefelError
from grefel.base.draw import action_units, draw_faces
from grefel.base.images import load_image
from grefel.base.synth import synth_faces
from grefel.data.faces import load_faces
from grefel.method.files import read_weights, save_model
from grefel.method.model import create_model
from grefel.use.annotate import annotate
from grefel.use.app_page import example
from grefel.use.finder import find_faces
from grefel.use.journal import read_rows
from grefel.use.predict import Predictor
from grefel.use.scenes import make_scene

pytestmark = pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='needs POSIX signals')

LIMIT = 10   # seconds for one input
PART = 1 if os.environ.get('SLOW') else 12


def many(n): return -(-n//PART)


# ---- How one input is tried

class TooLong(BaseException):
    "Raised by the alarm; no handler of ordinary exceptions swallows it."


class Lost(Exception):
    "An answer lacks something that was asked for. No `GrefelError`: losing is never a refusal."


def _alarm(*_): raise TooLong


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    "What could not be raised is noted; a library that never returns ends the run, loudly."
    global unraised
    unraised = []
    monkeypatch.setattr(sys, 'unraisablehook',
                        lambda u: unraised.append(type(u.exc_value).__name__))
    before = signal.signal(signal.SIGALRM, _alarm)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, before)


def attempt(f, *args, limit=LIMIT):
    "How `f(*args)` ends: 'answered', 'refused', or a fault in words."
    faulthandler.dump_traceback_later(limit + 50, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        f(*args)
        end = 'answered'
    except GrefelError as e:
        clear = 0 < len(str(e)) < 1000 and '\n' not in str(e)
        end = 'refused' if clear else 'FAULT: refused without a clear line'
    except TooLong: end = f'FAULT: longer than {limit} s'
    except (Exception, SystemExit) as e:
        end = f'FAULT: {type(e).__name__}: {" ".join(str(e).split())[:90]}'
    finally: signal.setitimer(signal.ITIMER_REAL, 0)
    if unraised: end = f'FAULT: {unraised.pop()} printed, not raised'
    return end


def fuzz(f, inputs):
    "Try every input; how many were answered and refused. A fault fails, with an example."
    ends = [attempt(f, given) for given in inputs]
    assert ends
    faults = {end: given for end, given in zip(ends, inputs) if end.startswith('FAULT')}
    shown = '\n'.join(f'{end} for {given!r:.300}' for end, given in faults.items())
    assert not faults, f'{sum(e in faults for e in ends)} of {len(ends)} inputs:\n{shown}'
    return Counter(ends)


def lose(*_): raise Lost('2 images, 1 answers')


def silent(): raise GrefelError('')


def unraisable():
    class Noisy:
        def __del__(self): raise ValueError
    Noisy()


@pytest.mark.parametrize('f, args, end', [
    (len, ['a'], 'answered'), (load_image, [b'no image'], 'refused'),
    (int, ['a'], 'FAULT: ValueError: invalid literal for int() with base 10: \'a\''),
    (lose, [], 'FAULT: Lost: 2 images, 1 answers'), (sys.exit, [1], 'FAULT: SystemExit: 1'),
    (silent, [], 'FAULT: refused without a clear line'),
    (time.sleep, [5], 'FAULT: longer than 0.2 s'),
    (unraisable, [], 'FAULT: ValueError printed, not raised')])
def test_faults_are_told_from_refusals(f, args, end):
    assert attempt(f, *args, limit=0.2) == end


# ---- How a good input is damaged

ODD = [struct.pack(f, n) for f in ('>I', '<I', '>H', '<H') for n in (0, 1, 0x7fff, 0xffff)]
ODD += [b'\xff'*4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0'*8]


def _flip(data, i, j, r, others):
    for _ in range(r.choice((1, 1, 4, 40))):
        if data: data[(i + r.randrange(len(data))) % len(data)] ^= 1 << r.randrange(8)


def _cut(data, i, j, r, others): del data[j:]


def _take_out(data, i, j, r, others): del data[i:min(j, i + 200)]


def _double(data, i, j, r, others): data[i:i] = data[i:min(j, i + 200)]


def _overwrite(data, i, j, r, others): data[i:i + 8] = r.randbytes(r.randint(1, 8))


def _odd_number(data, i, j, r, others):
    "Numbers that programs stumble over."
    odd = r.choice(ODD)
    data[i:i + len(odd)] = odd


def _other_head(data, i, j, r, others): data[:i] = r.choice(others)[:i]


def _other_tail(data, i, j, r, others): data += r.choice(others)[j:]


WAYS = (_flip, _cut, _take_out, _double, _overwrite, _odd_number, _other_head, _other_tail)


def damage(data, r, others=(b'',)):
    "`data` damaged in one to three ways, as the generator `r` decides."
    data = bytearray(data)
    for _ in range(r.randint(1, 3)):
        n = max(len(data), 1)
        i, j = sorted((r.randrange(n), r.randrange(n)))
        if r.random() < 0.5: i = min(i, r.randrange(1, 64))    # headers are where it hurts
        r.choice(WAYS)(data, i, j, r, others)
    return bytes(data)


# ---- Portraits and groups

@pytest.fixture(scope='session')
def portraits():
    "Name → image and number of faces; photographs in the public domain, drawings, and mixtures."
    from matplotlib.cbook import get_sample_data
    units = torch.stack([action_units(e) for e in ('happiness', 'surprise', 'neutral')])
    drawn = [Image.fromarray(d[0].numpy()) for d in draw_faces(units, size=256)[0]]
    crowd = Image.new('L', (900, 300), 120)
    for i, d in enumerate(drawn): crowd.paste(d, (20 + 300*i, 20))
    with Image.open(get_sample_data('grace_hopper.jpg')) as hopper: hopper = hopper.convert('RGB')
    return dict(
        collins=(Image.fromarray(astronaut()), 1),             # NASA
        hopper=(hopper, 1),                                    # US Navy
        drawn=(drawn[0], 1), crowd=(crowd, 3), group=(example('group'), 4),
        scene=(make_scene(np.asarray(drawn[1]), 3, n=1, tilt=20).image, 1))


def encoded(image, kind, **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


@pytest.fixture(scope='session')
def formats():
    "A small face in every format that is read and that this machine can write."
    face, found = load_image(synth_faces(1, size=48, seed=1)['images'][0]), {}
    for kind in 'PNG JPEG WEBP GIF BMP TIFF PPM JPEG2000 AVIF ICO'.split():
        try: found[kind] = encoded(face, kind)
        except (OSError, KeyError): pass                       # this build of Pillow lacks it
    return found | {
        'TIFF, LZW': encoded(face.convert('CMYK'), 'TIFF', compression='tiff_lzw'),
        'PNG, palette': encoded(face.convert('P'), 'PNG'),
        'JPEG, progressive': encoded(face, 'JPEG', progressive=True)}


@pytest.fixture(scope='session')
def photographs(portraits):
    "The portraits and groups as files of two formats."
    return [encoded(image, kind) for image, _ in portraits.values() for kind in ('JPEG', 'PNG')]


@pytest.fixture(scope='session')
def finding():
    "A predictor that looks for faces."
    return Predictor(backend='onnx', crop='detect', threads=1)


def test_there_are_faces_to_be_found(portraits, photographs, finding):
    assert len(portraits) >= 5
    for name, (image, n) in portraits.items(): assert len(finding(image)) == n, name
    for data in photographs: assert all(face.face_found for face in finding(data))


# ---- Images

def test_damaged_images(formats):
    r, kinds = random.Random(55), list(formats.values())
    ends = fuzz(load_image, [damage(kinds[i % len(kinds)], r, kinds) for i in range(many(3600))])
    assert min(ends['answered'], ends['refused']) > many(3600)/10


def test_bytes_by_chance(formats):
    r, kinds = random.Random(56), list(formats.values())
    fuzz(load_image, [r.choice(kinds)[:r.randrange(16)] + r.randbytes(r.randrange(300))
                      for _ in range(many(300))])


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(width, height, data=b''):
    "A PNG that declares this size and holds `data`."
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def bitmap(width, height):
    return b'BM' + struct.pack('<IHHIIiiHHIIiiII', 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0,
                               0, 0, 0)


def gif(width, height):
    size = struct.pack('<HH', width, height)
    return b'GIF89a' + size + b'\0\0\0,' + b'\0\0\0\0' + size + b'\0\x08\0;'


def tiff(n):
    return b'II*\0' + struct.pack('<IH', 8, n) + struct.pack('<HHII', 256, 4, 1, 2**31)*min(n, 50)


def bombs():
    "Images that declare far more pixels than they hold, hold many in few bytes, or none at all."
    sides = (0, 1, 2, 65535, 65536, 2**20, 2**31 - 1)
    signed = (-1, *sides)
    pairs = [(w, h) for w in sides for h in sides]
    found = [png(w, h, zlib.compress(b'\0'*100)) for w, h in pairs]
    found += [bitmap(w, h) for w in signed for h in signed]
    found += [f'P{k}\n{w} {h}\n255\n'.encode() for k in (5, 6) for w, h in pairs]
    found += [gif(w, h) for w in (0, 1, 65535) for h in (0, 1, 65535)]
    found += [png(20_000, 20_000, zlib.compress(bytes(20_001)*2_000, 9)),   # 40 MB from little
              png(100, 100, zlib.compress(bytes(50_000_000), 9))]
    return found + [tiff(n) for n in (0, 1, 50, 65535)]


@contextmanager
def little_memory(more):
    "Limit the memory of this process, so that a fault is seen rather than suffered."
    resource = pytest.importorskip('resource')
    status, now = Path('/proc/self/status'), resource.getrlimit(resource.RLIMIT_AS)
    size = re.search(r'VmSize:\s*(\d+)', status.read_text()) if status.exists() else None
    if size: resource.setrlimit(resource.RLIMIT_AS, (int(size[1])*1024 + more, now[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_AS, now)


def test_images_that_claim_too_much_are_refused_before_they_are_decoded():
    with little_memory(2**30): ends = fuzz(load_image, bombs())
    assert ends['refused'] > 0.9*sum(ends.values())


# ---- Faces in them

def test_damaged_photographs_are_searched_and_none_is_lost(photographs, finding):
    "Refused images and readable ones go through together: one answer for each, in order."
    r, found = random.Random(57), Counter()
    given = [damage(photographs[i % len(photographs)], r, photographs) for i in range(many(480))]

    def read_all(batch):
        answers = list(finding.predict_many(batch))
        if len(answers) != len(batch): raise Lost(f'{len(batch)} images, {len(answers)} answers')
        for answer, data in zip(answers, batch):
            readable = attempt(load_image, data) == 'answered'
            if readable == isinstance(answer, GrefelError): raise Lost('an answer of another image')
            if not readable: continue
            json.dumps([face.as_dict() for face in answer])
            found['faces'] += sum(face.face_found for face in answer)
            found['images'] += 1
    fuzz(read_all, [given[i:i + 8] for i in range(0, len(given), 8)])
    assert found['images'] > len(given)/8 and found['faces'] > found['images']/2


def odd_image(r, portraits):
    "Of an odd shape, of noise, of one colour; a portrait stretched, leaning, or torn."
    kind, noise = r.randrange(5), np.random.default_rng(r.randrange(2**31))
    side = (1, 2, 3, 23, 24, 25, 63, 64, 65, 200, 3000)
    size = r.choice(side), r.choice(side)
    if kind == 0: return Image.fromarray(noise.integers(0, 256, size, np.uint8))
    if kind == 1: return Image.new(r.choice(['L', 'RGB']), size, r.choice([0, 1, 127, 255]))
    image = r.choice(portraits)
    if kind == 2: return image.resize([min(s, 400) for s in size])
    if kind == 3: return image.rotate(r.uniform(-30, 30), fillcolor=r.choice([0, 200]))
    pixels = np.asarray(image.convert('L').resize((200, 200))).copy()
    for _ in range(5):                                         # rows and columns change places
        i, j, n = r.randrange(150), r.randrange(150), r.randrange(1, 50)
        pixels[i:i + n], pixels[j:j + n] = pixels[j:j + n].copy(), pixels[i:i + n].copy()
        pixels = pixels.T
    return Image.fromarray(np.ascontiguousarray(pixels))


def test_the_face_finder_answers_whatever_it_sees(portraits):
    r, images, hits = random.Random(58), [image for image, _ in portraits.values()], Counter()

    def search(image):
        for found in find_faces(image):
            x0, y0, x1, y1 = found.box
            hits['faces'] += 1
            if not (x0 < x1 and y0 < y1 and np.isfinite(found.box).all()):
                raise Lost(f'a face without a place: {found.box}')
    fuzz(search, [odd_image(r, images) for _ in range(many(360))])
    assert hits['faces'] > 0


# ---- Films

@pytest.fixture(scope='session')
def film(portraits, tmp_path_factory):
    "A frame of each portrait, 240 pixels a side."
    cv2 = pytest.importorskip('cv2')
    path = str(tmp_path_factory.mktemp('film')/'film.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 5, (240, 240))
    for image, _ in portraits.values():
        square = image.convert('RGB').crop((0, 0, min(image.size), min(image.size)))
        frame = np.ascontiguousarray(np.asarray(square.resize((240, 240)))[..., ::-1])
        writer.write(frame)
    writer.release()
    return Path(path).read_bytes()


def test_damaged_films_have_a_row_for_every_frame_or_say_why_not(film, finding, tmp_path):
    r, faces = random.Random(59), Counter()

    def read_film(data):
        (tmp_path/'film.avi').write_bytes(data)
        (tmp_path/'rows.jsonl').unlink(missing_ok=True)
        heard = []
        found = annotate(tmp_path/'film.avi', finding, tmp_path/'rows.jsonl', max_frames=30,
                         progress=False, on_rows=lambda rows: heard.extend(rows))
        rows = list(read_rows(tmp_path/'rows.jsonl'))
        if [r['frame'] for r in rows] != [r['frame'] for r in heard]: raise Lost('rows on the way')
        frames = list(dict.fromkeys(row['frame'] for row in rows))
        if not rows or len(frames) != found['items']:
            raise Lost(f"{found['items']} items, frames {frames}")
        if frames != sorted(frames): raise Lost(f'frames out of order: {frames}')
        if found['errors'] == len(frames): raise GrefelError(rows[0]['error'])
        faces['found'] += found['faces']
    assert attempt(read_film, film) == 'answered' and faces['found'] >= 5
    ends = fuzz(read_film, [damage(film, r) for _ in range(many(120))])
    assert ends['answered'] and ends['refused']


# ---- Tables of answers

@pytest.fixture(scope='session')
def album(tmp_path_factory):
    "Six small faces, which are read within milliseconds."
    folder = tmp_path_factory.mktemp('album')
    for i, image in enumerate(synth_faces(6, size=48, seed=3)['images']):
        Image.fromarray(image[0].numpy()).save(folder/f'{i}.png')
    return folder


@pytest.fixture(scope='session')
def whole(): return Predictor(backend='onnx', crop='whole', threads=1)


def interrupted(album, whole, out):
    "The journal of a run that was stopped after four images."
    def stop(rows):
        if rows[0]['file'].endswith('3.png'): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        annotate(album, whole, out, progress=False, on_rows=stop, chunk=1)
    return Path(f'{out}.log').read_bytes()


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet', 'csv.log'])
def test_a_damaged_table_is_continued_without_losing_a_row_or_left_alone(
        album, whole, tmp_path, ending):
    "A finished table, or the journal of a stopped run: a refusal must change neither."
    r, out = random.Random(60), tmp_path/f'a.{ending.removesuffix(".log")}'
    given, files = tmp_path/f'a.{ending}', {str(p) for p in album.iterdir()}
    if ending == 'csv.log': good = interrupted(album, whole, out)
    else:
        annotate(album, whole, out, progress=False)
        good = out.read_bytes()

    def go_on(data):
        for left in tmp_path.iterdir(): left.unlink()
        given.write_bytes(data)
        try: annotate(album, whole, out, progress=False)
        except GrefelError:
            if given.read_bytes() != data: raise Lost('a refusal changed what was there') from None
            raise
        rows = Counter(row['file'] for row in read_rows(out))
        if files - rows.keys(): raise Lost(f'{len(files - rows.keys())} of {len(files)} rows')
        if any(rows[file] != 1 for file in files): raise Lost(f'rows twice: {rows}')
    assert attempt(go_on, good) == 'answered'
    lines = [b''.join(good.splitlines(True)[:n]) for n in range(1, 6)]   # ends between two rows
    ends = fuzz(go_on, lines*(ending != 'parquet') + [damage(good, r) for _ in range(many(240))])
    assert ends['refused'] and (ends['answered'] or ending == 'parquet')


# ---- Tables of faces

@pytest.fixture(scope='session')
def table():
    "Eight synthetic faces in FER2013's layout, as lines of cells."
    faces = synth_faces(8, size=48, seed=2)['images']
    rows = [[str(i % 7), ' '.join(map(str, face.flatten().tolist())), split]
            for i, (face, split) in enumerate(zip(faces, ['Training', 'PublicTest']*4))]
    return [['emotion', 'pixels', 'Usage'], *rows]


CELLS = ['', ' ', '-1', '7', '99', '3.5', '1e309', 'nan', 'inf', '9'*400, 'happy', 'Training',
         '=1+1', '2026-11-24', "'", ';', '\t', '\0', '\ufeff', '١٢', '1 2 3', '256 '*2304,
         '-1 '*2304, '1.5 '*2304, ' '.join(['0']*2304), ' '.join(['0']*2303), '💥', 'None',
         'x'*5000]
SPLITTERS = ['"', ',', '\n']             # these change which cells and rows there are
ENCODINGS = ['utf-8']*8 + ['utf-16', 'utf-8-sig', 'utf-32']


def spoil(table, r, cells=CELLS, header=True):
    "The table with one to three mistakes that people and programs make."
    lines = [list(line) for line in table]
    first = 0 if header else 1
    for _ in range(r.randint(1, 3)):
        row = r.choice(lines[first:])
        if not row: continue
        i, kind = r.randrange(len(row)), r.randrange(7)
        if kind < 3: row[i] = r.choice(cells)
        elif kind == 3:
            head, tail = r.randrange(len(row[i]) + 1), r.randrange(len(row[i]) + 1)
            row[i] = row[i][:head] + r.choice(cells) + row[i][tail:]
        elif kind == 4: del row[i]
        elif kind == 5: lines.insert(r.randrange(first, len(lines)), list(row))
        else: r.shuffle(row)
    return lines


def load(path):
    "The faces of a table, each of them touched."
    found = load_faces(path, split=None, drop_duplicates=False)
    if len(found): found.images.float().mean(), found.targets.sum()
    return found


def test_spoilt_tables_of_faces(table, tmp_path):
    "Other separators, quotes, line ends and encodings, and damaged bytes."
    r, file = random.Random(61), tmp_path/'faces.csv'
    good = '\n'.join(map(','.join, table)).encode() + b'\n'

    def as_bytes(lines):
        text = '\n'.join(r.choice([',']*20 + [';', '\t', ' , ']).join(line) for line in lines)
        return text.encode(r.choice(ENCODINGS), 'surrogatepass')

    def read(data):
        file.write_bytes(data)
        load(file)
    assert attempt(read, good) == 'answered'
    spoilt = [as_bytes(spoil(table, r, CELLS + SPLITTERS)) for _ in range(many(250))]
    ends = fuzz(read, spoilt + [damage(good, r) for _ in range(many(100))])
    assert ends['answered'] and ends['refused']


def test_a_spoilt_table_accounts_for_every_row(table, tmp_path):
    "Kept, bad, set aside or left out as odd: the four together are the rows of the file."
    r, file = random.Random(62), tmp_path/'faces.csv'

    def read(lines):
        with open(file, 'w', newline='') as f: f.writelines(','.join(line) + '\n' for line in lines)
        with open(file, newline='') as f: rows = sum(1 for _ in csv.reader(f)) - 1
        found = load(file)
        notes = found.notes
        told = len(notes['bad']) + sum(notes['set_aside'].values())
        told += sum(o.n for o in notes['odd'] if 'cells instead' in o.what)   # the rest is no row
        if len(found) + told != rows: raise Lost(f'{rows} rows, {len(found)} faces, {told} told')
    cells = [c for c in CELLS if '\0' not in c]                # where csv.reader counts as we do
    ends = fuzz(read, [spoil(table, r, cells, header=False) for _ in range(many(300))])
    assert ends['answered'] > sum(ends.values())/3


# ---- Weights

@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    "A small weights file in pieces: its header and its numbers."
    tiny = create_model('nano', embed_dim=16, num_heads=2, widths=(8, 8, 8, 8), depths=(1, 1, 1, 0),
                        num_anchors_per_class=1)
    file = tmp_path_factory.mktemp('weights')/'tiny.safetensors'
    data = save_model(tiny, file, half=True).read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8 + length]), data[8 + length:]


def with_header(weights, header, length=None):
    "The file with another header."
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + weights[1]


@pytest.fixture
def try_file(tmp_path):
    "What reads bytes through a file that holds them."
    file = tmp_path/'given.safetensors'

    def through(f):
        def read(data):
            file.write_bytes(data)
            f(file)
        return read
    return through


STRANGE = [None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 0.5, 1e308, float('nan'), float('inf'),
           '', 'F32', 'x'*3000, [], [[]], [0, -1], [10**9]*4, {}, {'a': {}}, [[[[]]]]]


def strange_header(weights, r):
    "One value of the list of tensors replaced, removed or renamed."
    changed = json.loads(json.dumps(weights[0]))
    name, kind = r.choice(list(changed)), r.randrange(4)
    if kind == 0: changed[name] = r.choice(STRANGE)
    elif kind == 1: changed[r.choice(['', 'a'*500, '\0', '../x', name + '.x'])] = changed.pop(name)
    elif kind == 2: changed.pop(name)
    else: changed[name][r.choice(list(changed[name]))] = r.choice(STRANGE)
    return with_header(weights, changed, r.choice([None]*9 + [0, 1, 2**40, 2**64 - 1]))


def test_damaged_weights(weights, try_file):
    r, data = random.Random(63), with_header(weights, weights[0])
    head = len(data) - len(weights[1])
    assert attempt(try_file(read_weights), data) == 'answered'
    given = [damage(data[:head + 200*(i % 2)] if i % 4 else data, r) for i in range(many(700))]
    assert fuzz(try_file(read_weights), given)['refused']


def test_weights_with_strange_headers(weights, try_file):
    r = random.Random(64)
    fuzz(try_file(read_weights), [strange_header(weights, r) for _ in range(many(500))])


VALUES = [None, True, -1, 0, 3, 10**5, 2**31, 10**30, 0.5, float('nan'), float('inf'), '', 'x',
          'x'*3000, [], {}, [-1], [10**9]*4]


def strange_configs(weights):
    "Weights whose model's config, or the metadata beside it, holds one thing that makes no sense."
    note = json.loads(weights[0]['__metadata__']['grefel'])
    config = note['config']

    def told(note): return with_header(weights, weights[0] | {
        '__metadata__': {'grefel': json.dumps(note)}})
    changes = [(k, v) for k in config for v in VALUES]
    changes += [(k, config[k][:-1] + [v]) for k in config if isinstance(config[k], list)
                for v in (None, -1, 10**9, 'x', float('nan'), [1])]
    found = [told(note | dict(config=config | {k: v})) for k, v in changes]
    return found + [told(note | {k: v}) for v in VALUES
                    for k in ('config', 'temperature', 'risk', 'grey', 'face_size')]


def test_configs_that_make_no_sense(weights, try_file):
    "A config that demands gigabytes is refused because the file cannot hold such a model."
    face = synth_faces(1, size=48, seed=4)['images'][0]

    def read_with(file):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            Predictor(file, crop='whole')(face)
    given = strange_configs(weights)
    assert attempt(try_file(read_with), with_header(weights, weights[0])) == 'answered'
    random.Random(65).shuffle(given)
    with little_memory(2**31): ends = fuzz(try_file(read_with), given[:many(len(given))])
    assert ends['refused']


# ---- Requests to the app

FORM = dict(Content_Type='multipart/form-data; boundary=x')
JSON = dict(Content_Type='application/json')


class Client:
    "What a browser would not send, sent to the app that runs as it does for a person."
    def __init__(self, port, photo):
        self.port, self.photo = port, photo
        head = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="face.png"\r\n'
                b'Content-Type: image/png\r\n\r\n')
        self.form = head + photo + b'\r\n--x--\r\n'
        self.uploaded = self.upload(photo)
        self.join = dict(data=[dict(path=self.uploaded, meta=dict(_type='gradio.FileData'))],
                         fn_index=0, session_hash='fuzz', event_data=None, trigger_id=None)

    def request(self, method, path, body=b'', **headers):
        "Status and body of the answer to one request."
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=LIMIT)
        lines = {'Content-Length': str(len(body))} | {
            k.replace('_', '-'): v for k, v in headers.items()}
        try:
            link.putrequest(method, path, skip_accept_encoding=True)
            for k, v in lines.items(): link.putheader(k, v)
            link.endheaders(body)
            answer = link.getresponse()
            stream = 'event-stream' in answer.headers.get('Content-Type', '')
            return answer.status, b'' if stream else answer.read()
        finally: link.close()

    def upload(self, photo):
        body = self.form.replace(self.photo, photo)
        status, text = self.request('POST', '/gradio_api/upload', body, **FORM)
        assert status == 200, text
        return json.loads(text)[0]

    def ask(self, given):
        "A request and what is demanded of its answer."
        method, path, body, headers = given
        status, text = self.request(method, path, body, **headers)
        if b'Traceback' in text or b'root:x:' in text:
            raise Lost('a traceback, or a file of this computer, in the answer')
        if status >= 400 and len(text) > 1000: raise Lost(f'{len(text):,} bytes of explanation')
        if status >= 500 and status != 503: raise Lost(f'status {status}: {text[:80]!r}')
        if status == 200 and path.endswith('queue/join'): self.must_be_uploads(body)
        if status >= 400:
            raise GrefelError(text.decode(errors='replace').strip() or f'status {status}')

    def must_be_uploads(self, body):
        "Of what is accepted to be read, nothing may lie elsewhere."
        paths = [photo and photo['path'] for photo in json.loads(body)['data']]
        if set(paths) - {None, self.uploaded}: raise Lost(f'accepted to read {paths}')

    def read(self, photo):
        "Upload, ask, wait for the answer: its HTML."
        asked = self.join | dict(data=[dict(path=self.upload(photo))], session_hash='after')
        body = json.dumps(asked).encode()
        assert self.request('POST', '/gradio_api/queue/join', body, **JSON)[0] == 200
        return wait_for_answer(self.port, 'after')


@pytest.fixture(scope='module')
def served(formats):
    "The app, a client, and what the server says."
    pytest.importorskip('gradio')
    from grefel.use.app import run_app
    said = io.StringIO()
    for name in ('uvicorn.error', 'asyncio'):
        logging.getLogger(name).addHandler(logging.StreamHandler(said))
    with redirect_stderr(said):
        app = run_app(Predictor(), block=False)
        yield Client(int(app.local_url.rsplit(':', 1)[1].strip('/')), formats['PNG']), said
        app.close(verbose=False)


def aims(uploaded):
    "Paths and addresses that are none of the app's business."
    folder = Path(uploaded).parent
    return ['/etc/passwd', '../../../../etc/passwd', 'http://127.0.0.1:1/x.png',
            'https://example.org/x.png', 'file:///etc/passwd', uploaded + '/../../../etc/passwd',
            str(folder), '\0', '', 'x'*5000, '%2e%2e%2fetc%2fpasswd', str(folder/'missing.png'),
            str(Path(grefel.__file__)), '//etc/passwd', '\\\\host\\share', '/proc/self/environ',
            'data:image/png;base64,AAAA']


def odd_join(client, r):
    "A request to read something that is no upload, or is asked for in a strange way."
    asked, kind = json.loads(json.dumps(client.join)), r.randrange(4)
    aim, photo = r.choice(aims(client.uploaded)), asked['data'][0]
    if kind == 0: photo['path'] = aim
    elif kind == 1: asked[r.choice(list(asked))] = r.choice(STRANGE)
    elif kind == 2:
        asked['data'] = r.choice([[], [None]*2, [[]], [1], ['x'], {}, [photo]*3,
                                  [dict(path=aim, url=aim, is_stream=True)]])
    else:
        key = r.choice(['path', 'url', 'orig_name', 'meta', 'size'])
        photo[key] = r.choice([aim]*len(aims(client.uploaded)) + [None, 1, [], {}])
    return 'POST', '/gradio_api/queue/join', json.dumps(asked).encode(), JSON


STARTS = ['/gradio_api/file=', '/file=', '/gradio_api/proxy=', '/assets/', '/static/', '/svelte/',
          '/gradio_api/stream/', '/gradio_api/custom_component/', '/gradio_api/call/',
          '/gradio_api/run/', '/gradio_api/vibe-code', '/monitoring', '/']
METHODS = ['GET']*4 + ['HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE']


def odd_path(client, r):
    "A path that leads to files, other servers or Gradio's other services."
    aim = quote(r.choice(aims(client.uploaded)), safe=r.choice(['/', '/.:', '']))
    return r.choice(METHODS), r.choice(STARTS) + aim, b'', {}


def odd_upload(client, r):
    kind = r.choice(['multipart/form-data; boundary=x']*8 + [
        'multipart/form-data', 'text/plain', 'multipart/form-data; boundary='])
    return 'POST', '/gradio_api/upload', damage(client.form, r), dict(Content_Type=kind)


def odd_headers(client, r):
    name = r.choice(['Origin', 'Host', 'Content_Length', 'Content_Type', 'Cookie',
                     'X_Forwarded_Host', 'Range', 'Accept_Encoding'])
    value = r.choice(['', 'null', 'http://example.org', '-1', '99999999', 'x'*4000,
                      '127.0.0.1.example.org', 'bytes=9-1', 'multipart/form-data'])
    path = r.choice(['/', '/config', '/gradio_api/info', '/gradio_api/upload',
                     '/gradio_api/queue/join', '/gradio_api/queue/data'])
    return r.choice(['GET', 'POST']), path, b'', {name: value}


def damaged_join(client, r):
    return 'POST', '/gradio_api/queue/join', damage(json.dumps(client.join).encode(), r), JSON


@pytest.mark.parametrize('odd', [odd_join, odd_path, odd_upload, odd_headers, damaged_join])
def test_requests_that_no_browser_sends(served, odd):
    client, said = served
    r = random.Random(66)
    ends = fuzz(client.ask, [odd(client, r) for _ in range(many(170))])
    assert ends['refused'] and 'Traceback' not in said.getvalue()


def test_afterwards_the_app_still_does_its_work(served, formats):
    "A face is uploaded and read, and an image that is broken gets its sentence."
    client, said = served
    page, sorry = client.read(formats['PNG']), client.read(formats['PNG'][:300])
    assert 'gf-bars' in page and 'could not be read' in sorry
    assert 'Traceback' not in said.getvalue() and 'Traceback' not in page + sorry
    assert threading.active_count() < 100                      # no request left a thread behind
