"""What the front page shows beside prose: its tables. Tested in tests/test_front_page.py."""
import json

from nbtools import NBS

EXPERIMENTS = NBS/'8_experiments'
PLAIN = {'nano': 'plain, as costly as nano', 'small': 'plain, as costly as small'}


def scored():
    "What was measured on the test images, once: shipped weights by name, and two other tools."
    return json.loads((EXPERIMENTS/'heldout.json').read_text(encoding='utf-8'))


def seeds(row, runs):
    "Mean and spread over the seeds of one row of E12, in percent."
    of = runs[runs.row == row].accuracy*100
    return f'{of.mean():.1f} ± {of.std():.1f}'


def shipped(size):
    "The validation metrics of shipped weights, as they carry them."
    from grefel.method.files import load_model
    return load_model(size).metadata['validation']


def held_out(size):
    "Test accuracy in percent; weights that were scored before those that ship are called former."
    from grefel.method.files import load_model, weights_digest
    found = scored()[f'grefel_{size}']
    accuracy = f"{100*found['accuracy']:.2f}"
    same = weights_digest(load_model(size)) == found['digest']
    return f'**{accuracy}**' if same else f'{accuracy} (former)'


def kl_untempered(row, runs):
    "Divergence from the votes, mean over seeds, no temperature."
    return f'{runs[runs.row == row].kl_votes.mean():.3f}'


def short(value):
    "Three decimals, without the zero before them."
    return f'{value:.3f}'.lstrip('0')


def milliseconds(what, speeds):
    "Median time of a face with ONNX Runtime on one thread."
    one_thread = speeds.threads.astype(str) == '1'
    found = speeds[(speeds.what == what) & (speeds.how == 'onnx') & one_thread]
    return f'{found["median"].iloc[0]:.1f}' if len(found) else '–'


def results_table():
    "GReFEL beside plain networks of the same cost; Markdown."
    import pandas as pd
    runs, speeds = (pd.read_csv(EXPERIMENTS/f) for f in ('E12_seeds.csv', 'B01_speed.csv'))
    lines = ['| | 3 seeds | KL to votes | shipped | ECE | test | ms a face |',
             '|---|---|---|---|---|---|---|']
    for size in ('small', 'nano'):
        own = shipped(size)
        lines.append(f"| **grefel {size}** | {seeds(size, runs)} | {kl_untempered(size, runs)} "
                     f"| **{100*own['accuracy']:.2f}** | {short(own['ece'])} "
                     f"| {held_out(size)} | {milliseconds(f'grefel {size}', speeds)} |")
        lines.append(f'| plain network, as many multiplications | {seeds(PLAIN[size], runs)} | '
                     f'{kl_untempered(PLAIN[size], runs)} | – | – | – | – |')
    return '\n'.join(lines)


def tools_table():
    "GReFEL beside tools that one command installs, on the same images; Markdown."
    import pandas as pd
    tools = pd.read_csv(EXPERIMENTS/'E21_tools.csv')
    noisy, = set(tools.n_noise)
    lines = [f'| | right | balanced | ECE | KL to votes | right on {noisy}, noise of 10 of 255 |',
             '|---|---|---|---|---|---|']
    for tool in tools.itertuples():
        own = tool.package == 'grefel'
        name = f'**grefel {tool.tool}**' if own else f"`{tool.package.replace('==', ' ')}`"
        lines.append(f'| {name} | {100*tool.accuracy:.1f} | {100*tool.balanced_accuracy:.1f} | '
                     f'{short(tool.ece)} | {tool.kl_votes:.2f} | '
                     f'{100*tool.noise_accuracy:.1f} |')
    return '\n'.join(lines)
