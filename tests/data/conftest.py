"""Twelve small faces of noise, and a folder to write them to in any layout."""
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from grefel.base.core import EXPRESSIONS
from grefel.data.labels import VOTES


def png(array):
    "An array as the bytes of a PNG file."
    file = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(file, 'PNG')
    return file.getvalue()


def put(path, content):
    "Write text or bytes, and give the path back."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class Twelve:
    "Twelve images of noise, whose labels go through the classes, in splits of 8, 2 and 2."
    pixels = np.random.default_rng(0).integers(0, 256, (12, 48, 48), np.uint8)
    labels = np.arange(12) % 8
    votes = (7*np.eye(10, dtype=int) + 3*np.eye(10, k=1, dtype=int))[labels]
    names = [f'fer{90000 + i:07d}.png' for i in range(12)]
    usage = ['Training']*8 + ['PublicTest']*2 + ['PrivateTest']*2
    splits = dict(train=slice(0, 8), valid=slice(8, 10), test=slice(10, 12))

    @property
    def csv(self):
        "As a table of one's own, with pixels as text."
        cells = [' '.join(map(str, p.flat)) for p in self.pixels]
        return pd.DataFrame(dict(emotion=[EXPRESSIONS[i] for i in self.labels], pixels=cells,
                                 Usage=self.usage))

    def parquet(self, rows=slice(0, 3), **columns):
        "Some of them as a Parquet file, the first without landmarks."
        names = self.names[rows]
        df = pd.DataFrame(dict(
            name=names, votes=list(self.votes[rows].astype(np.uint8)),
            image=[dict(bytes=png(p), path=n) for p, n in zip(self.pixels[rows], names)],
            landmarks=[None] + [np.full(136, .5, np.float32)]*(len(names) - 1)))
        return df.assign(**columns).to_parquet()

    def with_cell(self, column, value):
        "The first three as Parquet, with another value in row 1."
        cells = pd.read_parquet(io.BytesIO(self.parquet()))[column].tolist()
        cells[1] = value
        return self.parquet(**{column: pd.Series(cells, dtype=object)})

    def write(self, layout, folder):
        "All of them in a layout; what `load_faces` is to be given."
        return getattr(self, f'_write_{layout}')(Path(folder))

    def _write_csv(self, folder):
        return put(folder/'own.csv', self.csv.to_csv(index=False))

    def _write_paths(self, folder):
        for n, p in zip(self.names, self.pixels): put(folder/'images'/n, png(p))
        table = self.csv.assign(image=[f'images/{n}' for n in self.names]).drop(columns='pixels')
        return put(folder/'paths.csv', table.to_csv(index=False))

    def _write_folder(self, folder):
        spelt = 'Neutral Happy surprise SAD angry Disgust fear contempt'.split()
        for i, (n, p) in enumerate(zip(self.names, self.pixels)):
            put(folder/self.usage[i]/spelt[self.labels[i]]/n, png(p))
        return folder

    def _write_parquet(self, folder):
        for s, rows in self.splits.items(): put(folder/f'{s}.parquet', self.parquet(rows))
        return folder

    def _write_ferplus(self, folder):
        for s, rows in self.splits.items():
            here = folder/f'FER2013{s.title()}'
            lines = [f'{n},"(0, 0, 48, 48)",{",".join(map(str, v))}\n'
                     for n, v in zip(self.names[rows], self.votes[rows])]
            put(here/'label.csv', ''.join(lines))
            for n, p in zip(self.names[rows], self.pixels[rows]): put(here/n, png(p))
        return folder

    def _write_fer2013(self, folder):
        put(folder/'fer2013.csv', self.csv.assign(emotion=0).to_csv(index=False))
        votes = pd.DataFrame(self.votes, columns=VOTES)
        votes = votes.assign(**{'Image name': self.names, 'Usage': self.usage})
        put(folder/'fer2013new.csv', votes.to_csv(index=False))
        return folder


@pytest.fixture
def twelve(): return Twelve()
