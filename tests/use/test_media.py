"""What paths mean, and how files, films and cameras become one stream of images."""
import numpy as np
import pytest
from PIL import Image

from grefel.base.core import GrefelError
from grefel.use.media import find_sources, frame_rate, in_chunks, Item, MediaSource, read_items


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


@pytest.fixture
def film(tmp_path):
    "A function that writes a film; frame i is grey of value 20 i."
    cv2 = pytest.importorskip('cv2')

    def write(fps, n=6, name='film.avi'):
        path = str(tmp_path/name)
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), fps, (64, 48))
        for i in range(n): writer.write(np.full((48, 64, 3), 20*i, np.uint8))
        writer.release()
        return MediaSource(path, 'film', 'video')
    return write


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
    ('x.MOV', 'video'), ('x.mp4', 'video'), ('x.jpg', 'picture'), (2, 'camera'),
    ('none/*.gif', 'error')])
def test_kinds(path, kind):
    source, = find_sources(path)
    assert source.kind == kind


def test_a_pattern_without_matches_becomes_an_item_with_an_error():
    item, = read_items(find_sources('none/*.gif'))
    assert 'none/*.gif: no pictures or videos' == str(item.image)


def test_what_cannot_be_read_stays_in_the_stream_in_its_place(album):
    (album/'aa.jpg').write_text('Dear Sir or Madam')
    paths = [album/name for name in ('b.jpg', 'gone.jpg', 'aa.jpg', 'a.png')]
    items = list(read_items(find_sources(paths)))
    assert [isinstance(i.image, GrefelError) for i in items] == [False, True, True, False]
    assert all(i.file in str(i.image) for i in items[1:3])


def test_images_that_are_done_are_not_read_again(album):
    done = {(str(album/'b.jpg'), None)}
    assert below(album, read_items(find_sources(album), done=done)) == ['a.png', 'summer/a.jpg']


@pytest.mark.parametrize('fps', [4, 10, 20])
def test_seconds_follow_the_frame_rate_of_the_film(film, fps):
    items = list(read_items([film(fps)]))
    assert [i.seconds for i in items] == pytest.approx([i/fps for i in range(6)])


def test_every_second_frame_is_that_frame(film):
    items = list(read_items([film(10)], every=2))
    assert [i.frame for i in items] == [0, 2, 4]
    assert [round(np.asarray(i.image).mean()/20) for i in items] == [0, 2, 4]   # not the next ones


def test_frames_are_rgb(tmp_path):
    cv2 = pytest.importorskip('cv2')
    path = str(tmp_path/'red.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 48))
    writer.write(np.full((48, 64, 3), [0, 0, 250], np.uint8))   # OpenCV's blue, green, red
    writer.release()
    item, = read_items([MediaSource(path, 'red', 'video')])
    assert np.asarray(item.image).mean((0, 1)).argmax() == 0


def test_frames_that_are_done_are_passed_over(film):
    source = film(10)
    done = {(source.file, n) for n in (0, 1, 3)}
    items = list(read_items([source], done=done))
    assert [i.frame for i in items] == [2, 4, 5]
    assert [round(np.asarray(i.image).mean()/20) for i in items] == [2, 4, 5]


def test_a_film_that_is_cut_short_says_so(film):
    items = list(read_items([film(10)], every=2, max_frames=2))
    assert [i.frame for i in items] == [0, 2, 4]
    assert errors(items) == [f'{items[0].file}: stopped after 2 frames (max_frames)']


def test_a_film_of_just_that_many_frames_is_not_called_cut(film):
    assert errors(read_items([film(10)], max_frames=6)) == []


def test_large_frames_are_refused_one_by_one(film):
    assert len(errors(read_items([film(10)], max_pixels=1000))) == 6


def test_a_film_that_cannot_be_read_is_one_error(tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'no film')
    items = list(read_items(find_sources(tmp_path/'broken.mp4')))
    assert len(items) == 1 and 'no frame can be read' in errors(items)[0]


@pytest.mark.parametrize('told, fps', [(12.5, 12.5), (0, 25.), (float('nan'), 25.), (90_000, 25.)])
def test_a_frame_rate_that_makes_no_sense_is_replaced(told, fps):
    class Capture:
        def get(self, what): return told
    assert frame_rate(Capture()) == fps


class Camera:
    "Three frames, then nothing."
    def __init__(self, number): self.number, self.left = number, 3

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self): return True, np.zeros((48, 64, 3), np.uint8)
    def get(self, what): return 0.
    def release(self): pass


def test_a_camera_goes_on_counting_where_the_earlier_run_ended(monkeypatch):
    cv2 = pytest.importorskip('cv2')
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    done = {('camera 3', 0), ('camera 3', 1), ('camera 2', 7)}
    items = list(read_items(find_sources(3), done=done))
    assert [(i.file, i.frame) for i in items] == [('camera 3', n) for n in (2, 3, 4)]
    assert items[0].seconds < 1   # by the clock, not by a number of frames


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
