"""What tests share: markers for what may be missing."""
import pytest

from grefel.base.core import data_home


def _ferplus():
    "Whether FER+'s Parquet files lie in the folder that $GREFEL_DATA names."
    home = data_home()
    return bool(home and (home/'ferplus'/'valid.parquet').exists())


needs_ferplus = pytest.mark.skipif(
    not _ferplus(), reason='FER+ is not here: name its folder in $GREFEL_DATA')
