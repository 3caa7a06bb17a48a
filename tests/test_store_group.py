"""The process group that stands in for gloo."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from store_group import StoreGroup


def collect(folder: Path, rank: int) -> dict[str, Any]:
    group = StoreGroup(dist.FileStore(str(folder / "meeting"), 2), rank, 2, "two")
    total, first = torch.tensor([1.0, 2.0]) + rank, torch.full((2, 2), float(rank))
    gathered = [torch.zeros(3), torch.zeros(3)]
    options = dist.BroadcastOptions()
    options.rootRank = 1
    group.allreduce([total]).wait()
    group.broadcast([first], options).wait()
    group.barrier().wait()
    group.allgather([gathered], [torch.full((3,), 5.0 + rank)]).wait()
    return {"total": total, "first": first, "gathered": torch.stack(gathered)}


def test_collectives_are_what_their_names_say(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda rank: collect(tmp_path, rank), (0, 1)))
    for found in both:
        assert found["total"].tolist() == [3.0, 5.0]
        assert found["first"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert found["gathered"].tolist() == [[5.0] * 3, [6.0] * 3]
