"Reading images: every file as a person sees it, everything else refused in one line."
import base64
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from grefel.base.core import GrefelError
from grefel.base import images
from grefel.base.images import _to_uint8, crop_box, image_name, load_image

UP = Image.Transpose


@pytest.fixture(scope='module')
def photo(): return Image.fromarray(astronaut()).resize((256, 256))


@pytest.fixture(scope='module')
def face(photo): return np.asarray(photo)[10:106, 64:160].copy()


@pytest.fixture(scope='module')
def grey(face): return np.asarray(Image.fromarray(face).convert('L'))


def stored(image, format='PNG', **kw):
    "The bytes of a file."
    file = io.BytesIO()
    image.save(file, format=format, **kw)
    return file.getvalue()


def note(orientation):
    "An EXIF note on how to turn a photograph."
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width, height):
    "A PNG that promises width × height pixels and holds none."
    def number(n): return struct.pack('>I', n)
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    header = b'\x89PNG\r\n\x1a\n' + number(13) + chunk + number(zlib.crc32(chunk))
    return header + number(0) + b'IDAT' + number(zlib.crc32(b'IDAT'))


def complaint(source, **kw):
    "The line with which a source is refused; it names the source and chains no other error."
    with pytest.raises(GrefelError) as caught: load_image(source, **kw)
    line = str(caught.value)
    assert '\n' not in line and line.startswith(' '.join(image_name(source)[:300].split()))
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    return line


# ---- What can be read

def test_every_kind_of_source_gives_the_same(tmp_path, face):
    data, tensor = stored(Image.fromarray(face)), torch.tensor(face).permute(2, 0, 1)
    path, deep = tmp_path/'face.png', face.astype(np.uint16)*257
    path.write_bytes(data)
    with path.open('rb') as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), file, io.BytesIO(data),
                   Image.open(path), face, face[..., ::-1][..., ::-1], deep, deep.astype('>u2'),
                   face/255, (face/255).astype(np.float16),
                   np.dstack([face, np.full(face.shape[:2], 255, np.uint8)]), tensor,
                   (tensor/255).half(), (tensor/255).requires_grad_()]
        for source in sources: assert (np.asarray(load_image(source)) == face).all(), source


def test_a_stream_that_cannot_go_back_is_read(face):
    class Stream(io.BytesIO):
        def seekable(self): return False
        def seek(self, *place): raise io.UnsupportedOperation('seek')
    assert (np.asarray(load_image(Stream(stored(Image.fromarray(face))))) == face).all()


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_float_type_are_read(kind):
    half = torch.tensor([[0, .5, 1]], dtype=kind)
    assert np.asarray(load_image(half))[0, :, 0].tolist() == [0, 128, 255]


def test_rarer_formats_are_read_by_a_program_that_has_read_none_before(tmp_path, face):
    Image.fromarray(face).save(tmp_path/'face.webp')
    program = ('import sys\nfrom grefel.base.images import load_image\n'
               'print(load_image(sys.argv[1]).size)')
    command = [sys.executable, '-c', program, str(tmp_path/'face.webp')]
    assert subprocess.run(command, capture_output=True, text=True).stdout == '(96, 96)\n'


@pytest.mark.parametrize('shape', [(48, 30), (48, 30, 1)])
def test_grey_arrays_and_tensors_stay_grey(shape, grey):
    flat = grey[:48, :30].reshape(shape)
    for source in (flat, torch.tensor(np.moveaxis(flat, -1, 0) if flat.ndim == 3 else flat)):
        assert (np.asarray(load_image(source)) == grey[:48, :30, None]).all()


def test_all_grey_levels_survive_the_way_to_16_bits_and_back():
    levels = np.arange(256, dtype=np.uint8)
    deep = levels.astype(np.uint16)*257
    for more in (deep, deep.astype('>u2'), deep.astype('<u2'), levels/255,
                 levels.astype(np.float32)/255): assert (_to_uint8(more) == levels).all()


def test_16_bits_are_rounded_to_the_nearest_level():
    between = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)  # 257 a level
    assert _to_uint8(between).tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


def test_floats_a_hair_outside_are_clipped_and_others_refused():
    assert _to_uint8(np.array([-1e-4, 1.0001])).tolist() == [0, 255]
    for off in (-.01, 1.01):
        with pytest.raises(ValueError, match='floats must lie between 0 and 1'):
            _to_uint8(np.array([off]))


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_files_of_16_bits_are_scaled_not_clipped(format, grey):
    data = stored(Image.fromarray(grey.astype(np.uint16)*257), format)
    assert (np.asarray(load_image(data)) == grey[..., None]).all()


def test_files_of_floats_and_32_bit_integers_are_scaled(grey):
    floats = stored(Image.fromarray(grey.astype(np.float32)/255), 'TIFF')
    assert (np.asarray(load_image(floats)) == grey[..., None]).all()
    integers = Image.fromarray(grey.astype(np.int32)*257)
    assert integers.mode == 'I' and (np.asarray(load_image(integers)) == grey[..., None]).all()


@pytest.mark.parametrize('factor', [1, 257])
@pytest.mark.parametrize('format', ['TIFF', None])
def test_32_bit_integers_are_bytes_unless_one_is_more_than_a_byte(format, factor, grey):
    wide = Image.fromarray(grey.astype(np.int32)*factor)
    source = stored(wide, format) if format else wide
    assert (np.asarray(load_image(source)) == grey[..., None]).all()


def test_a_dark_file_of_16_bits_stays_dark():
    header = b'P5 2 1 65535\n'
    assert np.asarray(load_image(header + b'\x00\xff\x00\x80')).max() == 1


HEIC = base64.b85decode(
    '0000OW^{RQXk}?*00000ZE0pPXk}?*0003eZDn*}000000000XXk=`10000000000aA{+70000000000'
    '00000000004sdC7Z2$lO000310016oY;R)#0000)000310RR910RR92M*si-P5=M^BWY=FW&i*H00031'
    '000$fZf0cy000000RRAKc4ILB00021X>f9I0001vX>en20001TXm(>m0R#vD005t;000009`FGC{rLC*'
    '01pG80096OKmiN^|NjIC00093pQr!;0{{RXx&lC<0096dLID8;2mk;B0H3G;00RI39-ttB1(xbbGP$52'
    '00093AOHXZ03o6P0RRU?0l{*xB0vBD02FC+aAg1h0000006+i$06+i$02OI)ZD9Za00000009620)YYm'
    '0035PWMOmw002rT0j~+*BRd!W_=C7$TIUNM(gL)Y!;PDcXo>&&7{Dmpt`Q$?QUCdCWC|xrRR2j;kM%w_'
    'du6b*$LqiA$4Ce5>rFp25*rZjzy')  # red and blue, above at half the light


def test_heic_registers_itself_in_a_program_that_has_read_none_before(tmp_path):
    pytest.importorskip('pi_heif')
    (tmp_path/'phone.heic').write_bytes(HEIC)
    program = ('import sys\nfrom grefel.base.images import load_image\n'
               'image = load_image(sys.argv[1])\n'
               'print(image.size, [image.getpixel(p)[0] > 99 for p in ((5, 50), (50, 50))])')
    command = [sys.executable, '-c', program, str(tmp_path/'phone.heic')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == '(64, 64) [True, False]\n', done.stderr


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(images, 'find_spec', lambda name: None)
    monkeypatch.setattr(images.Image, 'OPEN', {k: v for k, v in Image.OPEN.items() if k != 'HEIF'})
    assert "pip install 'grefel[heic]'" in complaint(HEIC)
    assert not {'.heic', '.heif'} & {*images._readable_endings()}
    assert {'.jpg', '.tif', '.webp'} <= {*images._readable_endings()}


def test_only_readable_kinds_are_listed_as_images(monkeypatch):
    monkeypatch.setattr(images, 'find_spec', lambda name: name == 'pi_heif')
    monkeypatch.setattr(images.features, 'check', lambda name: name != 'avif')
    assert '.heic' in images._readable_endings() and '.avif' not in images._readable_endings()


@pytest.mark.parametrize('orientation, turn', [
    (1, None), (2, UP.FLIP_LEFT_RIGHT), (3, UP.ROTATE_180), (4, UP.FLIP_TOP_BOTTOM),
    (5, UP.TRANSPOSE), (6, UP.ROTATE_90), (7, UP.TRANSVERSE), (8, UP.ROTATE_270)])
def test_photographs_are_turned_as_their_note_says(face, grey, orientation, turn):
    small = Image.fromarray(face[:60, 20:70])
    deep = Image.fromarray(grey[:60].astype(np.uint16)*257)
    lying, lying_deep = (i if turn is None else i.transpose(turn) for i in (small, deep))
    read = load_image(stored(lying, exif=note(orientation)))
    assert (np.asarray(read) == face[:60, 20:70]).all()
    read = load_image(stored(lying_deep, exif=note(orientation)))
    assert (np.asarray(read) == grey[:60, :, None]).all()


@pytest.mark.parametrize('broken', [b'Exif\0\0II*\0rubbish', b'Exif\0\0II*\0', b'nonsense'])
def test_a_broken_note_is_no_reason_to_refuse_or_to_warn(face, broken):
    data = stored(Image.fromarray(face), exif=broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert (np.asarray(load_image(data)) == face).all()
    assert not said


def test_what_is_transparent_shows_white_and_not_what_lies_beneath(face):
    gone = np.zeros(face.shape[:2], bool)
    gone[:40] = True
    hidden = np.dstack([np.where(gone[..., None], [0, 200, 0], face), np.where(gone, 0, 255)])
    seen = np.where(gone[..., None], 255, face)
    image = Image.fromarray(hidden.astype(np.uint8))
    for source in (image, stored(image), stored(image, 'WEBP', lossless=True)):
        assert (np.asarray(load_image(source)) == seen).all()


def test_half_transparency_mixes_with_white_and_leaves_the_source_alone():
    glass = Image.new('RGBA', (2, 2), (0, 0, 0, 128))
    assert load_image(glass).getpixel((0, 0)) == (127, 127, 127)
    assert glass.mode == 'RGBA' and glass.getpixel((0, 0)) == (0, 0, 0, 128)


def test_a_palette_with_a_transparent_colour_lying_on_its_side():
    image = Image.new('P', (4, 2), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    read = load_image(stored(image.transpose(UP.ROTATE_90), exif=note(6), transparency=0))
    assert read.size == (4, 2)
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((3, 1)) == (0, 0, 255)


def test_the_first_frame_of_several_is_read(face):
    noise = [Image.effect_noise((96, 96), 90)]*2
    data = stored(Image.fromarray(face), 'GIF', save_all=True, append_images=noise)
    assert np.abs(np.asarray(load_image(data), float) - face).mean() < 6


def test_cmyk_of_adobe_is_not_inverted(face):
    data = stored(Image.fromarray(face).convert('CMYK'), 'JPEG', quality=95)
    assert np.abs(np.asarray(load_image(data), float) - face).mean() < 3


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr',
                                  'HSV', 'I', 'F', 'RGBa'])
def test_every_mode_becomes_rgb(mode):
    assert load_image(Image.new(mode, (3, 2))).mode == 'RGB'


def test_what_was_read_is_a_copy(face):
    source = Image.fromarray(face)
    load_image(source).putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(source) == face).all()


def test_a_single_pixel_is_an_image():
    assert load_image(np.uint8([[7]])).size == (1, 1)
    assert load_image(np.uint8([[7]])).getpixel((0, 0)) == (7, 7, 7)


# ---- What is refused, and how

@pytest.mark.parametrize('source, words', [
    (b'', 'is empty'), (b'Dear diary', 'not an image'), (None, 'needed is a path'),
    ([[1, 2]], 'needed is a path'), (io.StringIO('text'), 'image (StringIO)'),
    (np.full((4, 4), np.nan), 'NaN'), (np.full((4, 4), 200.), '200'),
    (np.zeros((4, 4), complex), 'complex'), (np.array([['a']]), 'numbers of type'),
    (np.zeros((4, 4), np.int64), 'int64'), (np.zeros((4, 4, 2)), '(H, W, 4)'),
    (np.zeros((3, 8, 8)), 'channels come last'), (np.zeros(4), '(H, W)'),
    (np.zeros((0, 4), np.uint8), 'no pixels'), (torch.zeros(5, 4, 3), 'channels come first'),
    (torch.zeros(1, 3, 4, 4), '(H, W)'), (png_header(0, 5), ''),
    (Image.fromarray(np.full((3, 3), 70_000, np.int32)), '70000'),
    (Image.fromarray(np.full((3, 3), -1, np.int32)), '-1')])
def test_what_is_no_image_is_told_why(source, words):
    assert words in complaint(source)


def test_files_that_are_none_are_told_apart(tmp_path):
    (tmp_path/'empty.png').touch()
    (tmp_path/'notes.jpg').write_text('Dear diary')
    (tmp_path/'link.png').symlink_to('nowhere.png')
    assert complaint(tmp_path/'missing.jpg').endswith('missing.jpg: no such file')
    assert complaint(tmp_path).endswith('is a folder, not an image')
    assert complaint(tmp_path/'empty.png').endswith('is an empty file')
    assert complaint(tmp_path/'link.png').endswith('is a link to a file that does not exist')
    assert 'not an image in a format' in complaint(tmp_path/'notes.jpg')
    complaint(str(tmp_path/'nul\0byte.png'))
    complaint(str(tmp_path/('x'*5000 + '.png')))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system knows no pipes')
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')
    assert complaint(tmp_path/'pipe.jpg').endswith('is not a regular file')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root reads all')
def test_a_locked_file_is_told_as_such(tmp_path):
    (tmp_path/'locked.png').touch(mode=0)
    (tmp_path/'locked.png').chmod(0o600)
    (tmp_path/'locked.png').write_bytes(b'x')
    (tmp_path/'locked.png').chmod(0)
    assert 'Permission' in complaint(tmp_path/'locked.png')


def test_an_opened_image_that_turns_out_damaged_is_named_by_its_file(tmp_path, face):
    (tmp_path/'cut_off.png').write_bytes(stored(Image.fromarray(face))[:4000])
    assert complaint(Image.open(tmp_path/'cut_off.png')).startswith(str(tmp_path/'cut_off.png'))


def test_too_many_pixels_are_refused_before_one_is_decoded(monkeypatch):
    def decoded(*args): raise AssertionError('must not decode')
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', decoded)
    line = complaint(png_header(20_000, 20_000))
    assert '20,000×20,000' in line and '100,000,000' in line


def test_the_limit_on_pixels_is_the_callers():
    image = np.zeros((10, 10), np.uint8)
    assert load_image(image, max_pixels=100).size == (10, 10)
    for source in (image, Image.fromarray(image), stored(Image.fromarray(image)),
                   torch.zeros(10, 10)):
        assert '10×10 pixels are more than the 99 allowed' in complaint(source, max_pixels=99)


def test_no_limit_and_no_warning_where_none_is_wanted():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        large = np.zeros((10_000, 9_500), np.uint8)
        assert load_image(large, max_pixels=None).size == (9_500, 10_000)
        # above what PIL itself warns of
        assert load_image(stored(Image.new('1', (9_500, 9_500)))).size == (9_500, 9_500)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000',
                                    'AVIF'])
def test_a_file_cut_off_is_refused_and_a_damaged_one_never_crashes(format):
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    try: whole = stored(Image.fromarray(noise), format)
    except (KeyError, OSError): pytest.skip(f'this PIL has no {format}')
    assert load_image(whole).size == (90, 120)
    for share in (.02, .5, .9): complaint(whole[:int(len(whole)*share)])
    for seed in range(20):  # damaged in place: read or refused
        damaged = bytearray(whole)
        for place in np.random.default_rng(seed).integers(0, len(whole), 40):
            damaged[place] ^= 0x5A
        try: assert load_image(bytes(damaged), max_pixels=1_000_000).mode == 'RGB'
        except GrefelError: pass


# ---- Boxes

def test_a_whole_box_copies_pixels_whether_or_not_a_size_is_given(photo):
    exact = np.asarray(photo)[10:106, 64:160]
    assert (np.asarray(crop_box(photo, (64, 10, 160, 106))) == exact).all()
    assert (np.asarray(crop_box(photo, (64, 10, 160, 106), 96)) == exact).all()


@pytest.mark.parametrize('box, columns, rows', [
    ((-20, 100, 30, 150), (0, 30), (100, 150)), ((240, 100, 300, 150), (240, 256), (100, 150)),
    ((10, -9, 30, 20), (10, 30), (0, 20)), ((10, 200, 30, 400), (10, 30), (200, 256))])
def test_beyond_the_edge_the_border_is_repeated(photo, box, columns, rows):
    inside = np.asarray(photo)[slice(*rows), slice(*columns)]
    around = ((rows[0] - box[1], box[3] - rows[1]), (columns[0] - box[0], box[2] - columns[1]))
    assert (np.asarray(crop_box(photo, box)) == np.pad(inside, (*around, (0, 0)), 'edge')).all()


def test_without_a_size_a_box_is_rounded_to_whole_pixels(photo):
    crop = crop_box(photo, (10.4, 10.6, 20.6, 20.4))
    assert (np.asarray(crop) == np.asarray(photo)[11:20, 10:21]).all()
    assert crop_box(photo, (10.2, 10.2, 10.3, 10.3)).size == (1, 1)
    assert crop_box(photo, (255.7, 0, 256.2, 1)).size == (1, 1)


def test_with_a_size_a_box_counts_down_to_the_fraction_of_a_pixel():
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 10, np.uint8), (25, 1)))  # 10 a pixel
    for shift in (0, .3, .7):
        crop = np.asarray(crop_box(ramp, (5 + shift, 5, 13 + shift, 13), 8), float)
        np.testing.assert_allclose(crop[:, 1:-1].mean(0), 50 + 10*(shift + np.arange(1, 7)), atol=1)


def test_large_boxes_are_averaged_not_sampled():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8))
    assert np.asarray(crop_box(noise, (0, 0, 200, 200), 10)).std() < 10


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_size_may_be_width_and_height_and_the_mode_stays(photo, mode):
    crop = crop_box(photo.convert(mode), (-3, -3, 20.4, 300), (7, 9))
    assert (crop.size, crop.mode) == ((7, 9), mode)


def test_one_pixel_fills_any_box():
    assert crop_box(load_image(np.uint8([[7]])), (-5, -5, 6, 6), 48).getpixel((20, 20)) == (7, 7, 7)


@pytest.mark.parametrize('box, words', [
    ((5, 5, 5, 9), 'x0 < x1'), ((5, 9, 9, 5), 'x0 < x1'), ((1, 2, 3), 'four numbers'),
    (None, 'four numbers'), ((0, 0, 'a', 1), 'four numbers'), ((0, 0, np.nan, 5), 'four numbers'),
    ((0, 0, np.inf, 5), 'four numbers'), ((300, 5, 310, 9), 'does not fit'),
    ((-9, -9, 0, 9), 'does not fit'), ((5, 256, 9, 260), 'does not fit'),
    ((-9, -9, 9, 0), 'does not fit'), ((-5000, -5000, 5001, 5001), 'does not fit')])
def test_impossible_boxes_are_refused(photo, box, words):
    with pytest.raises(GrefelError, match=words): crop_box(photo, box)
