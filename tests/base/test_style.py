"The look of plots: letters that can be read, colours that stay apart, the same file every time."
import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from grefel.base import page
from grefel.base.style import BLUE, GREY, ORANGE, PLOT_STYLE, plot_style, RED

COLOURS = dict(blue=BLUE, orange=ORANGE, red=RED, grey=GREY)


def luminance(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4) @ (.2126, .7152, .0722)


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + .05)/(low + .05)


@pytest.fixture
def settings():
    before = mpl.rcParams.copy()
    yield mpl.rcParams
    mpl.rcParams.update(before)


def test_letters_have_three_sizes_and_titles_of_figures_the_largest():
    kinds = 'fontsize', 'titlesize', 'font.size', 'labelsize'
    letters = {k: v for k, v in PLOT_STYLE.items() if k.endswith(kinds)}
    assert set(letters.values()) == {9, 10, 11} and letters['figure.titlesize'] == 11


@pytest.mark.parametrize('raster', [False, True])
def test_no_letters_are_smaller_than_nine_points(settings, raster):
    plot_style(raster)
    fig = Figure()
    ax = fig.subplots()
    ax.plot([0, 1], label='a line')
    ax.set(title='title', xlabel='x', ylabel='y')
    legend = ax.legend()
    fig.suptitle('all')
    fig.canvas.draw()
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *fig.texts,
             *ax.get_yticklabels(), *legend.get_texts()]
    assert min(t.get_fontsize() for t in texts) >= 9


@pytest.mark.parametrize('ground', ['#ffffff', '#14181e'])
@pytest.mark.parametrize('name', COLOURS)
def test_colours_stand_out_on_white_and_at_night(name, ground):
    assert contrast(COLOURS[name], ground) > 2.8


def test_the_baselines_grey_has_no_hue_and_the_others_do():
    hue = {name: max(to_rgb(c)) - min(to_rgb(c)) for name, c in COLOURS.items()}
    assert hue['grey'] < .1 and min(v for k, v in hue.items() if k != 'grey') > .4


def test_blue_and_orange_differ_where_red_and_green_are_seen_alike():
    "In yellow against blue: the mean of red and green, minus blue."
    def yellow(c): return (to_rgb(c)[0] + to_rgb(c)[1])/2 - to_rgb(c)[2]
    assert yellow(ORANGE) - yellow(BLUE) > .5


def test_lines_come_in_the_four_colours(settings):
    plot_style()
    ax = Figure().subplots()
    lines = [ax.plot([0, 1])[0].get_color() for _ in range(4)]
    assert lines == [BLUE, ORANGE, RED, GREY]


def test_the_same_plot_is_the_same_file(settings):
    def drawn():
        plot_style()
        fig, file = Figure(), io.BytesIO()
        fig.subplots().plot([0, 1, 0])
        fig.savefig(file, format='svg', metadata={'Date': None})
        return file.getvalue()
    assert drawn() == drawn()


def test_no_figure_is_wider_than_a_pages_column():
    assert PLOT_STYLE['figure.figsize'][0]*96 <= 820


def test_pages_use_the_same_colours():
    assert (page.BLUE, page.ORANGE, page.RED, page.GREY) == (BLUE, ORANGE, RED, GREY)
