"""Shares of the inputs, and processes that were launched together."""

import pytest
import torch

from adapter_llm.caption.workers import WHOLE, Group, Share

IDS = [f"photos/{number:04}.jpg" for number in range(1000)] + ["\udce9t\udce9.png", "été.png", "狗.mp4", ""]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_a_partition(count):
    shares = [[name for name in IDS if name in Share(index, count)] for index in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(IDS)
    assert all(len(share) > 0.8 * len(IDS) / count for share in shares)


@pytest.mark.parametrize("outer, inner", [(1, 3), (3, 1), (2, 2), (3, 4)])
def test_shares_of_a_share_are_a_partition_of_it(outer, inner):
    for index in range(outer):
        whole = [name for name in IDS if name in Share(index, outer)]
        parts = [Share(index, outer).split(number, inner) for number in range(inner)]
        found = [[name for name in IDS if name in part] for part in parts]
        assert sorted(name for part in found for name in part) == sorted(whole)
    numbers = [Share(i, outer).split(j, inner).number for i in range(outer) for j in range(inner)]
    assert len(set(numbers)) == outer * inner


def test_shares_do_not_depend_on_the_process():
    """Recorded: another hash would have every running job do everything again in other processes."""
    assert [name in Share(2, 3) for name in IDS[:6]] == [False, False, False, False, False, True]
    assert [name for name in IDS[1000:] if name in Share(0, 2)] == ["\udce9t\udce9.png", ""]


def test_shares_by_hand_count_from_one():
    assert [Share.parse(text) for text in ("1/1", "1/4", "4/4")] == [Share(0, 1), Share(0, 4), Share(3, 4)]
    assert [share.number for share in (WHOLE, Share(0, 4), Share(3, 4))] == [None, 1, 4]
    for text in ("0/4", "5/4", "1", "1/0", "-1/4", "1/4/2", "a/b", "1 / 4", "", "١/٢"):
        with pytest.raises(ValueError, match=r"is no share; write I/N, counted from 1: 1/4"):
            Share.parse(text)


@pytest.fixture
def launched(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)

    def launch(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return Group.of_environment()

    return launch


def test_who_was_launched(launched):
    assert launched() == Group(0, 1, 0) and launched().first
    assert launched(MASTER_PORT=1, RANK=2) == Group()  # half of what a launcher says
    assert launched(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1) == Group(5, 8, 1) and not Group(5, 8, 1).first


@pytest.mark.parametrize("rank, size, local", [(3, 3, 0), (-1, 3, 0), (0, 0, 0), ("a", 2, 0), (0, 2, -1)])
def test_nonsense_of_the_environment(launched, rank, size, local):
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE, LOCAL_RANK are .* which no launcher says; unset them"):
        launched(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=local)


def test_devices(monkeypatch, launched):
    launched()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Group().device(name) for name in ("auto", "cuda:1", "cpu")] == ["auto", "cuda:1", "cpu"]
    together = Group(3, 4, 1)
    assert [together.device(name) for name in ("auto", "cuda", "cpu", "mps")] == ["cuda:1", "cuda:1", "cpu", "mps"]
    with pytest.raises(ValueError, match="would put 4 processes on one GPU; write --device cuda"):
        together.device("cuda:0")
    with pytest.raises(ValueError, match="process 3 of this machine finds 2 GPUs; launch so many"):
        Group(2, 4, 2).device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert together.device("auto") == "auto"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert [Group().device("auto"), together.device("auto"), Group().device("cuda")] == ["cpu", "cpu", "cuda"]


def test_one_process_meets_itself():
    with Group() as group:
        group.meet()
        assert group.total([1, 2.5]) == [1, 2.5]
    assert not torch.distributed.is_initialized()
