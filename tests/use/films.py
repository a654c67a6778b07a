"Small films that tests make: at any rate, with sound, turned, cut short or with a hole."
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from grefel.use.media import MediaSource

TENTHS = np.arange(60)/10
UNEVEN = np.concatenate([np.arange(20)/30, 1 + np.arange(5)/5, 6 + np.arange(20)/30])   # (45,)


def write_film(path, seconds=TENTHS, size=(64, 48), draw=None, codec='libx264', sound=None, rate=30,
               start=0.):
    "A film whose frame i is shown from seconds[i] on, grey of value 4 i or what draw(i) gives."
    tick = Fraction(1, rate if str(path).endswith('.avi') else 1000)
    with av.open(str(path), 'w', options=dict(movflags='faststart')) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        stream.codec_context.time_base = tick
        if codec == 'libx264': stream.options = dict(bf='0', g='12', crf='10')
        if sound: add_sound(out, sound, start, start + seconds[-1] + 0.1)
        for i, t in enumerate(seconds):
            image = draw(i) if draw else Image.new('RGB', size, (4*i % 256,)*3)
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round((start + t)/tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return Path(path)


def add_sound(out, codec, start, end):
    sound = out.add_stream(codec, rate=16_000)
    hum = np.sin(np.arange(int(16_000*(end - start)))*0.1)
    plain = codec.startswith('pcm')
    wave = (hum*9000).astype(np.int16) if plain else hum.astype(np.float32)
    waves = av.AudioFrame.from_ndarray(wave[None], 's16' if plain else 'fltp', 'mono')
    waves.sample_rate, waves.time_base = 16_000, Fraction(1, 16_000)
    waves.pts = int(16_000*start)
    out.mux(sound.encode(waves))
    out.mux(sound.encode(None))


def busy(size=(320, 240)):
    "A drawing function whose frames take many bytes, so that a hole hits some of them."
    draws = np.random.default_rng(0)
    return lambda i: Image.fromarray(draws.integers(0, 256, (*size[::-1], 3), np.uint8))


def cut(path, name, share=0.5):
    "A copy that ends early."
    data = Path(path).read_bytes()
    return _copy(path, name, data[:int(len(data)*share)])


def torn(path, name, at=0.4, length=0.1):
    "A copy that lacks some bytes in the middle, in whole packets of a transport stream."
    data = Path(path).read_bytes()
    a, b = (188*int(len(data)*s/188) for s in (at, at + length))
    return _copy(path, name, data[:a] + data[b:])


def _copy(path, name, data):
    new = Path(path).with_name(name)
    new.write_bytes(data)
    return new


def film(path): return MediaSource(str(path), Path(path).stem, 'video')


def shown(path):
    "Seconds and grey values of the frames of a film, and the codecs of its streams."
    with av.open(str(path)) as container:
        codecs = [s.codec_context.name for s in container.streams]
        frames = [(f.time, f.to_ndarray(format='rgb24')) for f in container.decode(video=0)]
    return [t for t, _ in frames], [pixels for _, pixels in frames], codecs
