"Alone or in company: the same bits."
import pytest
import torch

from grefel.method.files import load_model
from grefel.method.inference import AT_ONCE, pad_batch, thread_map
from grefel.method.model import create_dummy_data

ROWS = torch.arange(6.).view(3, 2)


@pytest.fixture
def threads():
    "PyTorch with two threads; as before afterwards."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_short_batch_is_filled_with_its_first_row():
    assert pad_batch(ROWS, 3).tolist() == ROWS.tolist()
    assert pad_batch(ROWS[1:], 4).tolist() == [[2, 3], [4, 5], [2, 3], [2, 3]]


@pytest.mark.parametrize('n', [2, 4])
def test_images_are_all_laid_out_alike(n):
    padded = pad_batch(torch.zeros(n, 3, 5, 5), 4)
    assert padded.is_contiguous(memory_format=torch.channels_last)


def test_a_face_gets_the_same_bits_in_any_company(threads):
    model, faces = load_model(), create_dummy_data(9, 48)[0]
    def answers(faces):
        batches = faces.split(AT_ONCE)
        def ask(b):
            with torch.no_grad(): return model(pad_batch(b, AT_ONCE))['final_probs'][:len(b)]
        with thread_map('cpu') as work: return torch.cat(list(work(ask, batches)))
    together = answers(faces)
    assert torch.equal(together, torch.cat([answers(f) for f in faces.split(1)]))
    assert torch.equal(together, answers(faces.flip(0)).flip(0))


def test_results_come_in_the_order_of_the_batches(threads):
    batches = [torch.full((1,), float(i)) for i in range(40)]
    with thread_map('cpu') as work: sums = [x.item() for x in work(torch.sum, batches)]
    assert sums == [*range(40)]


def test_pytorch_has_one_thread_meanwhile(threads):
    with thread_map('cpu') as work:
        assert {torch.get_num_threads(), *work(lambda _: torch.get_num_threads(), range(8))} == {1}
    assert torch.get_num_threads() == 2


def test_the_last_to_leave_restores_the_threads(threads):
    with thread_map('cpu'):
        later = thread_map('cpu')
        later.__enter__()
    assert torch.get_num_threads() == 1
    later.__exit__(None, None, None)
    assert torch.get_num_threads() == 2


def test_an_error_restores_the_threads_as_well(threads):
    with pytest.raises(ZeroDivisionError):
        with thread_map('cpu') as work: list(work(lambda x: 1/x, [0]))
    assert torch.get_num_threads() == 2


def test_batches_are_taken_as_they_are_needed(threads):
    # a data set need not fit into memory
    taken = []
    def batches():
        for i in range(100): yield taken.append(i) or i
    with thread_map('cpu') as work:
        next(iter(work(lambda x: x, batches())))
        assert len(taken) <= 8


def test_other_devices_get_a_plain_map():
    with thread_map('cuda') as work: assert work is map
