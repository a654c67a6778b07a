"""What paths mean, and how files, films and cameras become one stream of images."""
import os
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.use.films import TENTHS, UNEVEN, busy, cut, film, torn, write_film

from grefel.base.core import GrefelError
from grefel.use.media import (
    announced_seconds, checked_step, expected_items, file_id, film_items, find_sources, frame_rate,
    in_chunks, Item, media_kind, open_film, read_items)


@pytest.fixture
def album(tmp_path):
    "Two images, one more in a subfolder, a hidden one, and a note."
    folder = tmp_path/'album'
    (folder/'summer').mkdir(parents=True)
    (folder/'.hidden').mkdir()
    (folder/'__MACOSX').mkdir()
    names = ('b.jpg', 'a.png', 'summer/a.jpg', '.hidden.jpg', '.hidden/c.jpg', '__MACOSX/d.jpg')
    for name in names: Image.new('RGB', (20, 16), 'teal').save(folder/name)
    (folder/'notes.txt').write_text('no image')
    return folder


def below(folder, sources): return [s.file.removeprefix(f'{folder}/') for s in sources]


def errors(items): return [str(i.image) for i in items if isinstance(i.image, GrefelError)]


def test_a_folder_means_its_images_sorted_without_hidden_ones(album):
    assert below(album, find_sources(album)) == ['a.png', 'b.jpg', 'summer/a.jpg']


def test_a_folder_may_be_read_without_its_subfolders(album):
    assert below(album, find_sources(album, recursive=False)) == ['a.png', 'b.jpg']


def test_the_folder_of_drawings_is_left_out(album):
    assert below(album, find_sources(album, skip=album/'summer')) == ['a.png', 'b.jpg']


def test_a_file_named_twice_is_a_source_once(album):
    sources = find_sources([album, f'{album}/*.png', album/'a.png'])
    assert below(album, sources) == ['a.png', 'b.jpg', 'summer/a.jpg']
    assert [s.name for s in sources] == ['a', 'b', 'summer/a']   # not numbered for the second time


def test_drawings_of_files_with_one_name_do_not_overwrite_each_other(album):
    Image.new('RGB', (20, 16)).save(album/'a_2.jpg')   # takes the number that would come next
    sources = find_sources([album/'a.png', album/'summer/a.jpg', album/'a_2.jpg'])
    assert [s.name for s in sources] == ['a', 'a_2', 'a_2_2']


def test_drawings_keep_the_path_below_the_folder(album):
    assert [s.name for s in find_sources(album)] == ['a', 'b', 'summer/a']


@pytest.mark.parametrize('path, kind', [
    ('x.MOV', 'video'), ('x.mp4', 'video'), ('x.jpg', 'image'), (2, 'camera'),
    ('none/*.gif', 'error')])
def test_of_a_file_that_is_not_there_the_ending_tells_the_kind(path, kind):
    source, = find_sources(path)
    assert source.kind == kind


def test_a_leading_tilde_is_the_home_folder(album, monkeypatch):
    monkeypatch.setenv('HOME', str(album.parent))
    monkeypatch.setenv('USERPROFILE', str(album.parent))
    assert find_sources(f'~/{album.name}') == find_sources(album)
    assert len(find_sources(f'~/{album.name}/*.jpg')) == 1


def test_an_address_among_paths_becomes_an_error_and_the_rest_is_read(album):
    wrong, right = find_sources(['https://example.org/a.jpg', album/'a.png'])
    assert wrong.kind == 'error' and 'save the file' in wrong.error and right.kind == 'image'


def test_a_pattern_without_matches_becomes_an_item_with_an_error():
    item, = read_items(find_sources('none/*.gif'))
    assert 'none/*.gif: no images or videos' == str(item.image)


def test_what_cannot_be_read_stays_in_the_stream_in_its_place(album):
    (album/'aa.jpg').write_text('Dear Sir or Madam')
    paths = [album/name for name in ('b.jpg', 'gone.jpg', 'aa.jpg', 'a.png')]
    items = list(read_items(find_sources(paths)))
    assert [isinstance(i.image, GrefelError) for i in items] == [False, True, True, False]
    assert all(i.file in str(i.image) for i in items[1:3])


# What a file is

@pytest.mark.parametrize('ending', ['mp4', 'mov', 'mkv', 'ts', 'flv', '3gp', 'avi'])
@pytest.mark.parametrize('called', ['clip', 'clip.jpg'])
def test_a_film_is_known_by_its_content_whatever_it_is_called(tmp_path, ending, called):
    codec = 'mpeg4' if ending in ('avi', '3gp') else 'libx264'
    shutil.copy(write_film(tmp_path/f'a.{ending}', TENTHS[:3], codec=codec), tmp_path/called)
    (tmp_path/f'a.{ending}').unlink()
    source, = find_sources(tmp_path)   # in a folder as well
    assert source.kind == 'video'


def test_an_image_that_is_called_like_a_film_is_an_image(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path/'a.png')
    (tmp_path/'a.png').rename(tmp_path/'a.mp4')
    item, = read_items(find_sources(tmp_path))
    assert item.image.size == (9, 9)


@pytest.mark.parametrize('head, kind', [
    (b'\0\0\0\x18ftypheic', 'image'), (b'\0\0\0\x18ftypavif', 'image'),
    (b'\0\0\0\x18ftypM4A ', None), (b'RIFF....WEBP', 'image'), (b'RIFF....WAVE', None),
    (b'OggS....vorbis', None), (b'OggS....\x80theora', 'video'), (b'', None), (b'G'*400, 'video'),
    (b'....' + (b'G' + bytes(191))*3, 'video'), (b'Gentle reader, ' + b'.'*400, None)])
def test_signatures(head, kind): assert media_kind(head) == kind


def test_what_a_file_is_changes_with_its_content_its_size_and_its_time(tmp_path):
    path, seen = tmp_path/'a', set()
    for data, when in ((b'one', 1), (b'two', 1), (b'long', 1), (b'two', 2)):
        path.write_bytes(data)
        os.utime(path, (when, when))
        seen.add(file_id(path))
    assert len(seen) == 4
    assert file_id(path) in seen and file_id(tmp_path/'gone') is None
    assert all(i[0] == 'f' for i in seen)   # pandas would read digits alone as a number


def test_what_a_large_file_is_depends_on_both_its_ends(tmp_path):
    path, seen = tmp_path/'a', set()
    for at in (0, -1):
        data = bytearray(200_000)
        data[at] = 1
        path.write_bytes(data)
        os.utime(path, (1, 1))
        seen.add(file_id(path))
    assert len(seen) == 2


# Films

def times(items): return [i.seconds for i in items]


def greys(items): return [round(np.asarray(i.image).mean()/4) for i in items]


@pytest.mark.parametrize('ending', ['mkv', 'mp4', 'mov', 'ts'])
def test_seconds_are_those_of_the_file_also_at_a_variable_rate(tmp_path, ending):
    items = list(film_items(film(write_film(tmp_path/f'a.{ending}', UNEVEN))))
    assert times(items) == pytest.approx(UNEVEN, abs=1e-3)


@pytest.mark.parametrize('start', [0.5, 20.])
def test_a_film_begins_at_zero_wherever_its_own_count_begins(tmp_path, start):
    path = write_film(tmp_path/'a.ts', TENTHS[:20], start=start)
    assert times(film_items(film(path))) == pytest.approx(TENTHS[:20], abs=1e-3)


@pytest.mark.parametrize('every, frames', [
    (1, range(0, 45)), (7, range(0, 45, 7)), ('7', range(0, 45, 7)),
    ('1s', [0, 20, 25]), ('0.5s', [0, 15, 20, 23, 25, 40])])
def test_a_step_is_of_frames_or_of_seconds(tmp_path, every, frames):
    items = list(film_items(film(write_film(tmp_path/'a.mkv', UNEVEN)), every))
    assert [i.frame for i in items] == list(frames)
    assert greys(items) == list(frames)   # those frames, not the next ones


@pytest.mark.parametrize('bad', [0, -1, '0', '0s', '-1s', 'x', 's', '1.5', 'nans', None, '1e9s'])
def test_a_step_that_makes_no_sense_is_refused(bad):
    with pytest.raises(GrefelError, match='every is'): checked_step(bad)


@pytest.mark.parametrize('every', [1, 2, '0.5s'])
@pytest.mark.parametrize('after', [-1, 0, 17, 44])
def test_a_film_goes_on_behind_the_last_frame_that_was_answered(tmp_path, every, after):
    source = film(write_film(tmp_path/'a.mkv', UNEVEN))
    whole = [(i.frame, i.seconds) for i in film_items(source, every)]
    rest = [(i.frame, i.seconds) for i in film_items(source, every, after)]
    assert rest == [pair for pair in whole if pair[0] > after]


@pytest.mark.parametrize('turn, corner', [
    (0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_a_film_that_a_phone_has_turned_is_upright(tmp_path, turn, corner):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255   # the left top
    path = write_film(tmp_path/'a.mov', TENTHS[:3], draw=lambda i: Image.fromarray(image))
    data = path.read_bytes()
    at = data.index(b'tkhd') + 44          # a matrix of 16.16 numbers; 1, 0, 0, 1 is upright
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    numbers = [v << 16 for v in (cos, sin, 0, -sin, cos)]
    matrix = [v.to_bytes(4, 'big', signed=True) for v in numbers]
    path.write_bytes(data[:at] + b''.join(matrix) + data[at + 20:])
    seen = np.asarray(next(film_items(film(path))).image)
    assert seen.shape[:2] == ((48, 64) if turn in (0, 180) else (64, 48))
    y, x = corner
    assert seen[y*2 and -9 or 8, x*2 and -9 or 8].min() > 200


def test_frames_are_rgb(tmp_path):
    red = Image.new('RGB', (64, 48), 'red')
    path = write_film(tmp_path/'a.mp4', TENTHS[:2], draw=lambda i: red)
    assert np.asarray(next(film_items(film(path))).image).mean((0, 1)).argmax() == 0


# Damage

@pytest.mark.parametrize('ending, said', [
    ('mp4', 's that it announces'), ('mkv', 's that it announces'), ('flv', 's that it announces'),
    ('avi', 'of the 6.00 s that it announces'), ('ts', 'breaks off after')])
def test_a_film_that_ends_early_says_where_and_why(tmp_path, ending, said):
    how = dict(codec='mpeg4', rate=10) if ending == 'avi' else {}
    path = write_film(tmp_path/f'a.{ending}', size=(320, 240), draw=busy(), **how)
    *frames, last = film_items(film(cut(path, 'cut.film', 0.6)))
    assert errors(frames) == [] and 5 < len(frames) < 60
    assert times(frames) == pytest.approx(TENTHS[:len(frames)], abs=1e-3)
    text, = errors([last])
    assert said in text and f'breaks off after {frames[-1].seconds:.2f} s' in text
    assert last.frame == len(frames) and last.seconds == frames[-1].seconds


@pytest.mark.parametrize('ending', ['mp4', 'mkv', 'ts', 'flv', 'mov'])
@pytest.mark.parametrize('sound', [None, 'aac'])
def test_a_whole_film_has_no_error(tmp_path, ending, sound):
    for name, seconds in (('even', TENTHS), ('uneven', UNEVEN)):
        if ending == 'flv' and sound: continue   # knows other rates of sound only
        path = write_film(tmp_path/f'{name}.{ending}', seconds, sound=sound)
        assert errors(film_items(film(path))) == []


def test_sound_that_lasts_longer_than_the_images_is_no_damage(tmp_path):
    from tests.use import films
    long = films.add_sound
    try:
        films.add_sound = lambda out, codec, start, end: long(out, codec, start, end + 5)
        path = write_film(tmp_path/'a.mkv', TENTHS[:20], sound='aac')
    finally: films.add_sound = long
    assert errors(film_items(film(path))) == []


def test_frames_behind_a_hole_keep_their_own_seconds(tmp_path):
    path = torn(write_film(tmp_path/'a.ts', draw=busy(), size=(320, 240)), 'hole.ts')
    items = list(film_items(film(path)))
    wrong = [i for i in items if isinstance(i.image, GrefelError)]
    good = [i for i in items if not isinstance(i.image, GrefelError)]
    assert len(wrong) == 1 and 'damaged after' in str(wrong[0].image)
    assert 40 < len(good) < 60 and times(good)[-1] == pytest.approx(5.9, abs=1e-3)
    assert np.abs(np.array(times(good))[:, None] - TENTHS).min(1).max() < 1e-3
    assert times(items) == sorted(times(items))
    assert [i.frame for i in items] == list(range(len(items)))


@pytest.mark.parametrize('data', [b'no film', b'\0\0\0\x18ftypisom' + bytes(99), b'RIFF....AVI '])
def test_a_film_that_cannot_be_read_is_one_error(tmp_path, data):
    (tmp_path/'broken.mp4').write_bytes(data)
    item, = read_items(find_sources(tmp_path/'broken.mp4'))
    assert 'no frame can be read' in str(item.image) and item.seconds is None


def test_a_file_of_sound_alone_says_that_it_holds_no_images(tmp_path):
    import av
    with av.open(str(tmp_path/'a.mkv'), 'w') as out:
        from tests.use.films import add_sound
        add_sound(out, 'aac', 0, 1)
    item, = read_items(find_sources(tmp_path/'a.mkv'))
    assert 'it holds no images' in str(item.image)


def test_a_film_that_is_cut_short_by_us_says_so(tmp_path):
    items = list(film_items(film(write_film(tmp_path/'a.mkv')), every=2, max_frames=2))
    assert [i.frame for i in items] == [0, 2, 4]
    assert errors(items) == [f'{items[0].file}: stopped after 2 frames (max_frames)']


def test_a_film_of_just_that_many_frames_is_not_called_cut(tmp_path):
    assert errors(film_items(film(write_film(tmp_path/'a.mkv')), max_frames=60)) == []


def test_large_frames_are_refused_one_by_one(tmp_path):
    path = write_film(tmp_path/'a.mkv', TENTHS[:6])
    assert len(errors(film_items(film(path), max_pixels=1000))) == 6


@pytest.mark.parametrize('told, fps', [(12.5, 12.5), (0, 25.), (None, 25.), (90_000, 25.)])
def test_a_frame_rate_that_makes_no_sense_is_replaced(told, fps):
    class Stream: average_rate, guessed_rate = told, None
    assert frame_rate(Stream()) == fps


@pytest.mark.parametrize('every, max_frames, wanted', [
    (1, None, 60), (7, None, 9), ('0.5s', None, 12), (1, 5, 5), ('1s', 3, 3)])
def test_the_number_of_frames_is_told_beforehand(tmp_path, every, max_frames, wanted):
    path = write_film(tmp_path/'a.mp4', rate=10)
    assert expected_items(film(path), every, max_frames) == wanted


def test_of_formats_that_only_guess_no_length_is_believed(tmp_path):
    with open_film(write_film(tmp_path/'a.ts')) as container:
        assert announced_seconds(container) is None


def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path):
    path = write_film(tmp_path/'a.mp4', np.arange(600)/30, (160, 120))
    tracemalloc.start()
    try:
        peaks = []
        for n, _ in enumerate(film_items(film(path))):
            if n in (60, 599): peaks.append(tracemalloc.get_traced_memory()[1])
    finally: tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


# Cameras

class Camera:
    "Three frames, then nothing."
    def __init__(self, number): self.number, self.left = number, 3

    def grab(self):
        self.left -= 1
        time.sleep(.02)
        return self.left >= 0

    def retrieve(self): return True, np.zeros((48, 64, 3), np.uint8)
    def release(self): pass


def watch(monkeypatch, camera, **kw):
    cv2 = pytest.importorskip('cv2')
    monkeypatch.setattr(cv2, 'VideoCapture', camera)
    return list(read_items(find_sources(3), **kw))


def test_a_camera_goes_on_counting_where_the_earlier_run_ended(monkeypatch):
    items = watch(monkeypatch, Camera, after={'camera 3': 1, 'camera 2': 7})
    assert [(i.file, i.frame) for i in items] == [('camera 3', n) for n in (2, 3, 4)]
    assert 0 < items[0].seconds < items[2].seconds < 1   # by the clock


def test_a_camera_may_be_asked_for_few_frames(monkeypatch):
    assert [i.frame for i in watch(monkeypatch, Camera, max_frames=2)] == [0, 1]
    assert [i.frame for i in watch(monkeypatch, Camera, every=2)] == [0, 2]


def test_a_camera_that_gives_nothing_says_so(monkeypatch):
    class Dark(Camera):
        def grab(self): return False
    item, = watch(monkeypatch, Dark)
    assert str(item.image) == 'camera 3: gives no image'


# Chunks

@pytest.mark.parametrize('sizes, most, pixels, want', [
    ([1]*5, 2, 100, [2, 2, 1]),          # by number
    ([60, 60, 60], 9, 100, [2, 1]),      # by pixels
    ([500, 1, 1], 9, 100, [1, 2]),       # a large one alone
    ([None, None, 60], 2, 100, [2, 1]),  # errors have no pixels
    ([], 3, 100, []),
])
def test_chunks_are_bounded_by_number_and_by_pixels(sizes, most, pixels, want):
    images = [GrefelError('gone') if s is None else Image.new('L', (s, 1)) for s in sizes]
    items = [Item(str(n), None, None, image) for n, image in enumerate(images)]
    chunks = list(in_chunks(iter(items), most, pixels))
    assert [len(c) for c in chunks] == want
    assert [i.file for c in chunks for i in c] == [i.file for i in items]
