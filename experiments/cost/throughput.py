"""Task-steps per second of meta-training LSTM(update, tele), beside the machine's matrix-product rate.

    python -m experiments.cost.throughput            1, 8, 32, 128 and 512 tasks
    python -m experiments.cost.throughput --quick    128 and 512, in under 40 s

Published sizes (hidden 300, window 10, the 20 x 20 problems, float32), exact elements. Prints JSON. Bursts of
meta-training and of 2048 x 2048 matrix products alternate, so that both rates are those of the same machine under the
same load; a row's fraction is its own operations per second over the rate of the products in between.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from meta_teleport.learned.lstm import LSTMUpdateTele
from meta_teleport.meta.estimators import mean_log_loss, truncated_bptt
from meta_teleport.meta.unroll import start
from meta_teleport.params import Params
from meta_teleport.rules.rule import initialized, shapes_of
from meta_teleport.tasks.regression import Regression

HIDDEN, WINDOW, MATRIX = 300, 10, 2048
TASKS = (1, 8, 32, 128, 512)
QUICK_TASKS = (128, 512)
BURSTS = 6
BURST_SECONDS = 1.0
RULE: dict[str, Any] = {"hidden_size": HIDDEN, "features": "raw", "gradient_term": False, "safeguard": False}


def operations(rule: LSTMUpdateTele, second_order: bool) -> int:
    """Floating-point operations of the rule's matrix products per task and step: each weight is used once forward
    and once for its own gradient; once more for its input's, unless the input is an observed constant."""
    total = 0
    first = {id(lstm.cells[0].weight_ih) for lstm in (rule.update, *rule.element)}
    for weight in (p for p in rule.parameters() if p.ndim == 2):
        constant = id(weight) in first and not second_order
        total += (4 if constant else 6) * weight.numel()
    return total


def rate(work: Callable[[], float], seconds: float) -> tuple[float, float]:
    """Units of work done and seconds spent, in whole calls for about ``seconds``."""
    began, done = time.perf_counter(), 0.0
    while time.perf_counter() - began < seconds:
        done += work()
    return done, time.perf_counter() - began


def training_burst(count: int, second_order: bool, device: str) -> tuple[Callable[[], float], LSTMUpdateTele]:
    """A call that runs one window of ``count`` tasks and back, and says how many task-steps that was."""
    tasks = Regression().sample(count, torch.Generator().manual_seed(0), device=device)
    with initialized(0):
        rule = LSTMUpdateTele(shapes_of(tasks.params, tasks.symmetry), **RULE).to(device)
    phi: Params = dict(rule.named_parameters())
    carry = start(rule, tasks)

    def work() -> float:
        estimate = truncated_bptt(rule, phi, tasks, carry, WINDOW, mean_log_loss, second_order=second_order)
        float(estimate.meta_loss)
        return count * WINDOW

    return work, rule


def product_burst(device: str) -> Callable[[], float]:
    """A call that multiplies two matrices, and says how many operations that was."""
    a, b = torch.randn(2, MATRIX, MATRIX, generator=torch.Generator().manual_seed(0)).to(device)

    def work() -> float:
        float((a @ b)[0, 0])
        return 2.0 * MATRIX**3

    return work


def measure(count: int, second_order: bool, device: str) -> tuple[dict[str, object], float]:
    """One row, and the matrix-product rate (operations per second) between its bursts."""
    train, rule = training_burst(count, second_order, device)
    multiply = product_burst(device)
    train(), multiply()
    bursts = [(rate(train, BURST_SECONDS), rate(multiply, BURST_SECONDS)) for _ in range(BURSTS)]
    steps, train_seconds, flops, product_seconds = (sum(x) for x in zip(*(a + b for a, b in bursts), strict=True))
    per_second, product_rate = steps / train_seconds, flops / product_seconds
    row = {
        "rule": "lstm-update-tele",
        "tasks": count,
        "second_order": second_order,
        "mflop_per_task_step": round(operations(rule, second_order) / 1e6, 1),
        "task_steps_per_second": round(per_second, 1),
        "fraction_of_matmul": round(per_second * operations(rule, second_order) / product_rate, 3),
    }
    return row, product_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 and 512 tasks only")
    parser.add_argument("--second-order", action="store_true", help="second derivatives in the meta-gradient")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    measured = [measure(count, args.second_order, args.device) for count in (QUICK_TASKS if args.quick else TASKS)]
    mean_rate = sum(product_rate for _, product_rate in measured) / len(measured)
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    result = {"matmul_gflops": round(mean_rate / 1e9, 1), "hardware": hardware, "rows": [row for row, _ in measured]}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
